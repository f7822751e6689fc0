"""Starting, warm-starting, resuming and inspecting runs."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxmnist import config as configs
from flaxmnist.core import optim, sharding
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import TrainState, abstract_state, create_state
from flaxmnist.data import Dataset
from flaxmnist.errors import NotFiniteError, UserError
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Best, LogPosition, Manifest
from flaxmnist.runtime import machine
from flaxmnist.runtime.console import Console
from flaxmnist.training.experiment import Run


@dataclasses.dataclass
class Training:
    """Where training is: all that a checkpoint holds, so all that resuming needs.

    Attributes:
      step: updates made.
      state: the train state, on the mesh.
      window: metrics of the steps since the last log.
      best: the best evaluation on validation so far.
      rollbacks: how often a loss that was not finite sent it back to a checkpoint;
        each halved the learning rate.
      written: what :meth:`MetricsWriter.sync` returned at that step, if it is known.
    """

    step: int
    state: TrainState
    window: Metrics
    best: Best
    rollbacks: int = 0
    written: LogPosition | None = None

    @property
    def rate_scale(self) -> float:
        """What the learning rate is multiplied by."""
        return 0.5**self.rollbacks

    def finished(self, run: Run) -> bool:
        """Returns whether nothing is left to train."""
        patience = run.config.patience
        out_of_patience = patience is not None and self.best.waited >= patience
        return self.step >= run.total_steps or out_of_patience


def abstract_tree(run: Run) -> dict[str, Any]:
    """Returns the shapes and shardings of the arrays that a checkpoint holds."""
    return {
        "state": abstract_state(run.model, run.tx, run.layout, **run.state_options),
        "window": sharding.abstract(lambda: Metrics.empty().sums, run.everywhere),
    }


def expected(run: Run) -> tuple[dict[str, Any], Callable[[Manifest], None]]:
    """Returns what a checkpoint of this run is restored into, and checked with."""
    return abstract_tree(run), functools.partial(_check_same_run, run)


def _check_same_run(run: Run, manifest: Manifest) -> None:
    """Raises UserError unless a checkpoint is of this run."""
    check_same_data(manifest, run.dataset)
    workdirs.check_same(configs.from_dict(manifest.config), run.config)


def check_same_data(manifest: Manifest, now: Dataset) -> None:
    """Raises UserError unless a checkpoint was trained on these examples."""
    before = manifest.dataset
    # Older versions recorded the fingerprint of the training split only.
    known = before.fingerprints or {"train": before.fingerprint}
    if other := [split for split in known if known[split] != now.fingerprints[split]]:
        source = f"--config.data.source={before.source}"
        if before.source in ("idx", "tfds"):
            source += " and --config.data.dir=DIR"
        raise UserError(
            f"this run was trained on {before.name} ({before.source}, "
            f"{before.counts['train']:,} examples), but the data is now {now.name} "
            f"({now.source}, {len(now.train):,}), with other examples in "
            f"{', '.join(other)}; give the former data with {source}, or use another "
            "--workdir"
        )


def begin(run: Run) -> Training:
    """Returns a run before its first step, with the parameters of `config.init_from`.

    Raises:
      UserError: there is no such run, or its parameters are not of this model.
    """
    state = create_state(
        run.model, run.tx, run.config.seed, run.layout, **run.state_options
    )
    if (source := run.config.init_from) is not None:
        state = _warm_start(Path(source), state)
    return Training(0, state, run.no_metrics(), Best())


def _warm_start(source: Path, state: TrainState) -> TrainState:
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
    tree, _ = checkpoints.restore(step, {"state": like}, lambda manifest: None)
    return dataclasses.replace(state, **tree["state"])


def resume(run: Run, checkpoints: Checkpoints, console: Console) -> Training:
    """Returns the run as its newest checkpoint has it, or its beginning.

    Raises:
      UserError: all checkpoints are damaged, or of another configuration or data.
    """
    restored = checkpoints.restore_newest(*expected(run))
    if restored is None:
        return begin(run)
    step, tree, manifest = restored
    schedule = run.config.optimizer.schedule
    other_length = manifest.total_steps != run.total_steps and step < run.total_steps
    if other_length and schedule in ("cosine", "one_cycle"):
        console.warn(
            f"the run is now {run.total_steps} steps long, no longer "
            f"{manifest.total_steps}: its {schedule} schedule is stretched to that, "
            "and the learning rate jumps"
        )
    window = dataclasses.replace(run.no_metrics(), **tree["window"])
    if step < run.total_steps and (
        changes := machine.changes(manifest.versions, manifest.machine)
    ):
        console.warn(f"the checkpoint of step {step} {changes}")
    at = Training(step, tree["state"], window, manifest.best, written=manifest.metrics)
    return _slowed(run, at, manifest.rollbacks)


def _slowed(run: Run, at: Training, rollbacks: int) -> Training:
    """Returns `at` after so many rollbacks."""
    if rollbacks:
        at.rollbacks = rollbacks
        tx = optim.scaled(run.tx, at.rate_scale)
        at.state = dataclasses.replace(at.state, tx=tx)
    return at


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
