"""The static parts of programs by value, so that equal ones do not compile again.

An optax transformation is a pair of closures. Python compares closures by identity, so
a program that was compiled for `optax.adam(1e-3)` would not serve a second
`optax.adam(1e-3)`.
"""

import dataclasses
import functools
import sys
import types
import warnings
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import PyTreeDef

from flaxmnist.core.sharding import is_key

# Functions of these packages depend on nothing but their arguments and their closures.
_PURE = frozenset({"optax", "jax", "flaxmnist"})
_PACKAGES = _PURE | {"builtins", "numpy", "ml_dtypes", "jaxlib", "flax"}
_CONSTANTS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
# The optimizer that a step was last traced with, by everything else that the compiled
# program depends on.
_traced: dict[Hashable, optax.GradientTransformation] = {}


class OpaqueError(Exception):
    """A part can only be compared by identity."""


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # The variable was never set.
        return ...


def _is_known(array: jax.Array) -> bool:
    traced = isinstance(array, jax.core.Tracer)
    return not traced and array.is_fully_addressable and not array.is_deleted()


def _package(module: str) -> str:
    return module.partition(".")[0]


def value_of(part: object) -> Hashable:
    """Returns a value that is equal for static parts of programs that compute the same.

    Its `repr` is the same in every process, given the same versions of the packages.

    Raises:
      OpaqueError: a part can only be compared by identity, such as code of a user.
    """
    kind = type(part)
    # Computed before its first use, which can change closures of optax.
    if isinstance(part, _ByValue):
        if part.is_opaque:
            raise OpaqueError
        return kind, part.value
    if kind in _CONSTANTS:
        return kind, repr(part)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
    module, name = getattr(part, "__module__", ""), getattr(part, "__qualname__", "")
    if _package(module or "") in _PURE and part is getattr(
        sys.modules.get(module), name, None
    ):
        return module, name  # It exists once, such as `jnp.maximum`.
    if isinstance(part, types.FunctionType):
        if _package(module := part.__globals__["__name__"]) not in _PURE:
            raise OpaqueError  # It may read a global variable that changes.
        held = [_content(cell) for cell in part.__closure__ or ()]
        held += part.__defaults__ or ()
        if part.__kwdefaults__:
            held += [part.__kwdefaults__[name] for name in sorted(part.__kwdefaults__)]
        return module, value_of(part.__code__), *map(value_of, held)
    if isinstance(part, types.CodeType):
        location = part.co_qualname, part.co_firstlineno
        body = part.co_argcount, part.co_flags, part.co_code, part.co_names
        return location, body, value_of(part.co_consts)
    if isinstance(part, slice):
        return kind, value_of((part.start, part.stop, part.step))
    if isinstance(part, jax.Array) and _is_known(part):
        if is_key(part):
            return kind, str(part.dtype), value_of(jax.random.key_data(part))
        return kind, part.weak_type, value_of(jax.device_get(part))
    if isinstance(part, types.MethodType):
        return kind, value_of((part.__func__, part.__self__))
    if isinstance(part, frozenset):
        return kind, *sorted(map(value_of, part), key=repr)
    # JAX would not notice a change in place either, whatever is compared.
    if isinstance(part, tuple | list):
        return kind, *map(value_of, part)
    if isinstance(part, dict):
        return kind, *map(value_of, part.items())
    if isinstance(part, np.ndarray) and part.dtype != object:
        return kind, part.dtype, part.shape, part.tobytes()
    if isinstance(part, functools.partial):
        named = tuple(sorted(part.keywords.items()))
        return kind, value_of((part.func, part.args, named))
    if isinstance(part, type):
        if _package(part.__module__) not in _PACKAGES:
            raise OpaqueError
        return kind, repr(part)
    if isinstance(part, np.dtype):
        return kind, str(part)
    if isinstance(part, np.number | np.bool_):
        return kind, part.tobytes()  # 0.0 and -0.0 are equal, too.
    if isinstance(part, Mesh):
        return kind, value_of((part.axis_names, part.axis_sizes, part.device_ids))
    if isinstance(part, PyTreeDef):
        return "tree", value_of(part.node_data()), *map(value_of, part.children())
    # Models, losses and other options; not those of a subclass.
    if dataclasses.is_dataclass(part) and _package(kind.__module__) in _PURE:
        names = [field.name for field in dataclasses.fields(part)]
        return kind, *(value_of((name, getattr(part, name))) for name in names)
    if (inner := getattr(part, "__wrapped__", None)) is not None:
        return str(kind), value_of(inner)  # A function that JAX compiles.
    raise OpaqueError


class _ByValue:
    @functools.cached_property
    def value(self: Any) -> Hashable:
        """What is compared: the parts, or both functions themselves."""
        try:
            return value_of(tuple(self))
        except (OpaqueError, RecursionError):  # A closure may contain itself.
            return tuple(self)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.value)

    @property
    def is_opaque(self: Any) -> bool:
        """Whether it is compared by identity."""
        return bool(self.value == tuple(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ByValue):
            return NotImplemented
        return self is other or self.value == other.value

    def __ne__(self, other: object) -> bool:  # That of tuples compares the parts.
        return not self == other

    def __hash__(self) -> int:
        return self._hash


class _Plain(_ByValue, optax.GradientTransformation):  # type: ignore[misc]
    pass


class _Extra(_ByValue, optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    pass


def by_value(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `tx`, which compares by value if its parts are all from optax and JAX.

    Two such optimizers are equal if the same functions hold equal numbers. An optimizer
    that contains another function, such as a schedule of the user's, or an object of
    another type compares by identity.
    """
    if isinstance(tx, _ByValue) or not isinstance(tx, optax.GradientTransformation):
        return tx
    extra = isinstance(tx, optax.GradientTransformationExtraArgs)
    compared = (_Extra if extra else _Plain)(tx.init, tx.update)
    _ = compared.value  # Now: some schedules of optax change their closure when called.
    return compared


def warn_if_rebuilt(tx: optax.GradientTransformation, *rest: Any) -> None:
    """Warns if a step is traced again only because the optimizer is a new object.

    Args:
      tx: of the state. An optimizer that compares by value never causes a warning.
      *rest: trees of everything else that the compiled program depends on.
    """
    if isinstance(tx, _ByValue) and not tx.is_opaque:
        return
    leaves, structure = jax.tree.flatten(rest)
    key = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if _traced.setdefault(key, tx) != tx:
        warnings.warn(
            "train_step compiles again because the state contains a new optimizer "
            "object. An optimizer that contains a function or an object of yours is "
            "compared by identity: build it once, before the loop",
            stacklevel=2,
        )
    _traced[key] = tx
