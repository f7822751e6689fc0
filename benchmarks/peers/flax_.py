"""Plain flax, as google/flax's example writes it; variants "loop" and "scan"."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from benchmarks.peers import EVAL_BATCH, MODERN, RECIPES, shuffled


class Network(nn.Module):
    """The four networks."""

    name_: str
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, train):
        """Returns the logits."""
        if self.name_ in ("softmax", "mlp"):
            x = x.reshape(x.shape[0], -1)
            for width in (128, 32) if self.name_ == "mlp" else ():
                x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
            return self._logits(x)
        modern = self.name_ == "modern"
        for features in MODERN if modern else (32, 64):
            x = nn.Conv(features, (3, 3) if modern else (5, 5), dtype=self.dtype)(x)
            x = nn.BatchNorm(not train, dtype=self.dtype)(x) if modern else x
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        if not modern:
            x = nn.relu(nn.Dense(1024, dtype=self.dtype)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return self._logits(x)

    @nn.nowrap
    def _logits(self, x):
        return nn.Dense(10, dtype=self.dtype)(x).astype(jnp.float32)


class State(TrainState):
    """With batch statistics."""

    batch_stats: dict


def scale(images):
    """Returns float images `[batch, 28, 28, 1]`."""
    return images[..., None].astype(jnp.float32) / 255


def update(state, images, labels, key):
    """Returns the next state."""

    def loss_fn(params):
        logits, changed = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            scale(images),
            train=True,
            rngs={"dropout": jax.random.fold_in(key, state.step)},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed

    grads, changed = jax.grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads)
    return state.replace(batch_stats=changed.get("batch_stats", {}))


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, images, labels, key):
    """Makes one update."""
    return update(state, images, labels, key)


@functools.partial(jax.jit, donate_argnums=0)
def train_scan(state, images, labels, key):
    """Makes an update for each batch of a stack."""

    def body(state, batch):
        return update(state, *batch, key), None

    return jax.lax.scan(body, state, (images, labels))[0]


@jax.jit
def predict(state, images):
    """Returns the classes."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return state.apply_fn(variables, scale(images), train=False).argmax(-1)


class Peer:
    """See :mod:`benchmarks.peers`."""

    def __init__(
        self, network, batch_size, images, labels, test, variant, dtype="float32"
    ):
        self.batches = shuffled(images, labels.astype(np.int32), batch_size)
        self.test, self.scan = test, variant == "scan"
        model, self.key = Network(network, dtype), jax.random.key(1)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), False)
        name, rate = RECIPES[network]
        self.state = State.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=getattr(optax, name)(rate),
            batch_stats=variables.get("batch_stats", {}),
        )

    def train(self, steps):
        """Makes `steps` updates."""
        if self.scan:
            stacks = zip(*itertools.islice(self.batches, steps), strict=True)
            self.state = train_scan(self.state, *map(np.stack, stacks), self.key)
        else:
            for batch in itertools.islice(self.batches, steps):
                self.state = train_step(self.state, *batch, self.key)
        jax.block_until_ready(self.state.params)

    def evaluate(self):
        """Returns the accuracy on the test images."""
        images, labels = self.test
        found = [
            predict(self.state, images[start : start + EVAL_BATCH])
            for start in range(0, len(images), EVAL_BATCH)
        ]
        return float(np.mean(np.concatenate(found) == labels))

    def predict(self, image):
        """Returns the class of an image."""
        return predict(self.state, image[None]).item()
