"""The parameters of a checkpoint, restored without optimizer and initialization."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import optax
from jax.sharding import SingleDeviceSharding

from flaxmnist import config as configs
from flaxmnist.core import models, sharding
from flaxmnist.core.state import TrainState, abstract_state
from flaxmnist.errors import DamagedError, UserError
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.checkpoints import Checkpoints
from flaxmnist.rundir.manifest import Manifest
from flaxmnist.runtime.memory import available_memory


def restore(
    config: configs.Config,
    checkpoints: Checkpoints,
    step: int,
    layout: sharding.Layout | None,
) -> tuple[TrainState, Manifest]:
    """Returns the parameters of a checkpoint in a state, and the manifest.

    Args:
      config: of the run.
      checkpoints: of the run.
      step: of the checkpoint.
      layout: where the parameters are placed; the default device if None.

    Raises:
      UserError: the model needs more memory than there is, or the checkpoint does not
        exist, is of another run, or (`DamagedError`) is damaged.
    """
    model = models.build(dtype=config.precision, **configs.as_dict(config.model))
    where = layout or SingleDeviceSharding(jax.local_devices()[0])
    state = abstract_state(model, optax.identity(), where, ema_decay=config.ema)
    size = 4 * models.num_parameters(state.params)
    if size > (free := available_memory()):
        raise UserError(
            f"the model of {checkpoints.directory.parent} needs {size / 1e9:,.1f} GB "
            f"of memory; {free / 1e9:,.1f} GB are available"
        )
    names = ["step", "params", "model_state", "key"]
    names += ["ema"] if config.ema is not None else []
    wanted = {"state": {name: getattr(state, name) for name in names}}

    def check(manifest: Manifest) -> None:
        workdirs.check_same(configs.from_dict(manifest.config), config)

    with _another_advised(checkpoints):
        tree, manifest = checkpoints.restore(step, wanted, check)
    return dataclasses.replace(state, **tree["state"]), manifest


@contextlib.contextmanager
def _another_advised(checkpoints: Checkpoints) -> Iterator[None]:
    """Adds another saved step, if any, to the error of a damaged checkpoint."""
    try:
        yield
    except DamagedError as error:
        if others := [step for step in checkpoints.steps if step != error.step]:
            raise error.advised(f"choose another with --step {others[-1]}") from None
        raise
