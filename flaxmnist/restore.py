"""A run taken up: begun, begun from another's parameters, resumed, looked at."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
import psutil
from ml_collections import ConfigDict

from flaxmnist import config as configs
from flaxmnist import models, sharding
from flaxmnist import workdir as workdirs
from flaxmnist.checkpoint import Checkpoints
from flaxmnist.checks import UserError
from flaxmnist.console import Console
from flaxmnist.metrics import Metrics
from flaxmnist.run import Run, build
from flaxmnist.state import TrainState, abstract_state, create_state


@dataclasses.dataclass
class Training:
    """Where training is: all that a checkpoint holds, so all that resuming needs.

    Attributes:
      step: updates made.
      state: the train state, on the mesh.
      window: metrics of the steps since the last log.
      best: the best `validation` figures, their `step`, and how many evaluations
        have `waited` for better ones.
    """

    step: int
    state: TrainState
    window: Metrics
    best: dict[str, Any]

    def finished(self, run: Run) -> bool:
        """Returns whether nothing is left to train."""
        patience = run.config.patience
        out_of_patience = patience is not None and self.best["waited"] >= patience
        return self.step >= run.total_steps or out_of_patience


def abstract_tree(run: Run) -> dict[str, Any]:
    """Returns the shapes and shardings of the arrays that a checkpoint holds."""
    return {
        "state": abstract_state(run.model, run.tx, run.everywhere),
        "window": sharding.abstract(Metrics.empty, run.everywhere),
    }


def expected(run: Run) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """Returns what a checkpoint of this run is restored into, and checked with."""
    return abstract_tree(run), functools.partial(_check_same_run, run)


def _check_same_run(run: Run, record: dict[str, Any]) -> None:
    """Raises UserError unless a checkpoint's record is of this run."""
    before = record["dataset"]
    if before["fingerprint"] != run.dataset.fingerprint:
        raise UserError(
            f"this run was trained on {before['name']} ({before['source']}, "
            f"{before['counts']['train']:,} examples), but the data is now "
            f"{run.dataset.name} ({run.dataset.source}, {len(run.dataset.train):,}): "
            "set data.source and data.dir to the former, or use another --workdir"
        )
    trained = configs.resolve(ConfigDict(record["config"], type_safe=False))
    workdirs.check_same(trained, run.config)


def begin(run: Run) -> Training:
    """Returns a run before its first step, with the parameters of `config.init_from`.

    Raises:
      UserError: there is no such run, or its parameters are not of this model.
    """
    state = create_state(run.model, run.tx, run.config.seed, run.everywhere)
    if run.config.init_from is not None:
        state = _warm_start(run, state)
    best = {"validation": None, "step": None, "waited": 0}
    return Training(0, state, run.no_metrics(), best)


def _warm_start(run: Run, state: TrainState) -> TrainState:
    source = Path(run.config.init_from) / "checkpoints"
    with Checkpoints(source, read_only=True) as checkpoints:
        return with_parameters(state, checkpoints, checkpoints.best_step)


def with_parameters(
    state: TrainState, checkpoints: Checkpoints, step: int
) -> TrainState:
    """Returns `state` with the parameters and collections of a checkpoint.

    Raises:
      UserError: they are not of this model, or (`DamagedError`) damaged.
    """
    wanted = {"params": state.params, "model_state": state.model_state}
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
    workdir = Path(workdir)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        config = workdirs.saved_config(workdir)
        if config is None:
            raise UserError(f"no run in {workdir}: there is no config.json")
        model, tx = models.build(**config.model), optax.identity()
        size = 4 * models.num_parameters(abstract_state(model, tx).params)
        if size > (memory := psutil.virtual_memory().total):
            raise UserError(
                f"the model of {workdir} takes {size / 1e9:,.1f} GB: there are "
                f"{memory / 1e9:,.1f} GB of memory"
            )
        state = create_state(model, tx)
        chosen = checkpoints.best_step if step is None else step
        return with_parameters(state, checkpoints, chosen)


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
    return Training(step, tree["state"], tree["window"], record["best"])


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
    config, workdir = configs.resolve(config), Path(workdir)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        workdirs.check(workdir, config)
        run = build(config)
        chosen = checkpoints.best_step if step is None else step
        tree, _ = checkpoints.restore(chosen, *expected(run))
        last = checkpoints.steps[-1]
    if run.dataset.warning:
        (console or Console()).warn(run.dataset.warning)
    return run, tree["state"], chosen, last
