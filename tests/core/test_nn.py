"""Layers for models of one's own: the values of linen's, and fast gradients on CPU."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from helpers import has_convolution

from flaxmnist import Metrics
from flaxmnist.core import models, nn, steps
from flaxmnist.core.state import abstract_state

IMAGES = (2, 9, 8, 8)
CONVS = [
    # Input shape, arguments of Conv
    (IMAGES, {"kernel_size": (5, 5)}),
    (IMAGES, {"kernel_size": (3, 3), "strides": (2, 1), "padding": "VALID"}),
    (IMAGES, {"kernel_size": (3, 2), "strides": 2, "padding": ((2, 0), (1, 3))}),
    (IMAGES, {"kernel_size": (3, 3), "padding": "CIRCULAR", "use_bias": False}),
    (IMAGES, {"kernel_size": (3, 3), "dtype": jnp.bfloat16}),
    (IMAGES[1:], {"kernel_size": (3, 3)}),
    (IMAGES, {"kernel_size": (3, 3), "kernel_dilation": (2, 2)}),
    (IMAGES, {"kernel_size": (3, 3), "input_dilation": 2, "padding": 1}),
    (IMAGES, {"kernel_size": (3, 3), "feature_group_count": 4}),
    (IMAGES, {"kernel_size": (10, 9)}),
    ((2, 9, 8), {"kernel_size": 3, "padding": "CAUSAL"}),
    ((2, 4, 5, 4, 3), {"kernel_size": (3, 2, 2), "strides": (1, 2, 1)}),
]
POOLS = [
    # Name, input shape, other arguments
    ("max_pool", IMAGES, ((2, 2), (2, 2))),
    ("max_pool", IMAGES, ((3, 2), (3, 2), "SAME")),
    ("max_pool", IMAGES, ((3, 3), (2, 2), "SAME")),
    ("max_pool", IMAGES, ((2, 2),)),
    ("max_pool", IMAGES, ((2, 2), (2, 2), ((1, 0), (0, 0)))),
    ("max_pool", IMAGES[1:], ((2, 2), (2, 2))),
    ("max_pool", (3, *IMAGES), ((1, 4), (1, 4))),
    ("max_pool", (2, 9, 8), ((2,), (2,))),
    ("max_pool", (1, 4, 4, 4, 2), ((2, 2, 2), (2, 2, 2))),
    ("avg_pool", IMAGES, ((2, 2), (2, 2))),
    ("avg_pool", IMAGES, ((3, 4), (3, 4), "SAME")),
    ("avg_pool", IMAGES, ((2, 2), (2, 2), "SAME", False)),
    ("avg_pool", (2, 9, 8), ((2,), (2,))),
]


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def weighted(outputs):
    """A scalar to which each output contributes differently."""
    outputs = outputs.astype(jnp.float32)
    return (jnp.sin(outputs) * jnp.arange(outputs.size).reshape(outputs.shape)).sum()


def assert_close(ours, theirs, scale):
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        one, other = (np.asarray(leaf, np.float32) for leaf in (one, other))
        np.testing.assert_allclose(one, other, atol=scale * np.abs(other).max())


@pytest.mark.slow
def test_conv_is_a_drop_in_for_linens():
    def results(layers):
        for layer, shape in layers:
            inputs = normal(shape)
            params = layer.init(jax.random.key(0), inputs)
            grads = jax.grad(lambda p, x, f=layer: weighted(f.apply(p, x)), (0, 1))
            yield params, layer.apply(params, inputs), grads(params, inputs)

    def all_of(kind):
        layers = [(kind(features=8, **kwargs), shape) for shape, kwargs in CONVS]
        return jax.jit(lambda: list(results(layers)))()

    for ours, theirs, case in zip(
        all_of(nn.Conv), all_of(linen.Conv), CONVS, strict=True
    ):
        assert ours[0]["params"].keys() == theirs[0]["params"].keys()
        # Values are bit for bit linen's.
        jax.tree.map(np.testing.assert_array_equal, ours[:2], theirs[:2])
        half = case[1].get("dtype") == jnp.bfloat16
        assert_close(ours[2], theirs[2], 3e-2 if half else 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": ((-1, -1), (0, -2))},
        {"padding": "VALID", "kernel_size": (9, 5)},
    ],
)
def test_cropped_and_small_images_are_convolved_as_by_linen(options):
    images, results = normal((2, 8, 8, 1)), []
    for kind in (nn.Conv, linen.Conv):
        layer = kind(**{"features": 4, "kernel_size": (3, 3)} | options)
        params = layer.init(jax.random.key(0), images)
        grads = jax.grad(lambda p, x, f=layer: weighted(f.apply(p, x)), (0, 1))
        results.append((layer.apply(params, images), grads(params, images)))
    jax.tree.map(np.testing.assert_allclose, *results)


def test_pools_are_drop_ins_for_linens():
    def results(module):
        for name, shape, arguments in POOLS:
            # Rounded, so that some are equal.
            inputs = jnp.round(normal(shape))

            def pool(x, name=name, arguments=arguments):
                return getattr(module, name)(x, *arguments)

            grads = jax.grad(lambda x, pool=pool: weighted(pool(x)))(inputs)
            yield pool(inputs), *jax.jvp(pool, (inputs,), (inputs,)), grads

    ours, theirs = (
        jax.jit(lambda module=module: list(results(module)))() for module in (nn, linen)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, 1e-6)


def test_max_pool_passes_nan_on_in_training_too():
    images = normal((1, 4, 4, 1)).at[0, 0, 1, 0].set(jnp.nan)

    def pool(images):
        return nn.max_pool(images, (2, 2), (2, 2))

    for pooled in (pool(images), jax.vjp(pool, images)[0]):
        np.testing.assert_array_equal(jnp.isnan(pooled).ravel(), [True] + 3 * [False])


class Net(linen.Module):
    conv: type = nn.Conv

    @linen.compact
    def __call__(self, images, *, train):
        x = self.conv(8, (3, 3))(models.scale(images))
        x = nn.max_pool(linen.relu(self.conv(4, (3, 3))(x)), (7, 7), (7, 7))
        return linen.Dense(10)(x.reshape(x.shape[0], -1))


BATCH = {
    "image": jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.uint8),
    "label": jax.ShapeDtypeStruct((4,), jnp.int32),
}


def test_gradients_on_cpu_avoid_the_convolution_of_xla():
    state = abstract_state(Net(), optax.sgd(0.1))
    assert not has_convolution(steps.train_step, state, BATCH)
    assert has_convolution(steps.train_step, state, BATCH, platform="cuda")
    assert has_convolution(steps.predict_step, state, BATCH["image"])
    assert has_convolution(steps.eval_step, state, BATCH)


def test_transformations_of_jax_give_the_gradients_of_linen():
    images = normal((3, 8, 8, 2))
    layers = {kind: kind(8, (3, 3)) for kind in (nn.Conv, linen.Conv)}
    params = layers[nn.Conv].init(jax.random.key(0), images)

    def gradients(layer):
        def loss(params, images):
            x = layer.apply(params, images)
            return weighted(nn.max_pool(x, (2, 2), (2, 2)))

        grad = jax.grad(loss)
        checkpointed = jax.grad(jax.checkpoint(loss))
        return {
            "vmap": jax.vmap(grad, (None, 0))(params, images),
            "scan": jax.lax.map(lambda image: grad(params, image), images),
            "remat": checkpointed(params, images),
            "grad of jit": jax.grad(jax.jit(loss))(params, images),
        }

    ours, theirs = (jax.jit(lambda f=f: gradients(f))() for f in layers.values())
    assert_close(ours, theirs, 1e-4)


class Batches:
    def at(self, step):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), BATCH)


jax.tree_util.register_static(Batches)


def trace(conv, step=steps.train_steps, **options):
    """Traces a step and returns the warnings."""
    state = abstract_state(Net(conv), optax.sgd(0.1), **options)
    steps.train_step.clear_cache()
    steps.train_steps.clear_cache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if step is steps.train_step:
            jax.eval_shape(step, state, BATCH)
        else:
            jax.eval_shape(step, state, Metrics.empty(), Batches(), 1)
    return [str(warning.message) for warning in caught]


def test_a_loop_with_convolutions_of_linen_warns_once():
    class Own(linen.Conv):
        pass

    nn.warn_of_slow_conv.cache_clear()
    assert trace(linen.Conv, steps.train_step) == []
    assert trace(nn.Conv) == []
    (warning,) = trace(linen.Conv)
    assert "Net: linen's Conv (Conv_0, Conv_1) trains" in warning
    assert "flaxmnist.nn.Conv" in warning
    assert trace(linen.Conv) == []
    # Micro-batches are a loop, too.
    (warning,) = trace(Own, steps.train_step, grad_accumulation=2)
    assert "(Own_0, Own_1)" in warning


def test_platforms_other_than_cpu_do_not_warn(monkeypatch):
    nn.warn_of_slow_conv.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    assert trace(linen.Conv) == []
    nn.warn_of_slow_conv.cache_clear()
