"""Each lowering computes what XLA's own operation does, and so do its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import enable_x64
from jax import lax

from flaxmnist.core import ops, patches, winograd

SHAPES = [
    # image, kernel, strides, padding
    ((2, 8, 8, 3), (5, 5), (1, 1), "SAME"),
    pytest.param((1, 7, 9, 2), (3, 2), (1, 1), "SAME", marks=pytest.mark.slow),
    ((2, 9, 7, 2), (3, 3), (2, 2), "SAME"),
    pytest.param((2, 8, 8, 1), (5, 3), (1, 1), "VALID", marks=pytest.mark.slow),
    ((1, 11, 8, 2), (4, 4), (3, 2), "VALID"),
    pytest.param(
        (2, 6, 6, 2), (3, 3), (2, 1), ((2, 0), (1, 3)), marks=pytest.mark.slow
    ),
    ((2, 5, 5, 4), (1, 1), (1, 1), "SAME"),
    # By Winograd's algorithm: channels enough, square kernels of 3 or 5, stride 1.
    pytest.param((2, 14, 14, 8), (5, 5), (1, 1), "SAME", marks=pytest.mark.slow),
    pytest.param((1, 9, 11, 9), (5, 5), (1, 1), "VALID", marks=pytest.mark.slow),
    ((2, 7, 6, 8), (3, 3), (1, 1), "SAME"),
    pytest.param((1, 4, 13, 8), (3, 3), (1, 1), "VALID", marks=pytest.mark.slow),
    pytest.param((1, 3, 3, 8), (3, 3), (1, 1), "VALID", marks=pytest.mark.slow),
    pytest.param(
        (1, 5, 6, 8), (5, 5), (1, 1), ((4, 3), (2, 4)), marks=pytest.mark.slow
    ),
    ((1, 6, 6, 8), (3, 3), (1, 1), ((3, 0), (1, 1))),
    # Maxima by patches: few channels; a remainder, and padding of one side.
    ((2, 7, 9, 1), (3, 3), (1, 1), "SAME"),
    pytest.param(
        (1, 8, 7, 2), (3, 4), (1, 1), ((2, 0), (1, 3)), marks=pytest.mark.slow
    ),
    # Not by Winograd's algorithm: a stride, another shape.
    ((2, 8, 8, 8), (3, 3), (2, 1), "SAME"),
    ((1, 8, 8, 8), (3, 5), (1, 1), "SAME"),
]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def in_float64(function, shape, kernel):
    """Returns a weighted sum of a function of images and a kernel, and its gradient."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=shape))
    weights = jnp.asarray(rng.normal(size=(*kernel, shape[-1], 6)))

    def scalar(images, weights):
        out = function(images, weights)
        return (jnp.sin(out) * jnp.arange(out.size).reshape(out.shape)).sum()

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(images, weights)


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), SHAPES)
def test_conv_and_its_gradients_equal_lax_conv_in_float64(
    shape, kernel, strides, padding
):
    options = {"window_strides": strides, "padding": padding}
    options["dimension_numbers"] = LAYOUT

    def pooled(*args):
        out = lax.conv_general_dilated(*args, **options)
        return nn.max_pool(out, (2, 2), (2, 2))

    with enable_x64(True):
        for ours, theirs in (
            (ops.conv, functools.partial(lax.conv_general_dilated, **options)),
            (functools.partial(ops.conv, pool=True), pooled),
        ):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8),
                in_float64(functools.partial(ours, **options), shape, kernel),
                in_float64(theirs, shape, kernel),
            )


@pytest.mark.parametrize(("channels", "kernels"), [(1, 16), (1, 17), (2, 16)])
def test_evaluation_convolves_by_products_for_few_kernels_of_gray_images(
    channels, kernels
):
    options = {"window_strides": (2, 2), "padding": "SAME", "dimension_numbers": LAYOUT}
    conv = jax.jit(functools.partial(ops.conv, **options))
    arguments = jnp.ones((2, 8, 8, channels)), jnp.ones((5, 5, channels, kernels))
    by_xla = "convolution(" in conv.lower(*arguments).compile().as_text()
    assert by_xla == ((channels, kernels) != (1, 16))


