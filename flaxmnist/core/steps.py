"""The pure, jitted steps of training, evaluation and prediction.

:mod:`flaxmnist.core.batch` defines the format of a batch, which is checked while a step
is traced. Arrays may be sharded over devices; the computation follows them.
"""

import dataclasses
import functools
import inspect
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import GetAttrKey, tree_leaves_with_path
from jaxtyping import Array, Bool, Float, Int, Num

from flaxmnist.core import optim
from flaxmnist.core.batch import as_images, as_logits
from flaxmnist.core.by_value import warn_if_rebuilt
from flaxmnist.core.gathering import on_one_thread
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.nn import warn_of_slow_conv
from flaxmnist.core.objective import (
    batch_loss,
    gradient,
    has_small_layers,
    loss_fn,
    model_input,
)
from flaxmnist.core.sharding import constrain, gather
from flaxmnist.core.state import TrainState
from flaxmnist.core.types import Batch, Params
from flaxmnist.errors import UserError


def _explained(step: Any) -> Any:
    """Returns a jitted step that names a mistake in its arguments.

    They are looked at after an error only: checks would cost time at each call.
    """
    parameters = [*inspect.signature(step).parameters]

    @functools.wraps(step)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            given = dict(zip(parameters, args, strict=False)) | kwargs
            state = given.get("state")
            if "state" in given and not isinstance(state, TrainState):
                raise UserError(
                    f"{step.__name__}: state is a {type(state).__name__}; expected a "
                    f"TrainState, as in {step.__name__}({', '.join(parameters)})"
                ) from None
            leaves = jax.tree.leaves((args, kwargs))
            if "deleted" in str(error) and any(map(_is_deleted, leaves)):
                raise UserError(
                    f"{step.__name__}: an argument was donated to an earlier step and "
                    "is deleted; use the state and the metrics that train_step or "
                    "train_steps returned"
                ) from None
            raise

    for name in ("lower", "trace", "eval_shape", "clear_cache", "_cache_size"):
        setattr(explained, name, getattr(step, name))
    return explained


def _is_deleted(leaf: Any) -> bool:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return concrete and leaf.is_deleted()


@runtime_checkable
class Batches(Protocol):
    """A pytree that yields batches inside a compiled program."""

    def at(self, step: Int[Array, ""]) -> Batch:
        """Returns the batch of `step`, int32 `[]`."""


