"""Learning-rate schedules by name: four of this library, and all of optax."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from flaxmnist import options as types
from flaxmnist.errors import UserError, shown
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import Option, OptionType, duration, one_of, to_steps, whole
from flaxmnist.signatures import parameters

__all__ = ["build_schedule"]

OURS = ("constant", "cosine", "exponential", "one_cycle")
# Prefix of the options of a schedule from optax.
PREFIX = "schedule_"


def _find() -> dict[str, Callable[..., optax.Schedule]]:
    """Returns the schedules of the installed optax by name."""
    return {
        name: make
        for name, make in sorted(vars(optax).items())
        if inspect.isfunction(make)
        and name.endswith(("_schedule", "_decay"))
        and not name.startswith(("_", "scale_by_"))
    }


OPTAX = _find()
# The parameters of a schedule of the user that the library passes.
_USERS = ExtensionPoint(
    {}, filled=("learning_rate", "total_steps", "steps_per_epoch", "warmup_steps")
)


def _number(value: Any) -> float:
    """Returns a number; an integer as such, which optax requires in some places."""
    given = types.number(value)
    return value if isinstance(value, int) else given


number = OptionType("a number", _number)


def _pairs(value: Any, key: OptionType) -> tuple[tuple[Any, float], ...]:
    """Returns a mapping as pairs, which are hashable and can be stored as JSON."""
    items = value.items() if isinstance(value, Mapping) else value
    return tuple((key.convert(name), _number(item)) for name, item in items)


# The parameters with a type that neither their name nor their default shows.
_TYPES = {
    "boundaries_and_scales": OptionType(
        # As a key in a dict, ConfigDict refuses a text with a dot.
        "factors by step or epoch, such as {1000: 0.1} or (('1.5 epochs', 0.1),)",
        lambda value: _pairs(value, duration),
    ),
    "cosine_kwargs": OptionType(
        "the options of each cycle, such as ({'decay_steps': 500, 'warmup_steps': 0},)",
        lambda value: tuple(_pairs(cycle, types.text) for cycle in value),
    ),
    "interpolate_type": one_of(("linear", "cosine")),
    "transition_begin": whole(0),
}


def _defaults(schedule: str) -> dict[str, Any]:
    """Returns the parameters of a schedule from optax; None where a value must follow.

    The values of the run are missing: the largest learning rate and the warm-up.
    """
    found = inspect.signature(OPTAX[schedule]).parameters
    defaults = {
        name: None if each.default is each.empty else each.default
        for name, each in found.items()
    }
    defaults.pop(_rate(found), None)
    defaults.pop("warmup_steps", None)
    zeros = {"init_value", "end_value"} & {
        name for name in defaults if found[name].default is found[name].empty
    }
    return defaults | dict.fromkeys(zeros, 0.0)


def _rate(parameters: Mapping[str, Any]) -> str:
    """Returns the name of the parameter that takes the largest learning rate."""
    names = ("peak_value", "init_value", "value")
    return next((name for name in names if name in parameters), "")


class _Schedules(ExtensionPoint):
    def options(self, name: str) -> dict[str, Option]:
        """Returns the options of a schedule, whose names begin with :data:`PREFIX`."""
        if name in OURS:
            return {}
        if name not in OPTAX:
            own = _USERS.options(name)
            return {PREFIX + parameter: one for parameter, one in own.items()}
        found = {}
        for parameter, default in _defaults(name).items():
            simple = types.boolean if isinstance(default, bool) else number
            lasting = parameter.endswith("_steps")
            type = _TYPES.get(parameter, duration if lasting else simple)
            if default is None:
                type = types.optional(type)
            meaning = "; None: the rest of the run" if lasting else ""
            help = f"Parameter {parameter} of optax.{name}{meaning}."
            found[PREFIX + parameter] = Option(type, default, help)
        return found


POINT = _Schedules(
    {**dict.fromkeys(OURS), **OPTAX},
    expected=f"{', '.join(OURS)}, or a schedule of optax such as polynomial_schedule",
    listed=(),
)


def is_stretched(schedule: str, own: Mapping[str, Any]) -> bool:
    """Returns whether the schedule changes with the length of the run."""
    if schedule not in POINT.shipped:
        return "total_steps" in parameters(POINT.callable(schedule))
    lengths = [name for name in POINT.options(schedule) if name.endswith("_steps")]
    return schedule in ("cosine", "one_cycle") or any(
        own.get(name) is None for name in lengths
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Checks that no option of a schedule is missing, or without effect.

    Args:
      options: ``schedule``, its options and ``warmup`` by name; None is a default.

    Raises:
      UserError: an option has no effect, or is missing.
    """
    name, rate = options["schedule"], options.get("decay_rate")
    if rate is not None and name != "exponential":
        raise UserError(
            f"optimizer.decay_rate={rate} has no effect with "
            f"optimizer.schedule={name!r}; expected schedule 'exponential'"
        )
    if name not in OPTAX:
        return
    for parameter, each in inspect.signature(OPTAX[name]).parameters.items():
        option = PREFIX + parameter
        required = each.default is each.empty and not parameter.endswith("_steps")
        if required and options.get(option, 0) is None:
            raise UserError(f"optimizer.schedule={name!r} requires optimizer.{option}")
    # Without a rise, optax keeps its first value, which is 0 by default.
    if name == "warmup_constant_schedule" and not options.get("warmup"):
        raise UserError(
            f"optimizer.schedule={name!r} requires optimizer.warmup, such as 100"
        )


