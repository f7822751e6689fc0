"""Compiled programs in files, so that a later process need not trace them again.

The cache of JAX only saves compilation. Tracing takes as long as importing JAX.
"""

import contextlib
import functools
import hashlib
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from flaxmnist.core.by_value import OpaqueError, value_of
from flaxmnist.runtime import files, machine
from flaxmnist.runtime.durable import write_file

SUFFIX = ".flaxmnist-program"
# Enough for the commands that a user alternates between; one takes up to a megabyte.
MAX_FILES = 64
# The programs that this process has called, by function, structure and shapes.
_called: dict[Any, Callable[..., Any]] = {}


def call(function: Any, like: Any, *args: Any) -> Any:
    """Returns ``function(*args)``; a command saves the compiled program for later ones.

    A program is saved only if a later process would certainly compile the same one: on
    one CPU device, without code of the user. The options of JAX must not change between
    calls.

    Args:
      function: a jitted function.
      like: a tree of the structure of its result.
      *args: its arguments, trees of arrays.
    """
    if not files.cache_enabled:
        return function(*args)
    leaves, structure = jax.tree.flatten(args)
    key = function, structure, tuple(map(_signature, leaves))
    if key not in _called:
        path = _path(function, args)
        _called[key] = _program(path, function, like, args) if path else function
    return _called[key](*args)


def _folder() -> Path | None:
    """Returns where programs are kept; None if this process keeps none."""
    values = jax.config.values
    folder = values["jax_compilation_cache_dir"]
    debugs = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
    if (
        not values["jax_enable_compilation_cache"]
        or not folder
        or "://" in folder
        or not os.access(_nearest_existing(Path(folder)), os.W_OK)
        or any(values[name] for name in debugs)
        or [device.platform for device in jax.devices()] != ["cpu"]
    ):
        return None
    return Path(folder)


def _nearest_existing(folder: Path) -> Path:
    parents = [folder, *folder.absolute().parents]
    return next(parent for parent in parents if os.path.exists(parent))


def _signature(leaf: Any) -> tuple[Any, ...]:
    # The abstract types of two results of a program from a file are not equal.
    kind: Any = jax.typeof(leaf)
    sharding = getattr(leaf, "sharding", None)
    return kind.shape, kind.dtype, kind.weak_type, sharding


def _path(function: Any, args: Any) -> Path | None:
    """Returns the file of a program; None if it is not kept."""
    if (folder := _folder()) is None:
        return None
    forms = [repr(_signature(leaf)) for leaf in jax.tree.leaves(args)]
    statics = function, jax.tree.structure(args)
    try:
        facts = repr((value_of(statics), forms, _environment()))
    except (OpaqueError, RecursionError):  # It depends on code of the user.
        return None
    return folder / f"{hashlib.sha256(facts.encode()).hexdigest()}{SUFFIX}"


def _environment() -> tuple[Any, ...]:
    """Returns the versions, processor and options that every program depends on."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("JAX_", "XLA_"))
    }
    return (
        _source(),
        machine.versions(machine.PACKAGES),
        machine.cpu_kind(),
        machine.cpu_threads(),
        sorted(variables.items()),
        sorted((name, str(value)) for name, value in jax.config.values.items()),
    )


@functools.cache
def _source() -> str:
    """Returns a hash of the source of this package, which may be edited in place."""
    code = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return code.hexdigest()


def _program(
    path: Path, function: Any, like: Any, args: tuple[Any, ...]
) -> Callable[..., Any]:
    """Loads the program of a call, or compiles and saves it.

    An experimental module of JAX reads and writes the files. If it fails, or the call
    is wrong, `function` is called instead.
    """
    structures = jax.tree.structure((args, {})), jax.tree.structure(like)
    with contextlib.suppress(Exception):
        serialized = zlib.decompress(path.read_bytes())
        program = serialize_executable.deserialize_and_load(
            serialized, *structures, execution_devices=jax.devices()
        )
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return program
    try:
        program = _compile(function, args)
    except Exception:
        return function
    with contextlib.suppress(Exception):
        serialized, inputs, outputs = serialize_executable.serialize(program)
        if (inputs, outputs) != structures:
            return program  # `like` is wrong.
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, zlib.compress(serialized, 1))
        files.delete_oldest(path.parent, f"*{SUFFIX}*", MAX_FILES)
    return program


def _compile(function: Any, args: tuple[Any, ...]) -> jax.stages.Compiled:
    """Compiles anew: JAX serializes a program from its cache without its code."""
    lowered = function.lower(*args)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        # Given an option, here its default, JAX uses no program of this process either.
        program: jax.stages.Compiled = lowered.compile(
            {"xla_embed_ir_in_executable": False}
        )
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    return program