@pytest.mark.slow
def test_a_large_batch_is_convolved_in_parts_to_the_same_end(monkeypatch):
    padding = ((2, 2), (2, 2))

    def all_of(images, kernel):
        out, pull = jax.vjp(lambda x, k: winograd.conv(x, k, padding), images, kernel)
        return out, *pull(jnp.sin(out))

    with enable_x64(True):
        rng = np.random.default_rng(0)
        args = [jnp.asarray(rng.normal(size=s)) for s in ((12, 8, 8, 8), (5, 5, 8, 8))]

        def in_parts():
            # Traced anew each time: the limit is no argument.
            return "scan" in str(jax.make_jaxpr(lambda *args: all_of(*args))(*args))

        whole = all_of(*args)
        assert not in_parts()
        # Room for two and a half examples, each of 4 tiles of 8 × 8 products.
        monkeypatch.setattr(winograd, "CACHE_BYTES", 5 * 4 * 64 * 8 * 8 // 2)
        assert in_parts()
        for one, other in zip(whole, all_of(*args), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        # Eleven cannot be cut into parts of about that size.
        assert winograd.conv(args[0][:11], args[1], padding).shape == (11, 8, 8, 8)


def test_a_dense_layer_of_few_outputs_and_its_derivatives_are_those_of_linen():
    rng = np.random.default_rng(0)
    layers = [nn.Dense(10, dot_general=dot) for dot in (ops.dot_general, None)]
    images = jnp.asarray(rng.normal(size=(7, 20)), jnp.float32)
    params = layers[0].init(jax.random.key(0), images)

    def all_of(layer):
        def loss(params):
            return jnp.sin(layer.apply(params, images)).sum()

        along = jax.tree.map(jnp.ones_like, params)
        hessian_along = jax.jvp(jax.grad(loss), (params,), (along,))[1]
        return jax.value_and_grad(loss)(params), hessian_along

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        *map(all_of, layers),
    )


@pytest.mark.slow
@pytest.mark.parametrize("r", winograd.KERNELS)
def test_winograds_error_in_float32(r):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(8, 14, 14, 32)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(r, r, 32, 16)), jnp.float32)
    padding = ((r // 2, r // 2),) * 2

    def errors(images, kernel):
        ours, pull = jax.vjp(lambda x, k: winograd.conv(x, k, padding), images, kernel)
        with enable_x64(True):
            exact, exact_pull = jax.vjp(
                lambda x, k: patches.conv(x, k, (1, 1), padding),
                jnp.asarray(images, jnp.float64),
                jnp.asarray(kernel, jnp.float64),
            )
            expected = (exact, *exact_pull(jnp.asarray(ours, jnp.float64)))
        both = jax.device_get(((ours, *pull(ours)), expected))
        for found, wanted in zip(*both, strict=True):
            yield float(np.abs(found - wanted).max() / np.abs(wanted).max())

    assert max(errors(images, kernel)) < 3e-5


def test_large_kernels_are_xlas(monkeypatch):
    monkeypatch.setattr(ops, "patches", None)
    images, kernel = jnp.ones((1, 28, 28, 1)), jnp.ones((20, 20, 1, 2))
    out = ops.conv(images, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
    assert out.shape == (1, 28, 28, 2)


def test_dilated_and_grouped_convolutions_are_xlas():
    images, rng = jnp.ones((1, 8, 8, 4)), np.random.default_rng(0)
    for options, cin in (
        ({"rhs_dilation": (2, 2)}, 4),
        ({"feature_group_count": 2}, 2),
    ):
        kernel = jnp.asarray(rng.normal(size=(3, 3, cin, 4)), jnp.float32)
        args = (images, kernel, (1, 1), "SAME")
        np.testing.assert_array_equal(
            ops.conv(*args, dimension_numbers=LAYOUT, **options),
            lax.conv_general_dilated(*args, dimension_numbers=LAYOUT, **options),
        )
