"""Finding and importing the code that the user names, and no other code.

A *specification* is ``"package.module:name"`` or ``"file.py:name"``.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flaxmnist.errors import UserError, did_you_mean, explained, shown

# Directories to search first: of the loaded configuration files, and those that the
# opened runs recorded.
_folders: list[str] = []
# The callables of this process and the hashes of their sources, by their ids. The file
# may change while the imported code stays the same.
_hashes: dict[int, tuple[Any, str]] = {}
# Run directories that this process has opened.
_opened: set[Path] = set()


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A callable that a specification names.

    Attributes:
      spec: canonical form: with the absolute path of a file.
      callable: what it names.
      module: the module that contains it.
      sha256: hash of its source when this process first used it; "" if the source is
        not known or installed.
    """

    spec: str
    callable: Callable[..., Any]
    module: types.ModuleType
    sha256: str

    @property
    def file(self) -> str:
        """The source file; "" in a notebook."""
        return _source_file(self.callable, self.module)

    @property
    def folder(self) -> str:
        """The directory to search for the module; "" in a notebook."""
        if not (path := getattr(self.module, "__file__", None)):
            return ""
        name = self.module.__name__
        depth = 0 if _is_file(name) else name.count(".")
        return str(
            Path(path).absolute().parents[depth + hasattr(self.module, "__path__")]
        )


def _source_file(made: Callable[..., Any], module: types.ModuleType) -> str:
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsourcefile(inspect.unwrap(made)) or ""
    return getattr(module, "__file__", None) or ""


def _source_hash(made: Callable[..., Any], module: types.ModuleType) -> str:
    """Returns the SHA-256 of the source; "" if it is not known or installed.

    In a configuration file and in the main program, other parts change from run to
    run, so that only the source of the callable itself counts. An installed package may
    be updated, as those that flaxmnist itself needs.
    """
    if id(made) not in _hashes:
        file = _source_file(made, module)
        is_main = module.__name__ == "__main__"
        source = b""
        with contextlib.suppress(OSError, TypeError):
            if is_main or hasattr(module, "get_config"):
                source = inspect.getsource(made).encode()
            elif {"site-packages", "dist-packages"}.isdisjoint(file.split(os.sep)):
                source = Path(file).read_bytes()
        _hashes[id(made)] = made, hashlib.sha256(source).hexdigest() if source else ""
    return _hashes[id(made)][1]


def spec_of(value: Callable[..., Any]) -> str:
    """Returns the specification of a callable, such as ``"my_models:ResNet"``.

    Raises:
      UserError: it cannot be found again by a name; completes ``"name=value…"``.
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    advice = "expected a function or a class at the top level of a module"
    if module is None or name is None or "<" in name:
        raise UserError(f" cannot be imported again by its name; {advice}")
    spec = f"{module}:{name}"
    if load(spec).callable is not value:
        raise UserError(f" is not what {spec} names; {advice}")
    return spec


def load(spec: str) -> Loaded:
    """Imports what a specification names.

    The places are, in this order: the directories given to :func:`search`, the current
    directory, `sys.path`.

    Raises:
      UserError: it cannot be found or imported; completes ``"name=value…"``.
    """
    where, _, name = spec.rpartition(":")
    if not where or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(': expected "package.module:name" or "file.py:name"')
    module = _load_file(where) if _is_file(where) else _import(where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(_missing(module, part, found))
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f" is {shown(found)}; expected a class or a function")
    try:
        hash(found)
    except TypeError:
        raise UserError(
            f" is {shown(found)}, which has no hash; expected a class, a function or "
            "an instance of a frozen dataclass"
        ) from None
    origin = getattr(inspect.unwrap(found), "__module__", None) or ""
    _check_not_python(origin)
    where = module.__name__ if _is_file(where) else where
    return Loaded(f"{where}:{name}", found, module, _source_hash(found, module))


def _check_not_python(module: str) -> None:
    """Raises UserError if a module is part of Python, such as `os` with `os:system`.

    The import of some, such as `antigravity`, already does something.
    """
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(
            " is part of Python itself; expected a class or function of yours"
        )


def _missing(module: types.ModuleType, part: str, found: Any) -> str:
    if module.__name__ == "__main__":
        return (
            f" was defined in another program or notebook, and {part!r} does not exist "
            "in this one; move it into a module"
        )
    known = [
        name
        for name, one in vars(found).items()
        if callable(one) and getattr(one, "__module__", None) == module.__name__
    ]
    return f": {module.__name__} has no {part!r}{did_you_mean(part, known)}"


def _is_file(where: str) -> bool:
    return where.endswith(".py")


def search(folder: str | Path) -> None:
    """Searches a directory from now on, before the others."""
    with contextlib.suppress(ValueError):
        _folders.remove(str(folder))
    _folders.insert(0, str(folder))


def refuse_inside(workdir: Path) -> None:
    """Imports nothing from a run directory from now on: it may be somebody else's."""
    _opened.add(workdir.resolve())


def _check_outside(path: str | None) -> None:
    if path and not _opened.isdisjoint(Path(path).resolve().parents):
        raise UserError(
            f" is in {path}, inside the run directory, from which no code is run; move "
            "the file to another directory and run there"
        )


def _load_file(where: str) -> types.ModuleType:
    """Returns the module of a file, which is executed once.

    A relative path, or the name of a file that was moved, is searched for.
    """
    path = Path(os.path.expanduser(where))
    folders = map(Path, [*_folders, os.getcwd()])
    if path.is_absolute():
        places = [path, *(folder / path.name for folder in folders)]
    else:
        places = [folder / path for folder in folders]
    for file in map(os.path.abspath, places):
        if file in sys.modules:
            return sys.modules[file]
        if os.path.isfile(file):
            _check_outside(file)
            with explained(" cannot be imported: "):
                return execute(file)
    raise UserError(
        f": {where} does not exist; give its path, or run in the directory that "
        "contains it"
    )


def execute(file: str) -> types.ModuleType:
    """Executes a Python file as a module whose name is its absolute path.

    So the specification of a class in it is again ``"file.py:name"``.

    Raises:
      UserError: it is not a Python file.
    """
    found = importlib.util.spec_from_file_location(file, file)
    if found is None or found.loader is None:
        raise UserError(
            f"{file} is not a Python file; expected one with get_config(arg=None)"
        )
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get(file)
    # Dataclasses look up the module of a class by its name.
    sys.modules[file] = module
    try:
        with import_path(str(Path(file).parent), os.getcwd()):
            found.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(file)
        if before is not None:
            sys.modules[file] = before
        raise
    return module


def _import(where: str) -> types.ModuleType:
    """Returns a module by its name, imported if it is not."""
    _check_not_python(where)
    if where in sys.modules:
        return sys.modules[where]
    importlib.invalidate_caches()
    folders, top = [*_folders, os.getcwd()], where.partition(".")[0]
    found = importlib.machinery.PathFinder.find_spec(top, [*folders, *sys.path])
    for path in (
        [found.origin, *(found.submodule_search_locations or ())] if found else []
    ):
        _check_outside(path)
    try:
        with import_path(*folders), explained(" cannot be imported: ", where):
            return importlib.import_module(where)
    except ModuleNotFoundError:
        raise UserError(
            f": the module {where!r} was not found; run in the directory that contains "
            "it, or add that directory to PYTHONPATH"
        ) from None


@contextlib.contextmanager
def import_path(*folders: str) -> Iterator[None]:
    """Lets imports search `folders` first while the block runs."""
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(ValueError):  # The block may change the list, too.
                sys.path.remove(folder)
