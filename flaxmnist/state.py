"""The state of training, made where it will live."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Sharding

from flaxmnist.inputs import IMAGE_SHAPE
from flaxmnist.sharding import Layout, abstract


@struct.dataclass
class TrainState:
    """All that a step reads and writes; a pytree, so jit, shard and save it whole.

    Attributes:
      step: int32 `[]`, updates made.
      params: the model's parameters.
      opt_state: the optimizer's state.
      model_state: the model's other collections, such as ``batch_stats``.
      key: PRNG key of the run; each step folds its number into it.
      model: the linen module (static).
      tx: the optimizer (static: build it once, or steps compile again).
      layout: how a step leaves all of it split over devices (static); None leaves that
        to the compiler.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    key: Any
    model: nn.Module = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    layout: Layout | None = struct.field(pytree_node=False, default=None)


def _init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int,
    sharding: Sharding | Layout | None,
) -> TrainState:
    init_key, key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, *IMAGE_SHAPE), jnp.uint8)
    variables = dict(model.init(init_key, images, train=False))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        model_state=variables,
        key=key,
        model=model,
        tx=tx,
        layout=sharding if isinstance(sharding, Layout) else None,
    )


def abstract_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    sharding: Sharding | Layout | None = None,
) -> TrainState:
    """Returns the state's shapes, dtypes and shardings; nothing is computed."""
    return abstract(functools.partial(_init, model, tx, 0, sharding), sharding)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int = 0,
    sharding: Sharding | Layout | None = None,
) -> TrainState:
    """Returns the state before the first step, initialized straight into `sharding`.

    Args:
      model: maps `[batch, 28, 28, 1]` images to `[batch, 10]` logits; takes
        `train: bool`, and a ``"dropout"`` key while training.
      tx: any optax transformation.
      seed: decides the parameters and every later random draw.
      sharding: where each array lives: one for all, or a layout, which the steps keep;
        the default device if None.
    """
    init = functools.partial(_init, model, tx, seed, sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(init, sharding))
    return jax.jit(init, out_shardings=shardings)()
