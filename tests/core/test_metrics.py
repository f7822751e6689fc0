import numpy as np
import pytest

from flaxmnist.core.metrics import Metrics


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return {
        "losses": rng.random(57).astype(np.float32),
        "logits": rng.normal(size=(57, 10)).astype(np.float32),
        "labels": rng.integers(0, 10, 57).astype(np.int32),
        "mask": rng.random(57) > 0.3,
    }


def test_figures_do_not_depend_on_where_batches_are_cut(examples):
    whole = Metrics.of(**examples).compute()
    merged = Metrics.empty()
    for part in (slice(0, 5), slice(5, 6), slice(6, 57)):
        batch = {name: array[part] for name, array in examples.items()}
        merged = merged.merge(Metrics.of(**batch))
    assert merged.compute() == pytest.approx(whole, rel=1e-6)


def test_figures_against_definitions_and_padding_counts_nothing(examples):
    kept = examples["mask"]
    labels, guesses = examples["labels"][kept], examples["logits"][kept].argmax(-1)
    metrics = Metrics.of(**examples)
    figures = metrics.compute()
    assert figures["count"] == metrics.count == kept.sum()
    assert figures["accuracy"] == pytest.approx((labels == guesses).mean())
    assert figures["loss"] == pytest.approx(examples["losses"][kept].mean(), rel=1e-6)
    per_class = metrics.per_class()
    for digit in range(10):
        hits = ((labels == digit) & (guesses == digit)).sum()
        precision = hits / max((guesses == digit).sum(), 1)
        recall = hits / max((labels == digit).sum(), 1)
        assert per_class["precision"][digit] == pytest.approx(precision)
        assert per_class["recall"][digit] == pytest.approx(recall)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        assert per_class["f1"][digit] == pytest.approx(f1)


def test_losses_of_padding_may_be_anything(examples):
    examples["losses"][~examples["mask"]] = np.nan
    assert np.isfinite(Metrics.of(**examples).compute()["loss"])
