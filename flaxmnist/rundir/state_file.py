"""A train state in one file: for training loops of the user."""

import io
import os
import zipfile
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.npyio import NpzFile

from flaxmnist.core.sharding import is_key, named_leaves
from flaxmnist.errors import UserError, dtype_and_shape, shown
from flaxmnist.paths import path_of
from flaxmnist.runtime import durable, files, processes

_MAX_BYTES = 1 << 40
_State = TypeVar("_State")


def save_state(path: str | os.PathLike[str], state: Any) -> None:
    """Writes all arrays of a state into one file, and replaces a former one.

    The file is complete on the disk before it gets its name: a process that is killed
    meanwhile leaves the former file. Of several processes, the first writes.

    Args:
      path: the file, such as ``"state.npz"``: a NumPy archive, with a CRC-32 per array.
      state: a `TrainState`, or another tree of JAX arrays.

    Raises:
      UserError: `state` contains something else than JAX arrays, or the file has no
        name or cannot be written.
    """
    target = path_of(path, "path")
    if not target.name:
        raise UserError(f"path={shown(str(target))}: expected the name of a file")
    leaves = _leaves("state", state)
    arrays = {name: processes.gather(_data(leaf)) for name, leaf in leaves.items()}
    if processes.is_first():
        content = io.BytesIO()
        # `np.savez` would take an array of the name "file" as its own argument.
        with zipfile.ZipFile(content, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        try:
            durable.write_file(target, content.getvalue())
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror})") from None
    processes.wait_for_all()


def load_state(path: str | os.PathLike[str], like: _State) -> _State:
    """Returns a state like `like` with the arrays of a file that `save_state` wrote.

    Args:
      path: the file.
      like: a state of the same model and optimizer, as `create_state` returns it. Each
        array is placed as the one in `like` is.

    Raises:
      UserError: `like` contains something else than JAX arrays, or the file does not
        exist, is damaged, or is of another model or optimizer.
    """
    source = path_of(path, "path")
    wanted = _leaves("like", like)
    try:
        with files.open_regular(source, _MAX_BYTES) as file, NpzFile(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror})") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{source} is damaged, or not a saved state ({reason[:160]})"
        ) from None
    for name in wanted.keys() & arrays.keys():
        # The format of NumPy does not know bfloat16.
        stored, dtype = arrays[name].dtype, _data(wanted[name]).dtype
        if stored.kind == dtype.kind == "V" and stored.itemsize == dtype.itemsize:
            arrays[name] = arrays[name].view(dtype)
    for name in sorted(wanted.keys() | arrays.keys()):
        found = dtype_and_shape(arrays[name]) if name in arrays else "missing"
        expected = dtype_and_shape(_data(wanted[name])) if name in wanted else "missing"
        if found != expected:
            raise UserError(
                f"{source} does not match this state: {name} is {found} in the file, "
                f"{expected} in the state"
            )
    leaves = [_placed(arrays[name], leaf) for name, leaf in wanted.items()]
    state: _State = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state


def _leaves(argument: str, tree: Any) -> dict[str, Any]:
    """Returns the leaves of an argument by name, or raises UserError."""
    named = [*named_leaves(tree)]
    leaves = dict(named)
    if len(leaves) < len(named):
        raise UserError(
            f"{argument}: two arrays have the same name, such as those of the key "
            "'a/b', and of the key 'b' in 'a'; rename a key"
        )
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            where = f"{argument}: {name}" if name else argument
            raise UserError(
                f"{where}={shown(leaf)}: expected a TrainState, or a tree of JAX "
                "arrays, such as jnp.asarray returns"
            )
    return leaves


def _data(leaf: Any) -> Any:
    """Returns an array, or the numbers of a PRNG key."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _placed(array: np.ndarray, leaf: Any) -> jax.Array:
    if is_key(leaf):
        value = jax.random.wrap_key_data(
            jnp.asarray(array), impl=jax.random.key_impl(leaf)
        )
    else:
        value = array
    placed: jax.Array = jax.device_put(value, leaf.sharding)
    return placed
