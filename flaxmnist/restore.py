"""Starting, warm-starting, resuming and inspecting runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from flaxmnist import checks, machine, models, optim, sharding
from flaxmnist import config as configs
from flaxmnist import workdir as workdirs
from flaxmnist.checkpoint import FIGURES, Checkpoints
from flaxmnist.checks import UserError, path_of
from flaxmnist.console import Console
from flaxmnist.memory import available_memory
from flaxmnist.metrics import Metrics
from flaxmnist.run import Run, build
from flaxmnist.state import TrainState, abstract_state, create_state


def _optional(schema: checks.Schema) -> checks.Kind:
    """An object of that schema, or None."""
    kind = checks.Kind("an object", lambda value: checks.conform(value, schema))
    return checks.optional(kind)


_STEP = checks.whole(0, below=checks.MAX_STEPS)
# The parts of a checkpoint's record that a run reads.
_RECORD: checks.Schema = {
    "config": checks.Kind("an object", lambda value: {**value}),
    "dataset": {
        "name": checks.text,
        "source": checks.text,
        "fingerprint": checks.text,
        "counts": {"train": _STEP},
    },
    "total_steps": _STEP,
    "best": {
        "validation": _optional(FIGURES),
        "step": checks.optional(_STEP),
        "waited": _STEP,
    },
    "rollbacks": checks.optional(_STEP),
    "metrics": _optional({"lines": checks.whole(0), "checksum": checks.whole(0)}),
    "versions": checks.optional(checks.by_name(checks.text)),
    "machine": checks.optional(checks.by_name(checks.text)),
}


@dataclasses.dataclass
class Training:
    """Where training is: all that a checkpoint holds, so all that resuming needs.

    Attributes:
      step: updates made.
      state: the train state, on the mesh.
      window: metrics of the steps since the last log.
      best: the best `validation` figures, their `step`, and how many evaluations
        have `waited` for better ones.
      rollbacks: how often a loss that was not finite sent it back to a checkpoint;
        each halved the learning rate.
      written: what :meth:`flaxmnist.writers.MetricsWriter.sync` returned at that step,
        if it is known.
    """

    step: int
    state: TrainState
    window: Metrics
    best: dict[str, Any]
    rollbacks: int = 0
    written: dict[str, int] | None = None

    @property
    def rate_scale(self) -> float:
        """What the learning rate is multiplied by."""
        return 0.5**self.rollbacks

    def finished(self, run: Run) -> bool:
        """Returns whether nothing is left to train."""
        patience = run.config.patience
        out_of_patience = patience is not None and self.best["waited"] >= patience
        return self.step >= run.total_steps or out_of_patience


def abstract_tree(run: Run) -> dict[str, Any]:
    """Returns the shapes and shardings of the arrays that a checkpoint holds."""
    return {
        "state": abstract_state(run.model, run.tx, run.layout, **run.state_options),
        "window": sharding.abstract(lambda: Metrics.empty().sums, run.everywhere),
    }


def expected(run: Run) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """Returns what a checkpoint of this run is restored into, and checked with."""
    return abstract_tree(run), functools.partial(_check_same_run, run)


def _check_same_run(run: Run, record: dict[str, Any]) -> None:
    """Raises UserError unless a checkpoint's record is of this run."""
    checks.conform(record, _RECORD)
    before, now = record["dataset"], run.dataset
    # Records of older versions know the training split alone.
    known = before.get("fingerprints", {"train": before["fingerprint"]})
    if other := [split for split in known if known[split] != now.fingerprints[split]]:
        source = f"--config.data.source={before['source']}"
        if before["source"] in ("idx", "tfds"):
            source += " and --config.data.dir=DIR"
        raise UserError(
            f"this run was trained on {before['name']} ({before['source']}, "
            f"{before['counts']['train']:,} examples), but the data is now {now.name} "
            f"({now.source}, {len(now.train):,}), with other examples in "
            f"{', '.join(other)}; give the former data with {source}, or use another "
            "--workdir"
        )
    trained = configs.resolved(record["config"])
    workdirs.check_same(trained, run.config)


def begin(run: Run) -> Training:
    """Returns a run before its first step, with the parameters of `config.init_from`.

    Raises:
      UserError: there is no such run, or its parameters are not of this model.
    """
    state = create_state(
        run.model, run.tx, run.config.seed, run.layout, **run.state_options
    )
    if run.config.init_from is not None:
        state = _warm_start(run, state)
    best = {"validation": None, "step": None, "waited": 0}
    return Training(0, state, run.no_metrics(), best)


def _warm_start(run: Run, state: TrainState) -> TrainState:
    source = Path(run.config.init_from)
    with Checkpoints(source / "checkpoints", read_only=True) as checkpoints:
        config = workdirs.saved_config(source)
        decay = None if config is None else config.ema
        there = with_parameters(
            dataclasses.replace(state, ema=state.params, ema_decay=decay),
            checkpoints,
            checkpoints.best_step,
        )
    params = there.eval_params
    return dataclasses.replace(
        state,
        params=params,
        model_state=there.model_state,
        ema=None if state.ema is None else jax.tree.map(jnp.copy, params),
    )


def with_parameters(
    state: TrainState, checkpoints: Checkpoints, step: int
) -> TrainState:
    """Returns `state` with a checkpoint's parameters, their average, and collections.

    Raises:
      UserError: they are not of this model, or (`DamagedError`) damaged.
    """
    wanted = {"params": state.params, "model_state": state.model_state}
    if state.ema_decay is not None:
        wanted["ema"] = state.ema
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        wanted,
    )
    tree, _ = checkpoints.restore(step, {"state": like}, lambda record: None)
    return dataclasses.replace(state, **tree["state"])


