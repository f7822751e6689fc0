"""The format of a batch, checked before anything compiles.

A batch is a dict: ``image``; ``label``, integer `[batch]` or `[batch, classes]`,
one-hot or any distribution; and optionally ``mask``, bool `[batch]`, False where an
example is padding, and ``weight``, floating point `[batch]`, 0 or more, the share of an
example in the loss of training. An image is uint8 in [0, 255] or floating point in
[0, 1]. Names, shapes and dtypes are checked while a step is traced. Values are unknown
at that time, so the step counts invalid labels and weights in its metrics (see
:func:`valid_examples`).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num

from flaxmnist.core import mnist
from flaxmnist.core.parts import split
from flaxmnist.errors import UserError, did_you_mean, dtype_and_shape

ImageShape = tuple[int, int, int]
# Most pixels per side, most channels, and most classes.
MAX_SIDE, MAX_CHANNELS, MAX_CLASSES = 256, 4, 1_000
_KEYS = ("image", "label", "mask", "weight")
# Without `jax_enable_x64`, JAX converts the types on the right to those on the left.
_WIDE = {
    "int32": "int64",
    "uint32": "uint64",
    "float32": "float64",
    "complex64": "complex128",
}


def as_images(
    images: Any,
    image_shape: ImageShape = mnist.IMAGE_SHAPE,
    name: str = "images",
) -> Num[Array, "batch height width channels"]:
    """Returns images as `[batch, height, width, channels]`.

    Args:
      images: uint8 or floating point, `[batch, height, width, channels]`, flat
        `[batch, pixels]` as in the TensorFlow tutorials, or, with one channel,
        `[batch, height, width]`.
      image_shape: height, width and channels.
      name: their name in the error message.

    Raises:
      UserError: the images have another shape or dtype.
    """
    images = _array(name, images)
    if images.shape[:1] == (0,):
        raise UserError(
            f"{name} is {dtype_and_shape(images)}; expected at least one image"
        )
    shapes = [image_shape, image_shape[:2], (math.prod(image_shape),)]
    if image_shape[2] > 1:
        del shapes[1]
    forms = [f"[{', '.join(map(str, ('batch', *shape)))}]" for shape in shapes]
    expected = f"{', '.join(forms[:-1])} or {forms[-1]}"
    _expect(name, images, images.shape[1:] in shapes, expected)
    real = images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
    _expect(name, images, real, "uint8 in [0, 255] or floating point in [0, 1]")
    return jnp.asarray(images).reshape(-1, *image_shape)


def as_batch(
    batch: Any,
    image_shape: ImageShape = mnist.IMAGE_SHAPE,
    num_classes: int = mnist.NUM_CLASSES,
) -> dict[str, Array]:
    """Returns a batch with images `[batch, height, width, channels]` and a mask.

    Classes have at least 32 bits.

    Args:
      batch: see the module.
      image_shape: height, width and channels.
      num_classes: number of classes.

    Raises:
      UserError: a key is missing or unknown, or an array has another shape or dtype.
    """
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise UserError(f"batch is a {kind}; expected a dict of {', '.join(_KEYS)}")
    for key in batch:
        if key not in _KEYS:
            raise UserError(f"unknown batch key {key!r}{did_you_mean(key, _KEYS)}")
    for key in ("image", "label"):
        if key not in batch:
            found = ", ".join(batch)
            raise UserError(f"batch key {key!r} is missing; found {found}")
    image = as_images(batch["image"], image_shape, 'batch["image"]')
    count = len(image)
    label = _array('batch["label"]', batch["label"])
    mask = _array('batch["mask"]', batch.get("mask", jnp.ones(count, bool)))

    integer = jnp.issubdtype(label.dtype, jnp.integer)
    real = integer or jnp.issubdtype(label.dtype, jnp.floating) or label.dtype == bool
    classes = integer and label.shape == (count,)
    distributions = real and label.shape == (count, num_classes)
    expected = (
        f"integers [{count}] from 0 to {num_classes - 1}, "
        f"or one-hot [{count}, {num_classes}]"
    )
    _expect('batch["label"]', label, classes or distributions, expected)
    masks = mask.shape == (count,) and mask.dtype == bool
    _expect('batch["mask"]', mask, masks, f"bool [{count}]")
    # The number of classes may exceed 8 or 16 bits.
    if classes and label.dtype.itemsize < 4:
        label = label.astype(jnp.int32)
    checked = {"image": image, "label": label, "mask": mask}
    if "weight" in batch:
        weight = _array('batch["weight"]', batch["weight"])
        real = jnp.issubdtype(weight.dtype, jnp.floating)
        ok = real and weight.shape == (count,)
        _expect('batch["weight"]', weight, ok, f"floating point [{count}]")
        checked["weight"] = weight.astype(jnp.float32)
    return checked


def split_micro_batches(batch: dict[str, Array], parts: int) -> dict[str, Array]:
    """Returns a batch in micro-batches: each array as `[parts, batch / parts, …]`.

    A micro-batch contains every `parts`-th example. If a batch is split over devices,
    each of its micro-batches is, too, and no example is sent.

    Raises:
      UserError: `parts` does not divide the batch.
    """
    if (count := len(batch["image"])) % parts:
        raise UserError(
            f"grad_accumulation={parts}: batch of {count} cannot be split into {parts} "
            f"parts; expected a multiple, such as {-(-count // parts) * parts}"
        )
    return {name: split(array, parts) for name, array in batch.items()}


def valid_examples(batch: Mapping[str, Any], num_classes: int) -> Bool[Array, " batch"]:
    """Returns which examples have a valid label, and a valid weight if any.

    A valid label is a class or a distribution over the classes; a valid weight is
    finite and not negative.
    """
    labels = batch["label"]
    valid: Array
    if labels.ndim == 1:
        valid = (labels >= 0) & (labels < num_classes)
    else:
        total = labels.sum(axis=-1, dtype=jnp.float32)
        # A distribution may have been rounded to half precision.
        valid = (labels >= 0).all(axis=-1) & (jnp.abs(total - 1) < 0.02)
    if "weight" in batch:
        valid &= (batch["weight"] >= 0) & (batch["weight"] < jnp.inf)
    return valid


def as_logits(
    logits: Any, count: int, num_classes: int | None = mnist.NUM_CLASSES
) -> Array:
    """Returns the output of a model for `count` images, in float32 or wider.

    Raises:
      UserError: its shape is not `[count, num_classes]`; None stands for any number.
    """
    name = "the model's output"
    expected = f"logits [{count}, {'classes' if num_classes is None else num_classes}]"
    if not hasattr(logits, "shape"):
        raise UserError(f"{name} is a {type(logits).__name__}; expected {expected}")
    known = logits.shape[1:] if num_classes is None else (num_classes,)
    if len(known) != 1 or logits.shape != (count, *known):
        raise UserError(f"{name} is {dtype_and_shape(logits)}; expected {expected}")
    # Half precision cannot distinguish two probable classes.
    wide: Array = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return wide


def _array(name: str, value: Any) -> Any:
    if not hasattr(value, "shape"):
        raise UserError(f"{name} is a {type(value).__name__}; expected an array")
    return value


def _expect(name: str, found: Any, ok: bool, expected: str) -> None:
    if not ok:
        kind = dtype_and_shape(found)
        # The original dtype is unknown while tracing.
        if isinstance(found, jax.core.Tracer) and found.dtype.name in _WIDE:
            narrow = found.dtype.name
            kind += f" (JAX converts {_WIDE[narrow]} to {narrow})"
        raise UserError(f"{name} is {kind}; expected {expected}")
