"""An optimizer that is built again does not compile again, and changes no number."""

import functools
import warnings

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import batch_of

from flaxmnist.core import models, optim, schedules, steps
from flaxmnist.core.by_value import by_value
from flaxmnist.core.state import create_state

RATE = 0.1


def rate_of_the_user(step):
    return RATE


def train(make, split, updates=4):
    """Makes updates, each with an optimizer that is built for it alone."""
    state = create_state(models.SoftmaxRegression(), make())
    for start in range(0, 50 * updates, 50):
        state = state.replace(tx=make())
        state, _ = steps.train_step(state, batch_of(split, 50, start))
    return jax.device_get(state.params)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(1e-3),
        lambda: optax.adamw(optax.cosine_onecycle_schedule(100, 1e-3)),
        lambda: optax.chain(optax.clip(np.float32(1)), optax.sgd(0.1, nesterov=True)),
    ],
)
def test_an_optimizer_built_for_every_step_compiles_once(make, synthetic):
    once = make()
    expected = train(lambda: once, synthetic.train)
    compiled = steps.train_step._cache_size()
    found = train(make, synthetic.train)
    assert steps.train_step._cache_size() == compiled
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_optimizer_with_a_function_of_the_users_warns(synthetic, monkeypatch):
    once = optax.sgd(rate_of_the_user)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slow = train(lambda: once, synthetic.train)
    with pytest.warns(UserWarning, match=r"compiles again .* build it once"):
        found = train(lambda: optax.sgd(rate_of_the_user), synthetic.train)
    jax.tree.map(np.testing.assert_array_equal, found, slow)
    # The function reads a variable, which is not part of any value.
    monkeypatch.setitem(globals(), "RATE", 0.2)
    with pytest.warns(UserWarning, match=r"compiles again"):
        fast = train(lambda: optax.sgd(rate_of_the_user), synthetic.train)
    assert not np.allclose(fast["Dense_0"]["bias"], slow["Dense_0"]["bias"])


def test_optimizers_are_equal_if_they_compute_the_same():
    lengths = {"total_steps": 100, "steps_per_epoch": 10}

    def build(*args, **options):
        optim._build.cache_clear()  # It returns the same object.
        return optim.build(*args, **options)[0]

    makers = [
        lambda: optax.adam(1e-3),
        lambda: optax.adam(1e-2),
        lambda: optax.adam(1e-3, nesterov=True),
        lambda: optax.adam(1e-3, mu_dtype="bfloat16"),
        lambda: optax.adamw(1e-3),
        lambda: optax.sgd(1),
        lambda: optax.sgd(1.0),
        lambda: optax.sgd(np.float32(1)),
        lambda: optax.sgd(0.0),
        lambda: optax.sgd(-0.0),
        lambda: optax.sgd(np.float32(0.0)),
        lambda: optax.sgd(np.float32(-0.0)),
        lambda: optax.sgd(optax.linear_schedule(0.0, 1.0, 10)),
        lambda: optax.sgd(optax.linear_schedule(0.0, 1.0, 11)),
        lambda: optax.sgd(optax.piecewise_constant_schedule(1.0, {10: 0.5})),
        lambda: optax.sgd(optax.piecewise_constant_schedule(1.0, {10: 0.25})),
        lambda: optax.sgd(jax.numpy.float32(0.5)),
        lambda: optax.sgd(jax.numpy.float32(0.25)),
        lambda: optax.contrib.dpsgd(0.1, 1.0, 1.0, 0),
        lambda: optax.contrib.dpsgd(0.1, 1.0, 1.0, 1),
        *(
            functools.partial(
                build, "adamw", 1.0, schedule=schedule, warmup_steps=warmup, **lengths
            )
            for schedule in schedules.OURS
            for warmup in (0, 20)
        ),
        lambda: optim.scaled(optim.build("adam", 1.0, **lengths)[0], 0.5),
        lambda: optim.scaled(optim.build("adam", 1.0, **lengths)[0], 0.25),
    ]
    ones, others = ([by_value(make()) for make in makers] for _ in range(2))
    for i, one in enumerate(ones):
        for j, other in enumerate(others):
            assert (one == other, one != other) == (i == j, i != j), (i, j)
        assert hash(one) == hash(others[i])


def test_an_optimizer_with_an_object_of_the_users_is_compared_by_identity():
    one, other = (by_value(optax.sgd(lambda step: RATE)) for _ in range(2))
    assert one != other
    assert one == one


def test_a_compared_optimizer_is_still_the_pair_that_optax_knows():
    for tx in (optax.adam(1e-3), optax.scale(2.0)):
        ours = by_value(tx)
        assert isinstance(ours, type(tx))
        assert (ours.init, ours.update) == tuple(ours) == tuple(tx)
        assert ours._replace(update=optax.scale(3.0).update) != ours
