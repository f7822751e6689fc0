import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch_of, tiny_config
from scipy import ndimage
from scipy.interpolate import CubicSpline

from flaxmnist.core import models, objective, sharding, steps
from flaxmnist.core.augment import Augment
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import create_state
from flaxmnist.data import DeviceFeed
from flaxmnist.errors import UserError
from flaxmnist.training.experiment import Experiment

SHAPE = (9, 12, 2)
FULL = Augment(
    rotate=30,
    scale=0.2,
    shear=0.3,
    translate=2,
    crop=1,
    elastic=1.5,
    flip=True,
    cutout=3,
)


def keys(count=6, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def images(count=6):
    return np.random.default_rng(0).random((count, *SHAPE), np.float32)


def distort(augment, keys, images):
    return np.asarray(jax.jit(augment)(keys, images))


def reference(augment, key, image):
    """Distorts one image by matrices, splines and SciPy, pixel by pixel."""
    height, width, channels = image.shape
    u = np.asarray(jax.random.uniform(key, (43,), minval=-1), np.float64)
    angle = np.deg2rad(augment.rotate * u[0])
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, 0], [augment.shear * u[3], 1]])
    matrix = rotate @ shear @ np.diag(1 + augment.scale * u[1:3])
    shifts = augment.elastic * u[9:41].reshape(2, 4, 4)
    crop = np.floor((u[41:] + 1) / 2 * (2 * augment.crop + 1)) - augment.crop
    middle = (np.array([height, width]) - 1) / 2
    places = np.zeros((2, height, width))
    for row in range(height):
        for column in range(width):
            pixel = np.array([row, column]) - middle - augment.translate * u[4:6] - crop
            along = CubicSpline(np.linspace(0, height - 1, 4), shifts, axis=1)(row)
            shift = CubicSpline(np.linspace(0, width - 1, 4), along, axis=1)(column)
            source = np.linalg.inv(matrix) @ pixel + middle + shift
            if augment.flip and u[6] < 0:
                source[1] = width - 1 - source[1]
            places[:, row, column] = source
    distorted = np.stack(
        [
            ndimage.map_coordinates(
                image[..., c], places, order=1, mode="grid-constant"
            )
            for c in range(channels)
        ],
        axis=-1,
    )
    if side := augment.cutout:
        top, left = np.floor((u[7:9] + 1) / 2 * [height, width]).astype(int) - side // 2
        distorted[max(top, 0) : top + side, max(left, 0) : left + side] = 0
    return distorted


