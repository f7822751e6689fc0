"""flaxmnist beside its peers on the CPU: one command, one table, one picture.

pip install -e '.[benchmarks]' && python -m benchmarks.compare --output benchmark

Every figure comes from a process of its own, and the libraries take turns, round after
round, so that a machine that drifts drifts for all. Peers that are not installed are
left out. Writes OUTPUT.json and OUTPUT.png; what `--only` leaves out stays as it was.
A file of other hardware or versions is not overwritten.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.mnist import load_mnist
from flaxmnist.runtime.machine import cpu_kind, versions

# Each trains all networks; DENSE differ where a network has no images to lay out.
DENSE = (
    "flaxmnist",
    "flax:loop",
    "flax:scan",
    "torch:eager",
    "torch:compile",
    "keras:function",
    "keras:xla",
)
ALL = (*DENSE, "torch:channels_last")
# A scan of plain flax takes ten seconds a step of a large batch.
LARGE = tuple(library for library in ALL if library != "flax:scan")
ONE_EACH = ("flaxmnist", "flax:loop", "torch:eager", "keras:function")
# An epoch: also with nothing compiled before, and by PyTorch's own loader of batches.
EPOCH_LIBRARIES = (
    "flaxmnist",
    "flaxmnist:cold",
    "torch:eager",
    "torch:dataloader",
    "keras:function",
)
COST_LIBRARIES = ("flaxmnist", "torch:eager", "torch:channels_last", "keras:function")
BATCH_SIZES = (1, 8, 64, 512, 4096)
# What is measured, of whom: task, network and batch size.
TASKS = {
    "train softmax 100": DENSE,
    "train mlp 100": DENSE,
    "train cnn 100": ALL,
    "train cnn 1024": LARGE,
    "train modern 100": ALL,
    "infer cnn 200": ("torch:channels_last", *ONE_EACH),
}
EPOCH = ("epoch", "cnn", 100)
CEILING = ("ceiling", "-", 0)
# Of a library that was not measured, in the picture.
NONE = {"images_per_second": {"median": 0, "min": 0, "max": 0}}
PACKAGES = ("jax", "flax", "optax", "torch", "tensorflow-cpu", "keras", "numpy")
# Direct products and sums of the tutorial CNN, an image, in one step of training: each
# layer forward and for both gradients, of the first for its kernel's alone.
CNN_FLOP = 2 * (
    2 * 28 * 28 * 25 * 32 + 3 * 14 * 14 * 25 * 32 * 64 + 3 * 3136 * 1024 + 3 * 1024 * 10
)


def work(task, library, network, batch_size, data, threads):
    """Runs a worker; returns its figures and the whole process's seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # What would otherwise be in the user's cache folder, and from another day.
    if library == "flaxmnist:cold":
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(data.with_name("programs"))
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    command = [sys.executable, "-m", "benchmarks.worker", task, library, network]
    command += [str(batch_size), str(data), "--threads", str(threads)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - begin
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        print(f"  {library} {network} {batch_size}: failed: {reason}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": seconds}


def summed_up(rounds):
    """Returns median, least and most of each figure over the rounds."""
    return {
        name: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
        for name in rounds[0]
        for values in [[figures[name] for figures in rounds]]
    }


def take_turns(libraries, what, data, rounds, threads):
    """Measures `what` round after round; returns what is summed up, by library."""
    task, network, batch_size = what
    found = {name: [] for name in libraries if find_spec(name.partition(":")[0])}
    for _ in range(rounds):
        for library in list(found):
            figures = work(task, library, network, batch_size, data, threads)
            if figures is None:
                del found[library]
            else:
                found[library].append(figures)
    return {library: summed_up(figures) for library, figures in found.items()}


def print_table(title, results, figure, unit, more_is_better=True):
    """Prints a figure of each library and how many times better flaxmnist is."""
    print(f"\n{title} ({unit})")
    ours = results["flaxmnist"][figure]["median"]
    for library, figures in results.items():
        found = figures[figure]
        ratio = ours / found["median"] if more_is_better else found["median"] / ours
        median, least, most = (shown(found[key]) for key in ("median", "min", "max"))
        print(f"  {library:<20}{median:>12}  ({least} … {most})  {ratio:6.2f}×")


def shown(value):
    """Returns a figure in four digits or more, and no exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def draw(measured, path):
    """Draws the training figures, a panel a network."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    chosen = {
        name: found for name, found in measured.items() if name.startswith("train")
    }
    names = [name for name in ALL if any(name in found for found in chosen.values())]
    figure, axes = plt.subplots(
        1,
        len(chosen),
        figsize=(2.3 * len(chosen), 3),
        layout="constrained",
        squeeze=False,
    )
    for axis, (name, results) in zip(axes[0], chosen.items(), strict=True):
        found = [results.get(library, NONE)["images_per_second"] for library in names]
        medians = [figures["median"] for figures in found]
        spread = [
            [figures["median"] - figures["min"] for figures in found],
            [figures["max"] - figures["median"] for figures in found],
        ]
        colors = ["C0" if library == "flaxmnist" else "0.75" for library in names]
        axis.barh(names, medians, xerr=spread, color=colors)
        axis.invert_yaxis()
        _, network, batch_size = name.split()
        axis.set_title(f"{network}, batch {batch_size}", size=9)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    figure.supxlabel("training, images/s: median, least and most of the rounds", size=8)
    figure.savefig(path, dpi=150)


