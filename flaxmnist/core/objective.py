"""The loss of a batch and its gradient, in micro-batches or not."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from flaxmnist.core import augment, dropout
from flaxmnist.core.batch import (
    as_batch,
    as_logits,
    split_micro_batches,
    valid_examples,
)
from flaxmnist.core.layers import scale
from flaxmnist.core.losses import CROSS_ENTROPY, per_example
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.nn import traced_layers, warn_of_slow_conv
from flaxmnist.core.parts import num_parts
from flaxmnist.core.sharding import gather, named_leaves
from flaxmnist.core.state import TrainState
from flaxmnist.core.types import Batch, Collections, Params
from flaxmnist.errors import UserError

Gradient = tuple[Params, tuple[Metrics, Collections]]

# Bytes of activations of a micro-batch on a CPU: about half of a last-level cache.
CACHE_BYTES = 8 << 20
# Maximum bytes of activations, for one image, of a model with small layers.
MAX_SMALL_BYTES = 128


def model_input(
    state: TrainState, images: Num[Array, "batch height width channels"]
) -> Num[Array, "batch height width channels"]:
    """Returns images as the model of `state` receives them in every step.

    Augmented images are float32 in [0, 1], so the images of evaluation are, too.
    Otherwise, a model that scales images by itself would get unlike ones.
    """
    return images if state.augment is None else scale(images)


def loss_fn(
    params: Params,
    state: TrainState,
    batch: Batch,
    *,
    train: bool = True,
    places: Int[Array, " batch"] | None = None,
) -> tuple[Float[Array, ""], tuple[Metrics, Collections]]:
    """Returns the mean loss, the metrics and the model's new collections.

    The images are not distorted; :func:`augmented` returns a batch that is.
    Training uses `state.loss` and the weights of the batch. Evaluation uses the plain
    cross-entropy of every example, so that runs with other losses compare.

    Args:
      params: the parameters to differentiate by, such as those of `state`.
      state: everything else.
      batch: see :func:`flaxmnist.core.batch.as_batch`. Masked examples and those with
        an invalid label count in batch normalization, but not in the loss.
      train: whether to apply dropout, `state.loss` and weights, and to normalize by
        statistics of the batch.
      places: position of each example in the batch, int `[batch]`, if `batch` is a part
        of it; random draws depend on them. None: `batch` is the whole.

    Returns:
      the loss in nats; and the metrics with the new collections of the model, which are
      empty unless `train`.

    Raises:
      UserError: a name, shape or dtype of the batch is invalid, or the model does not
        return logits.
    """
    batch = as_batch(batch, state.image_shape, state.num_classes)
    labels, mask = batch["label"], batch["mask"]
    # An array of NumPy, as `nn.jit` keeps arrays of JAX that a module closes over.
    where = np.arange(len(mask)) if places is None else places
    key = jax.random.fold_in(state.key, state.step)
    # Other draws of a model differ in each micro-batch.
    other = jax.random.fold_in(key, where[0])
    # From "params", linen draws for every name that is missing.
    streams = {"dropout": other, "params": jax.random.fold_in(other, 1)}
    with nn.intercept_methods(dropout.by_place(where)):
        logits, model_state = state.model.apply(
            {"params": gather(params, state.layout), **state.model_state},
            model_input(state, batch["image"]),
            train=train,
            rngs={dropout.STREAM: key} | streams,
            mutable=list(state.model_state) if train else [],
        )
    logits = as_logits(logits, len(mask), state.num_classes)
    valid = valid_examples(batch, state.num_classes)
    loss = state.loss if train else CROSS_ENTROPY
    # A NaN of an invalid label would reach the gradient, though its loss is left out.
    # With integers, the cross-entropy of optax has no such gradient.
    if labels.ndim > 1:
        labels = jnp.where(valid[:, None], labels, 0)
    elif loss != CROSS_ENTROPY:
        labels = jnp.where(valid, labels, 0)
    losses = per_example(loss, logits, labels)
    if labels.ndim > 1:
        labels = jnp.argmax(labels, axis=-1)
    # Further metrics need no derivative.
    outputs = lax.stop_gradient(logits)
    metrics = Metrics.of(losses, outputs, labels, mask, valid, state.metrics)
    if "weight" in batch and train:
        weights = jnp.where(mask & valid, batch["weight"], 0)
        total = (weights * jnp.where(mask & valid, losses, 0)).sum()
        mean = total / _positive(weights.sum())
        # The mean of the metrics is the mean that was differentiated.
        metrics = dataclasses.replace(metrics, loss_sum=mean * metrics.count)
        return mean, (metrics, model_state)
    count = jnp.maximum((mask & valid).sum(), 1)
    return metrics.loss_sum / count, (metrics, model_state)


def _check_collections(state: TrainState, after: Collections) -> None:
    """Raises UserError if a step would change the structure of a collection."""
    for name, before in state.model_state.items():
        if dict(named_leaves(before)).keys() != dict(named_leaves(after[name])).keys():
            raise UserError(
                f"the collection {name!r} of {type(state.model).__name__} has other "
                "arrays after a step; expected the same, as self.sow keeps with "
                "reduce_fn=lambda _, new: new and init_fn=lambda: None"
            )


def _positive(total: Array) -> Array:
    """Returns a sum of weights, and one instead of zero."""
    return jnp.where(total > 0, total, 1)


def _total_weight(state: TrainState, batch: Batch, metrics: Metrics) -> Array:
    """Returns the weight of a micro-batch in the mean: its examples, or theirs."""
    if "weight" not in batch:
        return jnp.asarray(metrics.count)
    valid = batch["mask"] & valid_examples(batch, state.num_classes)
    return jnp.where(valid, batch["weight"], 0).sum()


def num_micro_batches(state: TrainState, batch: Batch) -> int:
    """Returns `state.grad_accumulation`, or more micro-batches on a CPU.

    A large batch is slow there, as each layer reads its inputs from memory again. It is
    divided until the activations stay in the cache, if the update remains the same: the
    class of the model declares `independent_examples`, and it has no statistics of the
    batch. It stays whole if no number near the lowest one divides it. Several devices
    would exchange their gradients after each micro-batch.
    """
    parts = state.grad_accumulation
    # A subclass may mix examples, and must declare it again.
    independent = vars(type(state.model)).get("independent_examples", False)
    if parts > 1 or not independent or state.model_state or not _on_one_cpu(state):
        return parts
    count = len(batch["image"])
    size = count * traced_layers(state.model, state.image_shape).activation_bytes
    # An image cannot be divided, even if it takes more.
    return num_parts(count, min(size, count * CACHE_BYTES), CACHE_BYTES) or parts


def has_small_layers(state: TrainState) -> bool:
    """Returns whether one thread is faster than two, as in softmax regression."""
    if not _on_one_cpu(state):
        return False
    layers = traced_layers(state.model, state.image_shape)
    return layers.activation_bytes <= MAX_SMALL_BYTES


def _on_one_cpu(state: TrainState) -> bool:
    several = state.layout is not None and state.layout.mesh.size > 1
    return not several and jax.default_backend() == "cpu"


def _micro_batches(
    batch: dict[str, Array], parts: int
) -> tuple[Array, dict[str, Array]]:
    """Returns the places in the batch and the examples of its micro-batches."""
    place = jnp.arange(len(batch["image"]))
    split = split_micro_batches(batch | {"place": place}, parts)
    return split.pop("place"), split


def augmented(state: TrainState, batch: Batch) -> dict[str, Array]:
    """Returns the batch with the images and labels that a step of `state` trains on.

    Images that show no class get equal probabilities of all classes as their label.

    Args:
      state: with the augmentation, the key and the step that the draws depend on.
      batch: see :mod:`flaxmnist.core.batch`.

    Returns:
      a batch with the keys of `batch` and ``mask``. Augmented images are float32 in
      [0, 1]. If the augmentation returns which images show their class, the labels are
      float32 `[batch, classes]`.

    Raises:
      UserError: a name, shape or dtype of the batch, or of the images that the
        augmentation returns, is invalid.
    """
    batch = as_batch(batch, state.image_shape, state.num_classes)
    if state.augment is None:
        return batch
    images = scale(batch["image"])
    key = jax.random.fold_in(state.key, state.step)
    made, shows_class = augment.apply(state.augment, key, images)
    if state.augment_until is not None:
        is_over = state.step >= state.augment_until
        made = jnp.where(is_over, images, made)
        shows_class = None if shows_class is None else shows_class | is_over
    batch = batch | {"image": made}
    if shows_class is not None:
        label, count = batch["label"], state.num_classes
        targets = jax.nn.one_hot(label, count) if label.ndim == 1 else label
        # An invalid label remains invalid.
        keeps = shows_class | ~valid_examples(batch, count)
        batch |= {"label": jnp.where(keeps[:, None], targets, 1 / count)}
    return batch


@jax.jit  # So that several programs of a run trace it once.
def gradient(state: TrainState, batch: Batch) -> Gradient:
    """Differentiates :func:`loss_fn` by the parameters, over :func:`augmented` images.

    The batch is divided into :func:`num_micro_batches` parts. They draw the dropout of
    the whole batch, and update the batch statistics one after another. The loss is the
    mean over all valid examples of the batch, by their weights if any.

    Raises:
      UserError: as :func:`loss_fn`, or the number does not divide the batch, or the
        model changes the structure of its collections.
    """
    batch = augmented(state, batch)
    differentiate = jax.grad(loss_fn, has_aux=True)
    if (parts := num_micro_batches(state, batch)) == 1:
        whole: Gradient = differentiate(state.params, state, batch)
        _check_collections(state, whole[1][1])
        return whole
    warn_of_slow_conv(state.model, state.image_shape)

    def add(carry: Any, micro_batch: Any) -> Any:
        sums, model_state = carry
        places, batch = micro_batch
        micro = dataclasses.replace(state, model_state=model_state)
        grads, (metrics, model_state) = differentiate(
            state.params, micro, batch, places=places
        )
        _check_collections(state, model_state)
        weight = _total_weight(state, batch, metrics)
        sums = jax.tree.map(lambda a, b: a + b * weight, sums, grads)
        return (sums, model_state), (metrics, weight)

    zeros = jax.tree.map(
        # Sums in half precision would lose small gradients.
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)),
        state.params,
    )
    (sums, model_state), (each, weights) = lax.scan(
        add, (zeros, state.model_state), _micro_batches(batch, parts)
    )
    # With 64 bits enabled, a sum of integers of 32 bits has 64.
    metrics = jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=leaf.dtype), each)
    total = jnp.maximum(metrics.count, 1)
    if "weight" in batch:
        total = _positive(weights.sum())
        counts = jnp.maximum(each.confusion.sum(axis=(1, 2)), 1)
        mean = (weights * each.loss_sum / counts).sum() / total
        metrics = dataclasses.replace(metrics, loss_sum=mean * metrics.count)
    grads = jax.tree.map(
        lambda leaf, param: (leaf / total).astype(param.dtype), sums, state.params
    )
    return grads, (metrics, model_state)


def batch_loss(params: Params, state: TrainState, batch: Batch) -> Float[Array, ""]:
    """Returns the loss that :func:`gradient` differentiates, of the same random draws.

    Optimizers with a line search evaluate it at other parameters. Differentiated, it
    holds the activations of one micro-batch at a time, too.
    """
    batch = augmented(state, batch)
    if (parts := num_micro_batches(state, batch)) == 1:
        return loss_fn(params, state, batch)[0]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(carry: Any, micro_batch: Any) -> Any:
        total, model_state = carry
        places, batch = micro_batch
        micro = dataclasses.replace(state, model_state=model_state)
        loss, (metrics, model_state) = loss_fn(params, micro, batch, places=places)
        weight = _total_weight(state, batch, metrics)
        return (total + loss * weight, model_state), weight

    (total, _), weights = lax.scan(
        add, (0.0, state.model_state), _micro_batches(batch, parts)
    )
    mean: Array = total / _positive(weights.sum())
    return mean
