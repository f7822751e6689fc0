"""Every option of a run: its type, default and help, and whether it is mutable."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar, cast

from flaxmnist import options
from flaxmnist.core import models, optim, sharding, state
from flaxmnist.data import datasets
from flaxmnist.data.feeds import FEEDS
from flaxmnist.data.splits import SPLITS
from flaxmnist.errors import UserError, shown
from flaxmnist.options import Option, declared, one_of, option, optional, whole

TENSORS = ("probabilities", "logits", "classes")
SUMMARIES = ("norms", "histograms", "filters", "mistakes")
PRECISIONS = ("float32", "bfloat16")
DEFAULT_MODEL = "cnn"


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


GROUPS: dict[str, type[Group]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "data": DataConfig,
    "mesh": MeshConfig,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Group):
    """A configuration, which is always valid and in canonical form.

    Use `dataclasses.replace` to change it.

    Raises:
      UserError: a value is not possible, or two values exclude each other.
    """

    group: ClassVar[str] = ""
    seed: int = option(0, options.seed, "Seed of every random draw.")
    batch_size: int = option(
        100, options.count, "Examples per training step, summed over all devices."
    )
    grad_accumulation: int = option(
        1,
        options.count,
        "Micro-batches per batch: only one at a time needs memory, and the update is "
        "that of the whole batch.",
    )
    precision: str = option(
        "float32",
        one_of(PRECISIONS),
        "Type that layers compute in; parameters, optimizer state, batch statistics, "
        "logits and loss are float32 in any case.",
    )
    ema: float | None = option(
        None,
        state.OPTIONS["ema_decay"],
        "Decay per step of an average of the parameters, such as 0.999; evaluation, "
        "prediction and export use the average, with batch statistics as they are.",
    )
    num_epochs: int | float | None = option(
        None,
        optional(options.epochs),
        "Length of the run in epochs; exactly one of num_epochs and num_steps is set.",
        mutable=True,
    )
    num_steps: int | None = option(
        None, optional(options.count), "Length of the run in steps.", mutable=True
    )
    log_every: int | str = option(
        100,
        options.duration,
        "Interval between two lines of training metrics.",
        mutable=True,
    )
    eval_every: int | str = option(
        "1 epochs", options.duration, "Interval between two evaluations.", mutable=True
    )
    eval_splits: tuple[str, ...] = option(
        ("validation",),
        options.some_of(SPLITS, always="validation"),
        "Splits that are evaluated during training.",
        mutable=True,
    )
    eval_batch_size: int = option(
        200,  # Larger batches do not fit in the caches of a CPU.
        options.count,
        "Examples per evaluation step, summed over all devices.",
        mutable=True,
    )
    patience: int | None = option(
        None,
        optional(whole(1)),
        "Number of evaluations without a better one after which training stops.",
        mutable=True,
    )
    checkpoint_every: int | str = option(
        "1 epochs", options.duration, "Interval between two checkpoints.", mutable=True
    )
    keep_checkpoints: int = option(
        3,
        whole(1),
        "Number of newest checkpoints to keep, in addition to the best on validation.",
        mutable=True,
    )
    init_from: str | None = option(
        None,
        optional(options.folder),
        "Run directory whose best parameters are the initial parameters of this run.",
    )
    on_nan: str = option(
        "stop",
        one_of(("stop", "rollback")),
        "What a non-finite loss causes: the run stops, or returns to the newest "
        "checkpoint with half the learning rate.",
        mutable=True,
    )
    max_rollbacks: int = option(
        3, whole(1), "Maximum number of rollbacks of a run.", mutable=True
    )
    summaries: tuple[str, ...] = option(
        ("norms",),
        options.some_of(SUMMARIES),
        "Summaries for TensorBoard: norms of gradients and parameters; at evaluation, "
        "histograms of parameters, filters of the first layer, mistakes on validation.",
        mutable=True,
    )
    log_tensors: tuple[str, ...] = option(
        (),
        options.some_of(TENSORS),
        "Outputs for four validation images that are logged.",
        mutable=True,
    )
    every_n_steps: int | str = option(
        100, options.duration, "Interval between two logs of log_tensors.", mutable=True
    )
    log_device_placement: bool = option(
        False,
        options.boolean,
        "Whether to print the device of each parameter and of each array of a batch.",
        mutable=True,
    )
    report: bool = option(
        True, options.boolean, "Whether to write report.html and plots/.", mutable=True
    )
    model: ModelConfig = dataclasses.field(
        default_factory=lambda: model_config(DEFAULT_MODEL)()
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, cls in GROUPS.items():
            if not isinstance(group := getattr(self, name), cls):
                raise UserError(f"{name}={shown(group)}: expected a {cls.__name__}")
        if (self.num_epochs is None) == (self.num_steps is None):
            raise UserError(
                f"num_epochs={self.num_epochs} and num_steps={self.num_steps}: "
                "expected one of them, and the other to be None"
            )


def declarations() -> dict[str, dict[str, Option]]:
    """Returns the declarations of every option, by its full name.

    Those of an option such as ``"model.hidden"`` are by model; any other option has a
    single one, under the name ``""``.
    """
    found = {name: {"": one} for name, one in declared(Config).items()}
    for model in models.MODELS:
        for name, one in declared(model_config(model)).items():
            found.setdefault(f"model.{name}", {})[model] = one
    for cls in (OptimizerConfig, DataConfig, MeshConfig):
        found |= {f"{cls.group}.{key}": {"": one} for key, one in declared(cls).items()}
    return found


def walk(config: Group) -> Iterator[tuple[str, Option, Any]]:
    """Yields the full name, the declaration and the value of each option."""
    for name, one in declared(type(config)).items():
        yield f"{config.group}.{name}".lstrip("."), one, getattr(config, name)
    for value in vars(config).values():
        if isinstance(value, Group):
            yield from walk(value)
