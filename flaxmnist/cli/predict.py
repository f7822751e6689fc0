"""`flaxmnist predict`: predicts pictures in files, or a split of the data."""

import argparse
import functools
import glob
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from flaxmnist.cli import command, exits, numbers
from flaxmnist.core import mnist
from flaxmnist.data import SPLITS
from flaxmnist.errors import UserError, printable
from flaxmnist.inference.predict import (
    CHUNK,
    Prediction,
    predict_prepared,
    prepare_for,
)
from flaxmnist.inference.reading import check_reads, read_picture
from flaxmnist.inference.saved_run import SavedRun, open_run
from flaxmnist.paths import path_of
from flaxmnist.pictures.files import FORMATS, HEIC_SUFFIXES, MAX_FILE_BYTES
from flaxmnist.pictures.prepare import SEVERAL_FOUND
from flaxmnist.runtime.console import Console

T = TypeVar("T")

_OF_SPLIT = ("config", "devices", "coordinator", "num_processes", "process_id")

_DESCRIPTION = """\
Predicts the classes of pictures, or of a split of the data.

  %(prog)s --workdir runs/a docs/samples/7.png more/*.jpg
  %(prog)s --workdir runs/a --json --top 3 scans 'more/**/*.png'
  cat digit.png | %(prog)s --workdir runs/a -
  %(prog)s --workdir runs/a --read docs/samples/2024.jpg    (numbers of several digits)
  %(prog)s --workdir runs/a --split test     (writes predictions-test.jsonl)

Pictures have any size. A directory stands for the pictures in it and in its
subdirectories. For a model of images like MNIST's, a drawing is found in each
picture, dark on light or light on dark. For any other model, the picture is scaled to
cover the image and cropped to its centre. A picture that cannot be read is reported,
the others are predicted, and the exit code is then 1.
"""


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    """Yields files; expands directories, and patterns that the shell did not expand.

    A directory without pictures is yielded as it is.
    """
    for pattern in patterns:
        if os.path.isdir(pattern):
            inside = _glob(os.path.join(glob.escape(pattern), "**"))
            yield from sorted(filter(_is_picture, inside)) or [pattern]
            continue
        # A file may well be called "7[1].png".
        found = [] if os.path.exists(pattern) else _glob(os.path.expanduser(pattern))
        yield from sorted(filter(os.path.isfile, found)) or [pattern]


def _is_picture(path: str) -> bool:
    """Returns whether a path is a file with the suffix of a format that is read."""
    suffix = os.path.splitext(path)[1].lower()
    is_known = Image.registered_extensions().get(suffix) in FORMATS
    return (is_known or suffix in HEIC_SUFFIXES) and os.path.isfile(path)