@_explained
@functools.partial(jax.jit, donate_argnames="state")
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Makes one update. `state` is donated: use the returned state from then on.

    Args:
      state: as :func:`flaxmnist.core.state.create_state` returns it.
      batch: see :mod:`flaxmnist.core.batch`.

    Returns:
      the state after the update; and the metrics of the batch, with the parameters
      before the update and the loss that was minimized.

    Raises:
      UserError: as :func:`flaxmnist.core.objective.gradient`, or `state` is not a
        TrainState, or it was donated to an earlier step.
    """
    warn_if_rebuilt(state.tx, dataclasses.replace(state, tx=optax.identity()), batch)
    grads, (metrics, model_state) = gradient(state, batch)
    updates, opt_state = optim.update(
        state.tx,
        grads,
        state.opt_state,
        state.params,
        value=metrics.loss_sum / jnp.maximum(metrics.count, 1),
        grad=grads,
        value_fn=lambda params: batch_loss(params, state, batch),
    )
    params = optax.apply_updates(state.params, updates)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        ema=state.averaged(params),
        opt_state=opt_state,
        model_state=model_state,
    )
    return constrain(state, state.layout), metrics


@_explained
@jax.jit
def eval_step(state: TrainState, batch: Batch) -> Metrics:
    """Returns the metrics of one batch, without dropout, weights and augmentation.

    Args:
      state: with the parameters to evaluate, `state.eval_params`.
      batch: see :mod:`flaxmnist.core.batch`.

    Raises:
      UserError: as :func:`flaxmnist.core.objective.loss_fn`, or `state` is not a
        TrainState, or it was donated to an earlier step.
    """
    _, (metrics, _) = loss_fn(state.eval_params, state, batch, train=False)
    return metrics


@_explained
@jax.jit
def predict_step(state: TrainState, images: Any) -> dict[str, Num[Array, "batch ..."]]:
    """Returns ``classes`` `[batch]`; ``probabilities``, ``logits`` `[batch, classes]`.

    Classes are integers; the others are float32 or wider.

    Args:
      state: with the parameters to predict with, `state.eval_params`.
      images: see :func:`flaxmnist.core.batch.as_images`, which checks them.

    Raises:
      UserError: the images have an invalid shape or dtype, or `state` is not a
        TrainState, or it was donated to an earlier step.
    """
    images = as_images(images, state.image_shape)
    params = gather(state.eval_params, state.layout)
    variables = {"params": params, **state.model_state}
    logits = state.model.apply(variables, model_input(state, images), train=False)
    logits = as_logits(logits, images.shape[0], state.num_classes)
    return {
        "classes": jnp.argmax(logits, axis=-1),
        "probabilities": jax.nn.softmax(logits),
        "logits": logits,
    }


@_explained
@functools.partial(jax.jit, donate_argnames=("state", "metrics"))
def train_steps(
    state: TrainState, metrics: Metrics, batches: Batches, num_steps: Int[Array, ""]
) -> tuple[TrainState, Metrics]:
    """Makes `num_steps` updates in one dispatch and adds up their metrics.

    The number of steps is an argument of the compiled program. One compilation serves
    every number, and dividing a run into other dispatches changes no bit.

    Args:
      state: donated; its step is that of the first batch.
      metrics: donated; of earlier steps, or :meth:`Metrics.empty`.
      batches: such as those of :meth:`flaxmnist.data.DeviceFeed.chunks`.
      num_steps: int `[]`, number of updates.

    Returns:
      the state after the updates, and `metrics` with those of each batch.

    Raises:
      UserError: as :func:`train_step` and :meth:`Metrics.merge`.
    """

    def body(_: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        warn_of_slow_conv(state.model, state.image_shape)
        with on_one_thread(has_small_layers(state)):
            batch = batches.at(state.step)
        state, new = train_step(state, batch)
        return state, metrics.merge(new)

    trained: tuple[TrainState, Metrics] = lax.fori_loop(
        0, num_steps, body, (state, metrics)
    )
    return trained


@_explained
@functools.partial(jax.jit, donate_argnames="metrics")
def eval_steps(
    state: TrainState,
    metrics: Metrics,
    batches: Batches,
    first: Int[Array, ""],
    num_steps: Int[Array, ""],
) -> Metrics:
    """Adds the metrics of the batches `first` … `first + num_steps - 1`.

    Args:
      state: with the parameters to evaluate, `state.eval_params`.
      metrics: donated; of other batches, or :meth:`Metrics.empty`.
      batches: such as those of :meth:`flaxmnist.data.DeviceFeed.chunks`.
      first: int `[]`, step of the first batch.
      num_steps: int `[]`, number of batches.

    Raises:
      UserError: as :func:`eval_step` and :meth:`Metrics.merge`.
    """

    def body(step: Any, metrics: Metrics) -> Metrics:
        return metrics.merge(eval_step(state, batches.at(step)))

    total: Metrics = lax.fori_loop(first, first + num_steps, body, metrics)
    return total


@_explained
@jax.jit
def norms(state: TrainState, batches: Batches) -> dict[str, Float[Array, ""]]:
    """Returns the global norms of the next update's gradient and of the parameters.

    The gradient is that of the loss, before the optimizer clips it.
    """
    grads, _ = gradient(state, batches.at(state.step))
    return {
        "gradient_norm": _global_norm(grads),
        "parameter_norm": _global_norm(state.params),
    }


def _global_norm(tree: Params) -> Float[Array, ""]:
    # No function of optax does this in every version from 0.2.4 without a warning.
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


@_explained
@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether every floating-point number in a tree is finite.

    In the `opt_state` of a state, scalars may be infinite: an optimizer such as
    `reduce_on_plateau` starts with an infinite best loss.
    """
    checks = []
    for path, leaf in tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            of_optimizer = path[:1] == (GetAttrKey("opt_state"),)
            scalar = of_optimizer and leaf.ndim == 0
            checks.append(~jnp.isnan(leaf) if scalar else jnp.isfinite(leaf).all())
    return jnp.all(jnp.array(checks))
