import numpy as np
import pytest
from scipy.special import softmax

from flaxmnist.core.calibration import (
    Calibration,
    energy,
    energy_limit,
    fit_temperature,
)


def test_the_energy_is_minus_the_logsumexp_also_of_large_logits():
    logits = np.array([[0.0, 0.0], [1e4, 0.0], [-1e4, -1e4]], np.float32)
    np.testing.assert_allclose(
        energy(logits), [-np.log(2), -1e4, 1e4 - np.log(2)], rtol=1e-6
    )


@pytest.mark.parametrize(("count", "beyond"), [(5_000, 90), (150, 3), (7, 1)])
def test_a_fixed_share_of_the_validation_images_exceeds_the_limit(count, beyond):
    logits = np.random.default_rng(0).normal(0, 5, (count, 10))
    assert (energy(logits) > energy_limit(logits)).sum() == beyond


def test_logits_that_are_not_finite_calibrate_nothing():
    logits = np.full((5, 10), np.nan)
    assert energy_limit(logits) is None
    assert fit_temperature(logits, np.zeros(5, int)) == 1


@pytest.mark.parametrize("scale", [0.2, 1, 3])
def test_the_temperature_gives_the_probabilities_that_labels_were_drawn_from(scale):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 10))
    wanted = softmax(logits, axis=1)
    labels = (rng.random((20_000, 1)) < wanted.cumsum(axis=1)).argmax(axis=1)
    temperature = fit_temperature(scale * logits, labels)
    np.testing.assert_allclose(temperature, scale, rtol=0.03)
    found = Calibration(temperature).probabilities(scale * logits)
    np.testing.assert_allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize("count", [10, 1_000])
def test_a_split_without_mistakes_allows_as_much_doubt_as_its_size(count):
    labels = np.arange(count) % 10
    logits = 4 * np.eye(10)[labels]
    found = Calibration(fit_temperature(logits, labels)).probabilities(logits)
    np.testing.assert_allclose(1 - found.max(axis=1), 1 / (count + 2), rtol=0.01)
