"""Random distortions of training images, drawn anew in every step.

An augmentation is a callable `(keys [batch], images [batch, height, width, channels])
-> images` of the same shape, one PRNG key per image; images are float32 in [0, 1].

If it replaces images by others that show no class, it returns these images and a bool
`[batch]`, which is False for them. A step trains them towards equal probabilities
(Hendrycks et al., 2019, "Deep Anomaly Detection with Outlier Exposure").
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Key

from flaxmnist.core import glyphs
from flaxmnist.errors import UserError, dtype_and_shape, shown
from flaxmnist.extensions import ExtensionPoint
from flaxmnist.options import boolean, canonicalize, option, real, whole

# Control points of the elastic distortion along each axis.
_KNOTS = 4

Augmentation = Callable[[Array, Array], Array | tuple[Array, Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Affine and elastic distortion in one bilinear resampling, cutout, and light.

    Each draw is uniform and independent for each image. Pixels from outside the image
    are 0. A random crop that is resized to the whole image is a translation, of a
    model that classifies the central part of its images, such as `ConvNet(crop=25)`.

    The elastic distortion moves 4 × 4 control points. Between them, the displacement is
    the bicubic polynomial through the control points (compare Simard et al., 2003,
    "Best Practices for Convolutional Neural Networks"). Cutout is that of DeVries and
    Taylor (2017).

    Raises:
      UserError: an option has an invalid value.
    """

    rotate: float = option(
        0.0, real(0, below=360), "Largest rotation, in degrees, either way."
    )
    scale: float = option(
        0.0,
        real(0, below=1),
        "Largest relative change of the height and, independently, of the width.",
    )
    shear: float = option(
        0.0,
        real(0, below=10),
        "Largest slant: horizontal shift per vertical distance.",
    )
    translate: float = option(0.0, real(0), "Largest shift along each axis, in pixels.")
    crop: int = option(
        0,
        whole(0),
        "Largest shift along each axis by whole pixels, which blurs nothing: a random "
        "crop of the image with this many pixels of 0 added at each side.",
    )
    elastic: float = option(
        0.0,
        real(0),
        "Largest shift, in pixels, of each of 4×4 points of an elastic distortion.",
    )
    flip: bool = option(
        False, boolean, "Whether half of the images are mirrored, left to right."
    )
    cutout: int = option(
        0,
        whole(0),
        "Side of a square set to 0, in pixels; its center is any pixel of the image.",
    )

    thickness: float = option(
        0.0,
        real(0, below=1),
        "Largest part of a pixel by which a stroke grows or shrinks at each side.",
    )
    haze: float = option(
        0.0,
        real(0, below=1),
        "Largest share of white that is mixed into half of the images.",
    )
    noise: float = option(
        0.0,
        real(0),
        "Largest standard deviation of Gaussian noise, in half of the images.",
    )
    outliers: float = option(
        0.0,
        real(0, below=1),
        "Share of images replaced by random glyphs, which train equal probabilities.",
    )

    def __post_init__(self) -> None:
        canonicalize("augment", self)

    def __call__(
        self,
        keys: Key[Array, " batch"],
        images: Float[Array, "batch height width channels"],
    ) -> (
        Float[Array, "batch height width channels"]
        | tuple[Float[Array, "batch height width channels"], Bool[Array, " batch"]]
    ):
        """Returns the distorted images; with outliers, also which are not outliers.

        Raises:
          UserError: a shift or the cutout is as large as the images.
        """
        height, width = images.shape[1:3]
        for name in ("translate", "crop", "elastic", "cutout"):
            value = getattr(self, name)
            if value >= min(height, width):
                raise UserError(
                    f"augment.{name}={value:g}: expected less than "
                    f"{min(height, width)}, for images of {height}×{width} pixels"
                )
        vary = jax.vmap(self._vary)
        if not self.outliers:
            varied: Array = vary(keys, images)
            return varied
        # Batches are shuffled, so the first images are as random as any.
        count = round(self.outliers * len(images))
        draw = functools.partial(glyphs.draw, height=height, width=width)
        others = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys[:count])
        drawn = jax.vmap(draw)(others)[..., None].astype(images.dtype)
        drawn = jnp.broadcast_to(drawn, (count, *images.shape[1:]))
        images = jnp.concatenate([drawn, images[count:]])
        return vary(keys, images), jnp.arange(len(images)) >= count

    def _vary(self, key: Any, image: Array) -> Array:
        """Changes strokes, form and light of one image `[height, width, channels]`."""
        # An option that is not used changes no draw of the others.
        ink, light, grain = (jax.random.fold_in(key, part) for part in range(3))
        dtype = image.dtype
        if self.thickness:
            image = _thicker(image, self.thickness * jax.random.uniform(ink, minval=-1))
        image = self._distort(key, image)
        haze, noise = jnp.maximum(jax.random.uniform(light, (2,), minval=-1), 0)
        if self.haze:
            image += self.haze * haze * (1 - image)
        if self.noise:
            image += self.noise * noise * jax.random.normal(grain, image.shape)
            image = jnp.clip(image, 0, 1)
        return image.astype(dtype)

    def _distort(self, key: Any, image: Array) -> Array:
        """Distorts one image `[height, width, channels]`."""
        draws = jax.random.uniform(key, (11 + 2 * _KNOTS**2,), minval=-1)
        resample = functools.partial(
            map_coordinates,
            coordinates=self._sources(draws, *image.shape[:2]),
            order=1,
        )
        image = jax.vmap(resample, -1, -1)(image)
        rows, columns = (
            jnp.arange(size) - jnp.floor((u + 1) / 2 * size) + self.cutout // 2
            for u, size in zip(draws[7:9], image.shape[:2], strict=True)
        )
        rows, columns = ((x >= 0) & (x < self.cutout) for x in (rows, columns))
        return jnp.where((rows[:, None] & columns[None])[..., None], 0, image)

    def _sources(self, draws: Array, height: int, width: int) -> tuple[Array, Array]:
        """Returns the row and the column that each pixel is taken from.

        This is the inverse of: mirror, elastic distortion, scale, shear, rotation about
        the center, translation, crop.

        Args:
          draws: `[43]` in [-1, 1): rotation, scale (2), shear, translation (2), mirror,
            cutout (2), control points (2 · 4 · 4), crop (2).
          height: number of rows.
          width: number of columns.
        """
        angle = jnp.deg2rad(self.rotate) * draws[0]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        pixels = jnp.floor((draws[-2:] + 1) * (self.crop + 0.5)) - self.crop
        down, right = self.translate * draws[4:6] + pixels
        y = jnp.arange(height)[:, None] - (height - 1) / 2 - down
        x = jnp.arange(width)[None] - (width - 1) / 2 - right
        y, x = cos * y + sin * x, cos * x - sin * y
        x = (x - self.shear * draws[3] * y) / (1 + self.scale * draws[2])
        y = y / (1 + self.scale * draws[1])
        knots = self.elastic * draws[9:-2].reshape(2, _KNOTS, _KNOTS)
        field = jnp.einsum(
            "yi,dij,xj->dyx",
            _interpolation(height),
            knots,
            _interpolation(width),
            precision="highest",
        )
        y, x = y + field[0], x + field[1]
        if self.flip:
            x = jnp.where(draws[6] < 0, -x, x)
        return y + (height - 1) / 2, x + (width - 1) / 2