def _glob(pattern: str) -> set[str]:
    """Returns the paths that match; ``**`` does not descend into linked directories.

    A link to a directory above it would be followed again and again.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    rest = list(itertools.dropwhile("**".__eq__, parts[at:])) or ["*"]
    found = set()
    for base in glob.glob("/".join([*parts[:at], ""])) if at else ["./"]:
        for place, folders, _ in os.walk(base):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = os.path.join(place, "").removeprefix("" if at else "./")
            found |= _glob(glob.escape(inside) + "/".join(rest))
    return found


def _opened(
    files: Iterable[str], use: Callable[[Any], T], failed: list[str]
) -> Iterator[tuple[str, T]]:
    """Yields `use(picture)` of each file; reports the files where that fails.

    Args:
      files: paths; ``-`` is standard input.
      use: raises a UserError for a file that it cannot read.
      failed: receives the names of those files.
    """
    for file in files:
        try:
            source: Any = file
            if os.path.isdir(file):
                raise UserError(f"{file} contains no pictures, such as .png or .jpg")
            if file == "-":
                source = io.BytesIO(sys.stdin.buffer.read(MAX_FILE_BYTES))
                source.name = "standard input"
            yield file, use(source)
        except UserError as error:
            failed.append(file)
            exits.print_error(str(error))


def _line(file: str, prediction: Prediction, count: int) -> str:
    text = f"{file}  –"
    if prediction.label is not None:
        (label, probability), *others = prediction.top(count)
        text = f"{file}  {label}  {probability:.1%}"
        text += "".join(f"  {other} {share:.1%}" for other, share in others)
    for warning in prediction.warnings:
        reads = prediction.class_names == mnist.CLASS_NAMES
        advice = "; use --read" if reads and warning.endswith(SEVERAL_FOUND) else ""
        text += f"  ({warning}{advice})"
    return printable(text)


def _record(file: str, prediction: Prediction, count: int) -> dict[str, Any]:
    return {
        "file": file,
        **_named(prediction, prediction.label),
        "top": [
            {**_named(prediction, label), "probability": round(probability, 6)}
            for label, probability in prediction.top(count)
        ],
        "energy": None if prediction.label is None else round(prediction.energy, 4),
        "energy_limit": prediction.calibration.energy_limit,
        "warnings": prediction.warnings,
    }


def _named(prediction: Prediction, label: str | None) -> dict[str, Any]:
    """Returns the name of a class, and its number if the classes are the ten digits."""
    if prediction.class_names != mnist.CLASS_NAMES:
        return {"label": label}
    return {"digit": None if label is None else int(label), "label": label}


def _save(folder: Path, index: int, file: str, image: Image.Image) -> None:
    """Writes an image that was made of a picture, under a unique name."""
    # A whole stem may be too long for a name with the index.
    name = f"{index:04d}-{Path(file).stem[:60] if file != '-' else 'stdin'}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    except OSError as error:
        raise UserError(
            f"--save_preprocessed {folder} cannot be written ({error.strerror}): "
            "expected a folder"
        ) from None


def _parser() -> command.Parser:
    parser = command.Parser("predict", _DESCRIPTION)
    parser.add_run()
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument("files", nargs="*", metavar="PICTURE", help="- is stdin")
    pictures.add_argument(
        "--read",
        action="store_true",
        help="read numbers of several digits, for models of the ten digits",
    )
    pictures.add_argument("--json", action="store_true", help="a JSON object per line")
    pictures.add_argument(
        "--top",
        type=int,
        metavar="K",
        help="number of classes to show, at most all of them; default: 2",
    )
    pictures.add_argument(
        "--save_preprocessed",
        type=lambda text: path_of(text, "--save_preprocessed"),
        metavar="DIR",
        help="save the images that the model receives; with --read, the digits found",
    )
    split = parser.add_argument_group("a split of the data")
    split.add_argument(
        "--split",
        choices=SPLITS,
        help="write the class and the probabilities of each example",
    )
    parser.add_config()
    parser.add_devices()
    return parser


def _predict_pictures(args: argparse.Namespace, saved: SavedRun) -> list[str]:
    """Prints predictions and returns the files that cannot be read."""
    state, class_names = saved.state, saved.manifest.dataset.class_names
    console = Console()
    failed: list[str] = []
    prepare = functools.partial(
        prepare_for, image_shape=state.image_shape, class_names=class_names
    )
    ready = enumerate(_opened(_expand(args.files), prepare, failed))
    while chunk := list(itertools.islice(ready, CHUNK)):
        pictures = [picture for _, (_, picture) in chunk]
        predictions = predict_prepared(pictures, state, class_names, saved.calibration)
        for (index, (file, picture)), prediction in zip(
            chunk, predictions, strict=True
        ):
            if args.save_preprocessed is not None:
                image = Image.fromarray(picture.image)
                _save(args.save_preprocessed, index, file, image)
            if args.json:
                record = _record(file, prediction, args.top)
                console.line(json.dumps(record), wrap=False)
            else:
                console.line(_line(file, prediction, args.top))
    return failed


def _read_pictures(args: argparse.Namespace, saved: SavedRun) -> list[str]:
    """Prints the numbers in pictures and returns the files that cannot be read."""
    check_reads(saved.state, saved.manifest.dataset.class_names)
    read = functools.partial(
        read_picture, state=saved.state, calibration=saved.calibration
    )
    console = Console()
    failed: list[str] = []
    readings = _opened(_expand(args.files), read, failed)
    for index, (file, reading) in enumerate(readings):
        if args.save_preprocessed is not None and reading.ink is not None:
            _save(args.save_preprocessed, index, file, reading.annotated())
        if args.json:
            console.line(json.dumps(numbers.record(file, reading)), wrap=False)
        else:
            for line in numbers.lines(file, reading):
                console.line(line)
    return failed


def run(argv: Sequence[str]) -> int:
    """Predicts as the flags say; returns 1 if a picture cannot be read.

    Raises:
      UserError: the flags, the run or its data cannot be used.
    """
    args, overrides = _parser().parse_config_args(argv)
    if bool(args.files) == (args.split is not None):
        found = "both" if args.files else "neither"
        raise UserError(
            f"found {found} of PICTURE and --split; expected one of them, such as "
            "--split=test"
        )
    if args.files:
        given = [flag for flag in _OF_SPLIT if getattr(args, flag) is not None]
        given += [f"config.{name}" for name, _ in overrides]
        if given:
            raise UserError(f"--{given[0]} has no effect on pictures")
    if args.split is not None:
        for flag in ("read", "json", "top", "save_preprocessed"):
            if getattr(args, flag):
                raise UserError(
                    f"--{flag} has no effect on --split; give PICTURE instead"
                )
    if args.top is None:
        args.top = 2
    elif args.read:
        raise UserError(
            "--top has no effect on --read; --json prints all probabilities"
        )
    if args.top < 1:
        raise UserError(f"--top={args.top}: expected at least 1")
    command.start_jax(args, several=args.split is not None)
    if args.split is None:
        saved = open_run(args.workdir, args.step, trust_code=args.trust_code)
        failed = (_read_pictures if args.read else _predict_pictures)(args, saved)
        return 1 if failed else 0
    config = command.load_config(args, overrides)
    saved = open_run(args.workdir, args.step, config=config, use_mesh=True)
    saved.predict_split(args.split)
    return 0


main = functools.partial(exits.exit_code, run)
