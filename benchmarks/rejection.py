"""How well a score tells digits from other pictures: coverage against error.

python -m benchmarks.rejection --workdir runs/a runs/b [--half report] [--json F]

The digits are those of the test split (of validation for the half "choose"). The other
pictures are those of `benchmarks.photographs.others`: letters, symbols, scribbles,
noise and empty pages. A threshold accepts a share of the digits, the coverage. The
table has the error of the accepted digits, and the share of the other pictures that the
same threshold flags. A picture in which no digit is found is flagged at any threshold.

The scores need logits only: the largest probability (Hendrycks and Gimpel, 2017), the
largest logit (Hendrycks et al., 2022), and the energy (Liu et al., 2020).
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.special import softmax

from benchmarks.photographs import others
from benchmarks.photographs.sample import samples
from flaxmnist import open_run
from flaxmnist.core.calibration import energy
from flaxmnist.core.steps import predict_step
from flaxmnist.inference.predict import Prediction
from flaxmnist.pictures.prepare import Prepared, prepare

# High for pictures that are unlike the training images.
SCORES = {
    "probability": lambda logits: -softmax(logits, axis=1).max(axis=1),
    "max logit": lambda logits: -logits.max(axis=1),
    "energy": energy,
}
COVERAGES = (0.995, 0.99, 0.985, 0.98, 0.95, 0.9)
CHUNK = 500


def logits_of(state, images: np.ndarray) -> np.ndarray:
    """Returns logits `[count, classes]`."""
    parts = []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        padded = np.zeros((CHUNK, *images.shape[1:]), np.uint8)
        padded[: len(chunk)] = chunk
        logits = np.asarray(predict_step(state, padded)["logits"])
        parts.append(logits[: len(chunk)])
    return np.concatenate(parts)


def curve(
    digits: np.ndarray, labels: np.ndarray, other: np.ndarray, score
) -> list[dict[str, float]]:
    """Returns a row per coverage.

    Args:
      digits: logits of digits `[count, classes]`.
      labels: of the digits.
      other: logits of pictures without a digit.
      score: one of `SCORES`.
    """
    wrong, values, outside = digits.argmax(1) != labels, score(digits), score(other)
    rows = []
    for coverage in COVERAGES:
        limit = np.quantile(values, coverage)
        rows.append(
            {
                "coverage": coverage,
                "error": float(wrong[values <= limit].mean()),
                "flagged": float((outside > limit).mean()),
            }
        )
    return rows


def warned(run, prepared: Iterable[Prepared], logits: np.ndarray) -> np.ndarray:
    """Returns whether `predict` warns of each image, `[count]`."""
    names = run.manifest.dataset.class_names
    return np.array(
        [
            bool(Prediction(image, row, names, run.calibration).warnings)
            for image, row in zip(prepared, logits, strict=True)
        ]
    )


def measure(workdirs: list[str], half: str, indices: range) -> dict:
    """Returns the curves of each run and score, and the flagged share of each kind."""
    pictures = list(samples(others.take, others.CONDITIONS, indices, half))
    prepared = [prepare(sample.file) for sample in pictures]
    kinds = np.array([sample.condition for sample in pictures])
    empty = np.array([each.is_empty for each in prepared])
    images = np.stack([each.image for each in prepared])
    runs: dict = {}
    for workdir in workdirs:
        run = open_run(workdir)
        split = run.dataset.split("test" if half == "report" else "validation")
        digits, labels = logits_of(run.state, split.images), np.asarray(split.labels)
        other = logits_of(run.state, images)
        curves = {}
        for name, score in SCORES.items():
            curves[name] = curve(digits, labels, other[~empty], score)
            for row in curves[name]:
                row["flagged"] = 1 - (1 - row["flagged"]) * (~empty).mean()
        doubtful = warned(run, prepared, other)
        flagged = {
            "digits": warned(run, map(Prepared, split.images), digits),
            "others": doubtful,
            **{kind: doubtful[kinds == kind] for kind in dict.fromkeys(kinds.tolist())},
        }
        runs[workdir] = {
            "digits": len(labels),
            "curves": curves,
            "flagged": {name: float(each.mean()) for name, each in flagged.items()},
        }
    counts = {"pictures": len(pictures), "empty": int(empty.sum())}
    return {"half": half, **counts, "runs": runs}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, nargs="+")
    parser.add_argument("--half", default="choose", choices=("choose", "report"))
    parser.add_argument("--count", type=int, default=others.COUNT, help="of each kind")
    parser.add_argument(
        "--first", type=int, default=0, help="index of the first of each kind"
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    indices = range(args.first, args.first + args.count)
    found = measure(args.workdir, args.half, indices)
    print(f"{found['pictures']} pictures without digits; {found['empty']} found empty")
    for workdir, record in found["runs"].items():
        print(f"\n{workdir}: {record['digits']:,} digits")
        print(f"{'score':<14}{'coverage':>9}{'error':>8}{'flagged':>9}")
        for name, rows in record["curves"].items():
            for row in rows:
                figures = f"{row['coverage']:>9.1%}{row['error']:>8.2%}"
                print(f"{name:<14}{figures}{row['flagged']:>9.1%}")
        for name, share in record["flagged"].items():
            print(f"flagged by predict, {name:<22}{share:>7.1%}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
