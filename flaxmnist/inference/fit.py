"""Scales pictures of any size to the shape of a model's images."""

import numpy as np
from PIL import Image, ImageOps

from flaxmnist.core.batch import ImageShape
from flaxmnist.pictures.files import Picture, as_pixels, without_opacity
from flaxmnist.pictures.prepare import Prepared

# Pillow's names of 1 to 4 channels.
_MODES = ("L", "LA", "RGB", "RGBA")


def fit(picture: Picture, image_shape: ImageShape) -> Prepared:
    """Returns a picture as an image of a shape; one of that shape remains unchanged.

    The picture keeps its proportions: it is scaled to cover the image, and what lies
    outside the centre is cut off. It becomes gray, gray with opacity, RGB or RGB with
    opacity, by the number of channels. Without a channel for opacity, transparent
    pixels become white if the drawing is dark, and black if it is light.

    Args:
      picture: see :func:`flaxmnist.pictures.prepare.prepare`.
      image_shape: height, width and channels.

    Raises:
      UserError: `picture` is not a picture.
    """
    height, width, channels = image_shape
    pixels = np.round(255 * as_pixels(picture)).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if channels % 2 and image.mode.endswith("A"):
        image = without_opacity(image)
    image = image.convert(_MODES[channels - 1])
    image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return Prepared(np.asarray(image))
