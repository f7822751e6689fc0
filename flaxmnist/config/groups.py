"""Groups of options: model, optimizer, data and mesh."""

import dataclasses
import functools
from typing import Any, ClassVar, cast

from flaxmnist import options
from flaxmnist.core import models, optim, sharding
from flaxmnist.data import datasets
from flaxmnist.data.feeds import FEEDS
from flaxmnist.options import Option, declared, one_of, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A group of options, checked and converted to canonical form when it is made.

    Raises:
      UserError: a value is not of its option's type.
    """

    group: ClassVar[str]

    def __post_init__(self) -> None:
        types = {name: one.type for name, one in declared(type(self)).items()}
        given = {name: getattr(self, name) for name in types}
        for name, value in options.check(self.group, given, types).items():
            object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The name of the model, and the options that the model itself declares."""

    group: ClassVar[str] = "model"
    name: str = dataclasses.field(init=False)


def model_config(name: str) -> type[ModelConfig]:
    """Returns the class of the options of the model `name`.

    Raises:
      UserError: the model is unknown.
    """
    models.options(name)
    # mypy does not know that classes are hashable.
    return _model_config(name, cast(Any, models.MODELS[name]))


@functools.cache
def _model_config(name: str, model: Any) -> type[ModelConfig]:
    named = Option(one_of(models.MODELS), name, "Model; it decides the other options.")
    field = dataclasses.field(default=name, init=False, metadata={"option": named})
    fields: list[tuple[str, Any, Any]] = [("name", str, field)]
    fields += [
        (key, Any, option(one.default, one.type, one.help))
        for key, one in models.options(name).items()
    ]
    return dataclasses.make_dataclass(
        "ModelConfig", fields, bases=(ModelConfig,), frozen=True, kw_only=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Group):
    """The optimizer and its learning-rate schedule."""

    group: ClassVar[str] = "optimizer"
    name: str = option("adam", optim.OPTIONS["name"], "Optimizer.")
    learning_rate: float = option(
        1e-3, optim.OPTIONS["learning_rate"], "Largest learning rate of the schedule."
    )
    schedule: str = option(
        "constant",
        optim.OPTIONS["schedule"],
        "Learning-rate schedule: cosine ends at zero, exponential decays every epoch, "
        "one_cycle rises and then falls.",
    )
    warmup: int | str | None = option(
        None,
        optim.OPTIONS["warmup"],
        "Length of the linear warmup, or of the rise of one_cycle.",
    )
    decay_rate: float | None = option(
        None,
        optim.OPTIONS["decay_rate"],
        "Factor per epoch of the exponential schedule; None: 0.95.",
    )
    momentum: float | None = option(
        None, optim.OPTIONS["momentum"], "Momentum of sgd; None: no momentum."
    )
    nesterov: bool | None = option(
        None, optim.OPTIONS["nesterov"], "Whether the momentum of sgd is Nesterov's."
    )
    weight_decay: float | None = option(
        None, optim.OPTIONS["weight_decay"], "Weight decay of adamw; None: 0.0001."
    )
    clip_norm: float | None = option(
        None,
        optim.OPTIONS["clip_norm"],
        "Gradients with a larger global norm are scaled down to this norm.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        optim.check_combination(vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The data set, and the place from which it is read."""

    group: ClassVar[str] = "data"
    name: str = option(
        "mnist",
        datasets.OPTIONS["name"],
        "Data set: mnist, fashion_mnist, kmnist, or the name of another 28×28×1 set of "
        "TensorFlow Datasets.",
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
        "Directory of the data files; None: FLAXMNIST_DATA_DIR, then the cache.",
        mutable=True,
    )
    placement: str = option(
        "device",
        one_of(FEEDS),
        "Where the examples are stored: on the devices, or on the host if they do not "
        "fit.",
        mutable=True,
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
