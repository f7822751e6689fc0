"""Where arrays live: a mesh over all devices, batches split over its `data` axis."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from flaxmnist.checks import UserError, kind_of


def make_mesh(data: int = -1, devices: Sequence[int] | None = None) -> Mesh:
    """Returns a mesh with one axis, ``"data"``.

    Args:
      data: over how many devices; -1 for all.
      devices: ids of those to choose from; all if None.

    Raises:
      UserError: there are no such devices, or not that many, or several processes
        would share fewer devices than there are.
    """
    there = {device.id: device for device in jax.devices()}
    platform = jax.devices()[0].platform
    chosen = list(there.values())
    if devices is not None:
        if missing := [id for id in devices if id not in there]:
            raise UserError(
                f"mesh.devices={tuple(devices)}: there is no {platform} device "
                f"{missing[0]}; there are {', '.join(map(str, there))}; choose with "
                "--devices, or make more with --num_cpu_devices"
            )
        chosen = [there[id] for id in dict.fromkeys(devices)]
    count = len(chosen) if data == -1 else data
    if not 1 <= count <= len(chosen):
        raise UserError(
            f"mesh.data={data}: there are {len(chosen)} devices ({platform}); "
            "expected at most that, or -1 for all"
        )
    if jax.process_count() > 1 and count < len(there):
        raise UserError(
            f"the mesh is of {count} devices: expected all {len(there)} of the "
            f"{jax.process_count()} processes"
        )
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=chosen[:count]
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


def zeros(make: Callable[[], Any], sharding: NamedSharding) -> Any:
    """Places zeros of the shapes and dtypes of the tree that `make` would return."""
    return jax.tree.map(
        lambda leaf: put(np.zeros(leaf.shape, leaf.dtype), sharding),
        jax.eval_shape(make),
    )


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a tree under names such as ``"params/Dense_0/bias"``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def placement(tree: Any) -> Iterator[str]:
    """Yields a line for each array of a tree: name, dtype, shape, sharding, devices."""
    for name, leaf in named_leaves(tree):
        spec = ", ".join(map(str, leaf.sharding.spec)) or "replicated"
        ids = ", ".join(str(device.id) for device in leaf.sharding.mesh.devices.flat)
        yield f"{name}: {kind_of(leaf)}, {spec}, on {ids}"
