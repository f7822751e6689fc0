"""Surfaces to write on: papers, boards, and the desks below them.

All are float32 `[height, width, 3]`, red, green and blue from 0 to 1, without light.
"""

import numpy as np
from PIL import Image

Rng = np.random.Generator
Shape = tuple[int, int]


def clouds(shape: Shape, rng: Rng, cells: float, stretch: float = 1) -> np.ndarray:
    """Returns smooth noise, float32 `shape`, of mean 0 and standard deviation 1.

    Args:
      shape: height and width in pixels.
      rng: of the noise.
      cells: number of its cells along the longer side.
      stretch: how much longer than high a cell is.
    """
    size = max(shape) / cells
    grid = [
        max(3, round(side / size / part) + 2)
        for side, part in zip(shape, (1, stretch), strict=True)
    ]
    small = Image.fromarray(rng.standard_normal(grid, np.float32))
    noise = np.asarray(small.resize(shape[::-1], Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / max(noise.std(), 1e-6)


def plain(shape: Shape, rng: Rng) -> np.ndarray:
    """Returns white or yellowish paper with fibres and a slight waviness."""
    white = rng.uniform(0.86, 0.97)
    tint = white * np.array([1, rng.uniform(0.97, 1), rng.uniform(0.86, 1)])
    grain = rng.uniform(0.004, 0.014) * clouds(shape, rng, max(shape) / 1.6)
    grain += rng.uniform(0.002, 0.008) * clouds(shape, rng, max(shape) / 12)
    grain += rng.uniform(0.002, 0.012) * clouds(shape, rng, 6)
    return (1 + grain).astype(np.float32)[..., None] * np.float32(tint)


def _rule(paper: np.ndarray, axis: int, places: np.ndarray, width: float, ink) -> None:
    """Draws straight lines of a color `ink` across a paper, in place."""
    at = np.arange(paper.shape[axis], dtype=np.float32)
    # Anti-aliased: a line covers a part of the pixels at its edges.
    distance = abs(at[:, None] - places).min(1, initial=np.inf)
    cover = np.clip(width / 2 + 0.5 - distance, 0, 1)
    cover = cover[:, None, None] if axis == 0 else cover[None, :, None]
    paper += np.float32(cover) * (np.float32(ink) - paper)


def _faded(inks: tuple[list[float], ...], rng: Rng) -> np.ndarray:
    """Returns one of some colors, mixed with white."""
    ink = np.array(inks[rng.integers(len(inks))])
    return 1 - rng.uniform(0.65, 1) * (1 - ink)


def ruled(shape: Shape, rng: Rng, pitch: float) -> np.ndarray:
    """Returns paper with lines `pitch` pixels apart, half of it with a margin."""
    paper = plain(shape, rng)
    inks = ([0.55, 0.68, 0.85], [0.62, 0.66, 0.7], [0.5, 0.72, 0.74], [0.7, 0.6, 0.72])
    lines = np.arange(rng.uniform(0, pitch), shape[0], pitch)
    width = max(1, rng.uniform(0.02, 0.045) * pitch)
    _rule(paper, 0, lines, width, _faded(inks, rng))
    if rng.random() < 0.5:
        margin = np.array([rng.uniform(0.1, 0.2) * shape[1]])
        _rule(paper, 1, margin, 1.3 * width, [0.88, 0.54, 0.56])
    return paper


def graph(shape: Shape, rng: Rng, pitch: float) -> np.ndarray:
    """Returns paper with squares of `pitch` pixels."""
    paper = plain(shape, rng)
    ink = _faded(([0.6, 0.74, 0.88], [0.68, 0.7, 0.74], [0.6, 0.8, 0.7]), rng)
    width = max(1, rng.uniform(0.025, 0.05) * pitch)
    for axis in (0, 1):
        lines = np.arange(rng.uniform(0, pitch), shape[axis], pitch)
        _rule(paper, axis, lines, width, ink)
    return paper


def board(shape: Shape, rng: Rng) -> np.ndarray:
    """Returns a green, black or gray board with wiped chalk."""
    tones = ([0.13, 0.26, 0.2], [0.12, 0.13, 0.14], [0.22, 0.26, 0.28])
    tone = np.array(tones[rng.integers(len(tones))]) * rng.uniform(0.85, 1.2)
    wiped = clouds(shape, rng, 9, stretch=4) + 0.6 * clouds(shape, rng, 30, stretch=3)
    dust = np.clip(0.04 + 0.022 * wiped, 0, 0.12)
    dust += 0.012 * clouds(shape, rng, max(shape) / 2)
    return (tone + dust[..., None] * (1 - tone)).astype(np.float32)


def desk(shape: Shape, rng: Rng) -> np.ndarray:
    """Returns wood, or a table top of one color, clearly darker than paper."""
    woods = ([0.34, 0.22, 0.13], [0.5, 0.35, 0.22], [0.24, 0.16, 0.11])
    flats = ([0.12, 0.12, 0.13], [0.32, 0.33, 0.35], [0.2, 0.25, 0.32])
    if rng.random() < 0.6:
        tone = woods[rng.integers(len(woods))]
        grain = 0.1 * clouds(shape, rng, 60, stretch=14)
        grain += 0.06 * clouds(shape, rng, 180, stretch=20)
    else:
        tone = flats[rng.integers(len(flats))]
        grain = 0.03 * clouds(shape, rng, max(shape) / 2)
    grain += 0.05 * clouds(shape, rng, 4)
    return np.clip((1 + grain)[..., None] * np.float32(tone), 0, 1).astype(np.float32)


# Papers by name, each a function of shape, `rng` and the pitch of its lines.
PAPERS = {
    "plain": lambda shape, rng, pitch: plain(shape, rng),
    "ruled": ruled,
    "graph": graph,
    "board": lambda shape, rng, pitch: board(shape, rng),
}
