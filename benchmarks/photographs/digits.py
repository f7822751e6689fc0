"""The conditions under which pictures of single digits are made."""

from collections.abc import Callable

from benchmarks.photographs.drawing import Drawing
from benchmarks.photographs.inks import PENS, SOURCES, Handwriting
from benchmarks.photographs.photograph import Large, Photograph
from benchmarks.photographs.sample import Sample, random

# Pictures per condition: each digit four times.
COUNT = 40
_DIGIT_HEIGHTS = {
    f"digit {height} px": Photograph(height=height, shape=shape)
    for height, shape in (
        (30, (1200, 900)),
        (40, (1200, 900)),
        (60, (1200, 900)),
        (100, (1600, 1200)),
        (300, (1600, 1200)),
        (600, (1600, 1200)),
    )
}
CONDITIONS: dict[str, Photograph | Large | Drawing] = {
    "plain paper": Photograph(),
    "ruled paper": Photograph("ruled"),
    "graph paper": Photograph("graph"),
    "chalk on a board": Photograph("board", PENS["chalk"]),
    "soft shadow 20–40 %": Photograph(shadow=(0.2, 0.4, True)),
    "soft shadow 40–60 %": Photograph(shadow=(0.4, 0.6, True)),
    "sharp shadow 20–40 %": Photograph(shadow=(0.2, 0.4, False)),
    "sharp shadow 40–60 %": Photograph(shadow=(0.4, 0.6, False)),
    "desk on 1 side": Photograph(sides=1),
    "desk on 2 sides": Photograph(sides=2),
    "desk on 3 sides": Photograph(sides=3),
    "desk on 4 sides": Photograph(sides=4),
    "thin rim of desk": Photograph(sides=4, rim=(0.012, 0.03)),
    "perspective": Photograph(tilt=(0.06, 0.11)),
    "blurred": Photograph(blur=(0.02, 0.05)),
    "noisy": Photograph(noise=(0.05, 0.11)),
    "strong JPEG": Photograph(share=(0.12, 0.4), quality=(6, 16)),
    **_DIGIT_HEIGHTS,
    "12 megapixels": Large(),
    "black frame": Drawing("frame"),
    "black frame 6 px inside": Drawing("inset frame"),
    "title bar": Drawing("title bar"),
    "underlined": Photograph(line="under"),
    "crossed by a rule": Photograph(line="across"),
    "turned by 5–15°": Photograph(angle=(5, 15)),
    "turned by 15–30°": Photograph(angle=(15, 30)),
    "blue pen": Photograph(pen=PENS["blue pen"]),
    "red pen": Photograph(pen=PENS["red pen"]),
    "pencil": Photograph(pen=PENS["pencil"]),
    "marker": Photograph(pen=PENS["marker"]),
    "cropped tight": Photograph(cut="tight"),
    "touching the border": Photograph(cut="border"),
    "white on black": Drawing("white on black"),
    "transparent": Drawing("transparent"),
    "16 bits, 10 used": Drawing("16 bits"),
}


def take(condition: str, index: int, half: str, hand: Handwriting) -> Sample:
    """Returns one picture of a condition, the same for the same arguments."""
    rng = random(half, condition, index)
    digit, source = index % 10, SOURCES[(index + index // 10) % len(SOURCES)]
    take: Callable[..., bytes] = CONDITIONS[condition].take
    file = take(digit, source, hand, rng)
    return Sample(condition, index, str(digit), file, (), source)
