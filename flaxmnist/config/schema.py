"""Every option of a run: its type, its default, and whether it may change on resume."""

import ast
import json
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from flaxmnist import options
from flaxmnist.core import models, optim, sharding, state
from flaxmnist.data import datasets
from flaxmnist.data.datasets import SPLITS
from flaxmnist.data.feeds import FEEDS
from flaxmnist.errors import UserError, did_you_mean, shown
from flaxmnist.runtime import files

# Characters of an override that are parsed.
_LONGEST = 1_000
TENSORS = ("probabilities", "logits", "classes")
SUMMARIES = ("norms", "histograms", "filters", "mistakes")
PRECISIONS = ("float32", "bfloat16")

_OPTIONS = {
    "seed": options.seed,
    "batch_size": options.count,
    "grad_accumulation": options.count,
    "precision": options.one_of(PRECISIONS),
    "ema": state.OPTIONS["ema_decay"],
    "on_nan": options.one_of(("stop", "rollback")),
    "max_rollbacks": options.whole(1),
    "eval_batch_size": options.count,
    "num_epochs": options.optional(options.epochs),
    "num_steps": options.optional(options.count),
    "log_every": options.duration,
    "eval_every": options.duration,
    "checkpoint_every": options.duration,
    "keep_checkpoints": options.whole(1),
    "patience": options.optional(options.whole(1)),
    "eval_splits": options.some_of(SPLITS, always="validation"),
    "summaries": options.some_of(SUMMARIES),
    "log_tensors": options.some_of(TENSORS),
    "every_n_steps": options.duration,
    "log_device_placement": options.boolean,
    "init_from": options.optional(options.folder),
    "report": options.boolean,
}
_DATA_OPTIONS = datasets.OPTIONS | {"placement": options.one_of(FEEDS)}
_MESH_OPTIONS = sharding.OPTIONS | {"fsdp": options.boolean}
_GROUP = options.OptionType("a group of options", lambda value: {**value})
_GROUPS = ("model", "optimizer", "data", "mesh")
# What may change between a run and its continuation: how long, how watched, where.
FREE_TO_CHANGE = (
    "num_epochs",
    "num_steps",
    "eval_batch_size",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "patience",
    "on_nan",
    "max_rollbacks",
    "eval_splits",
    "summaries",
    "log_tensors",
    "every_n_steps",
    "log_device_placement",
    "report",
    "data.source",
    "data.dir",
    "data.placement",
    "mesh.data",
    "mesh.model",
    "mesh.fsdp",
    "mesh.devices",
)


def _defaults() -> dict[str, Any]:
    return {
        "seed": 0,
        "batch_size": 100,
        "grad_accumulation": 1,
        "precision": "float32",
        "ema": None,
        # Larger batches leave the processors' caches.
        "eval_batch_size": 200,
        "num_epochs": None,
        "num_steps": None,
        "log_every": 100,
        "eval_every": "1 epochs",
        "checkpoint_every": "1 epochs",
        "keep_checkpoints": 3,
        "patience": None,
        "on_nan": "stop",
        "max_rollbacks": 3,
        "eval_splits": ("validation",),
        "summaries": ("norms",),
        "log_tensors": (),
        "every_n_steps": 100,
        "log_device_placement": False,
        "init_from": None,
        "report": True,
        "model": {"name": "cnn"},
        "optimizer": {name: None for name in optim.OPTIONS}
        | {"name": "adam", "learning_rate": 1e-3, "schedule": "constant"},
        "data": {"name": "mnist", "source": "auto", "dir": None, "placement": "device"},
        "mesh": {"data": -1, "model": 1, "fsdp": False, "devices": None},
    }


