"""A convolutional network that a line of text describes."""

import re
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxmnist.core import mnist, ops, pooled
from flaxmnist.core.layers import (
    DTYPE,
    DTYPE_HELP,
    POOLS,
    Images,
    Logits,
    flat,
    scale,
)
from flaxmnist.core.nn import Conv
from flaxmnist.errors import UserError
from flaxmnist.options import OptionType, canonicalize, option, optional, real, whole

_EXAMPLE = "'24C5-MP2-48C3-MP2-256N'"
# Number, name, size, stride and padding of a layer.
_PARTS = re.compile(r"(\d*)([A-Z]+?)(\d*)(?:S(\d+))?(V?)")
_ON_IMAGES = re.compile(r"[1-9]\d{0,4}C[1-9]\d?(S[1-9])?V?|[MA]P[2-9]?|R|SE")
_ON_ANYTHING = re.compile(r"[1-9]\d{0,4}N|BN|D")
# These make one vector of an image.
_FLATTENING = re.compile(r"\d+N|[MA]P")
POOL_NAMES = {"MP": "max", "AP": "average"}
# Squeeze and excite computes its gates from this part of the channels.
_SQUEEZE = 4


def _layers(value: Any) -> str:
    """Returns the text of the layers. Raises TypeError or UserError."""
    if not isinstance(value, str):
        raise TypeError
    flattened = ""
    for layer in value.split("-"):
        if _ON_IMAGES.fullmatch(layer):
            if flattened:
                raise UserError(
                    f": layer {layer!r} needs images, but {flattened!r} before it "
                    f"returns vectors; expected a text such as {_EXAMPLE}"
                )
        elif not _ON_ANYTHING.fullmatch(layer):
            raise UserError(
                f": unknown layer {layer!r}; expected 32C5 (32 kernels of 5×5), 32C5S2 "
                "(stride 2), 32C5S2V (V: no padding), MP2 or AP2 (max, average "
                "pooling), MP or AP (global), R (residual), BN (batch norm), SE "
                "(squeeze and excite), D (dropout) or 128N (dense), as in "
                f"{_EXAMPLE}"
            )
        if _FLATTENING.fullmatch(layer):
            flattened = layer
    return value


