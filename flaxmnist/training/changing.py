"""Continuing a run from a checkpoint that other options trained."""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import optax

from flaxmnist import config as configs
from flaxmnist.core.sharding import named_leaves
from flaxmnist.core.state import TrainState
from flaxmnist.data.order import START, Epochs, Origin
from flaxmnist.errors import UserError
from flaxmnist.rundir import integrity, verify
from flaxmnist.rundir.changes import changes_at
from flaxmnist.rundir.manifest import Manifest, read_record
from flaxmnist.training.durations import make_optimizer
from flaxmnist.training.experiment import Experiment


def _former_epochs(manifest: Manifest) -> Epochs:
    """Returns the epochs of the training that saved a checkpoint."""
    count, size = manifest.dataset.counts["train"], manifest.config["batch_size"]
    return Epochs(count, size, manifest.origin)


def likely_origin(workdir: Path, config: configs.Config) -> Origin:
    """Returns where the run in a directory would begin to use its batch size.

    So its length is known before a checkpoint is restored. If the arrays of that
    checkpoint are damaged, :func:`continued` corrects the origin.
    """
    directory = workdir / "checkpoints"
    for step in reversed(integrity.saved_steps(directory)):
        with contextlib.suppress(Exception):  # JSON may contain any value.
            record = read_record(directory / str(step) / verify.RECORD)
            return _origin(step, Manifest.from_json(record), config)
    return START


def _origin(step: int, manifest: Manifest, config: configs.Config) -> Origin:
    """Returns where a run that continues from a checkpoint begins its batch size."""
    if manifest.config["batch_size"] == config.batch_size:
        return manifest.origin
    return _former_epochs(manifest).position(step)


def former_optimizer(
    manifest: Manifest,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and the schedule of the training that saved a checkpoint.

    Raises:
      UserError: a function of the user that they name cannot be imported.
    """
    config = configs.from_dict(manifest.config)
    tx, schedule, _ = make_optimizer(config, _former_epochs(manifest))
    return tx, schedule


def continued(experiment: Experiment, step: int, manifest: Manifest) -> Experiment:
    """Returns the experiment as it continues from the checkpoint of a step."""
    before = configs.from_dict(manifest.config)
    origin = _origin(step, manifest, experiment.config)
    changes = changes_at(step, before, manifest.sources, experiment.config)
    return experiment.continuing(origin, (*manifest.changes, *changes))


def continued_state(
    experiment: Experiment, state: TrainState, manifest: Manifest
) -> TrainState:
    """Returns the state of a checkpoint, for the optimizer of `experiment`.

    Raises:
      UserError: the former optimizer has another state.
    """
    wanted = jax.eval_shape(experiment.tx.init, state.params)
    if _kinds(wanted) != _kinds(state.opt_state):
        before = configs.from_dict(manifest.config)
        (change,) = changes_at(
            int(state.step), before, manifest.sources, experiment.config
        )
        raise UserError(
            f"{change}: the optimizer cannot continue with the former state of another "
            "optimizer; keep its former options, or start another run with the "
            "parameters of this one by --init_from"
        )
    return dataclasses.replace(
        state,
        tx=experiment.tx,
        opt_state=jax.tree.unflatten(
            jax.tree.structure(wanted), jax.tree.leaves(state.opt_state)
        ),
        augment_until=experiment.state_options["augment_until"],
    )


def _kinds(opt_state: Any) -> list[tuple[str, tuple[int, ...], Any]]:
    """Returns name, shape and dtype of the arrays of an optimizer's state.

    The names contain no positions, which clipping of gradients shifts.
    """
    return [
        (re.sub(r"(^|(?<=/))\d+/", "", name), leaf.shape, leaf.dtype)
        for name, leaf in named_leaves(opt_state)
    ]
