"""The predictions of a split: ``predictions-<split>.jsonl``."""

import json
from pathlib import Path

import numpy as np

from flaxmnist.errors import UserError
from flaxmnist.runtime import processes
from flaxmnist.runtime.durable import write_file


def write_predictions(
    workdir: Path, split: str, outputs: dict[str, np.ndarray]
) -> Path:
    """Writes a line per example and returns the path; the first process writes.

    Args:
      workdir: the run directory.
      split: "train", "validation" or "test".
      outputs: integers ``labels`` and ``classes`` `[count]`, and ``probabilities``
        `[count, classes]`.

    Raises:
      UserError: the file cannot be written.
    """
    lines = [
        json.dumps(
            {
                "index": index,
                "label": int(label),
                "classes": int(outputs["classes"][index]),
                "probabilities": outputs["probabilities"][index].tolist(),
            }
        )
        for index, label in enumerate(outputs["labels"])
    ]
    path = workdir / f"predictions-{split}.jsonl"
    if processes.is_first():
        try:
            write_file(path, "\n".join(lines) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
    return path