def build_schedule(
    schedule: str,
    learning_rate: float,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_steps: int = 0,
    decay_rate: float | None = None,
    **own: Any,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      schedule: "constant"; "cosine", which falls to zero at `total_steps`;
        "exponential", which is multiplied by `decay_rate` per epoch, continuously;
        "one_cycle", which rises along a cosine during the warm-up (by default 30 % of
        the steps) and falls to almost zero (Smith and Topin, 2018,
        "Super-Convergence"); the name of a schedule of optax; or the specification of
        a function that returns a schedule, such as ``"my_code:my_schedule"``.
      learning_rate: the largest learning rate.
      total_steps: number of steps of the run.
      steps_per_epoch: number of steps of an epoch.
      warmup_steps: number of steps in which the learning rate rises from zero,
        linearly except for "one_cycle".
      decay_rate: factor per epoch of "exponential"; 0.95 if None.
      **own: parameters of such a schedule, such as `schedule_power`; in optax, a length
        that is missing or None is that of the run without the warm-up.

    Raises:
      UserError: the warm-up is not shorter than the run, or an option is missing or has
        no effect.
    """
    if warmup_steps >= total_steps:
        raise UserError(
            f"optimizer.warmup is {warmup_steps} steps; "
            f"expected fewer than the run's {total_steps}"
        )
    given = {"schedule": schedule, "decay_rate": decay_rate, "warmup": warmup_steps}
    check_options(own | given)
    if schedule == "one_cycle":
        steps = max(total_steps, 4)
        rise = warmup_steps or int(0.3 * steps)
        return optax.cosine_onecycle_schedule(
            # optax rounds down, and the quotient may be just below the whole number.
            steps,
            learning_rate,
            pct_start=(rise + 0.5) / steps,
        )
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    elif schedule == "exponential":
        rate = 0.95 if decay_rate is None else decay_rate
        after = optax.exponential_decay(learning_rate, steps_per_epoch, rate)
    elif schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    else:
        run = {"learning_rate": learning_rate, "total_steps": total_steps}
        run |= {"steps_per_epoch": steps_per_epoch, "warmup_steps": warmup_steps}
        named = {name.removeprefix(PREFIX): value for name, value in own.items()}
        after, rises = (_of_optax if schedule in OPTAX else _of_user)(
            schedule, named, run
        )
        if rises:
            return after
    return _warmed_up(after, learning_rate, warmup_steps)


def _of_user(
    schedule: str, own: Mapping[str, Any], run: Mapping[str, Any]
) -> tuple[optax.Schedule, bool]:
    """Returns a schedule of the user, and whether it contains the warm-up."""
    made = _USERS.build(schedule, own, **run)
    if not callable(made):
        raise UserError(
            f"optimizer.schedule={schedule!r} returned {shown(made)}; expected a "
            "function from the step to the learning rate"
        )
    return made, "warmup_steps" in parameters(_USERS.callable(schedule))


def _of_optax(
    schedule: str, own: Mapping[str, Any], run: Mapping[str, Any]
) -> tuple[optax.Schedule, bool]:
    """Returns a schedule of optax, and whether it contains the warm-up."""
    found = inspect.signature(OPTAX[schedule]).parameters
    rises = "warmup_steps" in found  # Then its other lengths contain the warm-up.
    rate, warmup_steps = run["learning_rate"], run["warmup_steps"]
    length = run["total_steps"] - (0 if rises else warmup_steps)
    values: dict[str, Any] = {"init_value": 0.0, "end_value": 0.0}
    values |= dict.fromkeys(("transition_steps", "decay_steps"), length)
    values |= {"warmup_steps": warmup_steps, _rate(found): rate}
    required = {name for name, each in found.items() if each.default is each.empty}
    arguments = {name: value for name, value in values.items() if name in required}
    for name, value in own.items():
        if name.endswith("_steps") and value is not None:
            value = to_steps(value, run["steps_per_epoch"])
        elif name == "boundaries_and_scales" and value is not None:
            epoch, items = run["steps_per_epoch"], dict(value).items()
            value = {to_steps(place, epoch): factor for place, factor in items}
        elif name == "cosine_kwargs":
            first = {"init_value": 0.0, "peak_value": rate}
            value = [first | dict(cycle) for cycle in value]
        if value is not None:
            arguments[name] = value
    try:
        return OPTAX[schedule](**arguments), rises
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"optimizer.schedule={schedule!r}: {error}") from None


def _warmed_up(
    after: optax.Schedule, learning_rate: float, steps: int
) -> optax.Schedule:
    """Returns `after`, preceded by a linear rise from zero in a number of steps."""
    if not steps:
        return after
    up = optax.linear_schedule(0.0, learning_rate, steps)
    return optax.join_schedules((up, after), (steps,))
