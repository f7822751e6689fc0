"""Run configurations: `ml_collections` files, overrides, and what is allowed."""

import ast
import contextlib
import importlib.util
import inspect
import json
import os
import runpy
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from flaxmnist import checks, models, optim, run_files, sharding, state
from flaxmnist.checks import UserError, did_you_mean
from flaxmnist.data import sources
from flaxmnist.data.batches import FEEDS
from flaxmnist.data.sources import SPLITS

__all__ = [
    "load",
    "make_config",
    "resolve",
    "variant",
]

# Characters of an override that are parsed.
_LONGEST = 1_000
TENSORS = ("probabilities", "logits", "classes")
SUMMARIES = ("norms", "histograms", "filters", "mistakes")
PRECISIONS = ("float32", "bfloat16")

_KINDS = {
    "seed": checks.seed,
    "batch_size": checks.count,
    "grad_accumulation": checks.count,
    "precision": checks.one_of(PRECISIONS),
    "ema": state.KINDS["ema_decay"],
    "on_nan": checks.one_of(("stop", "rollback")),
    "max_rollbacks": checks.whole(1),
    "eval_batch_size": checks.count,
    "num_epochs": checks.optional(checks.epochs),
    "num_steps": checks.optional(checks.count),
    "log_every": checks.duration,
    "eval_every": checks.duration,
    "checkpoint_every": checks.duration,
    "keep_checkpoints": checks.whole(1),
    "patience": checks.optional(checks.whole(1)),
    "eval_splits": checks.some_of(SPLITS, always="validation"),
    "summaries": checks.some_of(SUMMARIES),
    "log_tensors": checks.some_of(TENSORS),
    "every_n_steps": checks.duration,
    "log_device_placement": checks.boolean,
    "init_from": checks.optional(checks.folder),
    "report": checks.boolean,
}
_DATA_KINDS = sources.KINDS | {"placement": checks.one_of(FEEDS)}
_MESH_KINDS = sharding.KINDS | {"fsdp": checks.boolean}
_GROUP = checks.Kind("a group of options", lambda value: {**value})
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
        "optimizer": {name: None for name in optim.KINDS}
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
        raise UserError(
            f"config={checks.shown(config)}: expected what make_config(…) returns"
        )
    return _resolve(config.to_dict())


def _resolve(changes: dict[str, Any]) -> ConfigDict:
    # Check the names first: a ConfigDict cannot hold every name.
    defaults = _defaults()
    given = defaults | changes
    values = checks.check("", given, _KINDS | dict.fromkeys(_GROUPS, _GROUP))
    model = defaults["model"] | given["model"]
    values["model"] = {"name": model["name"]} | models.options(**model)
    for group, kinds in (
        ("optimizer", optim.KINDS),
        ("data", _DATA_KINDS),
        ("mesh", _MESH_KINDS),
    ):
        values[group] = checks.check(group, defaults[group] | given[group], kinds)
    if (values["num_epochs"] is None) == (values["num_steps"] is None):
        raise UserError(
            f"num_epochs={values['num_epochs']} and num_steps={values['num_steps']}: "
            "expected one of them, and the other to be None"
        )
    return ConfigDict(values, type_safe=False)


def shipped() -> dict[str, Path]:
    """Returns the configuration files that come with the library, by short name."""
    package = Path(__file__).parent
    # Beside the package in a checkout, inside it in an installed wheel.
    folders = (package / "configs", package.parent / "configs")
    folder = next(folder for folder in folders if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def load(spec: str) -> ConfigDict:
    """Returns the configuration of ``FILE.py``, ``NAME`` or either with ``:VARIANT``.

    The file is Python and is run: load none that you do not trust.

    Raises:
      UserError: there is no such file, or it has no such variant.
    """
    where, _, variant = spec.partition(":")
    path = Path(os.path.expanduser(where))
    ours = shipped()
    if not path.is_file():
        known = path.suffix in ("", ".py") and str(path.parent) in (".", "configs")
        if path.stem not in ours or not known:
            kind = "configuration" if path.name == path.stem == where else "file"
            raise UserError(f"no {kind} {where!r}{did_you_mean(path.stem, ours)}")
        path = ours[path.stem]
    path = path.absolute()
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(
            f"{path} is no Python file: expected one with get_config(arg=None)"
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        with _import_path(path.parent, Path.cwd()):
            module_spec.loader.exec_module(module)
            _check_get_config(module)
            config = module.get_config(variant or None)
    except UserError:
        raise
    # The user's own code: anything may go wrong in it.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{path}, line {_line_of(error, path)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config returned {config!r}: expected a ConfigDict"
        )
    return resolve(config)


@contextlib.contextmanager
def _import_path(*folders: Path) -> Iterator[None]:
    """Has imports look in `folders` first while the block runs."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # The block may change the list, too.
                sys.path.remove(folder)


def _check_get_config(module: ModuleType) -> None:
    """Raises UserError unless the module has a `get_config` of one argument."""
    expected = "expected a function get_config(arg=None)"
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"{module.__file__} has no get_config; {expected}")
    try:
        inspect.signature(get_config).bind(None)
    except TypeError as error:
        raise UserError(f"{module.__file__}: get_config: {error}; {expected}") from None


def _line_of(error: BaseException, path: Path) -> int:
    """Returns the last line of a file that an error comes from, or 1."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return (lines and lines[-1]) or 1


def variant(arg: str | None, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the changes of the variant `arg`; none where it is None.

    Raises:
      UserError: there is no such variant.
    """
    if arg is None:
        return {}
    if arg not in variants:
        raise UserError(f"no variant {arg!r}{did_you_mean(arg, variants)}")
    return variants[arg]


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


def flags_of(config: ConfigDict) -> list[str]:
    """Returns flags that give this configuration: one that is shipped, and changes."""
    wanted = _flat(config.to_dict())
    model = ("model.name", config.model.name)
    candidates = []
    for name, path in shipped().items():
        variants = runpy.run_path(str(path)).get("VARIANTS", {})
        for spec in (name, *(f"{name}:{variant}" for variant in variants)):
            base = load(spec)
            named = [model] if base.model.name != config.model.name else []
            # Another model's name brings its own defaults.
            there = _flat(override(base, named).to_dict())
            changes = named + [
                (key, value)
                for key, value in wanted.items()
                if key not in there or there[key] != value
            ]
            candidates.append((spec, changes, bool(named)))
    spec, changes, _ = min(candidates, key=lambda one: (one[2], len(one[1])))
    return [f"--config={spec}", *(f"--config.{key}={value}" for key, value in changes)]


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as JSON text."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str | bytes) -> ConfigDict:
    """Returns the configuration that :func:`to_json` wrote.

    Raises:
      ValueError: it is no configuration.
      UserError: something in it is not possible.
    """
    return resolved(run_files.parse_json(text))


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


def what_matters(config: ConfigDict) -> dict[str, Any]:
    """Returns the options that decide what a run computes, such as ``model.name``."""
    flat = _flat(config.to_dict())
    return {name: flat[name] for name in sorted(flat.keys() - set(FREE_TO_CHANGE))}


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns ``"batch_size: 100 there, 50 here"`` for each option that matters."""
    before, after = what_matters(old), what_matters(new)
    return [
        f"{name}: {before.get(name)} there, {after.get(name)} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
