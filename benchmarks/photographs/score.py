"""What a run reads on the pictures, counted by condition."""

import collections
import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.photographs.sample import Box, Sample

OUTCOMES = ("right", "none", "warned", "wrong")
# Boxes match whose intersection is at least this share of their union.
OVERLAP = 0.5


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was predicted for one picture of a digit, or of none."""

    condition: str
    index: int
    source: str
    truth: str
    label: str | None
    probability: float
    warnings: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        if self.label is None:
            return "none"
        if self.label == self.truth:
            return "right"
        return "warned" if self.warnings else "wrong"

    @property
    def is_flagged(self) -> bool:
        """Whether the answer is to be doubted: no digit, or a warning."""
        return self.label is None or bool(self.warnings)


def answer(sample: Sample, prediction: Any) -> Answer:
    """Returns a prediction as plain data."""
    return Answer(
        sample.condition,
        sample.index,
        sample.source,
        sample.text,
        prediction.label,
        round(float(prediction.probabilities.max()), 4),
        tuple(prediction.warnings),
    )


@dataclasses.dataclass(frozen=True)
class NumberAnswer:
    """What was read from one picture of a number.

    Attributes:
      condition: kind of number and place.
      index: number of the picture within its condition.
      truth: the text, a line per line.
      text: the text that was read.
      digits: number of digits in `truth`.
      right: number of them that were read, in their order.
      extra: number of digits that were read and are not in `truth`.
      boxes: number of digits whose box was found.
      is_whole: whether each line was read without a mistake.
      is_flagged: whether the reading or one of its digits has a warning.
    """

    condition: str
    index: int
    truth: str
    text: str
    digits: int
    right: int
    extra: int
    boxes: int
    is_whole: bool
    is_flagged: bool


def number_answer(sample: Sample, reading: Any) -> NumberAnswer:
    """Compares a `Reading` with the truth; separators do not count."""
    truth, text = (_digits(part) for part in (sample.text, reading.text))
    blocks = difflib.SequenceMatcher(
        None, "".join(truth), "".join(text), autojunk=False
    ).get_matching_blocks()
    right = sum(block.size for block in blocks)
    total = sum(map(len, truth))
    return NumberAnswer(
        sample.condition,
        sample.index,
        sample.text,
        reading.text,
        total,
        right,
        sum(map(len, text)) - right,
        _found(sample.boxes, [digit.box for digit in reading.digits]),
        truth == text,
        bool(reading.warnings or any(digit.warnings for digit in reading.digits)),
    )


def _digits(text: str) -> list[str]:
    lines = (re.sub(r"\D", "", line) for line in text.splitlines())
    return [line for line in lines if line]


def _found(truth: Sequence[Box], boxes: Iterable[Box]) -> int:
    """Returns how many boxes have a box of their own that matches."""
    free, count = list(boxes), 0
    for box in truth:
        best = max(free, key=lambda other: overlap(box, other), default=None)
        if best is not None and overlap(box, best) >= OVERLAP:
            free.remove(best)
            count += 1
    return count


def overlap(first: Box, second: Box) -> float:
    """Returns the intersection of two boxes as a share of their union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return height * width / (areas - height * width)


def print_digits(answers: Sequence[Answer]) -> None:
    """Prints a row per condition."""
    print(f"{'digits':<26}{'n':>5}{'right':>8}{'none':>6}{'warned':>8}{'wrong':>7}")
    rows = collections.defaultdict(list)
    for each in answers:
        rows[each.condition].append(each)
    for source in dict.fromkeys(each.source for each in answers):
        name = f"from {source}"
        rows[name] = [each for each in answers if each.source == source]
    for name, row in {**rows, "all digits": answers}.items():
        counts = collections.Counter(each.outcome for each in row)
        right, none, warned, wrong = (counts[outcome] for outcome in OUTCOMES)
        share = f"{right / len(row):.1%}"
        print(f"{name:<26}{len(row):>5}{share:>8}{none:>6}{warned:>8}{wrong:>7}")
    flagged = sum(each.is_flagged for each in answers)
    print(f"flagged digits: {flagged / len(answers):.1%}")


def print_others(answers: Sequence[Answer]) -> None:
    """Prints the share of the pictures without a digit that is flagged."""
    print(f"{'no digits':<26}{'n':>5}{'flagged':>9}")
    rows = collections.defaultdict(list)
    for each in answers:
        rows[each.condition].append(each)
    for name, row in {**rows, "all without digits": answers}.items():
        flagged = sum(each.is_flagged for each in row)
        print(f"{name:<26}{len(row):>5}{flagged / len(row):>9.1%}")


def print_numbers(answers: Sequence[NumberAnswer]) -> None:
    """Prints a row per kind of number and per place."""
    names = (
        f"{'digits':>8}{'extra':>7}{'boxes':>8}{'whole':>8}{'warned':>8}{'wrong':>7}"
    )
    print(f"{'numbers':<26}{'n':>5}{names}")
    rows = collections.defaultdict(list)
    for part in (0, 1):
        for each in answers:
            rows[each.condition.split(", ")[part]].append(each)
    for name, row in {**rows, "all numbers": answers}.items():
        digits = sum(each.digits for each in row)
        right, boxes = (
            f"{sum(getattr(each, part) for each in row) / digits:.1%}"
            for part in ("right", "boxes")
        )
        whole = f"{sum(each.is_whole for each in row) / len(row):.1%}"
        extra = sum(each.extra for each in row)
        faults = collections.Counter(
            each.is_flagged for each in row if not each.is_whole
        )
        figures = f"{right:>8}{extra:>7}{boxes:>8}{whole:>8}"
        print(f"{name:<26}{len(row):>5}{figures}{faults[True]:>8}{faults[False]:>7}")
