"""What a trained run says of pictures: files, or arrays in memory."""

if __name__ == "__main__":
    from flaxmnist import startup

    startup.prepare()

import dataclasses
import glob
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from flaxmnist import cli
from flaxmnist.checks import UserError, path_of, printable
from flaxmnist.console import Console
from flaxmnist.inputs import IMAGE_SHAPE
from flaxmnist.pictures import MAX_FILE_BYTES, Picture
from flaxmnist.preprocess import Prepared, prepare
from flaxmnist.restore import load_state
from flaxmnist.state import TrainState
from flaxmnist.steps import predict_step

_DESCRIPTION = """\
Says which digits are in pictures, by a trained run.

  %(prog)s --workdir runs/a digit.png more/*.jpg
  %(prog)s --workdir runs/a --json --top 3 'scans/**/*.png'
  cat digit.png | %(prog)s --workdir runs/a -

Any size, dark on light or light on dark. A picture that cannot be read is reported, the
others are predicted, and the exit code is then 1.
"""
# Below this probability of the first choice, a prediction is marked.
SURE = 0.8
# Pictures that are predicted at once.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of a picture.

    Attributes:
      prepared: what it was given, and what makes that doubtful.
      probabilities: of the ten digits.
    """

    prepared: Prepared
    probabilities: Float[np.ndarray, "10"]

    @property
    def digit(self) -> int | None:
        """The most probable digit; None where nothing is drawn."""
        return self.top(1)[0][0] if self.top(1) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the prediction is doubtful; empty if it is not."""
        sure = self.digit is None or self.probabilities.max() >= SURE
        return self.prepared.warnings + (() if sure else ("low confidence",))

    def top(self, count: int) -> list[tuple[int, float]]:
        """Returns the `count` most probable digits and their probabilities."""
        if not self.prepared.image.any():
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(digit), float(self.probabilities[digit])) for digit in order]


def predict_images(
    pictures: Iterable[Picture] | Picture, run: TrainState | str | Path
) -> list[Prediction]:
    """Returns a trained model's predictions of pictures.

    Args:
      pictures: each a path, an open file, the bytes of a file, a Pillow image, or an
        array; see :func:`flaxmnist.preprocess.prepare`. Or an array of several,
        `[count, height, width]` or `[count, height, width, 1 to 4]`. Or one picture.
      run: the folder of a run, of which the best checkpoint on validation is taken, or
        a state.

    Raises:
      UserError: the run does not exist, or one of the pictures is not a picture.
    """
    state = run if isinstance(run, TrainState) else load_state(run)
    prepared = [prepare(picture) for picture in _several(pictures)]
    return predict_prepared(prepared, state)


def _several(pictures: Any) -> Iterable[Picture]:
    """Returns pictures one by one; a single one is the only one."""
    single = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    if isinstance(pictures, single) or hasattr(pictures, "read"):
        return [pictures]
    if hasattr(pictures, "__array__"):
        array = np.asarray(pictures)
        if array.ndim == 2 and array.shape[1] == 784 != array.shape[0]:
            raise UserError(
                f"array of shape {list(array.shape)}; expected [count, height, width]. "
                "For flat images, use array.reshape(-1, 28, 28)"
            )
        several = array.ndim > 3 or (array.ndim == 3 and array.shape[2] > 4)
        return array if several else [array]
    if not isinstance(pictures, Iterable):
        return [pictures]  # Which is refused as a picture.
    return pictures


def predict_prepared(
    prepared: Sequence[Prepared], state: TrainState
) -> list[Prediction]:
    """Returns what a model says of pictures that are ready."""
    found: list[Prediction] = []
    for start in range(0, len(prepared), _CHUNK):
        chunk = prepared[start : start + _CHUNK]
        # One program serves any number of pictures.
        images = np.zeros((_CHUNK, *IMAGE_SHAPE[:2]), np.uint8)
        images[: len(chunk)] = [picture.image for picture in chunk]
        probabilities = jax.device_get(predict_step(state, images)["probabilities"])
        # The rest is padding.
        found += map(Prediction, chunk, probabilities[: len(chunk)])
    return found


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    """Yields files; a pattern that the shell left as it is, is looked up here."""
    for pattern in patterns:
        # A file may well be called "7[1].png".
        found = [] if os.path.exists(pattern) else _glob(os.path.expanduser(pattern))
        yield from sorted(filter(os.path.isfile, found)) or [pattern]


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


def _prepare(files: Iterable[str], failed: list[str]) -> Iterator[tuple[str, Prepared]]:
    """Yields each file's picture; those that cannot be read are told, and `failed`."""
    for file in files:
        try:
            source: Any = file
            if file == "-":
                source = io.BytesIO(sys.stdin.buffer.read(MAX_FILE_BYTES))
                source.name = "standard input"
            yield file, prepare(source)
        except UserError as error:
            failed.append(file)
            cli.say(str(error))


def _line(file: str, prediction: Prediction, count: int) -> str:
    name = printable(file)
    text = f"{name}  –"
    if prediction.digit is not None:
        (digit, probability), *others = prediction.top(count)
        text = f"{name}  {digit}  {probability:.1%}"
        text += "".join(f"  {other} {share:.1%}" for other, share in others)
    return text + "".join(f"  ({warning})" for warning in prediction.warnings)


def _record(file: str, prediction: Prediction, count: int) -> dict[str, Any]:
    return {
        "file": file,
        "digit": prediction.digit,
        "top": [
            {"digit": digit, "probability": round(probability, 6)}
            for digit, probability in prediction.top(count)
        ],
        "warnings": prediction.warnings,
    }


def _save(folder: Path, index: int, file: str, prepared: Prepared) -> None:
    """Writes what the model was given, under a name that no other picture has."""
    name = f"{index:04d}-{Path(file).stem if file != '-' else 'stdin'}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prepared.image).save(folder / name)
    except OSError as error:
        raise UserError(
            f"--save_preprocessed {folder} cannot be written ({error.strerror}): "
            "expected a folder"
        ) from None


def run(argv: Sequence[str]) -> int:
    """Does what the command line says; returns 1 if a picture could not be read.

    Raises:
      UserError: it cannot be done.
    """
    parser = cli.Parser("python -m flaxmnist.predict", _DESCRIPTION)
    parser.add_run()
    parser.add_argument("--json", action="store_true", help="an object a line")
    parser.add_argument(
        "--top", type=int, default=2, metavar="K", help="how many digits; default: 2"
    )
    parser.add_argument(
        "--save_preprocessed",
        type=lambda text: path_of(text, "--save_preprocessed"),
        metavar="DIR",
        help="what the model is given",
    )
    parser.add_argument("files", nargs="+", metavar="PICTURE", help="- is stdin")
    args = parser.parse_args(argv)
    if not 1 <= args.top <= 10:
        raise UserError(f"--top {args.top}: expected 1 to 10")
    cli.start_jax(args)
    state = load_state(args.workdir, args.step)

    console = Console()
    failed: list[str] = []
    ready = enumerate(_prepare(_expand(args.files), failed))
    while chunk := list(itertools.islice(ready, _CHUNK)):
        predictions = predict_prepared([picture for _, (_, picture) in chunk], state)
        for (index, (file, picture)), prediction in zip(
            chunk, predictions, strict=True
        ):
            if args.save_preprocessed is not None:
                _save(args.save_preprocessed, index, file, picture)
            if args.json:
                console.line(json.dumps(_record(file, prediction, args.top)))
            else:
                console.line(_line(file, prediction, args.top))
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return cli.exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
