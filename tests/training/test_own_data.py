"""Runs on data of other shapes and other classes than MNIST's."""

import numpy as np
import pytest

from flaxmnist import UserError, open_run, train_and_evaluate
from flaxmnist.config import make_config
from flaxmnist.data import Dataset, Split

NAMES = ("cat", "dog", "fish")


def make(count, shape=(12, 10, 3), classes=3):
    """Returns images with a bright row that gives their class, and labels."""
    labels = np.arange(count) % classes
    images = np.zeros((count, *shape), np.uint8)
    images[np.arange(count), labels] = 200
    return images, labels


def short(**changes):
    return make_config(
        model={"name": "softmax"},
        batch_size=16,
        report=False,
        eval_splits="validation",
        **changes,
    )


@pytest.mark.parametrize(
    "placement", ["device", pytest.param("host", marks=pytest.mark.slow)]
)
def test_a_run_on_arrays_in_colour_trains_resumes_and_is_opened(placement, tmp_path):
    dataset = Dataset.from_arrays(make(120), make(30), NAMES)
    assert (dataset.image_shape, dataset.num_classes) == ((12, 10, 3), 3)
    place = {"placement": placement}
    train_and_evaluate(short(num_steps=20, data=place), tmp_path, data=dataset)
    config = short(num_steps=40, data=place)
    summary = train_and_evaluate(config, tmp_path, data=dataset)
    assert summary.dataset.class_names == NAMES
    assert summary.dataset.image_shape == (12, 10, 3)
    assert summary.test.accuracy == 1
    run = open_run(tmp_path, data=dataset)
    # On one device, unlike the training: sums differ in their last bits.
    assert run.evaluate("test").loss == pytest.approx(summary.test.loss)
    with pytest.raises(UserError, match="arrays, that a program gave; expected them"):
        open_run(tmp_path).evaluate("test")
    other = Dataset.from_arrays(make(130), make(30), NAMES)
    with pytest.raises(UserError, match="with other examples in train"):
        open_run(tmp_path, data=other).evaluate("test")
    swapped = Dataset.from_arrays(make(120), make(30), ("dog", "cat", "fish"))
    with pytest.raises(UserError, match=r"with 'cat' as class 0, but .* now has 'dog'"):
        open_run(tmp_path, data=swapped).evaluate("test")


def test_data_sets_whose_parts_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match=r"train \(12, 10, 3\).*test \(9, 9, 1\)"):
        Dataset.from_arrays(make(24), make(6, (9, 9)))
    with pytest.raises(
        UserError, match=r"label 2 of example .; expected labels from 0 to 1"
    ):
        Dataset.from_arrays(make(24), make(6), class_names=("a", "b"))
    with pytest.raises(UserError, match="at most 256 pixels per side and 4 channels"):
        Split(np.zeros((1, 257, 3), np.uint8), np.zeros(1, int))
