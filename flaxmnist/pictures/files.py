"""Pictures in files and in memory, read as numbers."""

import io
import math
import os
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFile, ImageOps

from flaxmnist.errors import UserError, printable, shown
from flaxmnist.runtime.files import open_regular

# Other readers of Pillow are not used: some start other programs.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
MAX_PIXELS, MAX_SCANS = 64_000_000, 50
# A larger file cannot be a picture of at most that many pixels.
MAX_FILE_BYTES = 8 * MAX_PIXELS
# Longer side in pixels while a picture is prepared: enough for thin strokes.
SIDE = 256
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Gray = Float[np.ndarray, "height width"]
Pixels = Float[np.ndarray, "height width channels"]
Picture = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray


def as_gray(picture: Picture) -> Gray:
    """Returns the lightness of a picture, float32 from 0 to 1.

    The arguments and errors are those of `prepare`. Transparent pixels become white
    if the drawing is dark, and black if it is light.
    """
    pixels = as_pixels(picture)
    channels = pixels.shape[2]
    light = pixels[..., :3] @ _LUMA if channels >= 3 else pixels[..., 0]
    if channels in (1, 3):
        return light
    cover = pixels[..., -1]
    return light * cover + is_dark(light, cover) * (1 - cover)


def is_dark(light: Gray, cover: Gray) -> bool:
    """Returns whether the visible part of a picture is dark and needs a white ground.

    Args:
      light: lightness of each pixel, from 0 to 1.
      cover: opacity of each pixel, from 0 to 1.
    """
    return bool((light * cover).sum() / max(cover.sum(), 1e-6) < 0.5)


def as_pixels(picture: Picture) -> Pixels:
    """Returns the pixels of a picture, turned upright, float32 from 0 to 1.

    They have 1 to 4 channels: gray, gray and opacity, RGB, RGB and opacity. A picture
    in a file that is much larger than an image of a model is reduced. The arguments and
    errors are those of `prepare`.
    """
    if isinstance(picture, Image.Image):
        return _named("the image", _pixels_of_image, picture)
    if hasattr(picture, "__array__"):
        return _pixels_of_array(np.asarray(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return _named("the encoded picture", _pixels_of_file, io.BytesIO(picture))
    if hasattr(picture, "read"):
        return _named(getattr(picture, "name", "the file"), _pixels_of_file, picture)
    if not isinstance(picture, str | os.PathLike):
        raise UserError(
            f"{shown(picture)} is a {type(picture).__name__}; expected a path, an open "
            "file, the bytes of one, a Pillow image, or an array"
        )
    name = _short(os.fsdecode(picture))
    try:
        with open_regular(picture, MAX_FILE_BYTES) as file:
            return _named(name, _pixels_of_file, file)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; expected a picture") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be opened ({reason})") from None


def _short(name: Any) -> str:
    text = printable(str(name))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _named(name: Any, read: Callable[[Any], Pixels], picture: Any) -> Pixels:
    """Returns `read(picture)`; every error becomes a UserError about `name`."""
    try:
        return read(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"is too large; expected at most {MAX_PIXELS:,} pixels"
    except UserError as error:
        reason = str(error)
    # Pillow raises many kinds of errors for damaged files.
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        formats = ", ".join(FORMATS)
        reason = f"cannot be read as a picture ({reason}); expected one of {formats}"
    raise UserError(f"{_short(name)} {reason}")


def _pixels_of_file(file: IO[bytes]) -> Pixels:
    with Image.open(file, formats=FORMATS) as image:
        # A progressive JPEG is decoded once per scan, usually ten times.
        if image.info.get("progressive") and _count_scans(image) > MAX_SCANS:
            raise UserError(f"has more than {MAX_SCANS} scans; save it in another way")
        # Affects JPEG only, which can be decoded at an eighth of its size.
        if math.prod(image.size) <= MAX_PIXELS:
            image.draft(None, (SIDE, SIDE))
        return _pixels_of_image(image)


def _count_scans(jpeg: ImageFile.ImageFile) -> int:
    assert jpeg.fp is not None
    jpeg.fp.seek(0)
    return jpeg.fp.read().count(b"\xff\xda")


def _pixels_of_image(image: Image.Image) -> Pixels:
    # Check the size before decoding, which takes four bytes per pixel.
    if math.prod(image.size) > MAX_PIXELS:
        raise Image.DecompressionBombError
    image = ImageOps.exif_transpose(image)
    # Reduce a large picture first: as floating point it would take gigabytes.
    factor = max(1, max(image.size) // (8 * SIDE))
    if image.mode[0] in "IF":  # 16 bits and more.
        values = np.nan_to_num(np.asarray(image.convert("F").reduce(factor))).clip(0)
        tops = [top for top in (1, 255, 65_535) if values.max() <= top]
        return (values / (tops[0] if tops else values.max()))[..., None]
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return _pixels_of_array(np.asarray(image.convert(mode).reduce(factor)))


def _pixels_of_array(array: np.ndarray) -> Pixels:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or not 1 <= channels <= 4 or array.size == 0:
        raise UserError(
            f"array of shape {list(array.shape)}; expected [height, width] or "
            "[height, width, 1 to 4]"
        )
    if array.size > 4 * MAX_PIXELS:
        raise UserError(f"array of {array.size:,} values is too large; make it smaller")
    if array.dtype.kind not in "buf":
        hint = ". For values from 0 to 255, use array.astype(np.uint8)"
        raise UserError(
            f"array of {array.dtype}; expected bool, unsigned integers, or floating "
            f"point in [0, 1]{hint if array.dtype.kind == 'i' else ''}"
        )
    if not np.isfinite(array).all():
        raise UserError(f"array of {array.dtype} has values that are not finite")
    top = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    values = array.reshape(*array.shape[:2], channels).astype(np.float32)
    values /= top
    if values.min() < 0 or values.max() > 1:
        raise UserError(
            f"array of {array.dtype} has values outside [0, 1]; rescale it. For values "
            "from 0 to 255, divide by 255"
        )
    return values
