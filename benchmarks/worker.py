"""One measurement of one library, in a process of its own; prints one line of JSON.

python -m benchmarks.worker train flaxmnist cnn 100 data.npz --threads 2
"""

import argparse
import importlib
import json
import os
import time
from pathlib import Path

TASKS = ("train", "infer", "epoch", "startup", "ceiling")
WARM_STEPS, SECONDS = 3, 2.0


def peak_mb():
    """Returns the most memory that was resident, in MB."""
    # Not `getrusage`, which counts what the parent was before this program began.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status["VmHWM"].split()[0]) / 1024


def measure_train(make, batch_size):
    """Returns images a second once warm, and the peak of resident memory."""
    peer = make()
    peer.train(WARM_STEPS)
    begin = time.perf_counter()
    peer.train(WARM_STEPS)
    pace = (time.perf_counter() - begin) / WARM_STEPS
    # As many steps a call as a training loop would make between two logs.
    steps = max(1, min(200, int(1.0 / pace)))
    peer.train(steps)
    done, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < SECONDS:
        peer.train(steps)
        done += steps
    return {"images_per_second": done * batch_size / seconds, "peak_mb": peak_mb()}


def measure_infer(make, images):
    """Returns images a second of evaluation, and milliseconds of single predictions."""
    peer = make()
    peer.evaluate()
    begin = time.perf_counter()
    for _ in range(3):
        peer.evaluate()
    seconds = (time.perf_counter() - begin) / 3
    peer.predict(images[0])
    latencies = []
    for index in range(500):
        begin = time.perf_counter()
        peer.predict(images[index])
        latencies.append((time.perf_counter() - begin) * 1e3)
    latencies.sort()
    return {
        "images_per_second": len(images) / seconds,
        "median_ms": latencies[250],
        "p99_ms": latencies[495],
    }


def measure_ceiling(library):
    """Returns the best rate of a float32 matrix product, in GFLOP/s."""
    size, best = 2048, 0.0
    if library == "torch":
        import torch

        one = torch.rand(size, size)

        def product():
            return one @ one
    else:
        import jax

        one = jax.random.uniform(jax.random.key(0), (size, size))
        compiled = jax.jit(lambda one: one @ one)

        def product():
            return compiled(one).block_until_ready()

    for _ in range(12):
        begin = time.perf_counter()
        product()
        best = max(best, 2e-9 * size**3 / (time.perf_counter() - begin))
    return {"gflops": best}


def first_step(library, folder):
    """Ends the process once a training step is done, begun by the command line.

    Of flax itself: what any program of JAX, flax and optax takes to do anything at all.
    """
    if library == "flax":
        import flax.linen  # noqa: F401
        import jax
        import optax  # noqa: F401

        ones = jax.numpy.ones((100, 100))
        jax.jit(lambda ones: ones @ ones)(ones).block_until_ready()
        end()
    # Start as the program `flaxmnist` does.
    from flaxmnist.runtime import startup

    startup.prepare()
    from flaxmnist.cli import train
    from flaxmnist.training import loop

    startup.start_garbage_collection()
    # Called when the figures of the first step have been read back.
    loop.compile_reports = lambda *_: end()
    train.main(["--config", "mlp", "--workdir", str(folder / f"run-{os.getpid()}")])


def end():
    """Ends the process at once."""
    print("\n{}", flush=True)
    os._exit(0)


def aligned(array):
    """Returns a copy at a multiple of 64 bytes, which JAX shares instead of copying."""
    import numpy as np

    memory = np.empty(array.nbytes + 64, np.uint8)
    first = -memory.ctypes.data % 64
    copy = memory[first : first + array.nbytes].view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[:] = array
    return copy


def main():
    """Measures what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("library", help="flaxmnist, flax:scan, torch:eager, …")
    parser.add_argument("network")
    parser.add_argument("batch_size", type=int)
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # Before any library is imported: each counts the processors it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    library, _, variant = args.library.partition(":")
    if args.task == "ceiling":
        print(json.dumps(measure_ceiling(library)))
        return
    if args.task == "startup":
        first_step(library, Path(args.data).parent)

    import numpy as np

    data = np.load(args.data)
    images, labels = aligned(data["train_images"]), data["train_labels"]
    test = data["test_images"], data["test_labels"]
    peer = importlib.import_module(f"benchmarks.peers.{library}_").Peer

    def make():
        return peer(args.network, args.batch_size, images, labels, test, variant)

    if args.task == "train":
        result = measure_train(make, args.batch_size)
    elif args.task == "infer":
        result = measure_infer(make, test[0])
    else:
        one = make()
        one.train(len(labels) // args.batch_size)
        result = {"accuracy": one.evaluate(), "peak_mb": peak_mb()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
