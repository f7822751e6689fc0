"""Pictures in files and in memory, read as numbers."""

import dataclasses
import functools
import importlib
import io
import math
import os
from collections.abc import Callable
from typing import IO, Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, ImageOps

from flaxmnist.errors import UserError, printable, shown
from flaxmnist.runtime.files import open_regular

# Other readers of Pillow are not used: some start other programs.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
# Pillow knows the suffixes of the formats above.
HEIC_SUFFIXES = (".heic", ".heif")
MAX_PIXELS, MAX_SCANS = 64_000_000, 50
# A larger file cannot be a picture of at most that many pixels.
MAX_FILE_BYTES = 8 * MAX_PIXELS
# Longer side in pixels, at least, of the pixels for another model than MNIST's.
SIDE = 256
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# The brands of HEIC files, and of AVIF files, which may name those for both, too.
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}

Gray = UInt8[np.ndarray, "height width"]
Pixels = Float[np.ndarray, "height width channels"]
Picture = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Lightness:
    """The lightness of a picture, turned upright.

    Attributes:
      pixels: uint8 `[height, width]`.
      scale: number of these pixels per pixel of the picture along a side: 1, or 1/2,
        1/4 or 1/8 for a JPEG that was reduced.
      size: width and height of the picture.
    """

    pixels: Gray
    scale: float
    size: tuple[int, int]


def as_gray(picture: Picture, side: int | None = None) -> Lightness:
    """Returns the lightness of a picture, turned upright.

    Transparent pixels become white if the drawing is dark, and black if it is light.
    Pixels of more than 8 bits in gray files and in arrays are scaled by their maximum,
    because many cameras and scanners use 10 or 12 of 16 bits; of other files, Pillow
    reads the upper 8 bits. The arguments and errors are those of `prepare`.

    Args:
      picture: see :func:`flaxmnist.pictures.prepare.prepare`.
      side: a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, if its longer
        side remains at least that long; by default, it is not.
    """

    def draft(image: Image.Image) -> None:
        longer = max(image.size)
        width, height = (max(1, (side or longer) * n // longer) for n in image.size)
        image.draft("L", (width, height))

    return _read(picture, _gray_of_image, _gray_of_array, draft)


def as_pixels(picture: Picture) -> Pixels:
    """Returns the pixels of a picture, turned upright, float32 from 0 to 1.

    They have 1 to 4 channels: gray, gray and opacity, RGB, RGB and opacity. A picture
    in a file that is much larger than an image of a model is reduced. The arguments and
    errors are those of `prepare`.
    """

    def draft(image: Image.Image) -> None:
        image.draft(None, (SIDE, SIDE))

    return _read(picture, _pixels_of_image, _pixels_of_array, draft)


def _is_dark(light: np.ndarray, cover: np.ndarray) -> bool:
    """Returns whether the visible part of a picture is dark and needs a white ground.

    Args:
      light: lightness of each pixel, from 0 to 1.
      cover: opacity of each pixel, from 0 to 1.
    """
    return bool((light * cover).sum() / max(cover.sum(), 1e-6) < 0.5)


def rereadable(picture: Picture) -> Picture:
    """Returns the picture, or a copy in memory of a stream that cannot seek."""
    is_stream = hasattr(picture, "read") and hasattr(picture, "seekable")
    others = bytes | Image.Image | np.ndarray | str | os.PathLike
    if not is_stream or isinstance(picture, others):
        return picture
    return _named(getattr(picture, "name", "the file"), _seekable, picture)


def _seekable(stream: IO[bytes]) -> IO[bytes]:
    if stream.seekable():
        return stream
    copy = io.BytesIO(stream.read(MAX_FILE_BYTES))
    copy.name = getattr(stream, "name", "the file")
    return copy


def _read(
    picture: Picture,
    of_image: Callable[[Image.Image], T],
    of_array: Callable[[np.ndarray], T],
    draft: Callable[[Image.Image], None],
) -> T:
    """Returns the result of `of_image` or `of_array` for a picture."""
    of_file = functools.partial(_open_file, read=of_image, draft=draft)
    if isinstance(picture, Image.Image):
        return _named("the image", of_image, picture)
    # NumPy's texts and bytes are arrays, too.
    if hasattr(picture, "__array__") and not isinstance(picture, str | bytes):
        return of_array(np.asarray(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return _named("the encoded picture", of_file, io.BytesIO(picture))
    if hasattr(picture, "read"):
        name = getattr(picture, "name", "the file")
        return _named(name, of_file, rereadable(picture))
    if not isinstance(picture, str | os.PathLike):
        raise UserError(
            f"{shown(picture)} is a {type(picture).__name__}; expected a path, an open "
            "file, the bytes of one, a Pillow image, or an array"
        )
    name = _short(os.fsdecode(picture))
    try:
        with open_regular(picture, MAX_FILE_BYTES) as file:
            return _named(name, of_file, file)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; expected a picture") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} cannot be opened ({reason})") from None


def _short(name: Any) -> str:
    text = printable(str(name))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _named(name: Any, read: Callable[[Any], T], picture: Any) -> T:
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


def _open_file(
    file: IO[bytes],
    read: Callable[[Image.Image], T],
    draft: Callable[[Image.Image], None],
) -> T:
    formats = (*FORMATS, "HEIF") if _is_heic(file) else FORMATS
    with Image.open(file, formats=formats) as image:
        # A progressive JPEG is decoded once per scan, usually ten times.
        if image.info.get("progressive") and _count_scans(image) > MAX_SCANS:
            raise UserError(f"has more than {MAX_SCANS} scans; save it in another way")
        # Affects JPEG only, which can be decoded at an eighth of its size.
        image.info["full_size"] = image.size
        if math.prod(image.size) <= MAX_PIXELS:
            draft(image)
        return read(image)


def _is_heic(file: IO[bytes]) -> bool:
    """Returns whether a file is HEIC; prepares Pillow to read it.

    Raises:
      UserError: pillow-heif is not installed.
    """
    file.seek(0)
    head = file.read(256)
    file.seek(0)
    if head[4:8] != b"ftyp":
        return False
    # The length of the box, its type, the brand, a version, and compatible brands.
    end = int.from_bytes(head[:4], "big")
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(end, 256), 4))}
    if head[8:12] not in _HEIC_BRANDS or brands & _AVIF_BRANDS:
        return False
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ModuleNotFoundError:
        raise UserError(
            "is an HEIC picture; install 'flaxmnist[heic]', or save it as JPEG"
        ) from None
    return True


