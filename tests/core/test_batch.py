"""What a batch may be; all else is refused by name before anything compiles."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import batch_of

from flaxmnist.core import batch as batches
from flaxmnist.core import models, steps
from flaxmnist.core.losses import CrossEntropy, Focal
from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import create_state
from flaxmnist.errors import UserError

SMALL = models.MLP(hidden=(8,))


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


BAD_IMAGES = [
    (zeros(4, 28, 28, 3), r"is uint8 \[4, 28, 28, 3\]; expected \[batch, 28, 28, 1\]"),
    (zeros(4, 32, 32, 1), r"\[4, 32, 32, 1\]; expected \[batch, 28, 28, 1\], \[batch"),
    (zeros(28, 28), r"is uint8 \[28, 28\]; expected"),
    (zeros(4, 783), r"is uint8 \[4, 783\]; expected .* or \[batch, 784\]"),
    (zeros(4, 28, 28, 1, 1), r"is uint8 \[4, 28, 28, 1, 1\]; expected"),
    (zeros(4, 1, 28, 28), r"is uint8 \[4, 1, 28, 28\]; expected"),
    (zeros(4, 14, 56), r"is uint8 \[4, 14, 56\]; expected"),
    (zeros(4, 784, dtype=np.int32), r"is int32 \[4, 784\].*; expected uint8 in \[0"),
    (zeros(4, 784, dtype=np.int64), r"int64.*; expected uint8 in \[0, 255"),
    (zeros(0, 784), r"is uint8 \[0, 784\]; expected at least one image"),
    (zeros(4, 784, dtype=bool), r"is bool \[4, 784\]; expected uint8"),
    ([0.0] * 784, r"is a list; expected an array"),
]
BAD_BATCHES = [
    ({"label": zeros(3)}, r'"label"\] is uint8 \[3\]; expected integers \[4\] from 0'),
    ({"label": zeros(4, 1)}, r"\[4, 1\]; expected integers \[4\] .* one-hot \[4, 10\]"),
    ({"label": zeros(4, 9)}, r"is uint8 \[4, 9\]; expected"),
    ({"label": zeros(4, dtype=np.float32)}, r"is float32 \[4\].*; expected integers"),
    (
        {"label": zeros(4, 10, dtype=np.complex64)},
        r"is complex64 \[4, 10\]",
    ),
    ({"label": [1, 2, 3, 4]}, r'"label"\] is a list; expected an array'),
    ({"mask": zeros(4)}, r'"mask"\] is uint8 \[4\]; expected bool \[4\]'),
    ({"mask": zeros(5, dtype=bool)}, r"is bool \[5\]; expected bool \[4\]"),
    ({"labels": zeros(4)}, r"unknown batch key 'labels'; did you mean 'label'"),
]


@pytest.mark.parametrize(("images", "said"), BAD_IMAGES)
def test_images_of_another_kind_are_refused_by_name(images, said, make_state):
    state = make_state(models.SoftmaxRegression())
    for step in (steps.predict_step, steps.train_step, steps.eval_step):
        batch = {"image": images, "label": zeros(4)}
        given = images if step is steps.predict_step else batch
        with pytest.raises(UserError, match=said):
            step.trace(state, given)  # Which compiles nothing.
        with pytest.raises(UserError, match=said):
            step(state, given)
    if np.ndim(images) == 4 and not isinstance(images, list):
        models.scale(images)  # A model may be made for images of any shape.
    elif not isinstance(images, list):
        with pytest.raises(UserError, match=said):
            models.CNN().init(jax.random.key(0), images)
    assert steps.all_finite(state)  # Not donated: it can still be used.


@pytest.mark.parametrize(("wrong", "said"), BAD_BATCHES)
def test_batches_of_another_kind_are_refused_by_name(wrong, said, make_state):
    state = make_state(models.SoftmaxRegression())
    batch = {"image": zeros(4, 784), "label": zeros(4)} | wrong
    for step in (steps.train_step, steps.eval_step):
        with pytest.raises(UserError, match=said):
            step(state, batch)
    with pytest.raises(UserError, match="batch key 'label' is missing; found image"):
        steps.train_step(state, {"image": zeros(4, 784)})
    with pytest.raises(UserError, match="batch is a tuple; expected a dict of image"):
        batches.as_batch((zeros(4, 784), zeros(4)))


@pytest.mark.parametrize(
    "feed",
    [
        lambda image, label: (image.reshape(-1, 784), label),
        lambda image, label: (image[..., 0], label.astype(np.uint8)),
        lambda image, label: (image, np.eye(10, dtype=np.float32)[label]),
        lambda image, label: (
            image.reshape(-1, 784),
            np.eye(10, dtype=np.uint8)[label],
        ),
    ],
    ids=["flat", "no channel", "one-hot", "flat and one-hot"],
)
def test_flat_images_and_one_hot_labels_train_alike(feed, make_state, synthetic):
    batch = batch_of(synthetic.train, 50)
    image, label = feed(batch["image"], batch["label"])
    expected, theirs = steps.train_step(make_state(SMALL, tx=optax.sgd(0.1)), batch)
    state, ours = steps.train_step(
        make_state(SMALL, tx=optax.sgd(0.1)), {"image": image, "label": label}
    )
    assert ours.compute() == pytest.approx(theirs.compute(), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state.params,
        expected.params,
    )


def test_the_model_decides_the_number_of_classes_and_must_return_logits(make_state):
    class Five(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):  # No default, as the README has it.
            assert images.shape[1:] == (28, 28, 1)
            return nn.Dense(5)(models.scale(images).reshape(-1, 784))

    class Two(Five):
        @nn.compact
        def __call__(self, images, *, train):
            return super().__call__(images, train=train), None

    class Flat(Five):
        @nn.compact
        def __call__(self, images, *, train):
            return super().__call__(images, train=train)[0]

    state, images = make_state(Five()), zeros(4, 784)
    assert steps.predict_step.eval_shape(state, images)["logits"].shape == (4, 5)
    for wrong in (np.eye(10)[:4], np.eye(4)):
        with pytest.raises(UserError, match=r"from 0 to 4, or one-hot \[4, 5\]"):
            steps.train_step(state, {"image": images, "label": wrong})
    metrics = steps.eval_step(state, {"image": images, "label": np.array([0, 4, 5, 9])})
    assert (metrics.count, metrics.invalid) == (2, 2)
    with pytest.raises(UserError, match="metrics of 10 and of 5 classes"):
        Metrics.empty().merge(metrics)
    for model, found in ((Two(), "a tuple"), (Flat(), r"float32 \[5\]")):
        said = rf"the model's output is {found}; expected logits \[1, classes\]"
        with pytest.raises(UserError, match=said):
            make_state(model)


def test_labels_may_be_a_distribution(make_state, synthetic):
    state, batch = make_state(SMALL), batch_of(synthetic.test, 20)
    smooth = 0.9 * np.eye(10, dtype=np.float32)[batch["label"]] + 0.01
    logits = steps.predict_step(state, batch["image"])["logits"]
    metrics = steps.eval_step(state, batch | {"label": smooth}).compute()
    losses = -np.sum(smooth * jax.nn.log_softmax(logits), axis=-1)
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert metrics["accuracy"] == steps.eval_step(state, batch).compute()["accuracy"]


@pytest.mark.parametrize("loss", [CrossEntropy(), Focal()], ids=["plain", "focal"])
@pytest.mark.parametrize(
    ("dtype", "classes"), [(np.uint8, 256), (np.uint8, 300), (np.int8, 200)]
)
def test_labels_may_be_narrower_than_the_number_of_classes(dtype, classes, loss):
    states = (
        create_state(
            models.SoftmaxRegression(num_classes=classes), optax.sgd(0.1), loss=loss
        )
        for _ in range(2)
    )
    narrow, wide = (
        steps.train_step(
            state, {"image": zeros(4, 784), "label": np.array([0, 3, 44, 127], kind)}
        )
        for state, kind in zip(states, (dtype, np.int32), strict=True)
    )
    assert narrow[1].compute() == wide[1].compute()
    assert narrow[1].compute()["count"] == 4
    jax.tree.map(np.testing.assert_array_equal, narrow[0].params, wide[0].params)


# The first two examples of a batch of four are wrong.
WRONG_LABELS = {
    "classes": np.array([-1, 10, 3, 4], np.int32),
    "one-hot": np.eye(10, dtype=np.uint8)[[1, 2, 3, 4]] * [[0], [2], [1], [1]],
    "distributions": np.eye(10, dtype=np.float32)[[1, 2, 3, 4]]
    * np.array([[np.nan], [-1], [1], [1]], np.float32),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_labels_out_of_range_are_left_out_and_reported(kind, accumulation, synthetic):
    """They move nothing: the update is that of the other examples."""
    state, other = (
        create_state(SMALL, optax.sgd(0.1), grad_accumulation=accumulation)
        for _ in range(2)
    )
    image = synthetic.train.images[:4]
    batch = {"image": image, "label": WRONG_LABELS[kind]}
    hidden = {"image": image, "label": np.array([1, 2, 3, 4])}
    hidden["mask"] = np.array([False, False, True, True])
    said = r"^invalid labels or weights: 2, .*integers from 0 to 9.*mask to False"
    with pytest.raises(UserError, match=said):
        steps.eval_step(state, batch).compute()
    state, metrics = steps.train_step(state, batch)
    other, expected = steps.train_step(other, hidden)
    with pytest.raises(UserError, match=said):
        Metrics.empty().merge(metrics).compute()
    assert metrics.count == expected.count == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        (state.params, metrics.loss_sum),
        (other.params, expected.loss_sum),
    )
    batch["mask"] = hidden["mask"]
    assert steps.eval_step(state, batch).compute()["count"] == 2
