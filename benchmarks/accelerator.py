"""Measures flaxmnist on the devices that JAX finds, such as a GPU.

python -m benchmarks.accelerator --output docs/accelerator.json

Each network, precision and batch size has a process of its own. In it, `train_steps`,
a Python loop of `train_step`, the same loop in plain flax, and evaluation take turns,
round after round, so that a machine that drifts drifts for all. Compilation is timed
alone and is no part of any other figure. The command line then trains twice with
``--deterministic``, and a third time killed with SIGKILL and resumed: the bits of the
three last checkpoints are compared.

The images are the bundled subset of MNIST, repeated to 55,000: no network is needed.
GPU memory is not preallocated; its peak is that of `train_steps`, read before the
others begin, and includes what XLA takes to choose its kernels.
"""

import argparse
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.compare import shown, summed_up
from flaxmnist.runtime.machine import PACKAGES, versions

NETWORKS = ("softmax", "mlp", "cnn")
PRECISIONS = ("float32", "bfloat16")
BATCH_SIZES = (128, 1024)
# How each way is called, its module and its variant.
WAYS = {
    "train_steps": ("flaxmnist_", ""),
    "train_step": ("flaxmnist_", "step"),
    "flax": ("flax_", "loop"),
}
PARITY_STEPS = 20
# Of the runs whose bits are compared: long enough to be killed half-way.
FLAGS = (
    "--config=cnn",
    "--config.data.source=bundled",
    "--config.num_steps=400",
    "--config.checkpoint_every=20",
    "--config.eval_every=100",
    "--config.report=False",
    "--config.mesh.data=1",
)


@functools.cache
def digits():
    """Returns 55,000 training images and labels, and 10,000 for evaluation."""
    import flaxmnist

    bundled = flaxmnist.load("mnist", "bundled")
    arrays = []
    for split, count in ((bundled.train, 55_000), (bundled.test, 10_000)):
        arrays += [
            np.resize(split.images, (count, 28, 28)),
            np.resize(split.labels, count),
        ]
    return arrays


def device():
    """Returns the kind of device, its driver, and the versions."""
    import jax

    found = jax.devices()[0]
    driver = None
    if found.platform == "gpu" and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True)
        driver = done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
    return {
        "platform": found.platform,
        "kind": found.device_kind,
        "count": jax.device_count(),
        "runtime": " ".join(found.client.platform_version.split()),
        "driver": driver,
        "cores": len(os.sched_getaffinity(0)),
        **versions(PACKAGES),
    }


def parity(network, precision, batch_size):
    """Returns the largest relative difference of the first losses to those on CPU."""
    import jax

    import flaxmnist
    from benchmarks.peers import shuffled
    from benchmarks.peers.flaxmnist_ import new_state

    images, labels, *_ = digits()

    def losses():
        state, found = new_state(network, precision), []
        batches = shuffled(images, labels, batch_size)
        for image, label in itertools.islice(batches, PARITY_STEPS):
            batch = {"image": image, "label": label}
            state, metrics = flaxmnist.train_step(state, batch)
            found.append(metrics.compute()["loss"])
        return np.array(found)

    ours = losses()
    with jax.default_device(jax.devices("cpu")[0]):
        expected = losses()
    return float(np.max(np.abs(ours / expected - 1)))


def measure(network, precision, batch_size, rounds, seconds):
    """Returns the figures of a network: by itself what was once, else its spread.

    Args:
      network: one of `NETWORKS`.
      precision: one of `PRECISIONS`.
      batch_size: examples per step.
      rounds: how often each way is timed.
      seconds: how long each time.
    """
    import importlib

    import jax

    from flaxmnist.data import DeviceFeed, Split

    images, labels, *test = digits()
    figures, train, warm = {"n": rounds, "compile_seconds": {}}, {}, {}

    def timed(work):
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    for way, (module, variant) in WAYS.items():
        peer = importlib.import_module(f"benchmarks.peers.{module}").Peer(
            network, batch_size, images, labels, test, variant, precision
        )
        train[way], steps = peer.train, 10

        # Every `train` and `evaluate` returns when the device is done. A second call
        # may compile again, for the state that the first one returned.
        def two_calls(peer=peer):
            peer.train(1)
            peer.train(1)

        figures["compile_seconds"][way] = timed(two_calls) - timed(two_calls)
        for _ in range(3):
            pace = timed(lambda peer=peer, steps=steps: peer.train(steps)) / steps
            steps = max(1, int(seconds / pace))
        warm[way] = steps
        if way == "train_steps":
            stats = jax.devices()[0].memory_stats() or {}
            figures["peak_bytes"] = stats.get("peak_bytes_in_use")
            peer.test = DeviceFeed(Split(*test), batch_size, peer.mesh)
            evaluate = peer.evaluate
            evaluate()
    found = []
    for _ in range(rounds):
        rates = {
            way: warm[way] * batch_size / timed(lambda way=way: train[way](warm[way]))
            for way in WAYS
        }
        found.append(rates | {"evaluation": len(test[1]) / timed(evaluate)})
    figures["images_per_second"] = summed_up(found)
    figures["parity"] = parity(network, precision, batch_size)
    return figures


