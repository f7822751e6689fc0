"""Configuration files: finding and running them, and describing them by flags."""

import inspect
import os
import runpy
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from flaxmnist import user_code
from flaxmnist.config.conversion import as_config_dict, flat, override, resolve
from flaxmnist.config.group import points_of
from flaxmnist.config.schema import GROUPS, Config, walk
from flaxmnist.errors import UserError, did_you_mean
from flaxmnist.signatures import REQUIRED


def shipped() -> dict[str, Path]:
    """Returns the configuration files that come with the library, by short name."""
    package = Path(__file__).parents[1]
    # Beside the package in a checkout, inside it in an installed wheel.
    folders = (package / "configs", package.parent / "configs")
    folder = next(folder for folder in folders if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def load(spec: str) -> ConfigDict:
    """Returns the configuration of ``FILE.py``, ``NAME`` or either with ``:VARIANT``.

    The file is Python code, which is executed: load only files that you trust.

    Raises:
      UserError: the file or the variant does not exist, the file fails, or its
        configuration is not valid.
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
    if path not in ours.values():
        user_code.search(path.parent)
    try:
        with user_code.import_path(str(path.parent), os.getcwd()):
            module = user_code.execute(str(path))
            _check_get_config(module)
            config = module.get_config(variant or None)
    except UserError:
        raise
    # The code is the user's: it may raise anything.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{path}, line {_line_of(error, path)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config returned {config!r}: expected a ConfigDict"
        )
    return as_config_dict(resolve(config))


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
    """Returns the last line of `path` in the traceback of `error`, or 1."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return (lines and lines[-1]) or 1


def variant(arg: str | None, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the changes of the variant `arg`; no changes if it is None.

    Raises:
      UserError: the variant is unknown.
    """
    if arg is None:
        return {}
    if arg not in variants:
        raise UserError(f"no variant {arg!r}{did_you_mean(arg, variants)}")
    return variants[arg]


def flags_of(config: Config) -> list[str]:
    """Returns flags that give this configuration: a shipped one, and its changes."""
    wanted = flat(config)
    points = {
        f"{group}.{name}" for group, cls in GROUPS.items() for name in points_of(cls)
    }
    candidates = []
    for name, path in shipped().items():
        variants = runpy.run_path(str(path)).get("VARIANTS", {})
        for spec in (name, *(f"{name}:{variant}" for variant in variants)):
            base = load(spec)
            before = flat(resolve(base))
            named = {key for key in points if before[key] != wanted[key]}
            # A callable brings its defaults, and may require options without one. The
            # default of some such options is None.
            required = {
                key
                for key, one, _ in walk(config)
                if one.default is REQUIRED
                or (one.default is None and wanted[key] not in (None, before.get(key)))
            }
            given = [(key, wanted[key]) for key in wanted if key in named | required]
            try:
                before = flat(override(base, given))
            except UserError:  # The callable excludes another option of `base`.
                continue
            changes = given + [
                (key, value)
                for key, value in wanted.items()
                if key not in dict(given) and before[key] != value
            ]
            candidates.append((spec, changes, len(named)))
    spec, changes, _ = min(candidates, key=lambda one: (one[2], len(one[1])))
    return [f"--config={spec}", *(f"--config.{key}={value}" for key, value in changes)]
