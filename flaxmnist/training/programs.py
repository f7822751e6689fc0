"""Compiled programs in files, so that a later process need not trace them again.

The cache of JAX only saves compilation. Tracing takes as long as importing JAX.
"""

import functools
import hashlib
import os
import pickle
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
    """Returns ``function(*args)``; commands keep its compiled program for others.

    That is done where it is certain that a later process would compile the same
    program: on one CPU device, without code of the user.

    Args:
      function: a jitted function.
      like: a tree of the structure of its result.
      *args: its arguments, trees of arrays.
    """
    if (folder := _folder()) is None:
        return function(*args)
    leaves, structure = jax.tree.flatten(args)
    key = function, structure, tuple(map(_form, leaves))
    if key not in _called:
        path = _path(folder, function, args)
        _called[key] = (
            function if path is None else _program(path, function, like, args)
        )
    return _called[key](*args)


def _folder() -> Path | None:
    """Returns where this process keeps programs, None if it keeps none."""
    values = jax.config.values
    debugs = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
    if (
        not files.keeping
        or not values["jax_enable_compilation_cache"]
        or not values["jax_compilation_cache_dir"]
        or any(values[name] for name in debugs)
        or [device.platform for device in jax.devices()] != ["cpu"]
    ):
        return None
    return Path(values["jax_compilation_cache_dir"])


def _form(leaf: Any) -> tuple[Any, ...]:
    # Not the type itself: it differs between results of a program of a file.
    kind: Any = jax.typeof(leaf)
    sharding = getattr(leaf, "sharding", None)
    return kind.shape, kind.dtype, kind.weak_type, sharding


def _path(folder: Path, function: Any, args: Any) -> Path | None:
    """Returns the file of a program, None if it depends on code of the user."""
    forms = [repr(_form(leaf)) for leaf in jax.tree.leaves(args)]
    statics = getattr(function, "__wrapped__", function), jax.tree.structure(args)
    try:
        facts = repr((value_of(statics), forms, _environment()))
    except (OpaqueError, RecursionError):
        return None
    return folder / f"{hashlib.sha256(facts.encode()).hexdigest()}{SUFFIX}"


def _environment() -> tuple[Any, ...]:
    """Returns what else programs depend on."""
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
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()


def _program(
    path: Path, function: Any, like: Any, args: tuple[Any, ...]
) -> Callable[..., Any]:
    """Loads the program of a call, or compiles and saves it."""
    structures = jax.tree.structure((args, {})), jax.tree.structure(like)
    try:
        serialized = zlib.decompress(path.read_bytes())
        return serialize_executable.deserialize_and_load(
            serialized, *structures, execution_devices=jax.devices()
        )
    except (OSError, zlib.error, pickle.UnpicklingError, ValueError, RuntimeError):
        program = _compile(function.lower(*args))
    try:
        serialized, *_ = serialize_executable.serialize(program)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, zlib.compress(serialized, 1))
        files = sorted(path.parent.glob(f"*{SUFFIX}"), key=os.path.getmtime)
        for old in files[:-MAX_FILES]:
            old.unlink(missing_ok=True)
    # A program that cannot be kept is no reason not to run.
    except (OSError, ValueError, NotImplementedError):
        pass
    return program


def _compile(lowered: Any) -> jax.stages.Compiled:
    """Compiles a program anew: one of a cache would lose its code when it is saved."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        # With an option, here with its default, JAX returns no program of this process.
        program: jax.stages.Compiled = lowered.compile(
            {"xla_embed_ir_in_executable": False}
        )
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    return program
