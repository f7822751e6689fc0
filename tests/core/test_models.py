"""The networks are those of the tutorials, and their options what they say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import batch_of
from jax import lax

from flaxmnist import config as configs
from flaxmnist.core import models, sharding, steps
from flaxmnist.core.metrics import Metrics
from flaxmnist.data import DeviceFeed
from flaxmnist.errors import UserError

# Deviation of a standard normal redrawn beyond two (Johnson and Kotz, 1970).
TRUNCATED = 0.8796256610342398


def tutorial(name):
    return models.build(**configs.load(name).model)


def parameters(model, seed=0):
    return model.init(jax.random.key(seed), jnp.zeros((1, 784)))["params"]


@pytest.mark.parametrize(
    ("name", "stddev", "bias"),
    [
        ("mlp:mechanics", lambda kernel: 1 / np.sqrt(kernel.shape[0]), 0.0),
        ("cnn:deep", lambda kernel: 0.1, 0.1),
    ],
)
def test_truncated_normal_is_tensorflows(name, stddev, bias):
    for layer, params in parameters(tutorial(name)).items():
        kernel = np.asarray(params["kernel"])
        scale = stddev(kernel)
        assert np.abs(kernel).max() <= 2 * scale * (1 + 1e-6), layer
        # Four standard errors of a deviation and of a mean.
        slack = 4 / np.sqrt(kernel.size)
        assert kernel.std() == pytest.approx(TRUNCATED * scale, rel=slack), layer
        assert abs(kernel.mean()) < slack * scale
        if kernel.size > 1000:
            assert np.abs(kernel).max() > 1.9 * scale
        np.testing.assert_array_equal(params["bias"], np.float32(bias))


def test_layers_starts_from_glorots_uniform_and_zero_biases():
    for layer, params in parameters(tutorial("cnn:layers")).items():
        kernel = np.asarray(params["kernel"])
        field = np.prod(kernel.shape[:-2], dtype=int)
        limit = np.sqrt(6 / (field * (kernel.shape[-2] + kernel.shape[-1])))
        assert 0.95 * limit < np.abs(kernel).max() <= limit, layer
        slack = 4 / np.sqrt(kernel.size)
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=slack)
        np.testing.assert_array_equal(params["bias"], 0)


def test_beginners_starts_from_zero():
    for leaf in jax.tree.leaves(parameters(tutorial("softmax:beginners"))):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("softmax:beginners", [(784, 10)]),
        ("mlp:mechanics", [(784, 128), (128, 32), (32, 10)]),
        ("cnn:layers", [(5, 5, 1, 32), (5, 5, 32, 64), (3136, 1024), (1024, 10)]),
        ("cnn:deep", [(5, 5, 1, 32), (5, 5, 32, 64), (3136, 1024), (1024, 10)]),
    ],
)
def test_architectures_are_the_tutorials(name, shapes):
    kernels = [layer["kernel"].shape for layer in parameters(tutorial(name)).values()]
    assert kernels == shapes


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("mlp:mechanics", TRUNCATED**2 / 32),
        pytest.param("cnn:layers", 2 / (1024 + 10), marks=pytest.mark.slow),
        pytest.param("cnn:deep", (TRUNCATED * 0.1) ** 2, marks=pytest.mark.slow),
    ],
)
def test_the_first_loss_is_what_the_initialization_predicts(name, variance, synthetic):
    """Given the last hidden layer, the logits are independent normal numbers.

    So the expected loss is that of such numbers, with the layer's squared length times
    the kernel's variance; it comes to ln 10 where that is small.
    """
    model, batch = tutorial(name), batch_of(synthetic.test, 32)
    normal = np.random.default_rng(0).normal(size=(20_000, 10))
    normal -= normal[:, :1]  # Relative to the label's logit, whichever it is.
    found, predicted = [], []

    @jax.jit
    def first(key):
        params = model.init(key, jnp.zeros((1, 784)))["params"]
        logits, seen = model.apply(
            {"params": params},
            jnp.asarray(batch["image"]),
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        (hidden,) = list(seen["intermediates"].values())[-1]["__call__"]
        return losses.mean(), (hidden**2).sum(axis=-1).mean()

    for seed in range(12):
        loss, squared = first(jax.random.key(seed))
        logits = normal * np.sqrt(variance * float(squared))
        found.append(float(loss))
        predicted.append(np.log(np.exp(logits).sum(axis=1)).mean())
    spread = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(np.mean(predicted), abs=4 * spread)
    assert np.mean(predicted) >= np.log(10)
    if name == "mlp:mechanics":
        assert np.mean(found) == pytest.approx(np.log(10), rel=0.05)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "softplus"])
def test_activations_against_their_definitions(activation, synthetic):
    defined = {
        "relu": lambda x: np.maximum(x, 0),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "tanh": np.tanh,
        "softplus": lambda x: np.log1p(np.exp(x)),
    }[activation]
    model = models.build("mlp", hidden=(8,), activation=activation, bias_init=0.3)
    params = jax.device_get(parameters(model))
    images = synthetic.test.images[:5]
    hidden = images.reshape(5, 784) / 255 @ params["Dense_0"]["kernel"] + 0.3
    expected = defined(hidden) @ params["Dense_1"]["kernel"] + 0.3
    np.testing.assert_allclose(
        model.apply({"params": params}, images), expected, atol=1e-5
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("strides", "padding", "pool"),
    [
        ((1, 1), "SAME", "max"),
        ((1, 1), "VALID", "average"),
        ((2, 2), "SAME", None),
        ((2, 1), "VALID", "max"),
    ],
)
def test_a_cnn_is_its_layers_one_by_one(strides, padding, pool, train, synthetic):
    model = models.build(
        "cnn",
        features=(3, 4),
        kernel_size=(3, 3),
        hidden=(),
        strides=strides,
        padding=padding,
        pool=pool,
        dropout_rate=0.0,
    )
    params = parameters(model)
    x = jnp.asarray(synthetic.test.images[:4, ..., None] / 255, jnp.float32)
    for layer in ("Conv_0", "Conv_1"):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=layout
        )
        x = nn.relu(x + bias.reshape(1, 1, 1, -1))
        pools = {"max": nn.max_pool, "average": nn.avg_pool}
        x = pools[pool](x, (2, 2), strides=(2, 2)) if pool else x
    expected = x.reshape(4, -1) @ params["Dense_0"]["kernel"]
    logits = model.apply({"params": params}, synthetic.test.images[:4], train=train)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


class LinenCNN(nn.Module):
    """Convolution, batch normalization, activation and pooling, of linen."""

    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, images, *, train):
        x = models.scale(images)
        for channels in (3, 4):
            x = nn.Conv(channels, (3, 3), dtype=self.dtype)(x)
            x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
            x = models.ACTIVATIONS[self.activation](x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10, dtype=self.dtype)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("train", "activation", "dtype", "tolerance"),
    [
        (False, "relu", jnp.float32, 1e-4),
        (True, "tanh", jnp.float32, 1e-4),
        (True, "relu", jnp.bfloat16, 0.1),
    ],
)
def test_batch_norm_before_max_pooling_is_linens(
    train, activation, dtype, tolerance, synthetic
):
    cnn = {"features": (3, 4), "kernel_size": (3, 3), "hidden": (), "dropout_rate": 0.0}
    ours = models.build(
        "cnn", **cnn, activation=activation, batch_norm=True, dtype=dtype
    )
    images = synthetic.test.images[:20, ..., None]
    rng = np.random.default_rng(0)
    # Scales and shifts of both signs.
    variables = jax.tree.map(
        lambda leaf: abs(leaf) + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype),
        ours.init(jax.random.key(0), images, train=False),
    )
    for name, norm in variables["params"].items():
        if name.startswith("BatchNorm"):
            norm["scale"] = norm["scale"].at[0].multiply(-1)

    def moved(model):
        def loss(variables):
            logits, seen = model.apply(
                variables, images, train=train, mutable=["batch_stats"]
            )
            return (logits.astype(jnp.float32) ** 2).mean(), (logits, seen)

        moves = jax.jit(jax.grad(loss, has_aux=True))(variables)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), moves)

    def check(one, other):
        scale = max(1, abs(other).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=tolerance)

    one, other = moved(ours), moved(LinenCNN(activation, dtype))
    if dtype == jnp.bfloat16:  # Of several equal maxima, each has its own gradient.
        one, other = one[1], other[1]
    jax.tree.map(check, one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"features": (4, 4, 4, 4, 4)},
        {"features": (4, 4, 4), "padding": "VALID"},
        {"features": (4, 4), "kernel_size": (28, 3), "padding": "VALID"},
        {"features": (4, 4), "strides": (1, 15)},
    ],
)
def test_convolutions_that_leave_nothing_are_refused(options):
    with pytest.raises(UserError, match="has no output for 28×28 pixels"):
        models.build("cnn", **options)
    with pytest.raises(UserError, match="has no output for 28×28 pixels"):
        models.CNN(**options).init(jax.random.key(0), np.zeros((1, 784), np.uint8))


def test_larger_images_allow_more_convolutions():
    models.build("cnn", image_shape=(256, 256, 3), features=(4,) * 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: models.MLP(activation="rely"), "did you mean 'relu'"),
        (lambda: models.CNN(kernel_stddev=0.1), "expected 'truncated_normal'"),
        (lambda: models.MLP(dropout_rate=1.0), "0 or more and less than 1"),
        (
            lambda: models.CNN(kernel_size=(5, 5, 5)),
            r"kernel_size=\(5, 5, 5\)",
        ),
        (lambda: models.MLP(dtype="float33"), "model.dtype='float33': expected"),
        (lambda: models.SoftmaxRegression(dtype=int), "model.dtype=.*int.*: expected"),
    ],
)
def test_models_made_without_a_configuration_are_checked_too(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_models_take_every_form_that_a_configuration_takes():
    ours = models.CNN(features=16, kernel_size=3, hidden=[8], strides=2)
    given = {"features": 16, "kernel_size": 3, "hidden": 8}
    assert ours == models.build("cnn", **given, strides=2)
    assert (ours.features, ours.kernel_size, ours.hidden) == ((16,), (3, 3), (8,))


@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_batch_statistics_are_of_the_whole_batch_on_any_mesh(
    name, make_state, synthetic
):
    small = {"features": (2,)} if name == "cnn" else {}
    model = models.build(name, hidden=(8,), batch_norm=True, dropout_rate=0.0, **small)
    states, totals = [], []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices)
        everywhere = sharding.replicated(mesh)
        state = make_state(model, mesh=mesh, tx=optax.sgd(0.05))
        window = sharding.zeros(Metrics.empty, everywhere)
        feed = DeviceFeed(synthetic.train, 80, mesh, seed=1)
        for batches, count in feed.chunks(0, 5):
            count = sharding.put(np.int32(count), everywhere)
            state, window = steps.train_steps(state, window, batches, count)
        states.append(jax.device_get((state.params, state.model_state)))
        totals.append(steps.eval_step(state, batch_of(synthetic.test, 200)).compute())
    means = [leaf for leaf in jax.tree.leaves(states[0][1]) if leaf.any()]
    assert means
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states
    )
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    # Evaluation uses what was kept: an example's figures are its own.
    one = steps.predict_step(state, synthetic.test.images[:1])["logits"]
    many = steps.predict_step(state, synthetic.test.images[:50])["logits"]
    np.testing.assert_allclose(one[0], many[0], atol=1e-4)
