"""Decodes the files of images that image directories, Parquet and TFDS contain."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from flaxmnist.core.batch import MAX_SIDE
from flaxmnist.data.raw import Chunk
from flaxmnist.errors import UserError

# Other readers of Pillow are not used: some start other programs.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
# Of a PNG with an orientation; to look for one, Pillow decodes the whole image.
_TAGS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
# Images per chunk.
_CHUNK = 1_024


class Example(NamedTuple):
    """An encoded image.

    Attributes:
      name: of its file, or its place in a file, for errors.
      content: the bytes of an image file.
      label: an integer or a text.
    """

    name: str
    content: bytes
    label: int | str


Examples = Callable[[], Iterator[Example]]


def decoders(
    splits: Mapping[str, Examples],
) -> dict[str, Callable[[], Iterator[Chunk]]]:
    """Returns a function per split that decodes its images, as `Raw.splits` are.

    The images become RGB if one of any split is in colour, and gray otherwise. All must
    have one size.

    Args:
      splits: split → function that reads its examples from the start.
    """
    known: list[bool] = []

    def decode(examples: Examples) -> Iterator[Chunk]:
        if not known:
            known.append(_any_in_colour(splits))
        images: list[np.ndarray] = []
        labels: list[int | str] = []
        for example in examples():
            images.append(_decode(example, known[0]))
            labels.append(example.label)
            if len(labels) == _CHUNK:
                yield np.stack(images), np.array(labels)
                images, labels = [], []
        if labels:
            yield np.stack(images), np.array(labels)

    return {
        split: functools.partial(decode, examples) for split, examples in splits.items()
    }


def _any_in_colour(splits: Mapping[str, Examples]) -> bool:
    """Returns whether an image is in colour.

    Reads only headers, so that an image of another size is found early.

    Raises:
      UserError: an image is damaged, too large, or of another size than the first.
    """
    first: tuple[str, tuple[int, int]] | None = None
    found = False
    for examples in splits.values():
        for example in examples():
            with _opened(example) as image:
                if max(image.size) > MAX_SIDE:
                    raise UserError(
                        f"{example.name} is an image of {_size(image.size)}; expected "
                        f"at most {MAX_SIDE}×{MAX_SIDE}. Make the images smaller"
                    )
                first = first or (example.name, image.size)
                if image.size != first[1]:
                    raise UserError(
                        f"{example.name} is an image of {_size(image.size)}, and "
                        f"{first[0]} of {_size(first[1])}; expected one size. Resize "
                        "the images"
                    )
                found = found or _is_in_colour(image)
    return found


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


@contextlib.contextmanager
def _opened(example: Example) -> Iterator[Image.Image]:
    """Opens an encoded image, turned upright as EXIF says.

    Every error within becomes a UserError about the image.
    """
    try:
        with Image.open(io.BytesIO(example.content), formats=FORMATS) as image:
            may_turn = image.format != "PNG" or any(
                tag in example.content for tag in _TAGS
            )
            # Predictions turn pictures, too. This decodes the image; a larger one is
            # refused.
            if may_turn and max(image.size) <= MAX_SIDE and _is_turned(image):
                ImageOps.exif_transpose(image, in_place=True)
            yield image
    except UserError:
        raise
    # Pillow raises many kinds of errors for damaged files.
    except Exception as error:
        reason = str(error) if type(error) is OSError else type(error).__name__
        raise UserError(
            f"{example.name} cannot be read as an image ({reason}); expected one of "
            f"{', '.join(FORMATS)}"
        ) from None


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _is_in_colour(image: Image.Image) -> bool:
    if image.mode == "P":  # Its palette may have gray entries only.
        pixels = np.asarray(image.convert("RGB"))
        return bool((pixels != pixels[..., :1]).any())
    return image.mode == "LAB" or image.mode[0] not in "1LIF"


def _decode(example: Example, in_colour: bool) -> np.ndarray:
    """Returns an image, uint8 `[height, width]`, or `[height, width, 3]` if in colour.

    Transparent pixels become white if the drawing is dark, and black if it is light.
    """
    with _opened(example) as image:
        if image.mode[0] in "IF":
            values = np.asarray(image)
            if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
                raise UserError(
                    f"{example.name} has {values.dtype} pixels; expected 8 or 16 bits"
                )
            # White is 65,535 in every image, however bright it is.
            gray = np.round(values / 257).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=2) if in_colour else gray
        mode = "RGB" if in_colour else "L"
        if not image.has_transparency_data:
            return np.asarray(image.convert(mode))
        rgba = image.convert("RGBA")
        cover = np.asarray(rgba.getchannel("A")) / 255
        light = np.asarray(rgba.convert("RGB").convert("L"))
        drawn = (light * cover).sum() / max(cover.sum(), 1e-6)
        backdrop = Image.new("RGBA", rgba.size, "white" if drawn < 127.5 else "black")
        return np.asarray(Image.alpha_composite(backdrop, rgba).convert(mode))
