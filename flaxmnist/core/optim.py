"""Optimizers and learning-rate schedules by name, all from optax."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from flaxmnist.errors import UserError
from flaxmnist.options import boolean, check, duration, one_of, optional, real

__all__ = ["build", "build_schedule"]

OPTIMIZERS = {
    "sgd": (optax.sgd, ("momentum", "nesterov")),
    "adam": (optax.adam, ()),
    "adamw": (optax.adamw, ("weight_decay",)),
}
SCHEDULES = ("constant", "cosine", "exponential", "one_cycle")

OPTIONS = {
    "name": one_of(OPTIMIZERS),
    "learning_rate": real(0, above=True),
    "schedule": one_of(SCHEDULES),
    "warmup": optional(duration),
    "decay_rate": optional(real(0, above=True)),
    "momentum": optional(real(0, below=1)),
    "nesterov": optional(boolean),
    "weight_decay": optional(real(0)),
    "clip_norm": optional(real(0, above=True)),
}


def check_combination(options: Mapping[str, Any]) -> None:
    """Checks that no option is without effect because of the others.

    Args:
      options: names of :data:`OPTIONS` → valid values; None is a default.

    Raises:
      UserError: an option has no effect, or requires another one.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "decay_rate" in given and given["schedule"] != "exponential":
        raise UserError(
            f"optimizer.decay_rate={given['decay_rate']} has no effect with "
            f"optimizer.schedule={given['schedule']!r}; expected schedule 'exponential'"
        )
    for option, value in given.items():
        users = [name for name, (_, takes) in OPTIMIZERS.items() if option in takes]
        if users and given["name"] not in users:
            raise UserError(
                f"optimizer.{option}={value} has no effect with "
                f"optimizer.name={given['name']!r}; "
                f"expected {' or '.join(map(repr, users))}"
            )
    if given.get("nesterov") and not given.get("momentum"):
        raise UserError("optimizer.nesterov requires optimizer.momentum, such as 0.9")


def build_schedule(
    schedule: str,
    learning_rate: float,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 0,
    decay_rate: float | None = None,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      schedule: "constant"; "cosine", which falls to zero at `total_steps`;
        "exponential", which is multiplied by `decay_rate` per epoch, continuously; or
        "one_cycle", which rises along a cosine during the warm-up (by default 30 % of
        the steps) and falls to almost zero (Smith and Topin, 2018,
        "Super-Convergence").
      learning_rate: the largest learning rate.
      total_steps: number of steps of the run.
      steps_per_epoch: number of steps of an epoch, for "exponential".
      warmup_steps: number of steps in which the learning rate rises from zero,
        linearly except for "one_cycle".
      decay_rate: factor per epoch of "exponential"; 0.95 if None.

    Raises:
      UserError: the warm-up is not shorter than the run, or `decay_rate` is given for
        another schedule than "exponential".
    """
    if warmup_steps >= total_steps:
        raise UserError(
            f"optimizer.warmup is {warmup_steps} steps; "
            f"expected fewer than the run's {total_steps}"
        )
    check_combination({"schedule": schedule, "decay_rate": decay_rate})
    if schedule == "one_cycle":
        rise = warmup_steps / total_steps if warmup_steps else 0.3
        return optax.cosine_onecycle_schedule(
            # optax requires a rise of at least one step.
            max(total_steps, 4),
            learning_rate,
            pct_start=max(rise, 1 / total_steps),
        )
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    elif schedule == "exponential":
        rate = 0.95 if decay_rate is None else decay_rate
        after = optax.exponential_decay(learning_rate, steps_per_epoch, rate)
    else:
        after = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return after
    up = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    # Tuples, because an optimizer that holds a list does not compare by value.
    return optax.join_schedules((up, after), (warmup_steps,))


# Cached, so that equal optimizers are one object: see `core.by_value`.
@functools.lru_cache
def build(
    name: str,
    learning_rate: float,
    *,
    total_steps: int,
    steps_per_epoch: int,
    schedule: str = "constant",
    warmup_steps: int = 0,
    decay_rate: float | None = None,
    clip_norm: float | None = None,
    **specific: float | bool | None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and its learning-rate schedule.

    Args:
      name: "sgd", "adam" or "adamw".
      learning_rate: the largest learning rate.
      total_steps: see :func:`build_schedule`.
      steps_per_epoch: see :func:`build_schedule`.
      schedule: see :func:`build_schedule`.
      warmup_steps: see :func:`build_schedule`.
      decay_rate: see :func:`build_schedule`.
      clip_norm: maximum of the global norm of the gradients; larger gradients are
        scaled down to it (Pascanu et al., 2013).
      **specific: `momentum` and `nesterov` for "sgd", `weight_decay` for "adamw"; None
        selects the default of optax.

    Raises:
      UserError: an option is invalid, or has no effect with the others.
    """
    options = {
        "name": name,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "decay_rate": decay_rate,
        "clip_norm": clip_norm,
        **specific,
    }
    check("optimizer", options, OPTIONS)
    check_combination(options)
    rate = build_schedule(
        schedule,
        learning_rate,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=warmup_steps,
        decay_rate=decay_rate,
    )
    make, _ = OPTIMIZERS[name]
    given = {option: value for option, value in specific.items() if value is not None}
    tx = make(rate, **given)
    if clip_norm is not None:
        tx = optax.chain(optax.clip_by_global_norm(clip_norm), tx)
    return tx, rate


@functools.lru_cache  # For the same reason as `build`.
def scaled(
    tx: optax.GradientTransformation, factor: float
) -> optax.GradientTransformation:
    """Returns `tx` with every update, and so the learning rate, times `factor`.

    Its state is that of `tx`, so a run can change to it at any step.
    """

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda update: factor * update, updates), state

    return optax.GradientTransformation(tx.init, update)
