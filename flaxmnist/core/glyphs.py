"""Random glyphs: drawings of a few strokes that show no class of the data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Strokes of a glyph; straight pieces of a stroke.
_FEWEST, _MOST, _PIECES = 3, 6, 4
# Share of the image that a glyph covers, as digits of MNIST do.
_SIZE = 20 / 28


def draw(
    key: Key[Array, ""], height: int, width: int
) -> Float[Array, "{height} {width}"]:
    """Returns a glyph, white on black, in [0, 1].

    Its strokes join points of a distorted grid of 3 × 3, as the strokes of letters do.
    Half of them are straight, the others are quadratic Bézier curves.
    """
    keys = jax.random.split(key, 6)
    grid = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(-1.0, 2)], indexing="ij"), axis=-1)
    points = grid.reshape(9, 2) + jax.random.uniform(keys[0], (9, 2), minval=-0.3) * 0.5
    points *= jax.random.uniform(keys[1], (1, 2), minval=0.5)
    first, step = jax.random.split(keys[2])
    start = jax.random.randint(first, (_MOST,), 0, 9)
    end = (start + jax.random.randint(step, (_MOST,), 1, 9)) % 9
    start, end = points[start], points[end]
    bend = jax.random.uniform(keys[3], (_MOST, 1), minval=-1) * 2
    bend = jnp.where(jnp.abs(bend) < 1, 0, bend)
    normal = (end - start)[:, ::-1] * jnp.array([[1.0, -1.0]])
    control = (start + end) / 2 + bend * normal / 2
    at = jnp.linspace(0, 1, _PIECES + 1)[:, None, None]
    start, control, end = start[None], control[None], end[None]
    lines = (1 - at) ** 2 * start + 2 * at * (1 - at) * control + at**2 * end
    used = jnp.arange(_MOST) < jax.random.randint(keys[4], (), _FEWEST, _MOST + 1)
    radius = jax.random.uniform(keys[5], (), minval=0.8, maxval=2)
    room = min(height, width) * _SIZE - 2 * radius
    lines = _fitted(lines, used[None, :, None], room)
    squares = _square_distance(lines[:-1], lines[1:], height, width)
    squares = jnp.where(used[None, None, None], squares, jnp.inf)
    return jnp.clip(radius + 0.5 - jnp.sqrt(squares.min((2, 3))), 0, 1)


def _fitted(lines: Array, used: Array, size: Array) -> Array:
    """Returns points `[…, strokes, 2]` in a box of `size`, about 0."""
    low = jnp.where(used, lines, jnp.inf).min((0, 1), keepdims=True)
    high = jnp.where(used, lines, -jnp.inf).max((0, 1), keepdims=True)
    fitted: Array = (lines - (low + high) / 2) * (size / (high - low).max())
    return fitted


def _square_distance(starts: Array, ends: Array, height: int, width: int) -> Array:
    """Returns squared distances `[height, width, …]` of pixels to segments `[…, 2]`."""
    rows, columns = (
        jnp.expand_dims(jnp.arange(size) - (size - 1) / 2, axes)
        for size, axes in ((height, (1, 2, 3)), (width, (0, 2, 3)))
    )
    starts, ends = starts[None, None], ends[None, None]
    y, x = rows - starts[..., 0], columns - starts[..., 1]
    down, right = jnp.moveaxis(ends - starts, -1, 0)
    along = (y * down + x * right) / jnp.maximum(down**2 + right**2, 1e-6)
    along = jnp.clip(along, 0, 1)
    squares: Array = (y - along * down) ** 2 + (x - along * right) ** 2
    return squares