def load_state(workdir: str | Path, step: int | None = None) -> TrainState:
    """Returns a run's best state on validation, or that of `step`, to predict by.

    It is on the default device, without an optimizer; the data are not needed.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    workdir = path_of(workdir, "workdir")
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        config = workdirs.saved_config(workdir)
        if config is None:
            raise UserError(f"no run in {workdir}: there is no config.json")
        model = models.build(dtype=config.precision, **config.model)
        tx = optax.identity()
        size = 4 * models.num_parameters(abstract_state(model, tx).params)
        if size > (free := available_memory()):
            raise UserError(
                f"the model of {workdir} needs {size / 1e9:,.1f} GB of memory; "
                f"{free / 1e9:,.1f} GB are available"
            )
        state = create_state(model, tx, ema_decay=config.ema)
        chosen = checkpoints.best_step if step is None else step
        return with_parameters(state, checkpoints, chosen)


def open_saved(
    workdir: Path,
    step: int | None = None,
    console: Console | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> tuple[Run, TrainState, int, int]:
    """Opens a run as :func:`open_run`, as its folder describes it, on one device.

    Args:
      workdir: the run directory.
      step: of the checkpoint.
      console: where to speak.
      overrides: changes such as ``("data.dir", "/other/place")``.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    config = workdirs.saved_config(workdir)
    if config is None:
        raise UserError(f"no run in {workdir}: there is no config.json")
    # It may have been trained on more devices than there are here.
    config.mesh = ConfigDict({"data": 1})
    config = configs.override(config, overrides)
    return open_run(config, workdir, step, console)


def resume(run: Run, checkpoints: Checkpoints, console: Console) -> Training:
    """Returns the run as its newest checkpoint has it, or its beginning.

    Raises:
      UserError: all checkpoints are damaged, or of another configuration or data.
    """
    restored = checkpoints.restore_newest(*expected(run))
    if restored is None:
        return begin(run)
    step, tree, record = restored
    schedule = run.config.optimizer.schedule
    other_length = record["total_steps"] != run.total_steps and step < run.total_steps
    if other_length and schedule in ("cosine", "one_cycle"):
        console.warn(
            f"the run is now {run.total_steps} steps long, no longer "
            f"{record['total_steps']}: its {schedule} schedule is stretched to that, "
            "and the learning rate jumps"
        )
    window = dataclasses.replace(run.no_metrics(), **tree["window"])
    if step < run.total_steps and (changes := machine.changes(record)):
        console.warn(f"the checkpoint of step {step} {changes}")
    at = Training(
        step, tree["state"], window, record["best"], written=record.get("metrics")
    )
    return _slowed(run, at, record.get("rollbacks", 0))


def _slowed(run: Run, at: Training, rollbacks: int) -> Training:
    """Returns `at` after so many rollbacks."""
    if rollbacks:
        at.rollbacks = rollbacks
        tx = optim.scaled(run.tx, at.rate_scale)
        at.state = dataclasses.replace(at.state, tx=tx)
    return at


class NotFiniteError(Exception):
    """The loss is not finite any more, or the state that was made of it."""

    def __init__(self, first: int, last: int):
        super().__init__(
            f"the loss is not finite any more, between the steps {first} and {last}"
        )


def roll_back(
    run: Run,
    at: Training,
    checkpoints: Checkpoints,
    console: Console,
    error: NotFiniteError,
) -> Training:
    """Returns the run at its newest checkpoint, with half the learning rate of `at`.

    Every checkpoint is of a state that is finite. Before the first, a run begins anew.

    Raises:
      UserError: `config.on_nan` is "stop", or no rollback is left.
    """
    checkpoints.wait()
    option, rate = "optimizer.learning_rate", run.config.optimizer.learning_rate
    most = run.config.max_rollbacks
    if run.config.on_nan == "rollback" and at.rollbacks < most:
        back = _slowed(run, resume(run, checkpoints, console), at.rollbacks + 1)
        console.warn(
            f"{error}: back to step {back.step}, with {option}="
            f"{rate * back.rate_scale:g} (rollback {back.rollbacks} of {most})"
        )
        return back
    kept = "there is no checkpoint yet"
    if steps := checkpoints.steps:
        kept = (
            f"the last good checkpoint is of step {steps[-1]}, "
            f"in {checkpoints.directory}"
        )
    tried = f", after {at.rollbacks} of {most} rollbacks" if at.rollbacks else ""
    other = ", or on_nan=rollback" if run.config.on_nan == "stop" else ""
    raise UserError(
        f"{error}{tried}; {kept}\nTry a smaller {option} than "
        f"{rate * at.rate_scale:g}, optimizer.clip_norm=1{other}"
    ) from None


def open_run(
    config: ConfigDict,
    workdir: str | Path,
    step: int | None = None,
    console: Console | None = None,
) -> tuple[Run, TrainState, int, int]:
    """Opens a run at its best checkpoint on validation, or that of `step`.

    Nothing is written.

    Returns:
      the run, the state, the step of that state, and the last step trained.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    config, workdir = configs.resolve(config), path_of(workdir, "workdir")
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        workdirs.check(workdir, config)
        run = build(config)
        chosen = checkpoints.best_step if step is None else step
        tree, _ = checkpoints.restore(chosen, *expected(run))
        last = checkpoints.steps[-1]
    if run.dataset.warning:
        (console or Console()).warn(run.dataset.warning)
    return run, tree["state"], chosen, last
