"""Starting, warm-starting, resuming and inspecting runs."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxmnist import config as configs
from flaxmnist.core import optim, optimizers, sharding
from flaxmnist.core.state import TrainState, abstract_state, initializer
from flaxmnist.data import Dataset
from flaxmnist.data.forms import FORMS
from flaxmnist.errors import DivergedError, NotFiniteError, UserError
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import population, trust
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Manifest
from flaxmnist.runtime import machine, processes
from flaxmnist.runtime.console import Console
from flaxmnist.training import programs
from flaxmnist.training.changing import continued, continued_state, former_optimizer
from flaxmnist.training.experiment import Experiment
from flaxmnist.training.progress import Progress


def abstract_tree(experiment: Experiment) -> dict[str, Any]:
    """Returns the shapes and shardings of the arrays that a checkpoint holds."""
    return {
        "state": abstract_state(
            experiment.model,
            experiment.tx,
            experiment.layout,
            **experiment.state_options,
        ),
        "window": sharding.abstract(
            lambda: experiment.no_metrics().sums, experiment.replicated
        ),
    }


def expected(
    experiment: Experiment, manifest: Manifest, allow_change: bool = False
) -> dict[str, Any]:
    """Returns the shapes and shardings of a checkpoint of this run.

    Raises:
      UserError: the manifest is of another run.
    """
    check_same_data(manifest, experiment.dataset)
    before = configs.from_dict(manifest.config)
    workdirs.check_same(before, experiment.config, allow_change)
    if before.optimizer != experiment.config.optimizer:
        tx, _ = former_optimizer(manifest)
        experiment = dataclasses.replace(experiment, tx=tx)
    return abstract_tree(experiment)


def check_same_data(manifest: Manifest, now: Dataset) -> None:
    """Raises UserError unless a checkpoint is of these examples and classes."""
    before = manifest.dataset
    # Older versions recorded the fingerprint of the training split only.
    known = before.fingerprints or {"train": before.fingerprint}
    if other := [split for split in known if known[split] != now.fingerprints[split]]:
        former = f"data with --config.data.source={before.source}"
        if before.source in ("idx", "tfds", *FORMS):
            former += " and --config.data.dir=DIR"
        elif before.source == "arrays":
            former = "arrays"
        raise UserError(
            f"this run was trained on {before.name} ({before.source}, "
            f"{before.counts['train']:,} examples), but the data is now {now.name} "
            f"({now.source}, {len(now.train):,}), with other examples in "
            f"{', '.join(other)}; give the former {former}, or use another "
            "--workdir"
        )
    names = itertools.zip_longest(before.class_names, now.class_names)
    for label, (former, found) in enumerate(names):
        if former != found:
            raise UserError(
                f"this run was trained on {before.name} with {former!r} as class "
                f"{label}, but the data now has {found!r}; give the former class "
                "names in the former order, or use another --workdir"
            )


def begin(experiment: Experiment) -> Progress:
    """Returns the progress before the first step.

    Its parameters are those of `config.init_from`, if that is given.

    Raises:
      UserError: there is no such run, or its parameters are not of this model.
    """
    init, like = initializer(
        experiment.model, experiment.tx, experiment.layout, **experiment.state_options
    )
    state = programs.call(init, like, np.uint32(experiment.config.seed))
    if (classes := experiment.dataset.num_classes) != state.num_classes:
        raise UserError(
            f"model.name={experiment.config.model.name!r} returns {state.num_classes} "
            f"logits; expected {classes}, the number of classes of "
            f"{experiment.dataset.name}"
        )
    if (source := experiment.config.init_from) is not None:
        state = _warm_start(Path(source), state)
    return Progress(0, state, experiment.no_metrics())


def _warm_start(source: Path, state: TrainState) -> TrainState:
    if members := population.saved_members(source):
        raise UserError(
            f"init_from={source} is a population; expected a run, such as "
            f"{source / members[0].name}"
        )
    values = workdirs.saved_values(source)
    with Checkpoints(source / "checkpoints", read_only=True) as checkpoints:
        decay = None if values is None else values.get("ema")
        average = None if decay is None else state.params
        source_state = with_parameters(
            dataclasses.replace(state, ema=average, ema_decay=decay),
            checkpoints,
            processes.broadcast(checkpoints.best_step),
        )
    params = source_state.eval_params
    # Some optimizers keep the parameters that they start from.
    init_optimizer = jax.jit(
        lambda params: state.tx.init(jax.tree.map(jnp.copy, params)),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.opt_state),
    )
    return dataclasses.replace(
        state,
        params=params,
        opt_state=init_optimizer(params),
        model_state=source_state.model_state,
        ema=None if state.ema is None else jax.tree.map(jnp.copy, params),
    )


def with_parameters(
    state: TrainState, checkpoints: Checkpoints, step: int
) -> TrainState:
    """Returns `state` with the parameters, average and collections of a checkpoint.

    Raises:
      UserError: they are not of this model, or (`DamagedError`) damaged.
    """
    wanted: dict[str, Any] = {
        "params": state.params,
        "model_state": state.model_state,
    }
    if state.ema_decay is not None:
        wanted["ema"] = state.ema
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        wanted,
    )
    tree, _ = checkpoints.restore(step, lambda manifest: {"state": like})
    return dataclasses.replace(state, **tree["state"])


def resume(
    experiment: Experiment,
    checkpoints: Checkpoints,
    console: Console,
    allow_change: bool = True,
) -> tuple[Experiment, Progress]:
    """Returns the newest checkpoint, or the beginning without one.

    Args:
      experiment: of the configuration of the run.
      checkpoints: of the run.
      console: where to print.
      allow_change: whether the checkpoint may be of a configuration with other values
        of `configs.CHANGEABLE`; they change at its step.

    Returns:
      the experiment as it continues there, and the progress.

    Raises:
      UserError: all checkpoints are damaged, or of another configuration or data.
    """

    def expect(manifest: Manifest) -> dict[str, Any]:
        trust.check(manifest.config, checkpoints.directory.parent)
        return expected(experiment, manifest, allow_change)

    restored = checkpoints.restore_newest(expect)
    if restored is None:
        return experiment, begin(experiment)
    step, tree, manifest = restored
    experiment = continued(experiment, step, manifest)
    if step < experiment.total_steps:
        _warn_of_changes(experiment, step, manifest, console)
    metrics = dataclasses.replace(experiment.no_metrics(), **tree["window"])
    state = continued_state(experiment, tree["state"], manifest)
    progress = Progress(
        step, state, metrics, manifest.best, log_position=manifest.metrics
    )
    return experiment, _with_rollbacks(experiment, progress, manifest.rollbacks)


def _warn_of_changes(
    experiment: Experiment, step: int, manifest: Manifest, console: Console
) -> None:
    before, now = configs.from_dict(manifest.config), experiment.config
    schedule = now.optimizer.schedule
    longer = manifest.total_steps != experiment.total_steps
    if longer and (stretched := optimizers.stretched(vars(now.optimizer))):
        console.warn(
            f"the run is now {experiment.total_steps} steps long, no longer "
            f"{manifest.total_steps}: its {stretched} is stretched to that, and the "
            "learning rate jumps"
        )
    elif before.batch_size != now.batch_size and before.optimizer == now.optimizer:
        _, former = former_optimizer(manifest)
        rates = [float(one(step)) for one in (former, experiment.schedule)]
        if not math.isclose(*rates, rel_tol=1e-3):
            console.warn(
                f"an epoch now has another number of steps: in the {schedule} "
                "schedule, the learning rate jumps from {:.2e} to {:.2e}".format(*rates)
            )
    if changes := machine.changes(manifest.versions, manifest.machine):
        console.warn(f"the checkpoint of step {step} {changes}")


def _with_rollbacks(
    experiment: Experiment, progress: Progress, rollbacks: int
) -> Progress:
    """Returns `progress` with the learning rate after a number of rollbacks."""
    if not rollbacks:
        return progress
    progress = dataclasses.replace(progress, rollbacks=rollbacks)
    tx = optim.scaled(experiment.tx, progress.rate_scale)
    state = dataclasses.replace(progress.state, tx=tx)
    return dataclasses.replace(progress, state=state)


def roll_back(
    experiment: Experiment,
    progress: Progress,
    checkpoints: Checkpoints,
    console: Console,
    error: NotFiniteError,
) -> tuple[Experiment, Progress]:
    """Returns the newest checkpoint, with half the learning rate of `progress`.

    Every checkpoint is finite. Before the first one, the run starts again.

    Raises:
      DivergedError: `config.on_nan` is "stop", or no rollback is left.
    """
    config = experiment.config
    option, rate = "optimizer.learning_rate", config.optimizer.learning_rate
    most = config.max_rollbacks
    if config.on_nan == "rollback" and progress.rollbacks < most:
        experiment, back = resume(experiment, checkpoints, console)
        back = _with_rollbacks(experiment, back, progress.rollbacks + 1)
        console.warn(
            f"{checkpoints.directory.parent}: {error}: back to step {back.step}, with "
            f"{option}={rate * back.rate_scale:g} (rollback {back.rollbacks} of {most})"
        )
        return experiment, back
    kept, how = "no checkpoint exists yet", ""
    if steps := checkpoints.steps:
        how = "; --allow_change continues from the checkpoint with it"
        kept = (
            f"the last good checkpoint is of step {steps[-1]}, "
            f"in {checkpoints.directory}"
        )
    tried = ""
    if progress.rollbacks:
        tried = f", after {progress.rollbacks} of {most} rollbacks"
    other = ", or on_nan=rollback" if config.on_nan == "stop" else ""
    raise DivergedError(
        f"{error}{tried}; {kept}",
        f"Try a smaller {option} than {rate * progress.rate_scale:g}, "
        f"optimizer.clip_norm=1{other}{how}",
    ) from None
