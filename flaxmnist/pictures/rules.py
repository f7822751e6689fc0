"""Removes the rules of paper from a mask of ink."""

import cv2
import numpy as np
from jaxtyping import UInt8

# Shares of the longer side of a picture: shortest straight run, and widest rule.
RUN, THICK = 1 / 24, 1 / 80
# Length of the shortest rule, as a share of the picture.
LENGTH = 0.85

Mask = UInt8[np.ndarray, "height width"]


def without_rules(mask: Mask) -> Mask:
    """Returns a mask of 0 and 1 without thin lines across most of the picture."""
    for image in (mask, mask.T):
        image[:] = _without_horizontal(np.ascontiguousarray(image))
    return mask


def _without_horizontal(mask: Mask) -> Mask:
    width = mask.shape[1]
    side = max(mask.shape)
    run = np.ones((1, max(3, round(RUN * side))), np.uint8)
    straight = cv2.morphologyEx(mask, cv2.MORPH_OPEN, run)
    if straight.any(axis=0).sum() < LENGTH * width:
        return mask
    # A rule that is not level is a stair of runs.
    joined = cv2.dilate(straight, np.ones((3, 9), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        joined, 8, cv2.CV_32S, cv2.CCL_GRANA
    )
    # The dilation adds two rows.
    wide = np.maximum(stats[:, cv2.CC_STAT_WIDTH], 1)
    thickness = np.maximum(stats[:, cv2.CC_STAT_AREA] / wide - 2, 1)
    is_rule = wide >= LENGTH * width
    is_rule &= thickness <= THICK * side
    is_rule[0] = False
    if not is_rule.any():
        return mask
    rule = straight * is_rule[labels]
    rest = mask - rule
    if not rest.any():  # A 1 that fills the picture.
        return mask
    # Strokes that cross the rule remain whole.
    gap = 2 * int(np.ceil(thickness[is_rule].max())) + 1
    crossed = cv2.morphologyEx(rest, cv2.MORPH_CLOSE, np.ones((gap, 1), np.uint8))
    return rest | (crossed & rule)