class Part(NamedTuple):
    """A layer of a text, such as ``32C5S2``; a number that is not given is 0.

    Attributes:
      name: such as ``"C"``.
      width: number of channels or outputs.
      size: side of the kernel or the window.
      stride: 1 if it is not given.
      padding: of a convolution, "SAME" or "VALID".
    """

    name: str
    width: int = 0
    size: int = 0
    stride: int = 1
    padding: str = "SAME"

    def sides(self, sides: Iterable[int]) -> list[int]:
        """Returns height and width of the outputs for those of the inputs."""
        if self.padding == "VALID":
            return [(side - self.size) // self.stride + 1 for side in sides]
        if self.name in POOL_NAMES:
            return [-(-side // (self.size or side)) for side in sides]
        return [-(-side // self.stride) for side in sides]


def parts(layers: str) -> list[Part]:
    """Returns the layers of a text that `ConvNet` accepts."""
    found = []
    for layer in layers.split("-"):
        match = _PARTS.fullmatch(layer)
        assert match  # As checked by `_layers`.
        width, name, size, stride, valid = match.groups()
        padding = "VALID" if valid else "SAME"
        numbers = int(width or 0), int(size or 0), int(stride or 1)
        found.append(Part(name, *numbers, padding))
    return found


_MAX_POOL = Part("MP", size=2)


class ConvNet(nn.Module):
    """The layers of a text such as ``"24C5-MP2-48C3-MP2-256N"``, then the logits.

    The notation is that of Cireşan et al. (2012, "Multi-column Deep Neural Networks for
    Image Classification"), extended:

    - ``32C5``: convolution with 32 kernels of 5×5, ReLU; ``32C5S2``: with stride 2;
      ``32C5V`` and ``32C5S2V``: without padding.
    - ``MP2``, ``AP2``: maximum, average of 2×2 pixels; pixels at the edge are repeated
      if 2 does not divide the image. ``MP``, ``AP``: of the whole image.
    - ``128N``: dense layer with 128 outputs, ReLU.
    - ``BN``: batch normalization.
    - ``R``: the residual block y + ReLU(conv 3×3(y)), y being the input after ``BN``.
    - ``SE``: squeeze and excite (Hu et al., 2018): two dense layers compute a factor
      for each channel from the means of all channels.
    - ``D``: dropout.

    The declaration of each attribute describes it.

    Raises:
      UserError: an option has an invalid value.
    """

    independent_examples: ClassVar[bool] = True
    layers: str = option(
        "32C5-R-MP2-R-BN-64C3-MP2-R-BN-128C3-MP2-R-BN-AP",
        OptionType(f"a text such as {_EXAMPLE}", _layers),
        "Layers before the logits, such as 32C5 (32 kernels of 5×5), 32C5S2V (S2: "
        "stride 2, V: no padding), MP2 or AP2 (max, average pooling of 2×2 pixels), MP "
        "or AP (of the whole image), R (residual block), BN (batch norm), SE (squeeze "
        "and excite), D (dropout), 128N (dense).",
    )
    dropout_rate: float = option(
        0.4, real(0, below=1), "Fraction of hidden activations dropped in training."
    )
    crop: int | None = option(
        None,
        optional(whole(1)),
        "Side of the central square that is resized to the size of the images and "
        "classified, in pixels; None: the whole image.",
    )
    dtype: Any = option(None, DTYPE, DTYPE_HELP)
    num_classes: int = mnist.NUM_CLASSES

    def __post_init__(self) -> None:
        canonicalize("model", self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Returns the logits."""
        x = scale(images)
        self.check_fits(x.shape[1:3])
        if self.crop is not None:
            x = _center(x, self.crop)
        layers = parts(self.layers)
        while layers:
            part, *layers = layers
            if pools := layers[:1] == [_MAX_POOL] and _can_pool(part, x):
                layers = layers[1:]
            x = self._apply(part, x, train, pools)
        return nn.Dense(
            self.num_classes, dtype=self.dtype, dot_general=ops.dot_general
        )(flat(x))

    @nn.nowrap
    def check_fits(self, sides: tuple[int, ...]) -> None:
        """Raises UserError if images of this height and width are too small."""
        if self.crop is not None and self.crop > min(sides):
            raise UserError(
                f"model.crop={self.crop}: expected at most {min(sides)}, for images of "
                f"{sides[0]}×{sides[1]} pixels"
            )
        for layer, part in zip(self.layers.split("-"), parts(self.layers), strict=True):
            outputs = part.sides(sides)
            if min(outputs) < 1:
                raise UserError(
                    f"model.layers={self.layers!r}: layer {layer!r} gets {sides[0]}×"
                    f"{sides[1]} pixels; expected at least {part.size}×{part.size}. "
                    "Remove its V to pad the images, or use a smaller kernel"
                )
            sides = tuple(outputs)

    @nn.nowrap
    def _apply(self, part: Part, x: Array, train: bool, pools: bool) -> Array:
        match part.name:
            case "C":
                x = self._convolve(part, x, pools)
            case "N":
                x = nn.relu(nn.Dense(part.width, dtype=self.dtype)(flat(x)))
            case "MP" | "AP":
                x = _pool(x, POOL_NAMES[part.name], part.size)
            case "BN":
                x = self._normalize(x, train, pools)
            case "R":
                x = self._normalize(x, train)
                x += self._convolve(Part("C", x.shape[-1], 3), x)
            case "SE":
                x = self._excite(x)
            case "D":
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return x

    @nn.nowrap
    def _convolve(self, part: Part, x: Array, pools: bool = False) -> Array:
        convolution = pooled.Conv if pools else Conv
        layer = convolution(
            part.width,
            2 * (part.size,),
            2 * (part.stride,),
            padding=part.padding,
            dtype=self.dtype,
        )
        return nn.relu(layer(x))

    @nn.nowrap
    def _normalize(self, x: Array, train: bool, pools: bool = False) -> Array:
        normalization = pooled.BatchNorm if pools else nn.BatchNorm
        normalized: Array = normalization(
            use_running_average=not train, momentum=0.9, dtype=self.dtype
        )(x)
        return normalized

    @nn.nowrap
    def _excite(self, x: Array) -> Array:
        channels = x.shape[-1]
        squeezed = nn.Dense(-(-channels // _SQUEEZE), dtype=self.dtype)(x.mean((1, 2)))
        factors = nn.sigmoid(nn.Dense(channels, dtype=self.dtype)(nn.relu(squeezed)))
        return x * factors[:, None, None]


def _can_pool(part: Part, x: Array) -> bool:
    """Returns whether max pooling of 2×2 pixels can be a part of a layer."""
    # Where 2 does not divide a side, pixels at the edge are repeated.
    return part.name in ("C", "BN") and all(
        side % 2 == 0 for side in part.sides(x.shape[1:3])
    )


def _pool(x: Array, name: str, window: int) -> Array:
    """Pools squares of `window` pixels, or whole images if 0."""
    if not window:
        pooled: Array = (jnp.max if name == "max" else jnp.mean)(x, (1, 2))
        return pooled
    missing = [(0, -length % window) for length in x.shape[1:3]]
    if any(map(any, missing)):  # jax2onnx converts an empty edge wrongly.
        x = jnp.pad(x, ((0, 0), *missing, (0, 0)), mode="edge")
    pooled = POOLS[name](x, (window, window), (window, window))
    return pooled


def _center(
    images: Float[Array, "batch height width channels"], crop: int
) -> Float[Array, "batch height width channels"]:
    """Resizes the central square of `crop` pixels to the size of the images.

    The resampling is bilinear and separable: one small matrix for each axis.
    """
    height, width = images.shape[1:3]

    def matrix(size: int) -> np.ndarray:
        middle = (size - 1) / 2
        source = (np.arange(size) - middle) * crop / size + middle
        distance = abs(source[:, None] - np.arange(size))
        hat: np.ndarray = np.maximum(0, 1 - distance).astype(np.float32)
        return hat

    return jnp.einsum(
        "yi,bijc,xj->byxc", matrix(height), images, matrix(width), precision="highest"
    )
