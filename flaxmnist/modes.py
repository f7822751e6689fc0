"""What is done with a trained run: its figures again, or its predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flaxmnist import distributed, run_files
from flaxmnist.checks import UserError, check, one_of, path_of
from flaxmnist.console import Console
from flaxmnist.data import SPLITS
from flaxmnist.durable import write_file
from flaxmnist.evaluate import predict
from flaxmnist.restore import open_run
from flaxmnist.summary import print_table, summarize


def evaluate_checkpoint(
    config: ConfigDict,
    workdir: str | Path,
    step: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluates a run's best checkpoint on validation, or that of `step`.

    Returns:
      a summary as `train_and_evaluate` makes it; nothing is written.

    Raises:
      UserError: there is no such run, or no such checkpoint.
    """
    console = console or Console()
    run, state, step, last = open_run(config, workdir, step, console)
    summary = summarize(run, state, last, step, console)
    print_table(console, summary)
    return summary


def predict_split(
    config: ConfigDict,
    workdir: str | Path,
    split: str = "test",
    step: int | None = None,
    console: Console | None = None,
) -> Path:
    """Writes what a run's best checkpoint, or that of `step`, says of a split.

    Returns:
      ``predictions-<split>.jsonl`` in the run's folder. A line an example, in the
      split's order: its `index` there, its `label`, the most probable of the `classes`,
      and the ten `probabilities`.

    Raises:
      UserError: there is no such split, run or checkpoint, or the file cannot be
        written.
    """
    check("", {"split": split}, {"split": one_of(SPLITS)})
    console, workdir = console or Console(), path_of(workdir, "workdir")
    run_files.check_links(workdir)
    run, state, step, _ = open_run(config, workdir, step, console)
    outputs = predict(state, run.eval_feeds[split], run.everywhere)
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
    if distributed.is_first():
        try:
            write_file(path, "\n".join(lines) + "\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
    correct = np.sum(outputs["classes"] == outputs["labels"])
    console.line(
        f"{path}: {len(lines):,} examples of {split}, step {step}, "
        f"accuracy {correct / len(lines):.2%}"
    )
    return path
