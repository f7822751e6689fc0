import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch_of

from flaxmnist.core import models, steps
from flaxmnist.core.metrics import NAMES, Metrics, macro_f1, top5
from flaxmnist.core.state import create_state
from flaxmnist.errors import UserError
from flaxmnist.rundir.results import Figures


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


def test_further_metrics_are_means_over_the_examples(synthetic):
    def confidence(logits, labels):
        return jnp.where(labels == 3, jnp.nan, jax.nn.softmax(logits).max(axis=1))

    chosen = {"top5": top5, "confidence": confidence, "macro_f1": macro_f1}
    state = create_state(models.SoftmaxRegression(), optax.sgd(0.1), metrics=chosen)
    batch = batch_of(synthetic.train, 60) | {"mask": synthetic.train.labels[:60] != 3}
    total = Metrics.empty(10, state.metrics)
    for rows in (slice(40), slice(40, 60)):
        part = {key: value[rows] for key, value in batch.items()}
        total = total.merge(steps.eval_step(state, part))
    found = total.compute()
    outputs = steps.predict_step(state, batch["image"])
    keep, labels = batch["mask"], batch["label"]
    order = np.argsort(-np.array(outputs["logits"]), axis=1, kind="stable")
    top = (order[:, :5] == labels[:, None]).any(axis=1)
    assert found["top5"] == pytest.approx(top[keep].mean())
    wanted = np.array(outputs["probabilities"]).max(axis=1)[keep].mean()
    assert found["confidence"] == pytest.approx(wanted)
    # Class 3 occurs neither as a label nor as a prediction.
    assert found["macro_f1"] == pytest.approx(total.per_class()["f1"].sum() / 9)
    assert found["count"] == keep.sum()
    with pytest.raises(UserError, match=r"metrics \[\] and \['confidence', .*merged"):
        Metrics.empty().merge(total)
    state = state.replace(metrics=(("mean", lambda logits, labels: logits.mean()),))
    with pytest.raises(UserError, match=r"mean returned float32 \[\]; expected values"):
        steps.eval_step(state, batch)


def test_stacked_metrics_are_computed_run_by_run():
    rng = np.random.default_rng(0)
    runs = [
        Metrics(
            1.0 * n, rng.integers(1, 9, (3, 3)), 0, {"top5": 2.0 * n}, ("macro_f1",)
        )
        for n in range(1, 5)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    found = stacked.compute()
    for index, run in enumerate(runs):
        one = {name: value[index] for name, value in found.items()}
        assert one == pytest.approx(run.compute())
        assert type(run.compute()["count"]) is int
    assert found["accuracy"].shape == (4,)
    assert stacked.per_class()["recall"].shape == (4, 3)


def top_k(logits, labels, k: int):
    raise NotImplementedError


def gradient_norm(logits, labels):
    raise NotImplementedError


def test_a_mean_that_is_not_finite_is_an_error_of_the_metric():
    computed = {"loss": 0.5, "accuracy": 0.5, "count": 2, "mine": math.nan}
    with pytest.raises(UserError, match="the mean of mine is nan; expected a function"):
        Figures.of(computed)
    assert not math.isfinite(Figures.of(computed | {"loss": math.nan}).loss)


def test_names_of_metrics():
    assert NAMES.convert("top5, macro_f1") == ("top5", "macro_f1")
    assert NAMES.convert(top5) == NAMES.convert(["top5", "top5"]) == ("top5",)
    with pytest.raises(UserError, match=r"missing a required argument: 'k'"):
        NAMES.convert(top_k)
    with pytest.raises(UserError, match="the name 'gradient_norm' is taken; rename"):
        NAMES.convert(gradient_norm)
    for wrong in ("top6", "some.module:loss", 5):
        with pytest.raises((UserError, TypeError)):
            NAMES.convert(wrong)
