"""Parts of a batch that are computed one after another."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxmnist.core import models, ops, parts, winograd


@pytest.mark.parametrize(
    ("count", "num_bytes", "part_bytes", "devices", "expected"),
    [
        (100, 1_000, 1_000, 1, 1),
        (100, 1_001, 1_000, 1, 2),
        # Two parts would not be equal.
        (99, 990, 500, 1, 3),
        (97, 970, 500, 1, None),
        # Each device holds an eighth of a part.
        (16, 160, 10, 8, 2),
        # One example takes more, and cannot be divided.
        (8, 800, 1, 8, 1),
    ],
)
def test_the_number_of_parts(count, num_bytes, part_bytes, devices, expected):
    assert parts.num_parts(count, num_bytes, part_bytes, devices) == expected


def test_joined_parts_are_the_batch():
    batch = jnp.arange(24).reshape(12, 2)
    split = parts.split(batch, 3)
    assert split.shape == (3, 4, 2)
    np.testing.assert_array_equal(parts.join(split), batch)
    whole = parts.in_order(lambda part: part + 1, batch, 3)
    np.testing.assert_array_equal(whole, batch + 1)


def test_training_convolves_a_batch_in_parts_to_the_same_end(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), np.uint8)
    options = {"features": (4, 8), "hidden": (16,), "dropout_rate": 0.0}
    model = models.CNN(**options)
    params = model.init(jax.random.key(0), images)["params"]

    def gradient(model=model, train=True):
        def loss(params, images):
            logits = model.apply(
                {"params": params}, images, train=train, mutable=["batch_stats"]
            )[0]
            return jnp.sin(logits).sum()

        return jax.grad(loss)

    def barriers(gradient, params=params):
        return str(jax.make_jaxpr(gradient)(params, images)).count(
            "optimization_barrier"
        )

    monkeypatch.setattr(models, "CONVOLVE_PARTS", False)
    wanted, before = gradient()(params, images), barriers(gradient())
    monkeypatch.setattr(models, "CONVOLVE_PARTS", True)
    # Room for one image on each of eight devices.
    monkeypatch.setattr(models, "PART_BYTES", 28 * 28 * 4 * 4)
    traced, is_faster = [], winograd.is_faster
    monkeypatch.setattr(
        winograd, "is_faster", lambda *args: traced.append(args) or is_faster(*args)
    )
    ops._fast_conv.clear_cache()
    found = gradient()(params, images)
    assert len(traced) == len(model.features)  # And not once for each part.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        found,
        wanted,
    )
    assert barriers(gradient()) > before
    assert barriers(gradient(train=False)) == before
    normalized = models.CNN(batch_norm=True, **options)
    own = normalized.init(jax.random.key(0), images)["params"]
    assert barriers(gradient(normalized), own) == before

    # Each device keeps its images.
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    lowered = jax.jit(gradient()).lower(params, jax.device_put(images, split))
    compiled = lowered.compile().as_text()
    assert not re.search("all-gather|all-to-all|permute", compiled)
