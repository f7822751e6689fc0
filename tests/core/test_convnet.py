import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from scipy import ndimage

from flaxmnist.core.convnet import ConvNet
from flaxmnist.core.models import num_parameters
from flaxmnist.errors import UserError

VGG = "24C3-BN-24C3-BN-MP2-48C3-BN-48C3-BN-MP2-96C3-BN-96C3-BN-AP"


def conv(x, params, stride=1, padding="SAME"):
    out = lax.conv_general_dilated(
        x,
        params["kernel"],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return nn.relu(out + params["bias"].reshape(1, 1, 1, -1))


def dense(x, params):
    return x @ params["kernel"] + params["bias"][None]


def norm(x, params, stats):
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def variables(model, images, seed=0):
    """Random parameters and positive statistics."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (
            rng.uniform(0.2, 1, leaf.shape).astype(np.float32)
            * rng.choice([-1, 1], leaf.shape if leaf.ndim > 1 else ())
        ),
        shapes,
    )


def test_layers_mean_what_the_notation_says():
    images = np.random.default_rng(0).random((3, 14, 14, 2), np.float32)
    model = ConvNet(layers="4C5S2-BN-R-SE-MP2-6C3V-AP2-D-MP-5N-BN", num_classes=7)
    found = variables(model, images)
    params, stats = found["params"], jax.tree.map(abs, found["batch_stats"])
    logits = jax.jit(model.apply)({"params": params, "batch_stats": stats}, images)

    def bn(x, index):
        name = f"BatchNorm_{index}"
        return norm(np.asarray(x), params[name], stats[name])

    x = bn(conv(images, params["Conv_0"], 2), 0)  # 7×7.
    y = bn(x, 1)
    x = y + conv(y, params["Conv_1"])
    factors = nn.relu(dense(x.mean((1, 2)), params["Dense_0"]))
    x = x * nn.sigmoid(dense(factors, params["Dense_1"]))[:, None, None]
    x = nn.max_pool(x, (2, 2), (2, 2), "SAME")  # 4×4.
    x = conv(x, params["Conv_2"], padding="VALID")  # 2×2.
    x = nn.avg_pool(x, (2, 2), (2, 2))
    x = bn(nn.relu(dense(x.max((1, 2)), params["Dense_2"])), 2)
    np.testing.assert_allclose(logits, dense(x, params["Dense_3"]), rtol=1e-4)


def test_training_computes_the_same_function():
    images = np.random.default_rng(0).random((3, 14, 14, 1), np.float32)
    model = ConvNet(layers="8C5-MP2-8C3-AP2-SE-MP2-AP")
    params = variables(model, images)
    plain, training = (
        jax.jit(model.apply, static_argnames="train")(params, images, train=train)
        for train in (False, True)
    )
    np.testing.assert_allclose(training, plain, rtol=1e-4)


def test_pooling_of_maxima_joins_the_layer_before_it():
    class Separate(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            x = nn.relu(nn.Conv(3, (3, 3), padding="VALID")(images))
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Conv(4, (3, 3), 2)(x))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
            return nn.Dense(10)(x.reshape(len(x), -1))

    images = np.random.default_rng(0).random((3, 16, 16, 2), np.float32)
    joined = ConvNet(layers="3C3V-MP2-4C3S2-BN-MP2")
    found = variables(joined, images)
    found["batch_stats"] = jax.tree.map(abs, found["batch_stats"])

    def outputs(model):
        def loss(params):
            given = found | {"params": params}
            logits, new = model.apply(
                given, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sin(logits).sum(), (logits, new)

        trained = jax.value_and_grad(loss, has_aux=True)(found["params"])
        return trained, model.apply(found, images, train=False)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        *(jax.jit(functools.partial(outputs, m))() for m in (joined, Separate())),
    )


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        # github.com/ttdoucet/mnist, with 32 kernels instead of 128.
        (ConvNet.layers, 298_442),
        (VGG, 162_898),
        # LeNet-5 (LeCun et al., 1998), with all connections.
        ("6C5-AP2-16C5V-AP2-120N-84N", 61_706),
    ],
)
def test_networks_have_their_number_of_parameters(layers, count):
    images = jax.ShapeDtypeStruct((1, 28, 28, 1), np.uint8)
    shapes = jax.eval_shape(ConvNet(layers=layers).init, jax.random.key(0), images)
    assert num_parameters(shapes["params"]) == count


def test_crop_is_resized_bilinearly():
    images = np.random.default_rng(0).random((2, 9, 12, 1), np.float32)
    model = ConvNet(layers="1C1", crop=7)
    kernel = {"kernel": np.ones((1, 1, 1, 1)), "bias": np.zeros(1)}
    seen = model.apply(
        {"params": variables(model, images)["params"] | {"Conv_0": kernel}},
        images,
        capture_intermediates=lambda module, _: isinstance(module, nn.Conv),
    )[1]["intermediates"]["Conv_0"]["__call__"][0]
    places = np.meshgrid(
        (np.arange(9) - 4) * 7 / 9 + 4,
        (np.arange(12) - 5.5) * 7 / 12 + 5.5,
        indexing="ij",
    )
    for image, cropped in zip(images, seen, strict=True):
        expected = ndimage.map_coordinates(image[..., 0], places, order=1)
        np.testing.assert_allclose(cropped[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": "24C5-MP2-48X3"},
            "model.layers=.*: unknown layer '48X3'; exp",
        ),
        ({"layers": ""}, "unknown layer ''"),
        ({"layers": "0C3"}, "unknown layer '0C3'"),
        ({"layers": "24C3-AP-R"}, "layer 'R' needs images, but 'AP' before it"),
        ({"layers": "8N-24C3"}, "layer '24C3' needs images, but '8N' before it"),
        ({"layers": 24}, "model.layers=24: expected a text such as"),
        ({"layers": "4C5VS2"}, "unknown layer '4C5VS2'"),
        (
            {"layers": "4C5S2V-MP2-8C7V"},
            "'8C7V' gets 6×6 pixels; expected at least 7×7. Remove its V",
        ),
        ({"crop": 0}, "model.crop=0: expected a whole number"),
        ({"crop": 29}, "model.crop=29: expected at most 28, for images of 28×28"),
    ],
)
def test_errors_name_the_layer(options, message):
    with pytest.raises(UserError, match=message):
        ConvNet(**options).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
