"""Images in rows: the kernels of the first layer, and wrong predictions."""

from typing import Any

import numpy as np

from flaxmnist.core import sharding

# Number of validation images that `log_tensors` prints; most images in a picture.
WATCHED, DRAWN = 4, 64


def filters(params: Any) -> np.ndarray | None:
    """Returns the kernels of the first layer side by side, uint8 `[height, width]`.

    None if no kernel belongs to a convolution or to a dense layer of all pixels.
    """
    for name, kernel in sharding.named_leaves(params):
        if name.endswith("kernel") and kernel.ndim == 4:
            kernels = kernel[:, :, 0]
        elif name.endswith("kernel") and kernel.shape[0] == 28 * 28:
            kernels = kernel.reshape(28, 28, -1)
        else:
            continue
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


def tile(images: np.ndarray, gap: int = 1) -> np.ndarray:
    """Returns images `[count, height, width]` in rows of eight, as one uint8 image."""
    count, height, width = images.shape
    rows = max(1, -(-count // 8))
    cells = np.zeros((rows * 8, height + gap, width + gap), np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, 8, height + gap, width + gap).swapaxes(1, 2)
    return grid.reshape(rows * (height + gap), 8 * (width + gap))
