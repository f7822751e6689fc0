"""Meshes, layouts and placements; `flaxmnist.sharding` describes the public names."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from flaxmnist import options
from flaxmnist.core import mnist
from flaxmnist.core.batch import ImageShape
from flaxmnist.core.nn import traced_layers
from flaxmnist.errors import UserError, dtype_and_shape

__all__ = [
    "Layout",
    "dense_rules",
    "make_mesh",
    "placement",
    "put_tree",
    "replicated",
    "split_over_data",
]

MAX_CPU_DEVICES = 1024

OPTIONS = {
    "data": options.OptionType(
        "-1 (all devices), or a whole number, 1 or more",
        lambda value: -1 if value == -1 else options.whole(1).convert(value),
    ),
    "model": options.whole(1),
    "devices": options.optional(options.wholes(0, 65_536, "(0, 2)")),
}


def make_mesh(
    data: int = -1, model: int = 1, devices: Sequence[int] | None = None
) -> Mesh:
    """Returns a mesh with the axes ``"data"`` and ``"model"``.

    Args:
      data: number of parts of a batch; -1 for one per device.
      model: number of parts of each dense layer.
      devices: ids of the devices to choose from; all devices if None.

    Raises:
      UserError: a device does not exist, the mesh is larger than the number of devices,
        `model` does not divide it, or the mesh omits devices of several processes.
    """
    given = {"data": data, "model": model, "devices": devices}
    data, model, devices = options.check("mesh", given, OPTIONS).values()
    available = {device.id: device for device in jax.devices()}
    platform = jax.devices()[0].platform
    chosen = list(available.values())
    if devices is not None:
        missing = [id for id in devices if id not in available]
        if missing or not devices:
            raise UserError(
                f"mesh.devices={tuple(devices)}: "
                f"{f'unknown device {missing[0]}' if missing else 'no device is given'}"
                f"; expected some of {', '.join(map(str, available))} ({platform}), "
                f"such as --devices={next(iter(available))}"
                f"{_more_devices(platform, missing)}"
            )
        chosen = [available[id] for id in dict.fromkeys(devices)]
    total = len(chosen)
    fewer = f"--config.mesh.data={max(1, total // model)}"
    if model > total:
        fewer += f" --config.mesh.model={total}"
    if data == -1:
        if total % model:
            divisors = [str(n) for n in range(1, total + 1) if total % n == 0]
            raise UserError(
                f"mesh.model={model} does not divide the {total} devices ({platform}); "
                f"expected one of {', '.join(divisors)}, or {fewer} to use fewer"
            )
        data = total // model
    count = data * model
    if count > total:
        raise UserError(
            f"mesh.model={model}, mesh.data={data}: the product is {count}; expected "
            f"at most {total}, the number of devices ({platform}), such as {fewer}"
        )
    if jax.process_count() > 1 and count < len(available):
        raise UserError(
            f"mesh.model={model}, mesh.data={data}: the product is {count}; expected "
            f"{len(available)}, all devices of the {jax.process_count()} processes"
        )
    # jax.make_mesh would refuse GPUs of several machines, and some cores of a TPU. The
    # devices of a process are neighbours, and those of `model` mostly of one process.
    return Mesh(
        np.array(chosen[:count]).reshape(data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def _more_devices(platform: str, missing: list[int]) -> str:
    """Returns how to add missing devices if they can be virtual CPU devices."""
    count = max(missing, default=-1) + 1
    possible = platform == "cpu" and jax.process_count() == 1
    if possible and 1 <= count <= MAX_CPU_DEVICES:
        return f", or add --num_cpu_devices={count}"
    return ""


Rules = tuple[tuple[str, int], ...]
_T = TypeVar("_T")


def dense_rules(model: nn.Module, image_shape: ImageShape = mnist.IMAGE_SHAPE) -> Rules:
    """Returns the rules by which ``"model"`` splits the dense layers of a model.

    Dense layers form pairs in the order in which the model calls them. The first layer
    of a pair is split by its outputs, the second by its inputs, which are already
    split, so each pair needs only one sum over devices (Shoeybi et al., 2019,
    "Megatron-LM"). All other layers are not split.

    Args:
      model: maps `[batch, height, width, channels]` images to `[batch, classes]`
        logits.
      image_shape: height, width and channels of an image.
    """
    rules: list[tuple[str, int]] = []
    for index, path in enumerate(traced_layers(model, image_shape).dense):
        if index % 2 == 0:
            rules += [(f"{path}/kernel", -1), (f"{path}/bias", -1)]
        else:
            rules.append((f"{path}/kernel", -2))
    return tuple(rules)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of a state are split: by the name and the shape of each.

    An axis splits a dimension only if it divides it. The moments of an optimizer have
    the name and the shape of their parameter, as in ``opt_state/0/mu/Dense_0/kernel``,
    so the same rules apply to both.

    Attributes:
      mesh: with the axes ``"data"`` and ``"model"``.
      fsdp: whether ``"data"`` also splits each array, along the largest dimension that
        it divides and ``"model"`` does not split: fully sharded data parallelism
        (Rajbhandari et al., 2020, "ZeRO").
      rules: the dimension of each parameter that ``"model"`` splits, as pairs such as
        ``("decoder/Dense_0/kernel", -1)``: a parameter's name, or the end of it, and
        the dimension. The longest matching rule applies; a parameter without a rule is
        not split. None stands for :func:`dense_rules` of the model, which
        :func:`~flaxmnist.core.state.create_state` inserts.
    """

    mesh: Mesh
    fsdp: bool = False
    rules: Rules | None = None

    def for_model(
        self, model: nn.Module, image_shape: ImageShape = mnist.IMAGE_SHAPE
    ) -> "Layout":
        """Returns this layout with the rules of a model, unless it has its own."""
        if self.rules is not None or self.mesh.shape.get("model", 1) == 1:
            return self
        return dataclasses.replace(self, rules=dense_rules(model, image_shape))

    def spec_of(self, name: str, shape: Sequence[int]) -> PartitionSpec:
        """Returns the axis that splits each dimension, or None; no None at the end."""
        axes: list[str | None] = [None] * len(shape)

        def fits(dim: int, axis: str) -> bool:
            parts = self.mesh.shape[axis]
            return parts > 1 and axes[dim] is None and shape[dim] % parts == 0

        matching = [
            rule for rule in self.rules or () if f"/{name}".endswith(f"/{rule[0]}")
        ]
        if matching:
            _, dim = max(matching, key=lambda rule: len(rule[0]))
            if -len(shape) <= dim < len(shape) and fits(dim, "model"):
                axes[dim] = "model"
        fitting = [
            dim for dim, _ in enumerate(shape) if self.fsdp and fits(dim, "data")
        ]
        if fitting:
            axes[max(fitting, key=shape.__getitem__)] = "data"
        while axes and axes[-1] is None:  # Compiled programs omit them, too.
            axes.pop()
        return PartitionSpec(*axes)

    def of(self, tree: Any) -> Any:
        """Returns a tree with the sharding of each leaf, an array or a shape."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(
                self.mesh, self.spec_of(_name(path), leaf.shape)
            ),
            tree,
        )


def as_layout(sharding: Sharding | Layout | None) -> Layout | None:
    """Returns the layout that preserves `sharding`; None if there is none."""
    match sharding:
        case Layout():
            return sharding
        case NamedSharding(mesh=Mesh(size=size) as mesh, is_fully_replicated=True):
            return Layout(mesh, rules=()) if size > 1 else None
    return None


def constrain(tree: Any, layout: Layout | None) -> Any:
    """Constrains a tree inside a compiled program to the shardings of `layout`."""
    if layout is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout.of(tree))


def gather(params: Any, layout: Layout | None) -> Any:
    """Gathers parameters that `fsdp` splits, inside a compiled program.

    Without this constraint, the compiler may gather the examples instead.
    """
    if layout is None or not (layout.fsdp or layout.rules):
        return params
    return constrain(params, dataclasses.replace(layout, fsdp=False))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def split_over_data(mesh: Mesh, axis: int) -> NamedSharding:
    """Returns the sharding of an array whose `axis` is split over ``"data"``."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def abstract(make: Callable[[], _T], sharding: Sharding | Layout | None) -> _T:
    """Returns shapes, dtypes and shardings of the tree that `make` would return."""
    shapes = jax.eval_shape(make)
    if isinstance(sharding, Layout):
        where = sharding.of(shapes)
    else:
        where = jax.tree.map(lambda leaf: sharding, shapes)
    tree: _T = jax.tree.map(
        lambda leaf, one: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        shapes,
        where,
    )
    return tree


