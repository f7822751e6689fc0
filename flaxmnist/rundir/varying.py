"""The members of a new population: every combination of seeds and swept values."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flaxmnist import config as configs
from flaxmnist import options as types
from flaxmnist.errors import UserError, shown
from flaxmnist.rundir.population import Member, names_code

# Most members of a population.
MAX_MEMBERS = 1_000
# Characters of a name, and of the hash at the end of a shortened one.
_MAX_NAME, _HASH = 120, 8
# Options of which the members share one value: those of the data, and those that change
# the shapes of arrays in any case.
_SHARED = ("batch_size", "grad_accumulation", "eval_batch_size", "data", "mesh")


def vary(
    config: configs.Config,
    seeds: Iterable[Any] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[Member, ...]:
    """Returns a member for each seed and each combination of the values of `sweep`.

    Args:
      config: that the members share.
      seeds: different integers; the seed of `config` alone if None.
      sweep: values by the full name of an option.

    Raises:
      UserError: a seed or a value is invalid or given twice, or an option is unknown or
        cannot be swept.
    """
    sweep = dict(sweep or {})
    axes = {name: _values(config, name, values) for name, values in sweep.items()}
    if seeds is not None:
        axes["seed"] = _seeds(seeds)
    if math.prod(map(len, axes.values())) > MAX_MEMBERS:
        raise UserError(
            f"a population has at most {MAX_MEMBERS:,} members; give fewer seeds or "
            "values, or train several populations"
        )
    members: list[Member] = []
    for values in itertools.product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        members.append(Member(_name(given), given))
    return tuple(members)


def _name(given: Mapping[str, Any]) -> str:
    """Returns the name of a directory, which depends on the options of a member only.

    A name that is too long, or a value with other characters, is followed by a hash.
    """
    text = ",".join(map(_text, given.items()))
    name = re.sub(r"[^\w.+=,-]", "_", text, flags=re.ASCII)
    if name == text and len(name) <= _MAX_NAME:
        return name
    content = json.dumps([*given.items()])
    digest = hashlib.sha256(content.encode()).hexdigest()[:_HASH]
    return f"{name[: _MAX_NAME - _HASH - 1]}-{digest}"


def _text(option: tuple[str, Any]) -> str:
    name, value = option
    if isinstance(value, list):
        value = "x".join(map(str, value))
    return f"seed-{value}" if name == "seed" else f"{name}={value}"


def check_free(given: Iterable[str], varied: Iterable[str]) -> None:
    """Raises UserError if an option has one value for all members and one for each.

    Args:
      given: full names of the options that all members shall share.
      varied: full names of the options in which the members differ.
    """
    for name in sorted({*given} & {*varied}):
        how = "--seeds" if name == "seed" else f"--sweep {name}"
        raise UserError(
            f"one value of {name} has no effect: each member of the population has its "
            f"own. Remove it; to train further values, give all of them by {how}"
        )


def _seeds(seeds: Iterable[Any]) -> list[int]:
    given = (
        [seeds] if isinstance(seeds, str) or not isinstance(seeds, Iterable) else seeds
    )
    found: list[int] = []
    for one in itertools.islice(given, MAX_MEMBERS + 1):
        found.append(types.check("", {"seed": one}, {"seed": types.seed})["seed"])
        if found.count(found[-1]) > 1:
            raise UserError(f"seeds: {one} is given twice; expected different integers")
    if not found:
        raise UserError("seeds is empty; expected one or more integers")
    return found


def _values(config: configs.Config, name: str, values: Sequence[Any]) -> list[Any]:
    """Returns the values of a swept option in the form of a configuration."""
    if name == "seed":
        raise UserError("sweep: seed is not swept; use seeds, or --seeds")
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UserError(f"sweep: {name}={shown(values)}: expected a list of values")
    found: list[Any] = []
    for value in values:
        # JSON has no tuples: the same as if read again.
        changed = configs.flat(configs.override(config, {name: value}))[name]
        changed = json.loads(json.dumps(changed))
        if changed in found:
            raise UserError(f"sweep: {name}={shown(value)} is given twice")
        if names_code(changed):
            raise UserError(
                f"sweep: {name}={shown(value)} names code; expected values of another "
                "kind. Train a run for each function instead"
            )
        found.append(changed)
    if {name, name.partition(".")[0]} & {*_SHARED}:
        raise UserError(
            f"sweep: {name} cannot be swept; the members of a population share the "
            "data and the shapes of all arrays. Train a population for each value"
        )
    return found
