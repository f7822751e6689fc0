"""Removes the rules of paper from a mask of ink."""

import cv2
import numpy as np
from jaxtyping import Int, Integer, UInt8

# Shares of the longer side of a picture: shortest straight run, and widest rule.
RUN, THICK = 1 / 24, 1 / 80
# Length of the shortest rule, as a share of the picture.
LENGTH = 0.85

Mask = UInt8[np.ndarray, "height width"]


def connected(
    mask: Mask,
) -> tuple[Integer[np.ndarray, "height width"], Int[np.ndarray, "marks 5"]]:
    """Returns the number of the mark at each pixel, and OpenCV's figures of the marks.

    Number 0 is that of the ground.
    """
    left, top, width, height = cv2.boundingRect(mask)
    # An empty mask has no box, and OpenCV needs a pixel.
    place = np.s_[top : top + max(height, 1), left : left + max(width, 1)]
    part = mask[place]
    # OpenCV counts three times as fast in 16 bits. There are no more marks than places
    # at which a row enters one.
    beginnings = len(part) + np.count_nonzero(part[:, 1:] > part[:, :-1])
    number = cv2.CV_16U if beginnings < 2**16 - 1 else cv2.CV_32S
    _, found, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        part, 8, number, cv2.CCL_BOLELLI
    )
    labels = np.zeros(mask.shape, found.dtype)
    labels[place] = found
    stats[:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]] += left, top
    return labels, stats


def without_rules(mask: Mask) -> Mask:
    """Returns a mask of 0 and 1 without thin lines across most of the picture."""
    if _spans(mask, axis=0):
        mask = _without_horizontal(mask)
    if _spans(mask, axis=1):
        turned = _without_horizontal(np.asarray(cv2.transpose(mask), np.uint8))
        mask = np.asarray(cv2.transpose(turned), np.uint8)
    return mask


def _spans(mask: Mask, axis: int) -> bool:
    """Returns whether most columns (axis 0) or rows (axis 1) have a pixel.

    Otherwise, no rule crosses them.
    """
    return bool(mask.any(axis=axis).mean() >= LENGTH)


def _without_horizontal(mask: Mask) -> Mask:
    width = mask.shape[1]
    side = max(mask.shape)
    # OpenCV shifts an opening of an even width by a pixel.
    run = np.ones((1, max(3, round(RUN * side) | 1)), np.uint8)
    straight = cv2.morphologyEx(mask, cv2.MORPH_OPEN, run)
    if not _spans(straight, axis=0):
        return mask
    # A rule that is not level is a stair of runs.
    joined = cv2.dilate(straight, np.ones((3, 9), np.uint8))
    labels, stats = connected(joined)
    # The dilation adds two rows.
    wide = np.maximum(stats[:, cv2.CC_STAT_WIDTH], 1)
    thickness = np.maximum(stats[:, cv2.CC_STAT_AREA] / wide - 2, 1)
    is_rule = wide >= LENGTH * width
    is_rule &= thickness <= THICK * side
    is_rule[0] = False
    if not is_rule.any():
        return mask
    gap = np.ones((2 * int(np.ceil(thickness[is_rule].max())) + 1, 1), np.uint8)
    # A stroke along a rule is thicker than the rule, and remains.
    thick = cv2.morphologyEx(straight, cv2.MORPH_OPEN, gap)
    rule = (straight - thick) * is_rule[labels]
    rest = mask - rule
    if not rest.any():  # A 1 that fills the picture.
        return mask
    # Strokes that cross the rule remain whole.
    crossed = cv2.morphologyEx(rest, cv2.MORPH_CLOSE, gap)
    return rest | (crossed & rule)
