"""Groups of options: model, optimizer, loss, data, augmentation and mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from flaxmnist import options
from flaxmnist.config.group import Group
from flaxmnist.core import augment, losses, models, optimizers, sharding
from flaxmnist.data import datasets
from flaxmnist.data.feeds import FEEDS
from flaxmnist.options import declared, one_of, option, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The name of the model, and the options that the model itself declares."""

    group: ClassVar[str] = "model"
    name: str = option("cnn", models.POINT, "Model; it decides the other options.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """The optimizer and its learning-rate schedule."""

    group: ClassVar[str] = "optimizer"
    name: str = option(
        "adam",
        optimizers.OPTIONS["name"],
        "Optimizer; the other parameters of its function in optax are options, too.",
    )
    learning_rate: float = option(
        1e-3,
        optimizers.OPTIONS["learning_rate"],
        "Largest learning rate of the schedule; the default is that of optax where it "
        "has one, such as 1.0 of prodigy.",
    )
    schedule: str = option(
        "constant",
        optimizers.OPTIONS["schedule"],
        "Learning-rate schedule: cosine ends at zero, exponential decays every epoch, "
        "one_cycle rises and then falls. The other parameters of a function in optax "
        "are options with the prefix schedule_.",
    )
    warmup: int | str | None = option(
        None,
        optimizers.OPTIONS["warmup"],
        "Length of the linear warmup, or of the rise of one_cycle.",
    )
    decay_rate: float | None = option(
        None,
        optimizers.OPTIONS["decay_rate"],
        "Factor per epoch of the exponential schedule; None: 0.95.",
    )
    clip_norm: float | None = option(
        None,
        optimizers.OPTIONS["clip_norm"],
        "Gradients with a larger global norm are scaled down to this norm.",
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns the group with these values; None selects a default.

        Earlier versions saved the options of other optimizers as None.

        Raises:
          UserError: as :meth:`Group.of`.
        """
        known = declared(cls)
        return super().of(
            {
                key: value
                for key, value in values.items()
                if value is not None or key in known
            }
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        optimizers.check_options(vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Group):
    """What training minimizes."""

    group: ClassVar[str] = "loss"
    name: str = option(
        "cross_entropy",
        losses.POINT,
        "Loss of training; evaluation always reports the plain cross-entropy.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The data set, and the place from which it is read."""

    group: ClassVar[str] = "data"
    name: str = option(
        "mnist",
        datasets.OPTIONS["name"],
        "Data set: mnist, fashion_mnist, kmnist, emnist/letters and other splits of "
        "emnist, qmnist, or the name of another set of TensorFlow Datasets. Other "
        "files need no name.",
    )
    source: str = option(
        "auto",
        datasets.OPTIONS["source"],
        "Source of the data; only auto falls back to another source.",
        mutable=True,
    )
    dir: str | None = option(
        None,
        datasets.OPTIONS["dir"],
        "Directory of the data files, or a file; None: FLAXMNIST_DATA_DIR, then the "
        "cache.",
        mutable=True,
    )
    validation_share: float | None = option(
        None,
        datasets.OPTIONS["validation_share"],
        "Share of the training examples of each class that is drawn for validation; "
        "None: the validation split in the files, or a twelfth.",
    )
    split_seed: int = option(
        0, datasets.OPTIONS["split_seed"], "Seed of the draw of validation and test."
    )
    placement: str = option(
        "device",
        one_of(FEEDS),
        "Where the examples are stored: on the devices, or on the host if they do not "
        "fit.",
        mutable=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Group):
    """The random distortion of training images, and its options."""

    group: ClassVar[str] = "augment"
    name: str = option(
        "distort",
        augment.POINT,
        "Augmentation; by default, it leaves the images as they are.",
    )
    stop_before_end: int | str | None = option(
        None,
        optional(options.duration),
        "Length of the last part of the run, which trains on plain images.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Group):
    """The devices, and what is split over them."""

    group: ClassVar[str] = "mesh"
    data: int = option(
        -1,
        sharding.OPTIONS["data"],
        "Number of parts of each batch; -1: one for each device.",
        mutable=True,
    )
    model: int = option(
        1,
        sharding.OPTIONS["model"],
        "Number of parts of each dense layer.",
        mutable=True,
    )
    fsdp: bool = option(
        False,
        options.boolean,
        "Whether to split parameters and optimizer state over the data axis, too.",
        mutable=True,
    )
    devices: tuple[int, ...] | None = option(
        None,
        sharding.OPTIONS["devices"],
        "Ids of the devices; None: all.",
        mutable=True,
    )
