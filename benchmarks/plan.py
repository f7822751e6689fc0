"""What a training step would take on many devices; it is compiled, and never run.

python -m benchmarks.plan

For data parallelism and for `fsdp`, with Adam: how much memory a device needs, and what
the devices send each other a step, read from the compiled program. The devices are
virtual ones of the CPU; convolutions are XLA's own, as on GPU and TPU.

Sent is what one device sends, were the collectives rings of n devices: 2 (n - 1) / n
times the bytes of an all-reduce, (n - 1) / n times those of a whole array otherwise.
A device must compute as long as it sends, so the least batch a device is
sent / `--bandwidth` * `--flops` / flops an example: above it the sending may be hidden.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from flaxmnist.core import models, sharding, steps
from flaxmnist.core.state import abstract_state

NETWORKS = {
    "the tutorial CNN": models.CNN(),
    "784-8192-8192-10": models.MLP(hidden=(8192, 8192)),
}
DEVICES, EXAMPLES = (8, 64, 512), 128  # Examples a device.
_BITS = {"pred": 8, "bf16": 16, "f16": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(program: str) -> Iterator[tuple[str, int]]:
    """Yields the kind and the result's bytes of each collective, once a step.

    Args:
      program: HLO, as `Compiled.as_text` returns it.

    Raises:
      ValueError: one is in a loop, whose length its text does not tell.
    """
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    computation = ""
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = header[1]
        if found := _COLLECTIVE.search(line):
            if computation in bodies:
                raise ValueError(f"{found[2]} in the loop {computation}")
            yield found[2], sum(map(_bytes, _ARRAY.finditer(found[1])))


def _bytes(array: re.Match[str]) -> int:
    bits = _BITS.get(array[1]) or int(re.sub(r"\D", "", array[1]))
    return math.prod(int(side) for side in array[2].split(",") if side) * bits // 8


def plan(model, devices: int, fsdp: bool) -> dict[str, float]:
    """Compiles a step and returns what it takes."""
    layout = sharding.Layout(sharding.make_mesh(devices), fsdp)
    state = abstract_state(model, optax.adam(1e-3), layout)
    split = sharding.split_over_data(layout.mesh, axis=0)
    count = EXAMPLES * devices
    batch = {
        "image": jax.ShapeDtypeStruct((count, 28, 28, 1), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32, sharding=split),
    }
    lowered = steps.train_step.lower(state, batch)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    found: Counter[str] = Counter()
    for kind, size in collectives(compiled.as_text()):
        # An array is sent whole; a reduce-scatter's result is a part of it.
        found[kind] += size * (devices if kind == "reduce-scatter" else 1)
    share = (devices - 1) / devices
    sent = share * sum(
        (2 if kind == "all-reduce" else 1) * size for kind, size in found.items()
    )
    return {
        "state": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "reduced": found["all-reduce"] + found["reduce-scatter"],
        "gathered": found["all-gather"],
        "sent": sent,
        "flops": lowered.cost_analysis()["flops"] / count,
    }


def main() -> None:
    """Prints a row for each network, number of devices and layout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flops", type=float, default=50e12, help="a device, a second")
    parser.add_argument(
        "--bandwidth", type=float, default=100e9, help="bytes a device sends a second"
    )
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    models.ops.has_fast_gradient = lambda *_: False
    columns = ("state", "temporary", "reduced", "gathered", "sent")
    print(f"MB a device, {EXAMPLES} examples each; {args.flops:.3g} FLOP/s and", end="")
    print(f" {args.bandwidth:.3g} bytes/s a device")
    print(f"{'':<18}{'devices':>8}{'layout':>8}", end="")
    print("".join(f"{name:>11}" for name in columns), "least batch a device")
    for name, model in NETWORKS.items():
        for devices in DEVICES:
            for fsdp in (False, True):
                row = plan(model, devices, fsdp)
                least = row["sent"] / args.bandwidth * args.flops / row["flops"]
                print(f"{name:<18}{devices:>8}{'fsdp' if fsdp else 'data':>8}", end="")
                print("".join(f"{row[key] / 1e6:>11.1f}" for key in columns), end="")
                print(f"{math.ceil(least):>21,}", flush=True)


if __name__ == "__main__":
    main()
