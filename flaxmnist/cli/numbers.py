"""Prints the numbers that `flaxmnist predict --read` reads."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from flaxmnist.errors import printable
from flaxmnist.inference.reading import Digit, Reading, text_of


def lines(file: str, reading: Reading) -> Iterator[str]:
    """Yields a line of text per line of digits, then one per digit.

    The probability of a number is the product of those of its digits.
    """
    name = printable(file)
    warnings = "".join(f"  ({warning})" for warning in reading.warnings)
    if not reading.digits:
        yield f"{name}  –{warnings}"
    for digits in reading.lines:
        yield f"{name}  {text_of(digits)}  {_confidence(digits):.1%}{warnings}"
        for digit in digits:
            left, top, right, bottom = digit.box
            label, probability = digit.prediction.top(1)[0]
            text = f"  {label}  {probability:.1%}  x {left}–{right}  y {top}–{bottom}"
            yield text + "".join(f"  ({reason})" for reason in digit.warnings)


def record(file: str, reading: Reading) -> dict[str, Any]:
    """Returns a reading as `--json` prints it."""
    return {
        "file": file,
        "text": reading.text,
        "lines": [
            {"text": text_of(digits), "probability": round(_confidence(digits), 6)}
            for digits in reading.lines
        ],
        "digits": [_digit(digit) for digit in reading.digits],
        "warnings": reading.warnings,
    }


def _digit(digit: Digit) -> dict[str, Any]:
    label, probability = digit.prediction.top(1)[0]
    return {
        "digit": int(label),
        "label": label,
        "probability": round(probability, 6),
        "probabilities": [
            round(float(share), 6) for share in digit.prediction.probabilities
        ],
        "box": digit.box,
        "line": digit.line,
        "warnings": digit.warnings,
    }


def _confidence(digits: Sequence[Digit]) -> float:
    return math.prod(digit.prediction.top(1)[0][1] for digit in digits)
