"""Photographs and screenshots in which the ink must be found."""

import io
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from flaxmnist import UserError
from flaxmnist.pictures import background, candidates, components
from flaxmnist.pictures.ink import find_ink
from flaxmnist.pictures.prepare import prepare
from flaxmnist.pictures.rules import connected, without_rules


def seven(height=450, width=350, box=(150, 125, 100, 70), thickness=11):
    """Returns a sheet with a seven in a box: top, left, height, width."""
    top, left, tall, wide = box
    sheet = np.full((height, width), 0.9, np.float32)
    points = [[left, top], [left + wide, top], [left + wide // 3, top + tall]]
    cv2.polylines(sheet, [np.int32(points)], False, 0.1, thickness, cv2.LINE_AA)
    return sheet


def desk(sides):
    sheet = seven()
    for side in sides:
        np.rot90(sheet, side)[:50] = 0.15
    return sheet


def rim():
    sheet = seven()
    sheet[:6] = sheet[-6:] = sheet[:, :6] = sheet[:, -6:] = 0.2
    return sheet


def framed(inset):
    sheet = seven()
    corner = (sheet.shape[1] - 1 - inset, sheet.shape[0] - 1 - inset)
    cv2.rectangle(sheet, (inset, inset), corner, 0.0, 5)
    return sheet


def shadow(is_sharp):
    y, x = np.mgrid[:450, :350]
    edge = 1 / (1 + np.exp((155 - x + 0.3 * (y - 200)) / (1 if is_sharp else 25)))
    return seven() * (1 - 0.5 * edge)


def title_bar():
    sheet = seven()
    bar = np.full((30, 350), 40, np.uint8)
    cv2.putText(bar, "Paint", (10, 22), 0, 0.6, 230, 1)
    sheet[:30] = bar / np.float32(255)
    return sheet


def underlined():
    sheet = seven()
    sheet[265:271, 90:240] = 0.1
    return sheet


def ruled():
    sheet = seven()
    sheet[20::40] *= 0.65
    return sheet


def on_a_rule():
    sheet = seven()
    sheet[180:183] = sheet[:, 60:63] = 0.1
    return sheet


FOUND = {
    "plain": seven,
    "soft shadow": lambda: shadow(False),
    "sharp shadow": lambda: shadow(True),
    "desk on one side": lambda: desk([0]),
    "desk on three sides": lambda: desk([0, 1, 2]),
    "desk on four sides": lambda: desk(range(4)),
    "thin rim of a table": rim,
    "frame": lambda: framed(4),
    "frame inside": lambda: framed(16),
    "title bar": title_bar,
    "underlined": underlined,
    "ruled": ruled,
    "crossed by a rule as dark as the digit": on_a_rule,
    "chalk": lambda: 0.9 - 0.7 * seven(),
    "small in a large picture": lambda: seven(1500, 1100, (1000, 200, 30, 21), 4),
}


@pytest.mark.parametrize("name", FOUND)
def test_only_the_digit_is_found(name):
    reference = prepare(seven()).image.astype(float)
    found = prepare(FOUND[name]())
    assert found.warnings == ()
    assert np.corrcoef(found.image.ravel(), reference.ravel())[0, 1] > 0.9


def test_ink_knows_its_place_in_the_picture():
    ink = find_ink(FOUND["small in a large picture"]())
    rows, columns = np.nonzero(ink.strength > 0.5)
    top, left = ink.top + rows.min() / ink.scale, ink.left + columns.min() / ink.scale
    assert abs(top - 999) < 4
    assert abs(left - 199) < 4


def test_every_digit_of_a_page_is_found():
    one = seven(90, 70, (20, 20, 50, 30), 6)
    ink = find_ink(np.tile(one, (6, 10)))
    assert cv2.connectedComponents(np.uint8(ink.strength > 0.5))[0] - 1 == 60


def test_a_digit_that_touches_the_border_is_read_with_a_warning():
    tight = seven()[146:254, 121:199]
    found = prepare(tight)
    assert found.warnings == ("the digit touches the border",)
    reference = prepare(seven()).image.ravel()
    assert np.corrcoef(found.image.ravel(), reference)[0, 1] > 0.7


def test_a_picture_of_16_bits_that_uses_10_is_found():
    file = io.BytesIO()
    Image.fromarray(np.uint16(1000 * seven())).save(file, "PNG")
    reference = prepare(seven()).image.ravel()
    image = prepare(file.getvalue()).image
    assert np.corrcoef(image.ravel(), reference)[0, 1] > 0.98


def test_heic_without_its_extra_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"install 'flaxmnist\[heic\]'"):
        prepare(b"\0\0\0\x18ftypheic" + bytes(50))


def digits_in(ink):
    """Returns the number of connected marks of ink."""
    return cv2.connectedComponents(np.uint8(ink.strength > 0.5))[0] - 1


def test_a_digit_of_a_number_at_the_border_is_read_with_a_warning():
    sheet = np.hstack([seven(), seven(), seven()])[:, : 2 * 350 + 195]
    ink = find_ink(sheet)
    assert digits_in(ink) == 3
    assert ink.warnings == ("a digit touches the border",)
    bar = np.hstack([seven(), seven()])
    bar[150:250, :12] = 0.1
    ink = find_ink(bar)
    assert digits_in(ink) == 2
    assert ink.warnings == ("a mark at the border is not read",)


def test_the_shadow_of_a_finger_is_not_joined_to_the_digit_that_it_touches():
    sheet = seven()
    finger = cv2.line(np.zeros(sheet.shape), (170, 240), (215, 449), 0.5, 30)
    ink = find_ink(sheet * (1 - finger))
    rows, _ = np.nonzero(ink.strength > 0.5)
    assert 95 < np.ptp(rows) / ink.scale < 125


def test_a_bold_digit_without_a_margin_is_found_and_not_its_loop():
    sheet = np.full((122, 100), 0.9)
    cv2.ellipse(sheet, (49, 60), (34, 45), 0, 0, 360, 0.1, 30, cv2.LINE_AA)
    image = prepare(sheet).image
    assert image[14, 14] < 50
    assert (image > 200).any(axis=1).argmax() < 8


@pytest.mark.parametrize("slope", [-0.02, 0.04])
def test_the_slanted_edges_of_a_sheet_are_not_taken_for_digits(slope):
    # Pale strokes on a sheet that lies on a dark desk.
    sheet = np.full((750, 1000), 0.9)
    for left in (250, 310, 370):
        sheet -= 0.4 * (0.9 - seven(750, 1000, (330, left, 70, 40), 5))
    y, x = np.mgrid[:750, :1000]
    sheet[x < 85 + slope * (y - 375)] = 0.15
    sheet[(y > 645) | (y < 70 - 4 * slope * (x - 85))] = 0.15
    ink = find_ink(sheet)
    assert digits_in(ink) == 3
    assert ink.strength.shape[1] / ink.scale < 300


def test_digits_that_touch_are_found_but_not_an_underline():
    sheet = np.full((300, 700), 0.9, np.float32)
    for left in range(80, 480, 66):
        cv2.ellipse(sheet, (left + 38, 120), (34, 40), 0, 0, 360, 0.1, 9, cv2.LINE_AA)
    sheet[190:198, 60:560] = 0.1
    ink = find_ink(sheet)
    assert digits_in(ink) == 1
    rows, columns = np.nonzero(ink.strength > 0.5)
    assert np.ptp(columns) > 5 * np.ptp(rows)
    assert ink.top + rows.max() / ink.scale < 180


@pytest.mark.parametrize("is_eight", [False, True])
def test_a_box_is_a_digit_if_nothing_is_inside(is_eight):
    sheet = np.full((450, 350), 0.9, np.float32)
    cv2.rectangle(sheet, (130, 120), (220, 280), 0.1, 16)
    if is_eight:
        sheet[190:206, 130:220] = 0.1
    rows, columns = np.nonzero(find_ink(sheet).strength > 0.5)
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(176 / 106, abs=0.1)


def test_a_straight_stroke_at_an_angle_is_a_one():
    sheet = np.full((450, 350), 0.9, np.float32)
    cv2.line(sheet, (120, 300), (190, 170), 0.1, 9, cv2.LINE_AA)
    assert digits_in(find_ink(sheet)) == 1


def test_sparse_dots_that_smoothing_fades_are_ink():
    sheet = np.full((900, 900), 255, np.uint8)
    sheet[4:305:3, 4:104:3] = 0
    assert find_ink(sheet).strength.max() == 1
    assert prepare(sheet).image.max() == 255


@pytest.mark.parametrize(("side", "dtype"), [(40, np.uint16), (600, np.int32)])
def test_any_number_of_marks_is_counted(side, dtype):
    mask = np.zeros((side, side), np.uint8)
    mask[::2, ::2] = 1
    labels, stats = connected(mask)
    assert labels.dtype == dtype
    assert len(np.unique(labels)) == len(stats) == (side // 2) ** 2 + 1


def test_marks_are_numbered_at_their_places():
    mask = np.zeros((9, 12), np.uint8)
    assert not connected(mask)[0].any()
    mask[2:5, 3] = mask[7, 6:9] = 1
    labels, stats = connected(mask)
    np.testing.assert_array_equal(labels > 0, mask)
    # Left, top, width, height and area.
    assert stats[labels[2, 3]].tolist() == [3, 2, 1, 3, 3]
    assert stats[labels[7, 6]].tolist() == [6, 7, 3, 1, 3]


def test_rules_are_removed_and_what_crosses_them_stays_whole():
    stroke = np.zeros((200, 288), np.uint8)
    stroke[40:150, 100:106] = 1
    ruled = stroke.copy()
    ruled[60:62, 5:-5] = ruled[120:122] = 1
    np.testing.assert_array_equal(without_rules(ruled), stroke)
    np.testing.assert_array_equal(without_rules(ruled.T.copy()), stroke.T)


def test_a_stroke_along_a_rule_remains():
    seven = np.zeros((400, 300), np.uint8)
    seven[88:100, 100:150] = seven[88:180, 138:150] = 1
    ruled = seven.copy()
    ruled[100:102] = ruled[::50] = ruled[:, ::60] = 1
    rest = without_rules(ruled)
    # The rules in its outline may stay.
    np.testing.assert_array_equal(
        rest[80:], rest[80:] & cv2.dilate(seven, np.ones((5, 5)))[80:]
    )
    assert (rest >= seven).all()


def test_no_mark_scores_higher_than_its_candidate(monkeypatch):
    scores = []

    def spy(candidate, *args):
        mark = candidates.measured(candidate, *args)
        scores.append((mark.score, candidate.score))
        return mark

    monkeypatch.setattr(components, "measured", spy)
    find_ink(desk([0]))
    found, highest = np.array(scores).T
    assert (found <= highest).all()
    assert (found > 0).any()
    assert (found == 0).any()


@pytest.mark.parametrize("shape", [(1, 9), (40, 33), (300, 350)])
@pytest.mark.parametrize("size", [1, 4, 25, 200])
def test_the_ground_is_the_closing_of_the_picture(shape, size):
    light = np.random.default_rng(0).random(shape, np.float32)
    pixels = cv2.convertScaleAbs(light, alpha=255)
    kernel = np.ones((size | 1, size | 1), np.uint8)
    closed = cv2.morphologyEx(pixels, cv2.MORPH_CLOSE, kernel) / 255
    wanted = np.maximum(closed, light)
    np.testing.assert_allclose(background.ground_of(light, size), wanted, atol=1e-6)
