"""Optimizers that compare by value, so that an equal one does not compile again.

An optax transformation is a pair of closures. Python compares closures by identity, so
a program that was compiled for `optax.adam(1e-3)` would not serve a second
`optax.adam(1e-3)`.
"""

import functools
import types
import warnings
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
import optax

# Functions of these packages depend on nothing but their arguments and their closures.
_PURE = frozenset({"optax", "jax", "flaxmnist"})
_CONSTANTS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
_IMMUTABLE = (type, np.dtype)
# The optimizer that a step was last traced with, by everything else that the compiled
# program depends on.
_traced: dict[Hashable, optax.GradientTransformation] = {}


class _OpaqueError(Exception):
    """A part can only be compared by identity."""


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # The variable was never set.
        return ...


def _is_known(array: jax.Array) -> bool:
    traced = isinstance(array, jax.core.Tracer)
    return not traced and array.is_fully_addressable and not array.is_deleted()


def _value_of(part: object) -> Hashable:
    """Returns a value that is equal for parts of optimizers that compute the same."""
    kind = type(part)
    if kind in _CONSTANTS:
        return kind, repr(part)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0.
    if isinstance(part, types.FunctionType):
        if part.__globals__["__name__"].partition(".")[0] not in _PURE:
            raise _OpaqueError  # It may read a global variable that changes.
        held = [_content(cell) for cell in part.__closure__ or ()]
        held += part.__defaults__ or ()
        if part.__kwdefaults__:
            held += [part.__kwdefaults__[name] for name in sorted(part.__kwdefaults__)]
        # The id is unique while the function exists, which an optimizer holds.
        return id(part.__code__), *map(_value_of, held)
    if isinstance(part, jax.Array) and _is_known(part):
        if jax.dtypes.issubdtype(part.dtype, jax.dtypes.prng_key):
            return kind, str(part.dtype), _value_of(jax.random.key_data(part))
        return kind, part.weak_type, _value_of(jax.device_get(part))
    # JAX would not notice a change in place either, whatever is compared.
    if isinstance(part, tuple | list):
        return kind, *map(_value_of, part)
    if isinstance(part, dict):
        return kind, *map(_value_of, part.items())
    if isinstance(part, np.ndarray) and part.dtype != object:
        return kind, part.dtype, part.shape, part.tobytes()
    if isinstance(part, functools.partial):
        named = tuple(sorted(part.keywords.items()))
        return kind, _value_of((part.func, part.args, named))
    if isinstance(part, _IMMUTABLE):
        return kind, part
    if isinstance(part, np.number | np.bool_):
        return kind, part.tobytes()  # 0.0 and -0.0 are equal, too.
    # A function that JAX has compiled, such as jnp.maximum, exists once.
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", "<")
    if module and module.partition(".")[0] in _PURE and "<" not in name:
        return kind, id(part)
    raise _OpaqueError


class _ByValue:
    @functools.cached_property
    def value(self: Any) -> Hashable:
        """What is compared: the parts, or both functions themselves."""
        try:
            return _value_of(tuple(self))
        except (_OpaqueError, RecursionError):  # A closure may contain itself.
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