def put(values: np.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
    """Places an array, the same in every process, on the devices of `sharding`."""
    if isinstance(values, jax.Array) and is_key(values):
        data = put(jax.random.key_data(values), sharding)
        key: jax.Array = jax.random.wrap_key_data(
            data, impl=jax.random.key_impl(values)
        )
        return key
    array = np.asarray(values)
    # This transfer is intended: allow it under `jax.transfer_guard`, too.
    with jax.transfer_guard("allow"):
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )


def put_tree(tree: Any, sharding: NamedSharding) -> Any:
    """Places every array of a tree, the same in every process, on several devices.

    Raises:
      ValueError: `sharding` splits a dimension that the devices do not divide.
    """
    return jax.tree.map(lambda leaf: put(leaf, sharding), tree)


def zeros(make: Callable[[], Any], sharding: NamedSharding) -> Any:
    """Places zeros of the shapes and dtypes of the tree that `make` would return."""
    return jax.tree.map(
        lambda leaf: put(np.zeros(leaf.shape, leaf.dtype), sharding),
        jax.eval_shape(make),
    )


def is_key(leaf: Any) -> bool:
    """Returns whether an array, or its shape and dtype, is of PRNG keys."""
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of a tree under names such as ``"params/Dense_0/bias"``."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _name(path), leaf


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def placement(tree: Any) -> Iterator[str]:
    """Yields a line for each array of a tree: name, dtype, shape, sharding, devices."""
    for name, leaf in named_leaves(tree):
        where = leaf.sharding
        spec = ", ".join(map(str, getattr(where, "spec", ())))
        if where.is_fully_replicated:
            spec = "replicated"
        on_mesh = isinstance(where, NamedSharding)
        devices = where.mesh.devices.flat if on_mesh else where.device_set
        ids = ", ".join(str(device.id) for device in devices)
        yield f"{name}: {dtype_and_shape(leaf)}, {spec}, on {ids}"
