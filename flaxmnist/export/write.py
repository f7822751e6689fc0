"""Writes an export into a directory of its own, after a check."""

import contextlib
import math
from pathlib import Path

import numpy as np

from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError, printable, shown
from flaxmnist.export import numpy as numpy_format
from flaxmnist.export import onnx, safetensors, stablehlo, web
from flaxmnist.export.card import FILES, Card
from flaxmnist.export.parity import check_parity
from flaxmnist.runtime import durable, files

_FORMER = "former"
_CARD, _LABELS = "README.md", "labels.txt"
_PIXELS = 200 * 28 * 28
FORMATS = {
    "stablehlo": stablehlo.write,
    "onnx": onnx.write,
    "numpy": numpy_format.write,
    "safetensors": safetensors.write,
    "web": web.write,
}


def write_export(
    state: TrainState, folder: Path, images: np.ndarray, card: Card
) -> float:
    """Writes a model, its labels and its card into `folder`, after a check.

    Args:
      state: the model, on one device.
      folder: replaced if an export wrote it.
      images: uint8 `[count, height, width]` or `[count, height, width, channels]`,
        predicted by the export and by `state`.
      card: names one of `FORMATS`.

    Returns:
      the largest difference of a logit.

    Raises:
      UserError: a package of the format is not installed, or the folder cannot be
        written.
      ParityError: the export and `state` differ in their predictions; the export is
        not kept.
    """
    images = images.reshape(-1, *state.image_shape)
    # No more pixels at once than in an evaluation.
    count = max(1, _PIXELS // math.prod(state.image_shape[:2]))
    parts = [images[at : at + count] for at in range(0, len(images), count)]
    wanted = np.concatenate([predict_step(state, part)["logits"] for part in parts])
    # A line per class, in the order of the logits.
    labels = "\n".join(map(printable, card.dataset.class_names)) + "\n"
    try:
        durable.make_directory(folder.parent)
        with files.partial_folder(folder.parent, _put_back) as partial:
            made = partial / card.format
            made.mkdir()
            predict = FORMATS[card.format](state, made, card)
            found = np.concatenate([predict(part) for part in parts])
            difference = check_parity(found, wanted)
            (made / _LABELS).write_text(labels, encoding="utf-8")
            text = card.render(difference, [path.name for path in made.iterdir()])
            (made / _CARD).write_text(text, encoding="utf-8")
            _exchange(made, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None
    return difference


def _exchange(made: Path, folder: Path) -> None:
    """Renames `made` to `folder`, and keeps a former export until then."""
    former = made.parent / _FORMER / folder.name
    former.parent.mkdir()
    durable.sync_tree(made)
    try:
        with files.locked(folder.parent):
            if folder.exists():
                _check_replaceable(folder)
                durable.replace(folder, former)
            durable.replace(made, folder)
    finally:
        _put_back(made.parent)


def _check_replaceable(folder: Path) -> None:
    """Raises UserError unless the folder is empty or contains an export only."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory; move it elsewhere")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(
            f"{folder} is the current directory or contains it, and export replaces a "
            "directory as a whole; name another one"
        )
    names = {path.name for path in folder.iterdir()}
    # Every export has both. A file of one of these names alone belongs to the user.
    own = {_CARD, *FILES} if {_CARD, _LABELS} <= names else set()
    if other := names - own:
        raise UserError(
            f"{folder} contains {shown(min(other))}, which export did not write; move "
            "it elsewhere"
        )


def _put_back(partial: Path) -> None:
    """Moves a former export back if no new one took its place."""
    for former in partial.glob(f"{_FORMER}/*"):
        with contextlib.suppress(OSError):  # A new export took its place.
            former.rename(partial.parent / former.name)
