"""The arguments of `create_state`, and the errors for invalid ones."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import AxisType, Sharding

from flaxmnist import options
from flaxmnist.core import mnist
from flaxmnist.core.augment import Augmentation
from flaxmnist.core.batch import MAX_CHANNELS, MAX_SIDE, ImageShape
from flaxmnist.core.sharding import Layout
from flaxmnist.errors import UserError, shown


def _image_shape(value: Any) -> ImageShape:
    height, width, channels = map(int, value)
    if not (0 < height <= MAX_SIDE >= width > 0 < channels <= MAX_CHANNELS):
        raise ValueError
    return height, width, channels


def _augmentation(value: Any) -> Augmentation:
    if isinstance(value, type) or not callable(value):
        raise TypeError
    function: Augmentation = value
    return function


ARGUMENTS = {
    "seed": options.seed,
    "ema_decay": options.optional(options.real(0, above=True, below=1)),
    "grad_accumulation": options.count,
    "image_shape": options.OptionType(
        f"height, width (up to {MAX_SIDE}) and channels (up to {MAX_CHANNELS}), such "
        f"as {mnist.IMAGE_SHAPE}",
        _image_shape,
    ),
    "augment": options.optional(
        options.OptionType(
            "a function of keys and images such as Augment(rotate=10)", _augmentation
        )
    ),
    "augment_until": options.optional(options.count),
}


def check_parts(model: Any, tx: Any, sharding: Any, loss: Any) -> None:
    """Raises UserError unless these are a model, an optimizer, a sharding, a loss."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model={shown(model)}: expected a flax.linen module such as CNN()"
        )
    parameters = inspect.signature(type(model).__call__).parameters.values()
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if not takes_any and "train" not in [each.name for each in parameters]:
        raise UserError(
            f"model={type(model).__name__} does not take the argument 'train'; "
            "expected __call__(self, images, *, train)"
        )
    if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
        raise UserError(
            f"tx={shown(tx)}: expected an optax transformation such as optax.adam(1e-3)"
        )
    if not callable(loss) or isinstance(loss, type):
        raise UserError(
            f"loss={shown(loss)}: expected a function of logits and labels such as "
            "losses.CrossEntropy()"
        )
    if not isinstance(sharding, Sharding | Layout | None):
        raise UserError(
            f"sharding={shown(sharding)}: expected a jax.sharding.Sharding or a "
            "flaxmnist.sharding.Layout; for a mesh, sharding.replicated(mesh)"
        )
    mesh = getattr(sharding, "mesh", None)
    if mesh is not None and AxisType.Explicit in (mesh.axis_types or ()):
        raise UserError(
            f"sharding={shown(sharding)}: its mesh has axes of type Explicit, as "
            "jax.make_mesh makes them; expected Auto, as flaxmnist.sharding.make_mesh "
            "or jax.make_mesh(…, axis_types=(AxisType.Auto,) * n) make them"
        )
    if isinstance(sharding, Layout):
        uses = {"data": sharding.fsdp, "model": sharding.rules}
        for axis, is_used in uses.items():
            if is_used and axis not in sharding.mesh.axis_names:
                raise UserError(
                    f"sharding={shown(sharding)}: its mesh lacks the axis {axis!r}; "
                    "expected 'data' and 'model', as flaxmnist.sharding.make_mesh() "
                    "makes them"
                )


def check_hashable(parts: Mapping[str, Any]) -> None:
    """Raises UserError unless states of equal parts can share one compiled program."""
    for name, part in parts.items():
        try:
            hash(part)
        except TypeError:
            raise UserError(
                f"the attributes of {name}={type(part).__name__} cannot be hashed; use "
                "tuples instead of lists, and frozen dataclasses"
            ) from None
