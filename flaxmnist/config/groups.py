"""Groups of options: model, optimizer, loss, data, augmentation and mesh."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

from flaxmnist import options
from flaxmnist.core import augment, losses, models, optimizers, sharding
from flaxmnist.data import datasets
from flaxmnist.data.feeds import FEEDS
from flaxmnist.errors import UserError, did_you_mean
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import Option, declared, one_of, option, optional
from flaxmnist.signatures import REQUIRED

# Callables that an error names.
MAX_NAMES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A group of options, checked and converted to canonical form when it is made.

    Raises:
      UserError: a value is not of its option's type.
    """

    group: ClassVar[str]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns the group with these values.

        An option whose type is an `ExtensionPoint` names a callable, whose parameters
        are options of the group as well: the class of the group is a subclass of `cls`
        with these as further fields.

        Raises:
          UserError: a value is not of its option's type, an option is unknown, or one
            that the callable requires is missing.
        """
        made = cls.class_for(values)
        known = declared(made)
        for key in values:
            if key not in known:
                raise _unknown(cls, key, values)
        return made(**values)

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[Self]:
        """Returns the class of the group with these values; see :meth:`of`."""
        points = points_of(cls)
        named = {name: values.get(name, declared(cls)[name].default) for name in points}
        named = options.check(cls.group, named, points)
        callables = (
            (key, one, points[key].callable(one)) for key, one in named.items()
        )
        return cast(type[Self], _with_options(cast(Any, cls), tuple(callables)))

    def __post_init__(self) -> None:
        cls = type(self)
        for name, one in declared(cls).items():
            if getattr(self, name) is REQUIRED:
                raise UserError(
                    f"{self.group}.{name} is missing; expected {one.type.expected}. "
                    f"Set --config.{self.group}.{name}=VALUE"
                )
        types = {name: one.type for name, one in declared(cls).items()}
        given = {name: getattr(self, name) for name in types}
        for name, value in options.check(self.group, given, types).items():
            object.__setattr__(self, name, value)
        base = next(one for one in cls.__mro__ if "group" in vars(one))
        if cast(type[Group], base).class_for(vars(self)) is not cls:
            raise UserError(
                f"{self.group}: {', '.join(points_of(cls))} cannot be replaced alone, "
                "because other options depend on it; use config.override"
            )


def points_of(cls: type[Group]) -> dict[str, ExtensionPoint]:
    """Returns the types of the options that name callables, by option."""
    types = {name: one.type for name, one in declared(cls).items()}
    return {key: one for key, one in types.items() if isinstance(one, ExtensionPoint)}


def _unknown(cls: type[Group], key: str, values: Mapping[str, Any]) -> UserError:
    """Returns the error for an option that the callables of a group do not have."""
    for name, point in points_of(cls).items():
        if users := point.users(key):
            given = values.get(name, declared(cls)[name].default)
            users = sorted(users, key=lambda one: one not in point.listed)[:MAX_NAMES]
            return UserError(
                f"{cls.group}.{key} has no effect with {cls.group}.{name}={given!r}; "
                f"expected {cls.group}.{name} to be {' or '.join(map(repr, users))}"
            )
    known = declared(cls.class_for(values))
    return UserError(f"unknown option '{cls.group}.{key}'{did_you_mean(key, known)}")


@functools.cache
def _with_options(
    cls: type[Group], callables: tuple[tuple[str, str, Any], ...]
) -> type[Group]:
    """Returns `cls` with the options that callables bring.

    Args:
      cls: the class that declares the options of every callable.
      callables: option, canonical name and object of each callable. A file that is
        executed again defines another object.
    """
    found: dict[str, Option] = {}
    for key, name, _ in callables:
        own = points_of(cls)[key].options(name)
        if both := found.keys() & own.keys():
            raise UserError(
                f"{cls.group}.{key}={name!r} and another callable of this group both "
                f"have the option {min(both)!r}; rename one"
            )
        if reserved := [one for one in own if one == "group" or hasattr(Group, one)]:
            raise UserError(
                f"{cls.group}.{key}={name!r} has the parameter {reserved[0]!r}, which "
                "cannot be an option; rename it"
            )
        # A run that may name another callable may change its options, too.
        mutable = declared(cls)[key].mutable
        found |= {
            each: dataclasses.replace(one, mutable=mutable) for each, one in own.items()
        }
    if not found:
        return cls
    fields = [
        (key, Any, option(one.default, one.type, one.help, mutable=one.mutable))
        for key, one in found.items()
    ]
    return dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True
    )


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
