"""The pure steps. Import them, or let `flaxmnist.train` drive them.

A batch is a dict: ``image``, uint8 `[batch, 28, 28, 1]` (or float in [0, 1]);
``label``, integer `[batch]`; and optionally ``mask``, bool `[batch]`, False where an
example is padding. Arrays may be sharded over devices; computation follows them.
"""

import dataclasses
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int, Num

from flaxmnist.metrics import Metrics
from flaxmnist.state import TrainState

Batch = dict[str, Any]


@runtime_checkable
class Batches(Protocol):
    """A pytree that yields batches inside a compiled program."""

    def at(self, step: Int[Array, ""]) -> Batch:
        """Returns the batch of a step."""


def _losses_and_mask(logits: Any, batch: Batch) -> tuple[Any, Any]:
    labels = batch["label"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, batch.get("mask", jnp.ones(labels.shape, bool))


@jax.jit(donate_argnames="state")
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Makes one update; `state` is donated, so use the returned one from here on."""
    dropout_key = jax.random.fold_in(state.key, state.step)

    def loss_fn(params):
        logits, model_state = state.model.apply(
            {"params": params, **state.model_state},
            batch["image"],
            train=True,
            rngs={"dropout": dropout_key},
            mutable=list(state.model_state),
        )
        losses, mask = _losses_and_mask(logits, batch)
        metrics = Metrics.of(losses, logits, batch["label"], mask)
        return metrics.loss_sum / jnp.maximum(mask.sum(), 1), (metrics, model_state)

    grads, (metrics, model_state) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        model_state=model_state,
    )
    return state, metrics


@jax.jit
def predict_step(
    state: TrainState, images: Num[Array, "batch ..."]
) -> dict[str, Num[Array, "batch ..."]]:
    """Returns ``classes`` `[batch]`, ``probabilities`` and ``logits`` `[batch, 10]`."""
    variables = {"params": state.params, **state.model_state}
    logits = cast(Array, state.model.apply(variables, images, train=False))
    return {
        "classes": jnp.argmax(logits, axis=-1),
        "probabilities": jax.nn.softmax(logits),
        "logits": logits,
    }


@jax.jit
def eval_step(state: TrainState, batch: Batch) -> Metrics:
    """Returns the metrics of one batch; nothing random, nothing changed."""
    logits = predict_step(state, batch["image"])["logits"]
    losses, mask = _losses_and_mask(logits, batch)
    return Metrics.of(losses, logits, batch["label"], mask)


@jax.jit(donate_argnames=("state", "metrics"))
def train_steps(
    state: TrainState, metrics: Metrics, batches: Batches, num_steps: Int[Array, ""]
) -> tuple[TrainState, Metrics]:
    """Makes `num_steps` updates in one dispatch and adds up their metrics.

    The number of steps is an argument of the compiled program, not a part of it: one
    compilation serves every number, and cutting a run elsewhere changes no bit.
    """

    def body(_, carry):
        state, metrics = carry
        state, new = train_step(state, batches.at(state.step))
        return state, metrics.merge(new)

    return lax.fori_loop(0, num_steps, body, (state, metrics))


@jax.jit(donate_argnames="metrics")
def eval_steps(
    state: TrainState,
    metrics: Metrics,
    batches: Batches,
    first: Int[Array, ""],
    num_steps: Int[Array, ""],
) -> Metrics:
    """Adds the metrics of the batches `first` … `first + num_steps - 1`."""

    def body(step, metrics):
        return metrics.merge(eval_step(state, batches.at(step)))

    return lax.fori_loop(first, first + num_steps, body, metrics)


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether every floating-point number in a tree is finite."""
    floats = [
        leaf
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]))
