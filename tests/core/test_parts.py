"""Parts of a batch that are computed one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import exchanges_examples

from flaxmnist.core import models, parts, sharding, winograd


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
        (8, 800, 1, 8, None),
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


def test_a_large_batch_is_convolved_in_a_few_parts_on_cpu(monkeypatch):
    monkeypatch.setattr(models, "CONVOLVES_IN_PARTS", True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def num_parts(count, **options):
        return models.CNN(**options)._num_parts(jnp.zeros((count, 28, 28, 1)))

    assert {num_parts(count) for count in (0, 1, 83)} == {1}
    assert {num_parts(count) for count in (84, 100, 128)} == {2}
    # 89 is a prime number, and 1,024 images would need more parts than 8.
    assert [num_parts(count) for count in (89, 1_024)] == [1, 1]
    assert num_parts(100, dtype="bfloat16") == 1
    assert num_parts(100, features=()) == 1
    assert num_parts(100, batch_norm=True) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert num_parts(100) == 1


@pytest.mark.usefixtures("new_traces")
@pytest.mark.parametrize("pool", ["max", "average"])
def test_training_convolves_a_batch_in_parts_to_the_same_end(pool, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), np.uint8)
    model = models.CNN(features=(8, 8), hidden=(16,), dropout_rate=0.0, pool=pool)
    params = model.init(jax.random.key(0), images)["params"]

    def gradient(train=True):
        def loss(params, images):
            logits = model.apply({"params": params}, images, train=train)
            # The weights tell the examples apart.
            return (jnp.sin(logits) * jnp.arange(len(images))[:, None]).sum()

        return jax.grad(loss)

    def num_barriers(gradient):
        program = str(jax.make_jaxpr(gradient)(params, images))
        return program.count("optimization_barrier")

    monkeypatch.setattr(models, "CONVOLVES_IN_PARTS", False)
    wanted, whole = gradient()(params, images), num_barriers(gradient())
    monkeypatch.setattr(models, "CONVOLVES_IN_PARTS", True)
    # Room for one image on each of eight devices.
    monkeypatch.setattr(models, "PART_BYTES", 28 * 28 * 8 * 4)
    traced, is_faster = [], winograd.is_faster
    monkeypatch.setattr(
        winograd, "is_faster", lambda *args: traced.append(args) or is_faster(*args)
    )
    found = gradient()(params, images)
    assert len(traced) == len(model.features)  # And not once for each part.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
    assert num_barriers(gradient()) > whole
    assert num_barriers(gradient(train=False)) == whole

    # Each device keeps its images.
    split = sharding.split_over_data(sharding.make_mesh(8), axis=0)
    lowered = jax.jit(gradient()).lower(params, jax.device_put(images, split))
    assert not exchanges_examples(lowered.compile().as_text())
