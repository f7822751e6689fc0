"""Where arrays live: a mesh over all devices, batches split over its `data` axis."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from flaxmnist.checks import UserError


def make_mesh(data: int = -1) -> Mesh:
    """Returns a mesh with one axis, ``"data"``, over `data` devices (-1: all).

    Raises:
      UserError: there are not that many devices, or several processes would share
        fewer devices than there are.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if count > len(devices) or (jax.process_count() > 1 and count < len(devices)):
        raise UserError(
            f"mesh.data={data}: there are {len(devices)} devices "
            f"({devices[0].platform}); expected at most that, or -1 for all"
        )
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_data(mesh: Mesh, axis: int) -> NamedSharding:
    """Returns the sharding of an array whose `axis` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def abstract(make: Callable[[], Any], sharding: Sharding | None) -> Any:
    """Returns the tree that `make` would, as shapes and dtypes in `sharding`."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(make),
    )


def put(values: np.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process holds whole; each sends its own part."""
    array = np.asarray(values)
    # A transfer that is meant: a loop under `jax.transfer_guard` may make it.
    with jax.transfer_guard("allow"):
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )


def put_tree(tree: Any, sharding: NamedSharding) -> Any:
    """Places every array of a tree, as :func:`put`."""
    return jax.tree.map(lambda leaf: put(leaf, sharding), tree)
