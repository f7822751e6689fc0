"""All options of a run: those of no group, and the groups."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from flaxmnist import options
from flaxmnist.config.group import Group, points_of
from flaxmnist.config.groups import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
)
from flaxmnist.core import arguments, metrics
from flaxmnist.data.splits import SPLITS
from flaxmnist.errors import UserError, shown
from flaxmnist.options import Option, declared, one_of, option, optional, whole

TENSORS = ("probabilities", "logits", "classes")
SUMMARIES = ("norms", "histograms", "filters", "mistakes")
PRECISIONS = ("float32", "bfloat16")

GROUPS: dict[str, type[Group]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "loss": LossConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
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
        "that of the whole batch, except for batch normalization. A step "
        "on a CPU may divide a large batch if this is 1.",
    )
    precision: str = option(
        "float32",
        one_of(PRECISIONS),
        "Type that layers compute in; parameters, optimizer state, batch statistics, "
        "logits and loss are float32 in any case.",
    )
    ema: float | None = option(
        None,
        arguments.ARGUMENTS["ema_decay"],
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
    metrics: tuple[str, ...] = option(
        (),
        metrics.NAMES,
        "Further metrics: top5, macro_f1, or functions of logits and labels, a value "
        "per example.",
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
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig.of({}))
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig.of({})
    )
    loss: LossConfig = dataclasses.field(default_factory=lambda: LossConfig.of({}))
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(
        default_factory=lambda: AugmentConfig.of({})
    )
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

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


def declarations(*, listed: bool = False) -> dict[str, dict[str, Option]]:
    """Returns the declarations of every shipped option, by its full name.

    With `listed`, those that the reference lists: it does not depend on the version of
    another package.

    Those of an option such as ``"model.hidden"`` are by the callables that bring it;
    any other option has a single one, under the name ``""``.
    """
    found = {name: {"": one} for name, one in declared(Config).items()}
    for group, cls in GROUPS.items():
        found |= {f"{group}.{key}": {"": one} for key, one in declared(cls).items()}
        for point in points_of(cls).values():
            for name in point.listed if listed else point.shipped:
                for key, one in point.options(name).items():
                    found.setdefault(f"{group}.{key}", {})[name] = one
    return found


def walk(config: Group) -> Iterator[tuple[str, Option, Any]]:
    """Yields the full name, the declaration and the value of each option."""
    for name, one in declared(type(config)).items():
        yield f"{config.group}.{name}".lstrip("."), one, getattr(config, name)
    for value in vars(config).values():
        if isinstance(value, Group):
            yield from walk(value)
