"""Each lowering computes what XLA's own operation does, and so do its gradients."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import enable_x64, exchanges_examples, has_convolution
from jax import lax

from flaxmnist.core import ops, patches, sharding, winograd

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
    # The same with stride 2: even and odd sides, with a remainder or not.
    ((2, 10, 13, 8), (5, 5), (2, 2), "SAME"),
    pytest.param((1, 12, 9, 8), (5, 5), (2, 2), "VALID", marks=pytest.mark.slow),
    pytest.param(
        (1, 6, 9, 8), (5, 5), (2, 2), ((4, 3), (0, 2)), marks=pytest.mark.slow
    ),
    # Maxima by patches: few channels; a remainder, and padding of one side.
    ((2, 7, 9, 1), (3, 3), (1, 1), "SAME"),
    pytest.param(
        (1, 8, 7, 2), (3, 4), (1, 1), ((2, 0), (1, 3)), marks=pytest.mark.slow
    ),
    # Not by Winograd's algorithm: unequal strides, a small kernel of stride 2, another
    # shape.
    ((2, 8, 8, 8), (3, 3), (2, 1), "SAME"),
    pytest.param((2, 9, 8, 8), (3, 3), (2, 2), "SAME", marks=pytest.mark.slow),
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


@pytest.mark.parametrize(
    ("size", "strides", "faster"),
    [
        (5, (1, 1), True),
        (3, (1, 1), True),
        (5, (2, 2), True),
        (5, (2, 1), False),
        (3, (2, 2), False),
        (5, (3, 3), False),
    ],
)
def test_which_kernels_and_strides_winograd_computes(size, strides, faster):
    images, kernel = jnp.zeros((2, 9, 9, 8)), jnp.zeros((size, size, 8, 4))
    assert winograd.is_faster(images, kernel, strides, ((1, 1),) * 2) == faster


OPTIONS = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUT}


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "dtype", "by_products"),
    [
        # Few kernels, on gray images.
        ((2, 8, 8, 1), (5, 5, 16), 2, "float32", True),
        ((2, 8, 8, 1), (5, 5, 17), 2, "float32", False),
        ((2, 8, 8, 2), (5, 5, 16), 2, "float32", False),
        # By Winograd's algorithm: 5×5 pixels, 32 channels and kernels, 64 tiles.
        ((16, 8, 8, 32), (5, 5, 32), 1, "float32", True),
        ((16, 8, 8, 32), (5, 5, 31), 1, "float32", False),
        ((15, 8, 8, 32), (5, 5, 32), 1, "float32", False),
        ((16, 8, 8, 31), (5, 5, 32), 1, "float32", False),
        ((16, 8, 8, 32), (3, 3, 32), 1, "float32", False),
        ((16, 8, 8, 32), (5, 5, 32), 2, "float32", False),
        ((16, 8, 8, 32), (5, 5, 32), 1, "bfloat16", False),
        # 401 images are too many for one part, and no number of parts divides them.
        ((400, 8, 8, 32), (5, 5, 32), 1, "float32", True),
        ((401, 8, 8, 32), (5, 5, 32), 1, "float32", False),
        # One image is too large.
        ((1, 256, 256, 32), (5, 5, 32), 1, "float32", False),
    ],
)
def test_evaluation_convolves_by_products_where_they_are_faster(
    shape, kernel, stride, dtype, by_products
):
    *size, cout = kernel
    options = OPTIONS | {"window_strides": (stride, stride)}
    conv = jax.jit(functools.partial(ops.conv, **options))
    arguments = [
        jax.ShapeDtypeStruct(of, dtype) for of in (shape, (*size, shape[-1], cout))
    ]
    assert has_convolution(conv, *arguments) == (not by_products)
    assert has_convolution(conv, *arguments, platform="cuda")


@pytest.mark.parametrize("kernel", [(5, 5, 32, 32), (5, 5, 1, 16)])
def test_a_program_for_any_batch_contains_xlas_convolution(kernel):
    (count,) = jax.export.symbolic_shape("count")
    images = jax.ShapeDtypeStruct((count, 8, 8, kernel[2]), jnp.float32)
    conv = jax.jit(functools.partial(ops.conv, **OPTIONS))
    exported = jax.export.export(conv)(images, jax.ShapeDtypeStruct(kernel, "float32"))
    assert "stablehlo.convolution" in exported.mlir_module()


@pytest.mark.usefixtures("new_traces")
def test_evaluation_by_products_in_parts_has_the_values_of_xlas_convolution(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    # Room for one example on each device, of 4 tiles of 8 × 8 products.
    monkeypatch.setattr(winograd, "INFERENCE_PART_BYTES", 4 * 64 * 32 * 8)

    def ours(*args):
        return ops.conv(*args, pool=True, **OPTIONS)

    def xla(*args):
        out = lax.conv_general_dilated(*args, **OPTIONS)
        return nn.max_pool(out, (2, 2), (2, 2))

    with enable_x64(True):
        images = jnp.asarray(rng.normal(size=(16, 8, 7, 32)))
        kernel = jnp.asarray(rng.normal(size=(5, 5, 32, 32)))
        assert "scan" in str(jax.make_jaxpr(ours)(images, kernel))
        wanted = xla(images, kernel)
        np.testing.assert_allclose(
            jax.jit(ours)(images, kernel), wanted, rtol=1e-9, atol=1e-8
        )
        # Each device keeps its examples.
        split = sharding.split_over_data(sharding.make_mesh(8), axis=0)
        lowered = jax.jit(ours).lower(jax.device_put(images, split), kernel)
        assert not exchanges_examples(lowered.compile().as_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "products"),
    [
        # Four tiles of 8 × 8 products for each of 8 kernels.
        (1, 4 * 64 * 8),
        # One tile of 6 × 6 products for each of 32 channels.
        (2, 36 * 32),
    ],
)
def test_a_large_batch_is_convolved_in_parts_to_the_same_end(stride, products):
    whole = functools.partial(winograd.conv, padding=((2, 2), (2, 2)), stride=stride)
    # Room for two and a half examples in float64.
    in_parts = functools.partial(whole, part_bytes=5 * products * 8 // 2)

    def all_of(conv, images, kernel):
        out, pull = jax.vjp(conv, images, kernel)
        return out, *pull(jnp.sin(out))

    with enable_x64(True):
        rng = np.random.default_rng(0)
        args = [jnp.asarray(rng.normal(size=s)) for s in ((12, 8, 8, 8), (5, 5, 8, 8))]
        for conv, is_divided in ((whole, False), (in_parts, True)):
            traced = jax.make_jaxpr(functools.partial(all_of, conv))(*args)
            assert ("scan" in str(traced)) == is_divided
        for one, other in zip(
            all_of(whole, *args), all_of(in_parts, *args), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        # Eleven cannot be divided into parts of about that size.
        eleven = args[0][:11], args[1]
        assert "scan" not in str(jax.make_jaxpr(in_parts)(*eleven))
        np.testing.assert_allclose(in_parts(*eleven), whole(*eleven), rtol=1e-9)


def test_a_dense_layer_of_few_outputs_and_its_derivatives_are_those_of_linen():
    rng = np.random.default_rng(0)
    layers = [nn.Dense(10, dot_general=dot) for dot in (ops.dot_general, None)]
    images = jnp.asarray(rng.normal(size=(7, 20)), jnp.float32)
    primals = layers[0].init(jax.random.key(0), images), images

    def all_of(layer):
        def loss(primals):
            return jnp.sin(layer.apply(*primals)).sum()

        along = jax.tree.map(jnp.ones_like, primals)
        hessian_along = jax.jvp(jax.grad(loss), (primals,), (along,))[1]
        return jax.value_and_grad(loss)(primals), hessian_along

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