WORK = {"device": device, "measure": measure}


def work(task, *args):
    """Does a task in a process of its own; returns its result, or None if it fails."""
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # A program that was kept would be loaded, not compiled.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    if platforms := environment.get("JAX_PLATFORMS"):
        environment["JAX_PLATFORMS"] = f"{platforms},cpu"  # For the parity.
    command = [sys.executable, "-m", "benchmarks.accelerator", "--work"]
    done = subprocess.run(
        [*command, json.dumps([task, *args])],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        print(f"  {task} {args}: failed: {reason}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def train(workdir, flags, kill_after=None):
    """Trains by the command line; kills it once the checkpoint `kill_after` is saved.

    Nothing compiled is shared, so that every process chooses its kernels anew.

    Raises:
      RuntimeError: it failed, or was done before it could be killed.
    """
    command = [sys.executable, "-m", "flaxmnist.main", f"--workdir={workdir}"]
    command += ["--deterministic", "--no_cache", *flags]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        saved = workdir / "checkpoints" / str(kill_after)
        while process.poll() is None:
            if kill_after is not None and saved.exists():
                process.kill()
            time.sleep(0.01)
        expected = 0 if kill_after is None else -signal.SIGKILL
        if process.returncode != expected:
            output.seek(0)
            last = (output.read().strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"exit code {process.returncode}: {last}")


def checksums(workdir):
    """Returns the checksum of each array of the last checkpoint, and its step."""
    step = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    record = workdir / "checkpoints" / str(step) / "record" / "metadata"
    return json.loads(record.read_text())["checksums"] | {"step": step}


def compare_runs(folder, flags=FLAGS, kill_after=100):
    """Returns how many arrays of two other runs differ from those of a first."""
    first, again, killed = (folder / name for name in ("first", "again", "killed"))
    train(first, flags)
    train(again, flags)
    train(killed, flags, kill_after)
    train(killed, flags)
    expected = checksums(first)

    def differing(workdir):
        found = checksums(workdir)
        return sum(found[name] != expected[name] for name in expected)

    return {
        "arrays": len(expected) - 1,
        "again_differing": differing(again),
        "resumed_differing": differing(killed),
    }


def print_row(name, figures):
    """Prints the figures of a network, each with its least and most."""
    peak = figures["peak_bytes"]
    compiled = figures["compile_seconds"]["train_steps"]
    print(f"\n{name}, n={figures['n']}")
    for way, found in figures["images_per_second"].items():
        median, least, most = (shown(found[key]) for key in ("median", "min", "max"))
        print(f"  {way:<12}{median:>12} images/s  ({least} … {most})")
    print(f"  compiled in {compiled:.1f} s", end="")
    print(f", peak {peak / 1e6:,.0f} MB" if peak else ", peak memory unknown", end="")
    print(f", losses within {figures['parity']:.1e} of those on CPU", flush=True)


def print_runs(runs):
    """Prints whether bits were equal."""
    for name, what in (("again", "trained again"), ("resumed", "killed and resumed")):
        count = runs[f"{name}_differing"]
        bits = f"{count} of {runs['arrays']} arrays differ" if count else "equal bits"
        print(f"--deterministic, {what}: {bits}", flush=True)


def benchmark(path, cells, do, rounds, seconds, only=()):
    """Measures, prints, and writes after each figure; returns all of them.

    Args:
      path: the JSON file; what it has of the same device stays.
      cells: (network, precision, batch size) of each measurement.
      do: does a task, as `work`.
      rounds: as of :func:`measure`.
      seconds: as of :func:`measure`.
      only: networks and "runs"; everything if empty.
    """
    results = {"device": do("device")}
    print(results["device"], flush=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("device") == results["device"]:
        results = before  # Parts may be measured one by one.

    def keep(name, found):
        results[name] = found | {"date": time.strftime("%Y-%m-%d")}
        path.write_text(json.dumps(results, indent=2) + "\n")

    for network, precision, batch_size in cells:
        if only and network not in only:
            continue
        name = f"{network} {precision} {batch_size}"
        found = do("measure", network, precision, batch_size, rounds, seconds)
        if found is not None:
            print_row(name, found)
            keep(name, found)
    if "runs" in only or not only:
        with tempfile.TemporaryDirectory() as folder:
            runs = compare_runs(Path(folder))
        print_runs(runs)
        keep("runs", runs)
    return results


def main(argv=None):
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="duration of each timing"
    )
    parser.add_argument("--only", nargs="*", default=(), help="softmax, mlp, cnn, runs")
    parser.add_argument(
        "--quick", action="store_true", help="one small measurement, to try the program"
    )
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        task, *rest = args.work
        print(json.dumps(WORK[task](*rest)))
    elif args.quick:
        cells = [("softmax", "float32", 32)]
        benchmark(args.output, cells, lambda t, *a: WORK[t](*a), 2, 0.01, ["softmax"])
    else:
        cells = itertools.product(NETWORKS, PRECISIONS, BATCH_SIZES)
        benchmark(args.output, cells, work, args.rounds, args.seconds, args.only)


if __name__ == "__main__":
    main()
