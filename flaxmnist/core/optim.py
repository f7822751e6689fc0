"""Optimizers with their learning-rate schedules, built by name."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from flaxmnist.core import schedules
from flaxmnist.core.by_value import by_value
from flaxmnist.core.optimizers import (
    OPTIMIZERS,
    OPTIONS,
    POINT,
    check_options,
    option_name,
    rate_and_parameters,
    takes_schedule,
)
from flaxmnist.core.schedules import build_schedule
from flaxmnist.errors import UserError, did_you_mean, shown
from flaxmnist.options import check

__all__ = ["build", "build_schedule"]


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
    **specific: Any,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and its learning-rate schedule.

    Args:
      name: of an optimizer in optax or optax.contrib, such as "adam", or the
        specification of a function that returns one, such as ``"my_code:my_sgd"``.
      learning_rate: the largest learning rate.
      total_steps: see :func:`build_schedule`.
      steps_per_epoch: see :func:`build_schedule`.
      schedule: see :func:`build_schedule`.
      warmup_steps: see :func:`build_schedule`.
      decay_rate: see :func:`build_schedule`.
      clip_norm: maximum of the global norm of the gradients; larger gradients are
        scaled down to it (Pascanu et al., 2013).
      **specific: further parameters of the optimizer, such as `momentum` of "sgd", and
        of the schedule, such as `schedule_power`; None selects the default.

    Raises:
      UserError: an option is invalid, or has no effect with the others.
    """
    general: dict[str, Any] = {
        "name": name,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "decay_rate": decay_rate,
        "clip_norm": clip_norm,
    }
    general = check("optimizer", general, OPTIONS)
    name, schedule = general["name"], general["schedule"]
    known = POINT.options(name) | schedules.POINT.options(schedule)
    own = {key: one.default for key, one in known.items()}
    for key, value in specific.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(f"unknown option 'optimizer.{key}'{hint}")
        if value is not None:
            own[key] = value
    own = check("optimizer", own, {key: one.type for key, one in known.items()})
    own |= general
    check_options({**own, "warmup": warmup_steps})
    lengths = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    # A file of the user that is executed again defines other functions.
    made = POINT.callable(name), schedules.POINT.callable(schedule)
    return _build(made, tuple(own.items()), warmup_steps=warmup_steps, **lengths)


# Cached, so that equal optimizers are one object: see `core.by_value`.
@functools.lru_cache
def _build(
    _: tuple[Any, Any], options: tuple[tuple[str, Any], ...], **run: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer of checked options."""
    own = dict(options)
    name, schedule = own["name"], own["schedule"]
    rate = build_schedule(
        schedule,
        own["learning_rate"],
        decay_rate=own["decay_rate"],
        **run,
        **{key: own[key] for key in schedules.POINT.options(schedule)},
    )
    if name in OPTIMIZERS:
        tx = _of_optax(name, own, rate)
    else:
        del run["warmup_steps"]
        tx = POINT.build(name, own, **{**run, "learning_rate": rate})
        if not isinstance(tx, optax.GradientTransformation):
            raise UserError(
                f"optimizer.name={name!r} returned {shown(tx)}; expected an optax "
                "transformation such as optax.adam(learning_rate)"
            )
    if own["clip_norm"] is not None:
        tx = optax.chain(optax.clip_by_global_norm(own["clip_norm"]), tx)
    return by_value(tx), rate


def _of_optax(
    name: str, own: Mapping[str, Any], rate: optax.Schedule
) -> optax.GradientTransformation:
    parameter, parameters = rate_and_parameters(name)
    named = {
        key: own.get(option_name(name, key)) for key in parameters if key != parameter
    }
    arguments = {key: value for key, value in named.items() if value is not None}
    arguments[parameter] = rate if takes_schedule(name) else own["learning_rate"]
    try:
        tx = OPTIMIZERS[name](**arguments)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"optimizer.name={name!r}: {error}") from None
    return _rename_objective(tx) if name == "sophia" else tx


def update(
    tx: optax.GradientTransformation,
    grads: optax.Updates,
    state: optax.OptState,
    params: optax.Params,
    **extra: Any,
) -> tuple[optax.Updates, optax.OptState]:
    """Returns what `tx.update` returns, with the extra arguments that it accepts.

    Args:
      tx: any transformation.
      grads: see `tx.update`.
      state: see `tx.update`.
      params: see `tx.update`.
      **extra: arguments of a `GradientTransformationExtraArgs`, such as `value`.
    """
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        extra = {}
    parameters = inspect.signature(tx.update).parameters.values()
    if all(one.kind is not one.VAR_KEYWORD for one in parameters):
        names = {one.name for one in parameters}
        extra = {key: value for key, value in extra.items() if key in names}
    updates, state = tx.update(grads, state, params, **extra)
    return updates, state


def _rename_objective(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns `tx`, which gets as `obj_fn` what other optimizers call `value_fn`."""
    inner = optax.with_extra_args_support(tx)

    def update(
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[[optax.Params], jax.Array] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        extra["obj_fn"] = value_fn
        updates, state = inner.update(grads, state, params, **extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@functools.lru_cache  # For the same reason as `build`.
def scaled(
    tx: optax.GradientTransformation, factor: float
) -> optax.GradientTransformation:
    """Returns `tx` with every update times `factor`.

    That is a factor of the learning rate, except for optimizers that keep positions in
    their state, such as `schedule_free_sgd`. The state is that of `tx`, so a run can
    change to it at any step.
    """
    inner = optax.with_extra_args_support(tx)

    def update(
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(grads, state, params, **extra)
        return jax.tree.map(lambda update: factor * update, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
