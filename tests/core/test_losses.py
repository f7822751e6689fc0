"""Losses against NumPy and optax, with labels as integers and as distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch_of, tiny_config

from flaxmnist.core import steps
from flaxmnist.core.losses import CrossEntropy, Focal, balanced_weights
from flaxmnist.core.models import SoftmaxRegression
from flaxmnist.core.state import create_state
from flaxmnist.errors import UserError
from flaxmnist.training.experiment import Experiment

LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 3
LABELS = np.array([0, 2, 1, 2, 0, 1], np.int32)
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
MIXED = np.array([[0.2, 0.3, 0.5]] * 6, np.float32)
WEIGHTS = (0.5, 1.0, 4.0)


def expected(targets, smoothing=0.0, weights=(1, 1, 1), gamma=0.0):
    logits = LOGITS.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = targets * (1 - smoothing) + smoothing / 3
    return -(np.array(weights) * targets * (1 - p) ** gamma * np.log(p)).sum(axis=1)


@pytest.mark.parametrize(
    "labels", [LABELS, ONE_HOT, MIXED], ids=["int", "hot", "mixed"]
)
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (CrossEntropy(), {}),
        (CrossEntropy(label_smoothing=0.2), {"smoothing": 0.2}),
        (CrossEntropy(class_weights=WEIGHTS), {"weights": WEIGHTS}),
        (
            CrossEntropy(label_smoothing=0.2, class_weights=WEIGHTS),
            {"smoothing": 0.2, "weights": WEIGHTS},
        ),
        (Focal(gamma=0), {}),
        (Focal(), {"gamma": 2}),
        (Focal(gamma=0.5, class_weights=WEIGHTS), {"gamma": 0.5, "weights": WEIGHTS}),
    ],
)
def test_losses_against_numpy(loss, options, labels):
    targets = ONE_HOT if labels.ndim == 1 else labels
    np.testing.assert_allclose(
        loss(jnp.array(LOGITS), jnp.array(labels)), expected(targets, **options), 1e-5
    )


def test_the_default_is_the_loss_of_optax_bit_by_bit():
    wanted = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    np.testing.assert_array_equal(CrossEntropy()(LOGITS, LABELS), wanted)


@pytest.mark.parametrize("loss", [Focal(gamma=0.5), Focal(), CrossEntropy(0.1)])
def test_gradients_of_certain_and_of_hopeless_predictions_are_finite(loss):
    logits = jnp.array([[200.0, 0.0], [200.0, 0.0]])
    labels = jnp.array([0, 1])
    grads = jax.grad(lambda logits: loss(logits, labels).sum())(logits)
    assert jnp.isfinite(grads).all()
    assert (loss(logits, jnp.array([7, -1])) == 0).all() or loss == CrossEntropy(0.1)


def test_losses_compare_by_value_and_check_their_options():
    assert CrossEntropy(class_weights=[1, 2]) == CrossEntropy(
        class_weights=np.array([1.0, 2.0])
    )
    assert hash(Focal(gamma=2)) == hash(Focal())
    assert CrossEntropy(label_smoothing=0.1) != CrossEntropy()
    for make, message in [
        (lambda: CrossEntropy(label_smoothing=1), r"loss.label_smoothing=1: expected"),
        (lambda: CrossEntropy(class_weights=(1, -1)), r"loss.class_weights=\(1, -1\)"),
        (lambda: CrossEntropy(class_weights="even"), r"class_weights='even': expected"),
        (lambda: Focal(gamma=-1), r"loss.gamma=-1: expected a number, 0 or more"),
    ]:
        with pytest.raises(UserError, match=message):
            make()
    with pytest.raises(UserError, match=r"has 2 numbers; expected 3, one per class"):
        CrossEntropy(class_weights=(1, 2))(LOGITS, LABELS)
    with pytest.raises(UserError, match=r"balanced_weights\(labels, num_classes\)"):
        CrossEntropy(class_weights="balanced")(LOGITS, LABELS)


def test_balanced_weights_have_the_mean_one_over_the_examples():
    labels = np.array([0, 0, 0, 1, 3])
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(weights, [5 / 9, 5 / 3, 1, 5 / 3])
    assert np.mean(np.array(weights)[labels]) == pytest.approx(1)
    for wrong in (-1, 3):
        with pytest.raises(
            UserError, match=rf"label {wrong}; expected labels from 0 to"
        ):
            balanced_weights([0, wrong], 3)


def mean_loss(loss, logits, batch):
    losses = np.asarray(loss(logits, batch["label"]), np.float64)
    weights = batch.get("weight", np.ones(len(losses))) * batch["mask"]
    return (weights * losses).sum() / weights.sum()


def train(loss, batch, parts=1, model=None):
    model = model or SoftmaxRegression()
    state = create_state(model, optax.sgd(0.5), loss=loss, grad_accumulation=parts)
    return steps.train_step(state, batch)


@pytest.mark.parametrize("parts", [1, 3])
def test_training_minimizes_the_weighted_loss_and_evaluation_reports_the_plain_one(
    parts, synthetic
):
    batch = batch_of(synthetic.train, 12) | {"mask": np.arange(12) < 10}
    batch["weight"] = np.array([0, 2, 0.5, 1, 3, 0, 0, 1, 1, 4, 9, 9], np.float32)
    loss = CrossEntropy(label_smoothing=0.1, class_weights=range(1, 11))
    before = create_state(SoftmaxRegression(), optax.sgd(0.5), loss=loss)
    logits = np.array(steps.predict_step(before, batch["image"])["logits"])
    state, metrics = train(loss, batch, parts)
    assert metrics.compute()["count"] == 10
    wanted = mean_loss(loss, logits, batch)
    np.testing.assert_allclose(metrics.compute()["loss"], wanted, 1e-5)
    # An example with the weight 2 counts like two, and one with 0 like none.
    rows = [1, 1, 1, 1, 2, *([3] * 2), *([4] * 6), 7, 7, 8, 8, *([9] * 8)]
    twice = {key: batch[key][rows] for key in ("image", "label")}
    if parts == 1:
        other, _ = train(loss, {**twice, "mask": np.ones(len(rows), bool)})
        jax.tree.map(
            lambda one, two: np.testing.assert_allclose(one, two, 1e-3, 1e-6),
            state.params,
            other.params,
        )
    else:
        whole, _ = train(loss, batch)
        jax.tree.map(
            lambda one, two: np.testing.assert_allclose(one, two, 1e-4, 1e-6),
            state.params,
            whole.params,
        )
    # Evaluation.
    plain = mean_loss(CrossEntropy(), logits, {**batch, "weight": np.ones(12)})
    found = steps.eval_step(before, batch).compute()
    np.testing.assert_allclose(found["loss"], plain, 1e-5)
    assert found["count"] == 10


def wrong(logits, labels):
    return jnp.log(0.0 * labels - 1.0)[:, None]


def from_a_table(logits, labels):
    """A loss of the user that is NaN where a label is out of range."""
    return -jnp.take_along_axis(
        jax.nn.log_softmax(logits), labels[:, None], axis=1, mode="fill"
    )[:, 0]


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), CrossEntropy(label_smoothing=0.1), Focal(), from_a_table],
    ids=("plain", "smoothed", "focal", "own"),
)
def test_invalid_labels_and_weights_are_counted_and_change_nothing(loss, synthetic):
    batch = batch_of(synthetic.train, 8) | {"weight": np.ones(8, np.float32)}
    bad = {key: value.copy() for key, value in batch.items()}
    bad["label"][:2] = 10, -1
    bad["weight"][2:5] = -1, np.nan, np.inf
    state, metrics = train(loss, bad)
    assert int(metrics.invalid) == 5
    with pytest.raises(UserError, match=r"invalid labels or weights: 5"):
        metrics.compute()
    mask = np.arange(8) >= 5
    expected, _ = train(loss, batch | {"mask": mask})
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


def test_a_batch_without_any_weight_changes_nothing(synthetic):
    batch = batch_of(synthetic.train, 8) | {"weight": np.zeros(8, np.float32)}
    state, metrics = train(CrossEntropy(), batch)
    before = create_state(SoftmaxRegression(), optax.sgd(0.5))
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
    assert metrics.compute()["loss"] == 0


def test_a_loss_of_the_wrong_kind_is_refused(synthetic):
    batch = batch_of(synthetic.train, 8)
    with pytest.raises(UserError, match=r"returned float32 \[8, 1\]; expected losses"):
        train(wrong, batch)
    with pytest.raises(UserError, match=r"loss=.*: expected a function of logits"):
        train(CrossEntropy, batch)
    with pytest.raises(UserError, match=r"weight.* is int32 .*; expected floating"):
        train(CrossEntropy(), batch | {"weight": np.ones(8, np.int32)})


def test_a_configuration_chooses_the_loss(synthetic):
    config = tiny_config(loss={"class_weights": "balanced", "label_smoothing": 0.1})
    loss = Experiment.build(config).state_options["loss"]
    weights = balanced_weights(synthetic.train.labels, 10)
    assert loss == CrossEntropy(0.1, weights)
    config = tiny_config(loss={"name": "focal", "gamma": 1})
    assert Experiment.build(config).state_options["loss"] == Focal(1.0)
    with pytest.raises(UserError, match=r"loss.gamma has no effect .* to be 'focal'"):
        tiny_config(loss={"gamma": 1})