@pytest.mark.parametrize(
    "augment",
    [
        Augment(rotate=30),
        Augment(scale=0.2),
        Augment(shear=0.3),
        Augment(translate=2),
        Augment(crop=2),
        Augment(elastic=1.5),
        Augment(cutout=3),
        Augment(flip=True),
        FULL,
    ],
)
def test_each_part_matches_scipy(augment):
    found = distort(augment, keys(), images())
    expected = [
        reference(augment, *each) for each in zip(keys(), images(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(found, images(), atol=0.05)


def test_draws_are_by_key_and_cover_their_range():
    found = distort(FULL, keys(), images())
    np.testing.assert_allclose(
        distort(FULL, keys()[::-1], images()[::-1])[::-1], found, atol=1e-6
    )
    same = distort(FULL, keys(), np.stack([images()[0]] * 6))
    assert not np.allclose(same[0], same[1], atol=0.05)
    dot = np.zeros((400, 9, 9, 1), np.float32)
    dot[:, 4, 4] = 1
    moved = distort(Augment(translate=3), keys(400), dot)[..., 0]
    axis = np.arange(9) - 4
    for shift in (moved.sum(2) @ axis, moved.sum(1) @ axis):
        assert -3 <= shift.min() < -2.9
        assert 2.9 < shift.max() <= 3
        assert abs(shift.mean()) < 0.3
    # Each pixel is as likely as another to be the center of the square.
    cut = distort(Augment(cutout=1), keys(400), np.ones((400, 9, 9, 1), np.float32))
    assert (cut.sum((1, 2, 3)) == 80).all()
    assert (cut.sum(0) < 400).mean() > 0.97


def test_options_are_checked_and_compared_by_value():
    assert Augment(rotate=10) == Augment(rotate=10.0)
    assert hash(Augment(rotate=10)) == hash(Augment(rotate=10.0))
    for name, value in (("scale", 1), ("rotate", 360), ("cutout", 1.5), ("shear", -1)):
        with pytest.raises(UserError, match=f"augment.{name}={value}: expected a"):
            Augment(**{name: value})
    for name in ("translate", "elastic", "cutout"):
        with pytest.raises(UserError, match=f"augment.{name}=9: expected less than 9"):
            Augment(**{name: 9})(keys(), images())


def state_with(augment, mesh=None, **options):
    layout = sharding.Layout(mesh or sharding.make_mesh(1))
    model, tx = models.SoftmaxRegression(), optax.sgd(0.1)
    return create_state(model, tx, 0, layout, augment=augment, **options)


def test_a_step_trains_on_the_augmented_batch(synthetic):
    batch = batch_of(synthetic.train, 16)
    state = state_with(Augment(rotate=30.0, cutout=9, outliers=0.25))

    @jax.jit
    def update(state, batch):
        grads = jax.grad(lambda *args: objective.loss_fn(*args)[0])(
            state.params, state, batch
        )
        return jax.tree.map(lambda p, grad: p - 0.1 * grad, state.params, grads)

    expected = update(state, objective.augmented(state, batch))
    plain = update(state, batch)
    found, _ = steps.train_step(state, batch)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), found.params, expected
    )
    kernels = (jax.tree.leaves(each)[-1] for each in (expected, plain))
    assert abs(np.subtract(*kernels)).max() > 1e-3


@pytest.mark.slow
def test_neither_a_mesh_nor_micro_batches_change_the_images(synthetic):
    batch = batch_of(synthetic.train, 16)
    both = jax.jit(
        lambda *args: (objective.augmented(*args), objective.gradient(*args))
    )
    seen, gradients = [], []
    for devices, parts in ((1, 1), (1, 4), (4, 1)):
        mesh = sharding.make_mesh(devices)
        split = sharding.split_over_data(mesh, 0)
        given = {key: sharding.put(array, split) for key, array in batch.items()}
        made, (grads, _) = both(state_with(FULL, mesh, grad_accumulation=parts), given)
        seen.append(np.asarray(made["image"]))
        gradients.append(np.asarray(grads["Dense_0"]["kernel"]))
    plain = batch["image"].astype(np.float32) / 255
    assert abs(seen[0] - plain).mean() > 0.02
    for images, gradient in zip(seen, gradients, strict=True):
        np.testing.assert_allclose(images, seen[0], atol=1e-5)
        # Of softmax regression from zero: a sum over images, linear in each.
        np.testing.assert_allclose(gradient, gradients[0], atol=1e-5)


def test_a_run_is_the_same_in_parts_and_ends_with_plain_images(mesh, synthetic):
    feed = DeviceFeed(synthetic.train, 16, mesh, seed=0)
    batches = next(feed.chunks(0, 4))[0]
    states = []
    compiled = steps.train_steps._cache_size()
    for parts in ((4,), (2, 2), (3, 1)):
        state = state_with(Augment(rotate=30), augment_until=3)
        metrics = sharding.zeros(Metrics.empty, sharding.replicated(mesh))
        for count in parts:
            before = jax.tree.map(jnp.copy, state.params)
            state, metrics = steps.train_steps(state, metrics, batches, count)
        states.append(state.params["Dense_0"]["kernel"])
    assert steps.train_steps._cache_size() == compiled + 1
    for kernel in states:
        np.testing.assert_array_equal(kernel, states[0])
    # The last update is that of plain images.
    plain = state_with(None).replace(params=before, step=jnp.int32(3))
    plain, _ = steps.train_step(plain, batches.at(jnp.int32(3)))
    np.testing.assert_allclose(plain.params["Dense_0"]["kernel"], states[0], atol=1e-6)


def test_evaluation_sees_plain_images(synthetic):
    batch = batch_of(synthetic.test, 16)
    state, plain = (state_with(one) for one in (FULL, None))
    trained, _ = steps.train_step(state, batch)
    plain = plain.replace(params=jax.tree.map(jnp.copy, trained.params))
    expected = steps.eval_step(plain, batch).compute()
    assert steps.eval_step(trained, batch).compute() == expected


class Divides(nn.Module):
    """Scales uint8 images by itself, and does not look at their dtype."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10)(images.reshape(len(images), -1).astype("float32") / 255)


def test_a_model_gets_equally_scaled_images_in_training_and_evaluation(synthetic):
    state = create_state(Divides(), optax.sgd(0.1), augment=Augment(crop=1))
    batch = batch_of(synthetic.test, 8)
    trained_on = {**batch, "image": np.float32(batch["image"] / 255)}
    np.testing.assert_allclose(
        steps.eval_step(state, batch).loss_sum,
        steps.eval_step(state, trained_on).loss_sum,
        rtol=1e-5,
    )
    found, wanted = (
        steps.predict_step(state, one["image"])["logits"] for one in (batch, trained_on)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_an_augmentation_that_does_not_fit_is_rejected_with_the_state():
    with pytest.raises(UserError, match=r"augment.translate=28: expected less than 28"):
        state_with(Augment(translate=28))
    with pytest.raises(UserError, match=r"returned float32 \[1, 28, 28\]; exp"):
        state_with(lambda keys, images: images[..., 0])
    for augment in (Augment, "rotate"):
        with pytest.raises(UserError, match=r"augment=.*: expected a function of keys"):
            state_with(augment)


def test_a_configuration_names_the_augmentation_and_its_end():
    def options(**augment):
        return Experiment.build(tiny_config(augment=augment)).state_options

    found = options(rotate=10, stop_before_end="0.5 epochs")  # 40 steps, 20 an epoch.
    assert found["augment"] == Augment(rotate=10)
    assert found["augment_until"] == 30
    assert options()["augment"] is None
    with pytest.raises(
        UserError, match=r"stop_before_end=40: expected less than the run"
    ):
        options(rotate=10, stop_before_end=40)


def test_outliers_train_equal_probabilities_and_other_images_their_class(synthetic):
    batch = batch_of(synthetic.train, 16)
    label = np.array(batch["label"]).astype(np.int32)
    label[-1] = -1
    given = {"image": batch["image"], "label": label}
    state = state_with(Augment(outliers=0.25), augment_until=3)
    augmented = jax.jit(objective.augmented)
    made = augmented(state, given)
    np.testing.assert_allclose(made["label"][:4], 0.1)
    np.testing.assert_array_equal(made["label"][4:15], np.eye(10)[label[4:15]])
    assert not made["label"][15].any()  # Invalid, as before.
    plain = batch["image"].reshape(16, 28, 28, 1) / np.float32(255)
    np.testing.assert_allclose(made["image"][4:], plain[4:], atol=1e-6)
    glyphs = np.asarray(made["image"][:4])
    assert (abs(glyphs - plain[:4]).max((1, 2, 3)) > 0.5).all()
    ink = (glyphs > 0.5).sum((1, 2, 3))
    assert ((ink > 20) & (ink < 400)).all()
    after = augmented(dataclasses.replace(state, step=jnp.int32(3)), given)
    np.testing.assert_array_equal(after["label"][:15], np.eye(10)[label[:15]])


def test_an_augmentation_says_by_bools_which_images_show_their_class():
    def wrong(keys, images):
        return images, jnp.ones(len(images))

    with pytest.raises(UserError, match=r"beside the images; expected bool \[1\]"):
        state_with(wrong)


def test_strokes_become_thicker_or_thinner_and_light_changes():
    images = np.zeros((64, 9, 9, 1), np.float32)
    images[:, 3:6] = 1
    sums = distort(Augment(thickness=0.9), keys(64), images).sum((1, 2, 3))
    assert sums.min() < 20 < 27 < 32 < sums.max()
    varied = distort(Augment(haze=0.8, noise=0.1), keys(64), images)
    paper = varied[:, 7:].mean((1, 2, 3))
    assert 0.25 < (paper > 0.1).mean() < 0.75
    assert 0.5 < paper.max() < 0.85
    assert 0.02 < varied[:, 7:].std((1, 2, 3)).max() < 0.12
    assert varied.min() >= 0
    assert varied.max() <= 1
