"""Pictures in files are read upright, also with unusual headers and from pipes."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image, features

from flaxmnist.errors import UserError
from flaxmnist.inference.fit import fit
from flaxmnist.pictures.files import as_gray
from flaxmnist.pictures.ink import SEARCH, find_ink


def gradient(width=40, height=30):
    """Light at the left, dark at the right."""
    row = np.linspace(230, 20, width).astype(np.uint8)
    return Image.fromarray(np.tile(row, (height, 1)))


def saved(image, kind, **options):
    file = io.BytesIO()
    if kind == "HEIF":
        # Without registering it with Pillow, which reading must do.
        image = pytest.importorskip("pillow_heif").from_pillow(image)
        image.save(file, **options)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIF"])
def test_a_picture_is_turned_upright_with_its_size(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    light = as_gray(saved(gradient(), kind, exif=exif.tobytes()))
    assert light.size == (30, 40)
    assert light.pixels.shape == (40, 30)
    assert light.pixels[0, 15] > 200
    assert light.pixels[-1, 15] < 50


def test_a_tiff_in_lab_is_read():
    middle = Image.new("L", (40, 30), 128)
    image = Image.merge("LAB", [gradient(), middle, middle])
    pixels = as_gray(saved(image, "TIFF")).pixels
    assert pixels[:, 0].min() > 200
    assert pixels[:, -1].max() < 50


@pytest.mark.parametrize("read", [as_gray, lambda file: fit(file, (8, 8, 1))])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_with_a_value_that_is_not_finite_is_refused(read, value):
    values = np.full((20, 30), 0.5, np.float32)
    values[3, 4] = value
    file = saved(Image.fromarray(values), "TIFF")
    with pytest.raises(UserError, match="has values that are not finite; replace NaN"):
        read(file)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_malformed_exif_data_do_not_fail_a_readable_picture():
    for exif in (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0XX"):
        light = as_gray(saved(gradient(), "JPEG", exif=exif))
        assert light.size == (40, 30)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow reads no AVIF")
def test_avif_with_the_brand_of_any_heif_is_avif():
    content = saved(gradient(), "AVIF")
    assert content[8:12] == b"avif"
    assert as_gray(content[:8] + b"mif1" + content[12:]).size == (40, 30)


@pytest.mark.parametrize("read", [as_gray, lambda pipe: fit(pipe, (8, 8, 3))])
def test_a_pipe_is_read(read):
    source, sink = os.pipe()

    def write():
        with open(sink, "wb") as file:
            file.write(saved(gradient(), "PNG"))

    writer = threading.Thread(target=write)
    writer.start()
    with open(source, "rb") as pipe:
        assert read(pipe)
    writer.join()


def test_the_place_of_ink_is_exact_in_a_jpeg_that_is_decoded_smaller():
    sheet = np.full((2_200, 4_095), 230, np.uint8)
    sheet[1_900:2_101, 3_800:3_831] = 20
    content = saved(Image.fromarray(sheet), "JPEG", quality=90)
    assert as_gray(content, SEARCH).scale == 1 / 4
    ink = find_ink(content)
    assert ink.size == (4_095, 2_200)
    rows, columns = np.nonzero(ink.strength > 0.5)
    box = (
        ink.left + columns.min() / ink.scale,
        ink.top + rows.min() / ink.scale,
        ink.left + (columns.max() + 1) / ink.scale,
        ink.top + (rows.max() + 1) / ink.scale,
    )
    assert np.abs(np.subtract(box, (3_800, 1_900, 3_831, 2_101))).max() < 6


@pytest.mark.parametrize("size", [(4_000, 2_250), (2_667, 4_000), (5_003, 3_003)])
def test_a_jpeg_is_decoded_no_larger_than_needed(size):
    light = as_gray(saved(Image.new("L", size, 200), "JPEG"), SEARCH)
    assert light.scale == 1 / 4
    assert light.size == size
    assert SEARCH <= max(light.pixels.shape) < 1.3 * SEARCH


@pytest.mark.parametrize("read", [find_ink, lambda stream: fit(stream, (8, 8, 3))])
def test_a_closed_or_text_stream_is_named(read):
    closed = io.BytesIO(b"")
    closed.close()
    text = io.StringIO("7")
    text.seekable = lambda: False
    text.name = "notes.txt"
    for stream, name in ((closed, "the file"), (text, "notes.txt")):
        with pytest.raises(UserError, match=name):
            read(stream)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("top", [1_023, 65_535])
def test_opacity_uses_as_few_bits_as_the_colours(channels, top):
    # Light paper with dark ink, without paper around it.
    sheet = np.zeros((60, 60, channels), np.uint16)
    sheet[5:55, 5:55] = top
    sheet[20:40, 27:33, :-1] = 0
    pixels = as_gray(sheet).pixels
    assert pixels.tolist() == np.where(sheet[..., 0], 255, 0).tolist()
