"""The parameters of a checkpoint, restored without optimizer and initialization."""

import contextlib
import dataclasses
from collections.abc import Iterator
from shlex import quote
from typing import Any

import jax
import optax
from jax.sharding import Sharding, SingleDeviceSharding

from flaxmnist import config as configs
from flaxmnist.core import metrics, models, sharding
from flaxmnist.core.state import TrainState, abstract_state
from flaxmnist.errors import DamagedError, UserError
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir import trust
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Manifest
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.memory import available_memory


def restore(
    config: configs.Config,
    checkpoints: Checkpoints,
    step: int,
    layout: sharding.Layout | None,
) -> tuple[TrainState, Manifest]:
    """Returns the parameters of a checkpoint in a state, and the manifest.

    Warns if the source of the user's code has changed since the training.

    Args:
      config: of the run.
      checkpoints: of the run.
      step: of the checkpoint.
      layout: where the parameters are placed; the default device if None.

    Raises:
      UserError: the model needs more memory than there is, or the checkpoint does not
        exist, is of another run, or (`DamagedError`) is damaged.
    """
    workdir = checkpoints.directory.parent
    where = layout or SingleDeviceSharding(jax.local_devices()[0])
    names = ["step", "params", "model_state", "key"]
    names += ["ema"] if config.ema is not None else []

    def expect(manifest: Manifest) -> dict[str, Any]:
        trust.check(manifest.config, workdir)
        state = _abstract(config, manifest, where)
        size = 4 * models.num_parameters(state.params)
        if size > (free := available_memory()):
            raise UserError(
                f"the model of {workdir} needs {size / 1e9:,.1f} "
                f"GB of memory; {free / 1e9:,.1f} GB are available"
            )
        before = configs.from_dict(manifest.config)
        workdirs.check_same(before, config, allow_change=True)
        for change in trust.changed_code(workdir, config, manifest.sources):
            Console().warn(change)
        return {"state": {name: getattr(state, name) for name in names}}

    with _another_advised(checkpoints):
        tree, manifest = checkpoints.restore(step, expect)
    state = _abstract(config, manifest, where)
    return dataclasses.replace(state, **tree["state"]), manifest


def _abstract(
    config: configs.Config, manifest: Manifest, where: Sharding | sharding.Layout
) -> TrainState:
    dataset = manifest.dataset
    model = models.build(
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        dtype=config.precision,
        **configs.as_dict(config.model),
    )
    return abstract_state(
        model,
        optax.identity(),
        where,
        ema_decay=config.ema,
        image_shape=dataset.image_shape,
        metrics=metrics.build(config.metrics),
    )


@contextlib.contextmanager
def _another_advised(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds another saved step, if any, to the error of a damaged checkpoint."""
    try:
        yield
    except DamagedError as error:
        if others := [step for step in checkpoints.steps if step != error.step]:
            # The run may be one of several, which --step is not for.
            run = quote(str(checkpoints.directory.parent))
            raise error.advised(f"open {run} alone, with --step {others[-1]}") from None
        raise
