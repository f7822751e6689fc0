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
from jaxtyping import Array, Bool, Float, Int, Num

from flaxmnist.core import augment, optim
from flaxmnist.core.batch import (
    as_batch,
    as_images,
    as_logits,
    split_micro_batches,
    valid_labels,
)
from flaxmnist.core.by_value import warn_if_rebuilt
from flaxmnist.core.layers import scale
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.sharding import constrain, gather
from flaxmnist.core.state import TrainState
from flaxmnist.core.types import Batch, Collections, Params
from flaxmnist.errors import UserError

Gradient = tuple[Params, tuple[Metrics, Collections]]


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
        """Returns the batch of a step."""


def loss_fn(
    params: Params, state: TrainState, batch: Batch, *, train: bool = True
) -> tuple[Float[Array, ""], tuple[Metrics, Collections]]:
    """Returns the mean cross-entropy, the metrics and the model's new collections.

    Args:
      params: the parameters to differentiate by, such as those of `state`.
      state: everything else.
      batch: see :func:`flaxmnist.core.batch.as_batch`. Masked examples and those with
        an invalid label count in batch normalization, but not in the loss.
      train: whether to apply dropout and to normalize by statistics of the batch.

    Returns:
      the loss in nats; and the metrics with the new collections of the model, which are
      empty unless `train`.

    Raises:
      UserError: a name, shape or dtype of the batch is invalid, or the model does not
        return logits.
    """
    batch = as_batch(batch, state.image_shape, state.num_classes)
    logits, model_state = state.model.apply(
        {"params": gather(params, state.layout), **state.model_state},
        batch["image"],
        train=train,
        rngs={"dropout": jax.random.fold_in(state.key, state.step)},
        mutable=list(state.model_state) if train else [],
    )
    labels, mask = batch["label"], batch["mask"]
    logits = as_logits(logits, len(mask), state.num_classes)
    valid = valid_labels(labels, state.num_classes)
    if labels.ndim == 1:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        # A NaN in a label would reach the gradient, though its loss is left out.
        labels = jnp.where(valid[:, None], labels, 0)
        losses = optax.softmax_cross_entropy(logits, labels)
        labels = jnp.argmax(labels, axis=-1)
    metrics = Metrics.of(losses, logits, labels, mask, valid)
    count = jnp.maximum((mask & valid).sum(), 1)
    return metrics.loss_sum / count, (metrics, model_state)


def _micro_batches(state: TrainState, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Returns the indices and the examples of the micro-batches of a batch."""
    batch = as_batch(batch, state.image_shape, state.num_classes)
    parts = split_micro_batches(batch, state.grad_accumulation)
    return jnp.arange(state.grad_accumulation), parts


def _micro_state(
    state: TrainState, index: Int[Array, ""], model_state: Collections
) -> TrainState:
    """Returns the state for a micro-batch: each draws its own dropout."""
    key = jax.random.fold_in(state.key, index)
    return dataclasses.replace(state, key=key, model_state=model_state)


def augmented(state: TrainState, batch: Batch) -> Batch:
    """Returns the batch with the images that a step of `state` trains on.

    Raises:
      UserError: a name, shape or dtype of the batch is invalid.
    """
    if state.augment is None:
        return batch
    batch = as_batch(batch, state.image_shape, state.num_classes)
    images = scale(batch["image"])
    key = jax.random.fold_in(state.key, state.step)
    made = augment.apply(state.augment, key, images)
    if state.augment_until is not None:
        made = jnp.where(state.step < state.augment_until, made, images)
    return batch | {"image": made}


def gradient(state: TrainState, batch: Batch) -> Gradient:
    """Differentiates :func:`loss_fn` by the parameters, over :func:`augmented` images.

    There are `state.grad_accumulation` micro-batches. Each draws its own dropout, and
    they update the batch statistics one after another. The loss is the mean over all
    valid examples of the batch.

    Raises:
      UserError: as :func:`loss_fn`, or the number does not divide the batch.
    """
    batch = augmented(state, batch)
    differentiate = jax.grad(loss_fn, has_aux=True)
    if state.grad_accumulation == 1:
        whole: Gradient = differentiate(state.params, state, batch)
        return whole

    def add(carry: Any, micro_batch: Any) -> Any:
        sums, model_state = carry
        index, batch = micro_batch
        micro = _micro_state(state, index, model_state)
        grads, (metrics, model_state) = differentiate(state.params, micro, batch)
        sums = jax.tree.map(lambda a, b: a + b * metrics.count, sums, grads)
        return (sums, model_state), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (sums, model_state), metrics = lax.scan(
        add, (zeros, state.model_state), _micro_batches(state, batch)
    )
    metrics = jax.tree.map(lambda leaf: leaf.sum(axis=0), metrics)
    count = jnp.maximum(metrics.count, 1)
    return jax.tree.map(lambda leaf: leaf / count, sums), (metrics, model_state)


def batch_loss(params: Params, state: TrainState, batch: Batch) -> Float[Array, ""]:
    """Returns the loss that :func:`gradient` differentiates, of the same random draws.

    Optimizers with a line search evaluate it at other parameters. Differentiated, it
    holds the activations of one micro-batch at a time, too.
    """
    batch = augmented(state, batch)
    if state.grad_accumulation == 1:
        return loss_fn(params, state, batch)[0]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(carry: Any, micro_batch: Any) -> Any:
        total, count, model_state = carry
        index, batch = micro_batch
        micro = _micro_state(state, index, model_state)
        loss, (metrics, model_state) = loss_fn(params, micro, batch)
        total += loss * metrics.count
        return (total, count + metrics.count, model_state), None

    (total, count, _), _ = lax.scan(
        add, (0.0, 0, state.model_state), _micro_batches(state, batch)
    )
    mean: Array = total / jnp.maximum(count, 1)
    return mean


@_explained
@functools.partial(jax.jit, donate_argnames="state")
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Makes one update. `state` is donated: use the returned state from then on."""
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
    """Returns the metrics of one batch, without dropout."""
    _, (metrics, _) = loss_fn(state.eval_params, state, batch, train=False)
    return metrics


@_explained
@jax.jit
def predict_step(state: TrainState, images: Any) -> dict[str, Num[Array, "batch ..."]]:
    """Returns ``classes`` `[batch]`; ``probabilities``, ``logits`` `[batch, classes]`.

    Args:
      state: with the parameters to predict with.
      images: see :func:`flaxmnist.core.batch.as_images`, which checks them.

    Raises:
      UserError: the images have an invalid shape or dtype.
    """
    images = as_images(images, state.image_shape)
    params = gather(state.eval_params, state.layout)
    variables = {"params": params, **state.model_state}
    logits = state.model.apply(variables, images, train=False)
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
    """

    def body(_: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        state, new = train_step(state, batches.at(state.step))
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
    """Adds the metrics of the batches `first` … `first + num_steps - 1`."""

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
    """Returns whether every floating-point number in a tree is finite."""
    floats = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in floats]))
