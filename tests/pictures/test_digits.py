"""Digits are found in reading order, whatever surrounds them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from flaxmnist.pictures.digits import segment
from flaxmnist.pictures.touching import find_cuts, piece


def typed(*lines, size=40, gap=1.6, spacing=0.0):
    """The ink of lines of text, and the box of each digit."""
    font = ImageFont.load_default(size)
    width = int(max(map(len, lines)) * size * (0.7 + spacing)) + 2 * size
    image = Image.new("L", (width, int(size * (gap * len(lines) + 1))))
    pen, boxes = ImageDraw.Draw(image), []
    for row, line in enumerate(lines):
        x, y = float(size), size * (gap * row + 0.5)
        for letter in line:
            pen.text((round(x), y), letter, fill=255, font=font)
            if letter.isdigit():
                alone = Image.new("L", image.size)
                place = (round(x), y)
                ImageDraw.Draw(alone).text(place, letter, fill=255, font=font)
                boxes.append(alone.getbbox())
            x += pen.textlength(letter, font=font) + spacing * size
    return np.asarray(image, np.float32) / 255, boxes


def overlap(one, other):
    """Intersection over union of two boxes."""
    edges = np.array([one, other], float)
    inner = np.minimum(*edges[:, 2:]) - np.maximum(*edges[:, :2])
    areas = np.prod(edges[:, 2:] - edges[:, :2], axis=1)
    shared = np.prod(inner.clip(0))
    return shared / (areas.sum() - shared)


def assert_found(strength, boxes):
    glyphs = segment(strength)
    assert len(glyphs) == len(boxes)
    for glyph, box in zip(glyphs, boxes, strict=True):
        assert overlap(glyph.box, box) > 0.7
    return glyphs


@pytest.mark.parametrize("size", [24, 220])
def test_lines_are_found_from_top_to_bottom_and_in_groups(size):
    strength, boxes = typed("2024", "31", "705", size=size, spacing=0.1)
    glyphs = assert_found(strength, boxes)
    assert [glyph.line for glyph in glyphs] == [0] * 4 + [1] * 2 + [2] * 3
    assert not any(glyph.starts_group for glyph in glyphs)

    strength, boxes = typed("020-7946", "12   88", size=size, spacing=0.1)
    glyphs = assert_found(strength, boxes)
    starts = [index for index, glyph in enumerate(glyphs) if glyph.starts_group]
    assert starts == [3, 9]


@pytest.mark.parametrize("angle", [-18, 12])
def test_text_at_an_angle_is_turned_upright(angle):
    strength, _ = typed("98310", "24567", spacing=0.1)
    image = Image.fromarray(strength)
    turned = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    glyphs = segment(turned.clip(0, 1))
    assert [glyph.line for glyph in glyphs] == [0] * 5 + [1] * 5
    level = segment(strength)
    for glyph, other in zip(glyphs, level, strict=True):
        sizes = zip(glyph.strength.shape, other.strength.shape, strict=True)
        assert all(abs(one - two) <= 6 for one, two in sizes)
    # Boxes are those of the turned image: the ink of a glyph is inside.
    left, top, right, bottom = glyphs[0].box
    assert turned[top:bottom, left:right].sum() == pytest.approx(
        glyphs[0].strength.sum(), rel=0.15
    )


def test_broken_digits_are_joined_and_specks_and_rules_dropped():
    strength, boxes = typed("2585", size=60, spacing=0.1)
    broken = strength.copy()
    for left, top, right, bottom in boxes[:2]:
        middle = (top + bottom) // 2
        broken[middle - 1 : middle + 1, left:right] = 0
    rng = np.random.default_rng(0)
    broken[rng.integers(0, len(broken), 40), rng.integers(0, broken.shape[1], 40)] = 1
    broken[-4:-2] = 1
    assert_found(broken, boxes)


def test_digits_that_touch_are_one_glyph_with_a_cut_between_them():
    strength, boxes = typed("38", size=60)
    left, right = boxes[0][2], boxes[1][0]
    joined = np.delete(strength, np.s_[left : right + 1], axis=1)
    row = (boxes[0][1] + boxes[0][3]) // 2
    joined[row - 2 : row + 2, left - 6 : left + 6] = 1
    (glyph,) = segment(joined)
    cuts = find_cuts(glyph)
    assert len(cuts) < 20
    widths = [boxes[0][2] - boxes[0][0], boxes[1][2] - boxes[1][0]]
    assert any(
        all(
            abs(part.strength.shape[1] - width) < 8
            for part, width in zip(
                (piece(glyph, None, cut), piece(glyph, cut, None)), widths, strict=True
            )
        )
        for cut in cuts
    )


def test_nothing_is_found_in_empty_images_and_in_noise():
    assert segment(np.zeros((1, 1), np.float32)) == []
    assert segment(np.zeros((40, 60), np.float32)) == []
    assert len(segment(np.ones((40, 60), np.float32))) <= 1
    noise = np.random.default_rng(0).random((600, 600), np.float32)
    assert segment(noise * (noise > 0.9)) == []
