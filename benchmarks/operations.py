"""Measures the time of a training step on CPU by layer, direction and operation.

python -m benchmarks.operations cnn 100

Networks and batch sizes are those of `benchmarks.worker`. The step runs on one thread,
so that the times of its operations add up, on random images.
"""

import argparse
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

STEPS = 40
_INSTRUCTION = re.compile(r"%?([\w.-]+) = .*? ([\w-]+)\(.*op_name=\"([^\"]*)\"")
_LAYER = re.compile(r"\b((?:Conv|Dense|BatchNorm)_\d+)")


def kinds_of(program):
    """Returns layer, direction and kind of each instruction of a compiled program."""
    found = {}
    for line in program.splitlines():
        if not (match := _INSTRUCTION.search(line)):
            continue
        name, operation, origin = match.groups()
        is_product = operation == "dot" or name.startswith("ynn")
        inside = "jit(gradient)" in origin
        outside = "between layers, loss" if inside else "update, metrics"
        layer = _LAYER.search(origin)
        found[name] = (
            layer[1] if layer else outside,
            "backward" if "transpose(" in origin else "forward" if inside else "",
            "products" if is_product else "other",
        )
    return found


def durations(folder):
    """Returns the seconds of each instruction in a trace of JAX's profiler."""
    import jax

    (path,) = Path(folder).glob("**/*.xplane.pb")
    seconds = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                seconds[event.name] += event.duration_ns * 1e-9
    return seconds


def main():
    """Measures, and prints a line for each layer, direction and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("softmax", "mlp", "cnn", "modern"))
    parser.add_argument("batch_size", type=int)
    args = parser.parse_args()
    # Before JAX counts the processors.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])

    import jax
    import numpy as np

    from benchmarks.peers.flaxmnist_ import Peer
    from flaxmnist import train_steps

    draw = np.random.default_rng(0)
    count = max(10_000, args.batch_size)
    images = draw.integers(0, 256, (count, 28, 28, 1), np.uint8)
    labels = draw.integers(0, 10, count)
    peer = Peer(args.network, args.batch_size, images, labels, (images, labels), "")
    batches, steps = next(peer.feed.chunks(0, STEPS))
    num_steps = jax.device_put(np.int32(steps), peer.everywhere)
    lowered = train_steps.lower(peer.state, peer.metrics, batches, num_steps)
    kinds = kinds_of(lowered.compile().as_text())
    peer.train(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            peer.train(STEPS)
        measured = durations(folder)
    totals = Counter()
    for name, seconds in measured.items():
        if name in kinds and not name.startswith("while"):
            totals[kinds[name]] += seconds / STEPS
    for key, seconds in sorted(totals.items()):
        print(f"{1e3 * seconds:8.2f} ms  {'  '.join(key)}")
    print(f"{1e3 * sum(totals.values()):8.2f} ms  in total")


if __name__ == "__main__":
    main()
