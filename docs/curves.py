"""Draws the curves of runs.

python docs/curves.py docs/curves.png runs/a runs/b …
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt


def main(picture: str, *workdirs: str) -> None:
    """Draws training loss and validation error against epochs, a line a run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for workdir in map(Path, workdirs):
        text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        label = f"seed {summary['config']['seed']}: {summary['test']['accuracy']:.2%}"
        train = [record for record in records if record["split"] == "train"]
        left.plot([r["epoch"] for r in train], [r["loss"] for r in train], lw=1)
        held_out = [record for record in records if record["split"] == "validation"]
        errors = [100 * (1 - r["accuracy"]) for r in held_out]
        epochs = [r["epoch"] for r in held_out]
        right.plot(epochs, errors, marker="o", ms=4, lw=1, label=label)
    left.set(yscale="log", xlabel="epoch", ylabel="training loss (nats)")
    right.set(xlabel="epoch", ylabel="validation error (%)", ylim=(0, None))
    right.legend(title="test accuracy", frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
