"""The shortest way to 99 %: seconds from the start of a process to its test accuracy.

pip install -e '.[benchmarks]' && python -m benchmarks.fast

`cnn:fast` beside PyTorch with the same network and recipe, and beside PyTorch's example
of MNIST (github.com/pytorch/examples), which trains epochs until the test accuracy is
99 %. Rounds alternate between them, with another seed each. The compiled programs and
the unpacked data of flaxmnist are in its cache; PyTorch reads arrays that need no
decoding.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.mnist import load_mnist
from benchmarks.peers.fast_torch import EXAMPLE, RECIPE
from flaxmnist.runtime.machine import PACKAGES, cpu_kind, versions

OURS = "flaxmnist cnn:fast"
ACCURACY = re.compile(r"^test\s.*?(\d+\.\d+)%")


def command(name: str, seed: int, arrays: str, workdir: str) -> list[str]:
    """Returns the command that trains `name` and prints a line of the test split."""
    if name == OURS:
        train = ["-m", "flaxmnist", "train", "--platform=cpu", "--config=cnn:fast"]
        return [*train, f"--config.seed={seed}", f"--workdir={workdir}"]
    return ["-m", "benchmarks.peers.fast_torch", name, str(seed), arrays]


def measure(name: str, seed: int, arrays: str) -> tuple[float, float]:
    """Returns the seconds until the last line of test accuracy, and the accuracy.

    Args:
      name: what is trained.
      seed: of the run.
      arrays: a directory that :func:`write_arrays` wrote.
    """
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command(name, seed, arrays, workdir)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout
        results = [
            (time.perf_counter() - began, float(found[1]))
            for line in process.stdout
            if (found := ACCURACY.match(line))
        ]
        if process.wait():
            raise SystemExit(f"{name} failed")
    return results[-1]


def write_arrays(folder: Path) -> None:
    """Writes the splits of MNIST as arrays of NumPy."""
    mnist = load_mnist()
    for split in ("train", "validation", "test"):
        arrays = getattr(mnist, split)
        np.save(folder / f"{split}-images.npy", np.asarray(arrays.images))
        np.save(folder / f"{split}-labels.npy", np.asarray(arrays.labels))


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    names = (OURS, RECIPE, EXAMPLE)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="default: all"
    )
    args = parser.parse_args()
    found = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as arrays:
        write_arrays(Path(arrays))
        if OURS in args.only:
            measure(OURS, 0, arrays)  # Fills the cache.
        for seed in range(args.rounds):
            for name in args.only:
                found[name].append(measure(name, seed, arrays))
                print(f"round {seed + 1}: {name}: {found[name][-1]}", flush=True)
    cpu, python = cpu_kind()[0], platform.python_version()
    print(f"{cpu}, {os.cpu_count()} cores, Python {python}")
    print("| | seconds: median (range) | test accuracy: mean |\n|---|---|---|")
    for name, figures in found.items():
        seconds, accuracies = zip(*figures, strict=True)
        print(
            f"| {name} | {statistics.median(seconds):.1f} ({min(seconds):.1f}–"
            f"{max(seconds):.1f}) | {statistics.mean(accuracies):.2f}% |"
        )
    if args.output:
        record = {"cpu": cpu_kind(), "versions": versions(PACKAGES), "figures": found}
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
