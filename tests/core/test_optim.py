"""Optimizers and schedules do what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from flaxmnist.core import optim, optimizers, schedules
from flaxmnist.core.by_value import by_value
from flaxmnist.errors import UserError
from flaxmnist.options import check

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
        # 100 times 0.29 is less than 29 in float64.
        ("one_cycle", {"warmup_steps": 29}, {29: 1, 100: 0}),
        ("one_cycle", {"warmup_steps": 1, "total_steps": 49}, {0: 1 / 25, 1: 1, 49: 0}),
    ],
)
def test_schedules_against_their_definitions(schedule, options, values):
    rate = schedules.build_schedule(schedule, 2.0, **LENGTHS | options)
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


def build_anew(*args, **options):
    optim._build.cache_clear()
    return optim.build(*args, **options)


def sum_of_squares(params):
    return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_every_optimizer_of_optax_updates_and_compares_by_value(name):
    """The update is traced only, which checks types and costs no compilation."""
    varies = optimizers.takes_schedule(name)
    lengths = LENGTHS | ({"schedule": "cosine", "warmup_steps": 5} if varies else {})
    own = {key: one.default for key, one in optimizers.POINT.options(name).items()}
    check(
        "optimizer",
        own,
        {key: one.type for key, one in optimizers.POINT.options(name).items()},
    )
    once, again = (by_value(build_anew(name, 0.1, **lengths)[0]) for _ in range(2))
    assert once == again
    assert hash(once) == hash(again)
    assert not once.is_opaque
    other, _ = optim.build(name, 0.2, **lengths)
    assert once != by_value(other)

    def update(params, state):
        value, grad = jax.value_and_grad(sum_of_squares)(params)
        extra = {"value": value, "grad": grad, "value_fn": sum_of_squares}
        updates, state = optim.update(once, grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = jax.eval_shape(once.init, params)
    found = jax.eval_shape(update, params, state)
    for one, two in zip(
        jax.tree.leaves(found), jax.tree.leaves((params, state)), strict=True
    ):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)


def test_optimizers_are_found_in_optax():
    # Of optax 0.2.4, the oldest that is supported.
    oldest = """adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan
    amsgrad nadam nadamw fromage lamb lars lbfgs lion noisy_sgd novograd optimistic_adam
    optimistic_gradient_descent polyak_sgd radam rmsprop rprop sgd sign_sgd sm3 yogi
    acprop cocob dadapt_adamw dog dowg momo momo_adam prodigy schedule_free_adamw
    schedule_free_sgd"""
    assert optimizers.OPTIMIZERS.keys() >= {*oldest.split()}
    assert optimizers.OPTIMIZERS["adam"] is optax.adam
    assert optimizers.OPTIMIZERS["prodigy"] is optax.contrib.prodigy
    assert (
        not {"dpsgd", "schedule_free", "scale_by_adam"} & optimizers.OPTIMIZERS.keys()
    )


def test_options_of_an_optimizer_are_the_parameters_of_the_optax_function():
    defaults = {
        key: one.default for key, one in optimizers.POINT.options("adamw").items()
    }
    assert defaults.items() >= {"b1": 0.9, "b2": 0.999, "weight_decay": 1e-4}.items()
    assert "mask" not in defaults
    # A name that an option of every optimizer has.
    assert optimizers.POINT.options("adafactor")["adafactor_decay_rate"].default == 0.8
    assert optimizers.POINT.options("noisy_sgd").keys() & {"key", "seed"}
    rates = {
        name: optimizers.POINT.options(name)["learning_rate"].default
        for name in ("adam", "prodigy", "lbfgs")
    }
    assert rates == {"adam": 1e-3, "prodigy": 1.0, "lbfgs": 1.0}
    ours, _ = optim.build("rmsprop", 0.1, **LENGTHS, decay=0.5, centered=True)
    theirs = optax.rmsprop(optax.constant_schedule(0.1), decay=0.5, centered=True)
    assert by_value(ours) == by_value(theirs)
    ours, _ = optim.build("adafactor", 0.1, **LENGTHS, adafactor_decay_rate=0.5)
    theirs = optax.adafactor(optax.constant_schedule(0.1), decay_rate=0.5)
    assert by_value(ours) == by_value(theirs)


SCHEDULES = {
    "constant_schedule": ({}, lambda: optax.constant_schedule(2.0)),
    "cosine_decay_schedule": (
        {"alpha": 0.1},
        lambda: optax.cosine_decay_schedule(2.0, 100, 0.1),
    ),
    "cosine_onecycle_schedule": (
        {"pct_start": 0.5},
        lambda: optax.cosine_onecycle_schedule(100, 2.0, 0.5),
    ),
    "exponential_decay": (
        {"decay_rate": 0.5, "transition_steps": "2 epochs", "staircase": True},
        lambda: optax.exponential_decay(2.0, 20, 0.5, staircase=True),
    ),
    "linear_onecycle_schedule": ({}, lambda: optax.linear_onecycle_schedule(100, 2.0)),
    "linear_schedule": ({}, lambda: optax.linear_schedule(2.0, 0.0, 100)),
    "piecewise_constant_schedule": (
        {"boundaries_and_scales": ((30, 0.5), ("6 epochs", 0.1))},
        lambda: optax.piecewise_constant_schedule(2.0, {30: 0.5, 60: 0.1}),
    ),
    "piecewise_interpolate_schedule": (
        {"interpolate_type": "linear", "boundaries_and_scales": (("3 epochs", 0.5),)},
        lambda: optax.piecewise_interpolate_schedule("linear", 2.0, {30: 0.5}),
    ),
    "polynomial_schedule": (
        {"power": 2, "end_value": 0.5},
        lambda: optax.polynomial_schedule(2.0, 0.5, 2, 100),
    ),
    "sgdr_schedule": (
        {"cosine_kwargs": ((("decay_steps", 50), ("warmup_steps", 10)),) * 2},
        lambda: optax.sgdr_schedule(
            [
                {
                    "init_value": 0.0,
                    "peak_value": 2.0,
                    "decay_steps": 50,
                    "warmup_steps": 10,
                }
            ]
            * 2
        ),
    ),
    "warmup_constant_schedule": (
        {},
        lambda: optax.warmup_constant_schedule(0.0, 2.0, 10),
    ),
    "warmup_cosine_decay_schedule": (
        {"end_value": 0.1},
        lambda: optax.warmup_cosine_decay_schedule(0.0, 2.0, 10, 100, 0.1),
    ),
    "warmup_exponential_decay_schedule": (
        {"decay_rate": 0.5},
        lambda: optax.warmup_exponential_decay_schedule(0.0, 2.0, 10, 100, 0.5),
    ),
}


@pytest.mark.parametrize("name", sorted(schedules.OPTAX))
def test_every_schedule_of_optax_is_available_by_name(name):
    own, theirs = SCHEDULES[name]
    warmup = 10 if name.startswith("warmup") else 0
    own = {f"schedule_{key}": value for key, value in own.items()}
    types = {key: one.type for key, one in schedules.POINT.options(name).items()}
    assert check("optimizer", own, types) == own
    ours = schedules.build_schedule(name, 2.0, **LENGTHS, warmup_steps=warmup, **own)
    steps = jnp.arange(0, 101, 5)
    assert by_value(optax.sgd(ours)) == by_value(optax.sgd(theirs()))
    np.testing.assert_array_equal(jax.vmap(ours)(steps), jax.vmap(theirs())(steps))


def test_the_warm_up_precedes_a_schedule_of_optax():
    rate = schedules.build_schedule(
        "linear_schedule", 2.0, **LENGTHS, warmup_steps=20, schedule_end_value=1.0
    )
    found = [float(rate(step)) for step in (0, 10, 20, 60, 100)]
    assert found == pytest.approx([0, 1, 2, 1.5, 1])


def test_mappings_of_a_schedule_are_hashable_and_survive_json():
    type = schedules.POINT.options("piecewise_constant_schedule")[
        "schedule_boundaries_and_scales"
    ].type
    for value in ({30: 0.5}, {"30": 0.5}, [[30, 0.5]], ((30, 0.5),)):
        assert type.convert(value) == ((30, 0.5),)
    assert type.convert({"3 epochs": 0.5}) == (("3 epochs", 0.5),)
    for wrong in ({30: "half"}, {"third": 0.5}, {1.5: 0.5}, {"0 epochs": 0.5}):
        with pytest.raises((TypeError, ValueError)):
            type.convert(wrong)


def test_an_equal_optimizer_is_the_same_object_so_nothing_compiles_twice():
    one, _ = optim.build("adam", 0.1, **LENGTHS)
    same, _ = optim.build("adam", 0.1, **LENGTHS)
    other, _ = optim.build("adam", 0.2, **LENGTHS)
    assert one is same is not other


def test_an_optimizer_is_equal_after_its_schedule_was_called():
    options = {**LENGTHS, "schedule": "cosine"}
    one, rate = build_anew("adam", 0.1, **options)
    rate(jnp.int32(0))  # optax converts numbers in the closure of the schedule.
    again, _ = build_anew("adam", 0.1, **options)
    assert one == again


def test_options_without_use_are_refused():
    with pytest.raises(UserError, match=r"unknown option 'optimizer.weight_decay'"):
        optim.build("adam", 0.1, **LENGTHS, weight_decay=0.1)
    with pytest.raises(UserError, match=r"decay_rate=0.5 has no effect"):
        optim.build("adam", 0.1, **LENGTHS, decay_rate=0.5)
    with pytest.raises(UserError, match=r"unknown option 'optimizer.schedule_power'"):
        optim.build("adam", 0.1, **LENGTHS, schedule="cosine", schedule_power=2)
    with pytest.raises(UserError, match=r"'polynomial_schedule' requires .*_power"):
        optim.build("adam", 0.1, **LENGTHS, schedule="polynomial_schedule")
    for own in ({}, {"schedule_init_value": 0.05}):
        with pytest.raises(UserError, match=r"requires optimizer.warmup, such as 100$"):
            schedules.build_schedule("warmup_constant_schedule", 0.1, **LENGTHS, **own)
    with pytest.raises(UserError, match=r"'rprop' requires a constant learning rate"):
        optim.build("rprop", 0.1, **LENGTHS, warmup_steps=5)
    with pytest.raises(UserError, match=r"name='lbfgs': .*memory_size"):
        optim.build("lbfgs", 0.1, **LENGTHS, memory_size=0)
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


def my_optimizer(learning_rate, decay: float = 0.5):
    return optax.chain(optax.trace(decay), optax.scale_by_learning_rate(learning_rate))


def my_schedule(learning_rate, total_steps, power: float = 1.0):
    return lambda step: learning_rate * (1 - step / total_steps) ** power


def test_optimizers_and_schedules_of_the_user():
    options = {**LENGTHS, "schedule": my_schedule, "schedule_power": 2.0}
    tx, rate = optim.build(my_optimizer, 0.1, **options, decay=0.9)
    assert float(rate(50)) == pytest.approx(0.1 * 0.25)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    np.testing.assert_allclose(updates, [-0.1, -0.1])
    assert optim.build(my_optimizer, 0.1, **options, decay=0.9)[0] is tx
    with pytest.raises(UserError, match=r"unknown option 'optimizer.power'"):
        optim.build("sgd", 0.1, **options, power=2)
    with pytest.raises(UserError, match=r"returned .*; expected an optax"):
        optim.build(my_schedule, 0.1, **LENGTHS)
