"""Optimizers and schedules do what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxmnist.core import optim
from flaxmnist.errors import UserError

LENGTHS = {"total_steps": 100, "steps_per_epoch": 10}


@pytest.mark.parametrize(
    ("schedule", "options", "values"),
    [
        ("constant", {}, {0: 1, 50: 1, 99: 1}),
        ("constant", {"warmup_steps": 10}, {0: 0, 5: 0.5, 10: 1, 99: 1}),
        ("cosine", {}, {0: 1, 50: 0.5, 100: 0}),
        ("cosine", {"warmup_steps": 20}, {0: 0, 20: 1, 60: 0.5, 100: 0}),
        ("exponential", {}, {0: 1, 10: 0.95, 20: 0.95**2, 5: 0.95**0.5}),
        ("exponential", {"decay_rate": 0.5}, {0: 1, 10: 0.5, 30: 0.125}),
        ("one_cycle", {}, {0: 1 / 25, 30: 1, 100: 0}),
        ("one_cycle", {"warmup_steps": 50}, {0: 1 / 25, 50: 1, 100: 0}),
    ],
)
def test_schedules_against_their_definitions(schedule, options, values):
    rate = optim.build_schedule(schedule, 2.0, **LENGTHS, **options)
    for step, value in values.items():
        assert float(rate(step)) == pytest.approx(2 * value, abs=1e-5), step


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("sgd", {}, optax.sgd(0.1)),
        ("sgd", {"momentum": 0.9}, optax.sgd(0.1, momentum=0.9)),
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True},
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        ),
        ("adam", {}, optax.adam(0.1)),
        ("adamw", {"weight_decay": 0.3}, optax.adamw(0.1, weight_decay=0.3)),
        (
            "adam",
            {"clip_norm": 1.0},
            optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        ),
    ],
)
def test_optimizers_update_as_optax_does(name, options, theirs):
    ours, _ = optim.build(name, 0.1, **LENGTHS, **options)
    results = []
    for tx in (ours, theirs):
        params = {"w": jnp.array([3.0, -2.0]), "b": jnp.array([0.5])}
        state = tx.init(params)
        for _ in range(3):
            grads = jax.tree.map(lambda leaf: 4 * leaf, params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_an_equal_optimizer_is_the_same_object_so_nothing_compiles_twice():
    one, _ = optim.build("adam", 0.1, **LENGTHS)
    same, _ = optim.build("adam", 0.1, **LENGTHS)
    other, _ = optim.build("adam", 0.2, **LENGTHS)
    assert one is same is not other


def test_options_without_use_are_refused():
    with pytest.raises(UserError, match=r"weight_decay=0.1 has no effect .*'adamw'"):
        optim.build("adam", 0.1, **LENGTHS, weight_decay=0.1)
    with pytest.raises(UserError, match=r"decay_rate=0.5 has no effect"):
        optim.build("adam", 0.1, **LENGTHS, decay_rate=0.5)
    with pytest.raises(UserError, match=r"warmup is 100 steps"):
        optim.build("adam", 0.1, **LENGTHS, warmup_steps=100)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "adm"}, "optimizer.name='adm' is unknown; did you mean 'adam'"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0: expected a number, gre"),
        ({"schedule": "cosin"}, "optimizer.schedule='cosin' is unknown; did you mean"),
        (
            {"momentun": 0.9},
            "option 'optimizer.momentun'; did you mean 'momentum'",
        ),
    ],
)
def test_nonsense_given_to_build_is_refused_by_name(wrong, said):
    with pytest.raises(UserError, match=said):
        optim.build(**{"name": "sgd", "learning_rate": 0.1, **LENGTHS, **wrong})


def test_a_scaled_optimizer_goes_on_with_the_same_state_at_another_rate():
    options = {**LENGTHS, "schedule": "one_cycle", "weight_decay": 0.3}
    tx, _ = optim.build("adamw", 0.1, clip_norm=1.0, **options)
    half, _ = optim.build("adamw", 0.05, clip_norm=1.0, **options)
    ours = optim.scaled(tx, 0.5)
    assert ours is optim.scaled(tx, 0.5)
    params = {"w": jnp.array([3.0, -2.0])}
    state = tx.init(params)
    for _ in range(3):
        wanted, _ = half.update(params, state, params)
        found, state = ours.update(params, state, params)
        np.testing.assert_allclose(found["w"], wanted["w"], rtol=1e-6)
