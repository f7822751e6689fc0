"""The optimizers of the installed optax and optax.contrib, and their options."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
import optax.contrib

from flaxmnist.core import schedules
from flaxmnist.core.schedules import number
from flaxmnist.errors import UserError
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import (
    Option,
    OptionType,
    boolean,
    duration,
    one_of,
    optional,
    real,
    text,
)
from flaxmnist.signatures import parameters

Parameters = Mapping[str, inspect.Parameter]
# Names of the parameter that takes the learning rate.
_RATES = ("learning_rate", "max_learning_rate")
# Parts of the names of parameters that take trees, functions or other optimizers.
_NO_VALUES = ("mask", "_fn", "optimizer", "linesearch", "dimension_numbers")


def _find() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Returns the optimizers of the installed optax that require a learning rate only.

    The others require gradients per example, or another optimizer.
    """
    found: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for name, make in sorted({**vars(optax.contrib), **vars(optax)}.items()):
        plain = inspect.isfunction(make) or isinstance(make, functools.partial)
        if plain and not name.startswith(("_", "scale_by_")):
            parameters = inspect.signature(make).parameters
            required = {
                key for key, one in parameters.items() if one.default is one.empty
            }
            if not parameters.keys().isdisjoint(_RATES) and required <= {*_RATES}:
                found[name] = make
    return found


def _tuple(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError
    return tuple(map(_item, value))


def _item(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return _tuple(value)
    return value if isinstance(value, str) else number.convert(value)


class _Optimizers(ExtensionPoint):
    def options(self, name: str) -> dict[str, Option]:
        """Returns the options that an optimizer has in addition to :data:`OPTIONS`."""
        if name in self.shipped:
            return _options(name)
        own = super().options(name)
        for key in own.keys() & OPTIONS.keys():
            raise UserError(
                f" has the parameter {key!r}, which is an option of every optimizer; "
                "rename it"
            )
        return own


OPTIMIZERS = _find()
POINT = _Optimizers(
    OPTIMIZERS,
    filled=("learning_rate", "total_steps", "steps_per_epoch"),
    expected="an optimizer of optax or optax.contrib, such as sgd, adam or adamw",
    listed=("sgd", "adam", "adamw"),
)

OPTIONS = {
    "name": POINT,
    "learning_rate": real(0, above=True),
    "schedule": schedules.POINT,
    "warmup": optional(duration),
    "decay_rate": optional(real(0, above=True)),
    "clip_norm": optional(real(0, above=True)),
}
_BY_DEFAULT = {
    bool: boolean,
    str: text,
    tuple: OptionType("a tuple, such as (0.9, 0.999)", _tuple),
}
_BY_NAME = {
    **dict.fromkeys(("b1", "b2", "b3", "decay", "momentum", "rho"), real(0, below=1)),
    **dict.fromkeys(("eps", "eps_root", "weight_decay"), real(0)),
}


def rate_and_parameters(name: str) -> tuple[str, Parameters]:
    """Returns the parameter that takes the learning rate, and all parameters."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    return next(rate for rate in _RATES if rate in parameters), parameters


def takes_schedule(name: str) -> bool:
    """Returns whether the learning rate of an optimizer may change.

    Otherwise optax computes with the number, and fails for a function of the step.
    """
    rate, parameters = rate_and_parameters(name)
    if name == "optimistic_adam" or name.startswith("schedule_free_"):
        return name != "optimistic_adam"  # The annotations are wrong.
    return "Callable" in str(parameters[rate].annotation)


@functools.cache
def _options(name: str) -> dict[str, Option]:
    """Returns the parameters of the optax function that take plain values.

    The learning rate is among them, because its default depends on the optimizer.
    """
    rate, parameters = rate_and_parameters(name)
    # Every optimizer has the option `warmup`; a key makes the seed obsolete.
    unused = {rate, "warmup_steps"} | ({"seed"} if "key" in parameters else set())
    default = parameters[rate].default
    if default is inspect.Parameter.empty:
        default = 1e-3
    if default is None:
        default = 1.0  # As in optax.
    help = "Largest learning rate of the schedule."
    found = {"learning_rate": Option(OPTIONS["learning_rate"], float(default), help)}
    return found | {
        option_name(name, key): one
        for key, parameter in parameters.items()
        if key not in unused and (one := _declare(name, parameter))
    }


def option_name(optimizer: str, parameter: str) -> str:
    """Returns the name of the option, such as ``"adafactor_decay_rate"``."""
    return f"{optimizer}_{parameter}" if parameter in OPTIONS else parameter


def _declare(name: str, parameter: inspect.Parameter) -> Option | None:
    """Returns the option that a parameter is; None if it takes no plain value."""
    key, default = parameter.name, parameter.default
    if any(part in key for part in _NO_VALUES):
        return None
    if "dtype" in key:
        type, default = one_of(("float32", "bfloat16", "float16")), None
    else:
        type = _BY_NAME.get(key, _BY_DEFAULT.get(default.__class__, number))
    if key == "key":
        default = 0
    if default is None:
        type = optional(type)
    return Option(type, default, f"Parameter {key} of {name} in optax.")


def stretched(options: Mapping[str, Any]) -> str:
    """Names the part that changes with the length of the run: "cosine schedule".

    Args:
      options: all options of the optimizer by name; "" is returned if nothing changes.
    """
    name, schedule = options["name"], options["schedule"]
    if schedules.is_stretched(schedule, options):
        return f"{schedule} schedule"
    own = name not in OPTIMIZERS and "total_steps" in parameters(POINT.callable(name))
    return f"optimizer {name}" if own else ""


def check_options(options: Mapping[str, Any]) -> None:
    """Checks that no option is without effect because of the others.

    Args:
      options: all options of the optimizer by name, of valid types; None is a default.

    Raises:
      UserError: an option has no effect, or requires another one.
    """
    schedules.check_options(options)
    name, schedule = options["name"], options["schedule"]
    varies = schedule not in ("constant", "constant_schedule") or options.get("warmup")
    if varies and name in OPTIMIZERS and not takes_schedule(name):
        raise UserError(
            f"optimizer.name={name!r} requires a constant learning rate; expected "
            "optimizer.schedule='constant' and optimizer.warmup=None"
        )
    if options.get("nesterov") and options.get("momentum", 1) in (None, 0):
        raise UserError("optimizer.nesterov requires optimizer.momentum, such as 0.9")