def _thicker(image: Array, share: Array) -> Array:
    """Mixes in a share of the dilated image or, if negative, of the eroded image."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    height, width = image.shape[:2]
    around = jnp.stack(
        [
            padded[row : row + height, column : column + width]
            for row, column in ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))
        ]
    )
    changed = jnp.where(share > 0, around.max(0), around.min(0))
    return image + jnp.abs(share) * (changed - image)


def _interpolation(size: int) -> np.ndarray:
    """Returns `[size, 4]`: the cubic polynomial through 4 values, at `size` pixels."""
    pixels, knots = (
        np.vander(np.linspace(-1, 1, count), _KNOTS) for count in (size, _KNOTS)
    )
    matrix: np.ndarray = np.linalg.solve(knots.T, pixels.T).T.astype(np.float32)
    return matrix


POINT = ExtensionPoint({"distort": Augment}, filled=("keys", "images"))


def build(name: str, **given: Any) -> Augmentation | None:
    """Returns the augmentation `name`; None if it leaves the images as they are.

    Raises:
      UserError: an option has an invalid value, or the user's callable raised an error.
    """
    function = POINT.bind(name, given)
    return None if function == Augment() else function


def apply(
    augment: Augmentation,
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
) -> tuple[Float[Array, "batch height width channels"], Bool[Array, " batch"] | None]:
    """Returns the augmented images of one step, and which show their class if not all.

    The key of an image depends on `key` and its place in the batch only, so neither a
    mesh nor micro-batches change the images.

    Raises:
      UserError: the augmentation does not return images of the same shape and dtype, or
        what it returns beside them is not bool `[batch]`.
    """
    fold = functools.partial(jax.random.fold_in, key)
    made = augment(jax.vmap(fold)(jnp.arange(len(images))), images)
    shows_class = None
    if isinstance(made, tuple) and len(made) == 2:
        made, shows_class = made
        form = getattr(shows_class, "shape", None), getattr(shows_class, "dtype", None)
        if form != (images.shape[:1], jnp.bool_):
            raise UserError(
                f"augment={shown(augment)} returned {shown(shows_class)} beside the "
                f"images; expected bool [{len(images)}], whether each shows its class"
            )
    same = getattr(made, "shape", None), getattr(made, "dtype", None)
    if same != (images.shape, images.dtype):
        found = type(made).__name__ if None in same else dtype_and_shape(made)
        raise UserError(
            f"augment={shown(augment)} returned {found}; expected the shape and dtype "
            f"of the given images, {dtype_and_shape(images)}"
        )
    return made, shows_class