def _count_scans(jpeg: ImageFile.ImageFile) -> int:
    assert jpeg.fp is not None
    jpeg.fp.seek(0)
    return jpeg.fp.read().count(b"\xff\xda")


def _upright(image: Image.Image) -> Image.Image:
    # Check the size before decoding, which takes four bytes per pixel.
    if math.prod(image.size) > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    # Pillow raises many kinds of errors for damaged EXIF data beside intact pixels.
    except Exception:
        return image


def _gray_of_image(image: Image.Image) -> Lightness:
    size = image.info.get("full_size", image.size)
    # Exact: a side that 8 does not divide is rounded up.
    scale = 1 / round(max(size) / max(image.size))
    upright = _upright(image)
    if upright.size != image.size:
        size = size[::-1]
    return Lightness(_gray_pixels(upright), scale, size)


def _gray_pixels(image: Image.Image) -> Gray:
    if image.mode[0] in "IF":  # 16 bits and more.
        values = _finite(np.asarray(image.convert("F"))).clip(0)
        return np.round(values * (255 / (values.max() or 1))).astype(np.uint8)
    if image.has_transparency_data:
        image = without_opacity(image)
    if image.mode == "LAB":  # Pillow converts it to RGB only.
        image = image.convert("RGB")
    return np.asarray(image.convert("L"))


def without_opacity(image: Image.Image) -> Image.Image:
    """Returns an image on white if it is dark, and on black if it is light."""
    image = image.convert("RGBA")
    factor = max(1, max(image.size) // SIDE)
    light, cover = np.moveaxis(
        np.asarray(image.reduce(factor).convert("LA")) / 255, -1, 0
    )
    ground = Image.new(
        "RGBA", image.size, "white" if _is_dark(light, cover) else "black"
    )
    return Image.alpha_composite(ground, image)


def _gray_of_array(array: np.ndarray) -> Lightness:
    values = _pixels_of_array(array)
    channels = values.shape[2]
    is_wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    if is_wide and channels in (2, 4):
        # Opacity uses as few of the bits as the colours do.
        values /= values.max() or 1
    light = values[..., :3] @ _LUMA if channels >= 3 else values[..., 0]
    if channels in (2, 4):
        cover = values[..., -1]
        light = light * cover + _is_dark(light, cover) * (1 - cover)
    if is_wide:
        light = light / (light.max() or 1)
    pixels = np.round(light * 255).astype(np.uint8)
    return Lightness(pixels, 1.0, (pixels.shape[1], pixels.shape[0]))


def _pixels_of_image(image: Image.Image) -> Pixels:
    image = _upright(image)
    # Reduce a large picture first: as floating point it would take gigabytes.
    factor = max(1, max(image.size) // (8 * SIDE))
    if image.mode[0] in "IF":  # 16 bits and more.
        values = _finite(np.asarray(image.convert("F").reduce(factor))).clip(0)
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
    values = _finite(array, f"array of {array.dtype} ")
    top = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    values = values.reshape(*array.shape[:2], channels).astype(np.float32)
    values /= top
    if values.min() < 0 or values.max() > 1:
        raise UserError(
            f"array of {array.dtype} has values outside [0, 1]; rescale it. For values "
            "from 0 to 255, divide by 255"
        )
    return values


def _finite(values: np.ndarray, name: str = "") -> np.ndarray:
    """Returns the values. Raises UserError if one is not finite."""
    if not np.isfinite(values).all():
        raise UserError(
            f"{name}has values that are not finite; replace NaN and infinity with "
            "finite values"
        )
    return values