def machine():
    """Returns hardware and versions."""
    return versions(PACKAGES) | {"cpu": cpu_kind()[0]}


def save_data(path):
    """Writes the images and labels for the workers."""
    mnist = load_mnist()
    arrays = {
        f"{split}_{part}": getattr(mnist.split(split), part)
        for split in ("train", "test")
        for part in ("images", "labels")
    }
    np.savez(path, **arrays)


def with_peers(libraries, peers):
    """Returns flaxmnist in all its variants, and the libraries among `peers`."""
    return [name for name in libraries if name.startswith("flaxmnist") or name in peers]


def measure_tasks(chosen, peers, data, **turns):
    """Measures and prints the tasks that are `chosen`; yields name and results."""
    if not (names := [name for name in TASKS if name in chosen]):
        return
    ceilings = take_turns(("jax", "torch"), CEILING, data, **turns)
    ceiling = max(found["gflops"]["median"] for found in ceilings.values())
    print(f"matrix product: {ceiling:.0f} GFLOP/s")
    yield "ceiling", ceilings
    for name in names:
        task, network, _ = what = name.split()
        libraries = with_peers(TASKS[name], peers)
        results = take_turns(libraries, what, data, **turns)
        print_table(name, results, "images_per_second", "images/s")
        if task == "infer":
            print_table(name, results, "median_ms", "ms an image", False)
            print_table(name, results, "p99_ms", "ms, 99th percentile", False)
        else:
            print_table(name, results, "peak_mb", "MB, peak", False)
        if network == "cnn" and task == "train":
            rate = results["flaxmnist"]["images_per_second"]["median"]
            gflops = rate * CNN_FLOP * 1e-9
            print(f"  {gflops:.0f} GFLOP/s, {gflops / ceiling:.0%} of a product's")
        yield name, results


def measure_epoch(peers, data, **turns):
    """Measures and prints an epoch from process start."""
    name, libraries = "epoch from process start", with_peers(EPOCH_LIBRARIES, peers)
    take_turns(("flaxmnist",), EPOCH, data, **turns | {"rounds": 1})  # Compiles.
    results = take_turns(libraries, EPOCH, data, **turns)
    print_table(name, results, "process_seconds", "s", False)
    print_table(name, results, "peak_mb", "MB, peak", False)
    print_table(name, results, "accuracy", "test accuracy")
    yield name, results


def measure_first_step(_, data, **turns):
    """Measures and prints a first step from process start."""
    libraries, what = ("flaxmnist", "flax:minimal"), ("startup", "mlp", 0)
    take_turns(libraries, what, data, **turns | {"rounds": 1})
    results = take_turns(libraries, what, data, **turns)
    print_table("first step", results, "process_seconds", "s", False)
    yield "first step", results


def measure_costs(peers, data, **turns):
    """Measures and prints batch sizes, virtual devices, and dispatch by dispatch."""
    libraries = with_peers(COST_LIBRARIES, peers)
    for batch_size in BATCH_SIZES:
        what = ("train", "cnn", batch_size)
        name = f"cost: batches of {batch_size}"
        results = take_turns(libraries, what, data, **turns)
        print_table(name, results, "images_per_second", "images/s")
        yield name, results
    devices = ("flaxmnist", "flaxmnist:2", "flaxmnist:4", "flaxmnist:8")
    for name, what, libraries in (
        ("cost: virtual devices", ("train", "cnn", 1024), devices),
        ("cost: dispatch", ("train", "softmax", 1), ("flaxmnist", "flaxmnist:loop")),
    ):
        results = take_turns(libraries, what, data, **turns)
        print_table(name, results, "images_per_second", "images/s")
        yield name, results


PARTS = {
    "epoch": measure_epoch,
    "first step": measure_first_step,
    "costs": measure_costs,
}


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmark"))
    names = [*TASKS, *PARTS]
    parser.add_argument(
        "--only", nargs="+", default=names, choices=names, help="default: all"
    )
    peers = sorted({*ALL, *EPOCH_LIBRARIES} - {"flaxmnist", "flaxmnist:cold"})
    parser.add_argument(
        "--peers", nargs="*", default=peers, choices=peers, help="default: all"
    )
    args = parser.parse_args()
    turns = {"rounds": args.rounds, "threads": args.threads}
    path = args.output.with_suffix(".json")
    measured = {"hardware and versions": machine() | {"threads": args.threads}}
    print(measured["hardware and versions"])
    if path.exists():  # Parts may be measured one by one.
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["hardware and versions"] != measured["hardware and versions"]:
            parser.error(
                f"{path} is of other hardware or versions; use another --output"
            )
        measured = before
    dates = measured.setdefault("dates", {})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.npz")
        save_data(data)
        parts = [measure_tasks(args.only, args.peers, data, **turns)]
        for name, measure in PARTS.items():
            if name in args.only:
                parts.append(measure(args.peers, data, **turns))
        for name, results in itertools.chain(*parts):
            measured[name], dates[name] = results, time.strftime("%Y-%m-%d")
            # At once: what an hour has measured is not lost.
            path.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    if any(name.startswith("train") for name in measured):
        draw(measured, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