def make_config(**changes: Any) -> ConfigDict:
    """Returns the default configuration with `changes`, group by group.

    Raises:
      UserError: as :func:`resolve`.
    """
    return resolve(ConfigDict(changes, type_safe=False))


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns `config` checked, in canonical form, with every default filled in.

    Raises:
      UserError: a name is unknown, a value is not possible, or two exclude each other.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"config={shown(config)}: expected what make_config(…) returns")
    return _resolve(config.to_dict())


def _resolve(changes: dict[str, Any]) -> ConfigDict:
    # Check the names first: a ConfigDict cannot hold every name.
    defaults = _defaults()
    given = defaults | changes
    values = options.check("", given, _OPTIONS | dict.fromkeys(_GROUPS, _GROUP))
    model = defaults["model"] | given["model"]
    values["model"] = {"name": model["name"]} | models.options(**model)
    for group, kinds in (
        ("optimizer", optim.OPTIONS),
        ("data", _DATA_OPTIONS),
        ("mesh", _MESH_OPTIONS),
    ):
        values[group] = options.check(group, defaults[group] | given[group], kinds)
    if (values["num_epochs"] is None) == (values["num_steps"] is None):
        raise UserError(
            f"num_epochs={values['num_epochs']} and num_steps={values['num_steps']}: "
            "expected one of them, and the other to be None"
        )
    return ConfigDict(values, type_safe=False)


def override(config: ConfigDict, changes: Iterable[tuple[str, str]]) -> ConfigDict:
    """Returns `config` with changes such as ``("optimizer.learning_rate", "3e-4")``.

    Giving one of `num_epochs` and `num_steps` takes the other's place. Another
    `model.name` brings that model's own defaults, and another `optimizer.name` drops
    what only the former optimizer takes.

    Raises:
      UserError: as :func:`resolve`.
    """
    values = config.to_dict()
    parsed = {key: _parse(key, text) for key, text in changes}
    for group in _GROUPS:
        if group in parsed:
            raise UserError(
                f"{group}={parsed[group]!r}: expected a group of options; set one of "
                f"them, such as {group}.{next(iter(values[group]))}"
            )
    name = parsed.get("model.name", values["model"]["name"])
    if name != values["model"]["name"]:
        values["model"] = {"name": name}
    old = values["optimizer"]["name"]
    if parsed.get("optimizer.name", old) != old:
        _, own = optim.OPTIMIZERS[old]
        values["optimizer"] |= dict.fromkeys(own)
    for one, other in (("num_epochs", "num_steps"), ("num_steps", "num_epochs")):
        if parsed.get(one) is not None and other not in parsed:
            values[other] = None
    for key, value in parsed.items():
        *groups, name = key.split(".")
        if len(groups) > 1 or (groups and groups[0] not in _GROUPS):
            raise UserError(f"no option {key}{did_you_mean(groups[0], _GROUPS)}")
        (values[groups[0]] if groups else values)[name] = value
    return _resolve(values)


def _parse(key: str, text: str) -> Any:
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    # A folder may be called 2024.10; and no value is so long.
    if key in ("data.dir", "init_from") or len(text) > _LONGEST:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as JSON text."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str | bytes) -> ConfigDict:
    """Returns the configuration that :func:`to_json` wrote.

    Raises:
      ValueError: it is no configuration.
      UserError: something in it is not possible.
    """
    return resolved(files.parse_json(text))


def resolved(values: Any) -> ConfigDict:
    """Returns the configuration of values as a JSON file holds them.

    Raises:
      ValueError: they are no configuration.
      UserError: something in it is not possible.
    """
    if not isinstance(values, dict):
        raise ValueError("it holds no configuration")
    return _resolve(values)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def fixed_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that decide what a run computes, such as ``model.name``."""
    flat = _flat(config.to_dict())
    return {name: flat[name] for name in sorted(flat.keys() - set(FREE_TO_CHANGE))}


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns ``"batch_size: 100 there, 50 here"`` for each option that matters."""
    before, after = fixed_options(old), fixed_options(new)
    return [
        f"{name}: {before.get(name)} there, {after.get(name)} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
