import numpy as np
import pytest

from flaxmnist.core.energy import energy, energy_limit


def test_the_energy_is_minus_the_logsumexp_also_of_large_logits():
    logits = np.array([[0.0, 0.0], [1e4, 0.0], [-1e4, -1e4]], np.float32)
    np.testing.assert_allclose(
        energy(logits), [-np.log(2), -1e4, 1e4 - np.log(2)], rtol=1e-6
    )


@pytest.mark.parametrize(("count", "beyond"), [(5_000, 75), (150, 3), (7, 1)])
def test_a_fixed_share_of_the_validation_images_exceeds_the_limit(count, beyond):
    logits = np.random.default_rng(0).normal(0, 5, (count, 10))
    assert (energy(logits) > energy_limit(logits)).sum() == beyond


def test_logits_that_are_not_finite_have_no_limit():
    assert energy_limit(np.full((5, 10), np.nan)) is None
