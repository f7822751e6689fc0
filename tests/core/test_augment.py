import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import CubicSpline

from flaxmnist.core.augment import Augment
from flaxmnist.errors import UserError

SHAPE = (9, 12, 2)
FULL = Augment(rotate=30, scale=0.2, shear=0.3, translate=2, elastic=1.5, cutout=3)


def keys(count=6, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def images(count=6):
    return np.random.default_rng(0).random((count, *SHAPE), np.float32)


def distort(augment, keys, images):
    return np.asarray(jax.jit(augment)(keys, images))


def reference(augment, key, image):
    """Distorts one image by matrices, splines and SciPy, pixel by pixel."""
    height, width, channels = image.shape
    u = np.asarray(jax.random.uniform(key, (40,), minval=-1), np.float64)
    angle = np.deg2rad(augment.rotate * u[0])
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, 0], [augment.shear * u[3], 1]])
    matrix = rotate @ shear @ np.diag(1 + augment.scale * u[1:3])
    shifts = augment.elastic * u[8:].reshape(2, 4, 4)
    middle = (np.array([height, width]) - 1) / 2
    places = np.zeros((2, height, width))
    for row in range(height):
        for column in range(width):
            pixel = np.array([row, column]) - middle - augment.translate * u[4:6]
            along = CubicSpline(np.linspace(0, height - 1, 4), shifts, axis=1)(row)
            shift = CubicSpline(np.linspace(0, width - 1, 4), along, axis=1)(column)
            source = np.linalg.inv(matrix) @ pixel + middle
            places[:, row, column] = source + shift
    distorted = np.stack(
        [
            ndimage.map_coordinates(
                image[..., c], places, order=1, mode="grid-constant"
            )
            for c in range(channels)
        ],
        axis=-1,
    )
    if side := augment.cutout:
        top, left = np.floor((u[6:8] + 1) / 2 * [height, width]).astype(int) - side // 2
        distorted[max(top, 0) : top + side, max(left, 0) : left + side] = 0
    return distorted


@pytest.mark.parametrize(
    "augment",
    [
        Augment(rotate=30),
        Augment(scale=0.2),
        Augment(shear=0.3),
        Augment(translate=2),
        Augment(elastic=1.5),
        Augment(cutout=3),
        FULL,
    ],
)
def test_each_part_matches_scipy(augment):
    found = distort(augment, keys(), images())
    expected = [
        reference(augment, *each) for each in zip(keys(), images(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(found, images(), atol=0.05)


def test_draws_are_by_key_and_cover_their_range():
    found = distort(FULL, keys(), images())
    np.testing.assert_allclose(
        distort(FULL, keys()[::-1], images()[::-1])[::-1], found, atol=1e-6
    )
    same = distort(FULL, keys(), np.stack([images()[0]] * 6))
    assert not np.allclose(same[0], same[1], atol=0.05)
    dot = np.zeros((400, 9, 9, 1), np.float32)
    dot[:, 4, 4] = 1
    moved = distort(Augment(translate=3), keys(400), dot)[..., 0]
    axis = np.arange(9) - 4
    for shift in (moved.sum(2) @ axis, moved.sum(1) @ axis):
        assert -3 <= shift.min() < -2.9
        assert 2.9 < shift.max() <= 3
        assert abs(shift.mean()) < 0.3
    # Each pixel is as likely as another to be the center of the square.
    cut = distort(Augment(cutout=1), keys(400), np.ones((400, 9, 9, 1), np.float32))
    assert (cut.sum((1, 2, 3)) == 80).all()
    assert (cut.sum(0) < 400).mean() > 0.97


def test_options_are_checked_and_compared_by_value():
    assert Augment(rotate=10) == Augment(rotate=10.0)
    assert hash(Augment(rotate=10)) == hash(Augment(rotate=10.0))
    for name, value in (("scale", 1), ("rotate", 181), ("cutout", 1.5), ("shear", -1)):
        with pytest.raises(UserError, match=f"augment.{name}={value}: expected a"):
            Augment(**{name: value})
    for name in ("translate", "elastic", "cutout"):
        with pytest.raises(UserError, match=f"augment.{name}=9: expected less than 9"):
            Augment(**{name: 9})(keys(), images())
