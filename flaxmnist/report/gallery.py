"""Images in rows: the kernels of the first layer, and wrong predictions."""

import math
from typing import Any

import numpy as np

from flaxmnist.core import sharding
from flaxmnist.core.batch import ImageShape

# Number of validation images that `log_tensors` prints; most images in a picture.
WATCHED, DRAWN = 4, 64


def filters(params: Any, image_shape: ImageShape) -> np.ndarray | None:
    """Returns the kernels of the first layer side by side, as :func:`tile` does.

    They are in colour if the images are, and otherwise show the first channel. None if
    no kernel belongs to a convolution or to a dense layer of all pixels.

    Args:
      params: of the model.
      image_shape: height, width and channels of its images.
    """
    for name, kernel in sharding.named_leaves(params):
        if not name.endswith("kernel"):
            continue
        if kernel.ndim == 2 and len(kernel) == math.prod(image_shape):
            kernel = kernel.reshape(*image_shape, -1)
        elif kernel.ndim != 4:
            continue
        in_colour = kernel.shape[2] == image_shape[2] >= 3
        kernels = kernel[:, :, :3] if in_colour else kernel[:, :, 0]
        kernels = np.moveaxis(kernels, -1, 0)[:DRAWN]
        low, high = kernels.min(), kernels.max()
        return tile((kernels - low) / max(high - low, 1e-12) * 255)
    return None


def mistakes(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the indices of wrong predictions, most confident first, `[mistakes]`.

    Args:
      outputs: as :func:`flaxmnist.training.evaluate.predict` returns them.
    """
    wrong = np.flatnonzero(outputs["classes"] != outputs["labels"])
    surest = outputs["probabilities"][wrong].max(axis=-1)
    return wrong[np.argsort(-surest, kind="stable")]


def drawable(images: np.ndarray) -> np.ndarray:
    """Returns images as `[count, height, width]`, or with 3 or 4 channels in addition.

    Gray images with opacity become RGB with opacity.

    Args:
      images: `[count, height, width]` or `[count, height, width, channels]`.
    """
    channels = images.shape[3] if images.ndim == 4 else None
    if channels == 1:
        return images[..., 0]
    return images[..., (0, 0, 0, 1)] if channels == 2 else images


def tile(images: np.ndarray, gap: int = 1) -> np.ndarray:
    """Returns images in rows of eight, as one uint8 image with the same channels.

    Args:
      images: as :func:`drawable` returns them.
      gap: pixels between them.
    """
    count, height, width, *channels = images.shape
    rows = max(1, -(-count // 8))
    cells = np.zeros((rows * 8, height + gap, width + gap, *channels), np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, 8, *cells.shape[1:]).swapaxes(1, 2)
    return grid.reshape(rows * (height + gap), 8 * (width + gap), *channels)
