"""What this machine offers, where data will come from, and what stands in the way."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import psutil
from packaging.requirements import Requirement

from flaxmnist import cli
from flaxmnist.console import Console
from flaxmnist.data.download import cache_dir, reachable, registered
from flaxmnist.data.sources import locate

_DESCRIPTION = """\
Says what this machine offers, where data will come from, and what stands in the way.

  %(prog)s

The exit code is 1 if something should be changed.
"""
# Environment variables, a part of their value, and what to do about them.
_KNOWN_BAD = (
    ("XLA_FLAGS", "xla_cpu_use_thunk_runtime", "is gone from XLA, which will abort"),
    (
        "XLA_FLAGS",
        "xla_force_host_platform_device_count",
        "is the old way to virtual devices: use --num_cpu_devices",
    ),
    ("JAX_DISABLE_JIT", "1", "runs every operation by itself, a hundred times slower"),
    (
        "JAX_DISABLE_JIT",
        "rue",
        "runs every operation by itself, a hundred times slower",
    ),
    ("JAX_DEBUG_NANS", "rue", "reads every result back, and is slow: for debugging"),
    ("JAX_ENABLE_X64", "rue", "computes in float64 what is meant for float32"),
    ("JAX_ENABLE_X64", "1", "computes in float64 what is meant for float32"),
)
_LEAST_DISK = 1e9


def problems_before_start() -> Iterator[str]:
    """Yields what is wrong with versions and the environment; JAX is not started."""
    for text in importlib.metadata.requires("flaxmnist") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed: pip install '{requirement}'"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield (
                f"{requirement.name} {found}: expected {requirement.specifier}; "
                f"pip install '{requirement}'"
            )
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    if versions[0] != versions[1]:
        yield (
            f"jax {versions[0]} with jaxlib {versions[1]}: expected the same; "
            "pip install -U jax jaxlib"
        )
    for name, part, reason in _KNOWN_BAD:
        if part in os.environ.get(name, ""):
            yield f"{name}={os.environ[name]!r} {reason}; unset it"


def problems_with_devices() -> Iterator[str]:
    """Yields what is wrong with devices, disk and network."""
    if shutil.which("nvidia-smi") and jax.devices()[0].platform == "cpu":
        yield (
            "there is an NVIDIA GPU, and jax does not see it: "
            "pip install -U 'jax[cuda13]'"
        )
    if (free := shutil.disk_usage(".").free) < _LEAST_DISK:
        yield f"{_size(free)} are free on this disk: checkpoints may not fit"
    if locate("mnist") is None and not reachable(registered("mnist")[0].url):
        yield (
            "there is no MNIST here and no network: runs will train on the bundled "
            "subset of 5,000 images; set FLAXMNIST_DATA_DIR to the four files"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _devices() -> Iterator[str]:
    cores = len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count()
    memory = psutil.virtual_memory()
    yield (
        f"{cores} CPU cores, {_size(memory.total)} of memory, "
        f"{_size(memory.available)} available"
    )
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        yield f"{device}: {device.device_kind}" + (f", {_size(limit)}" if limit else "")


def _data() -> str:
    if found := locate("mnist"):
        source, folder = found
        return f"mnist from {folder} ({source})"
    return "mnist by download, or, without a network, the bundled subset"


def _programs(args: argparse.Namespace) -> str:
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is None:
        return "compiled programs are not kept"
    files = [path for path in Path(folder).glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return f"compiled programs: {_size(size)} in {folder}"


def run(argv: Sequence[str]) -> int:
    """Does what the command line says; returns 1 if there are problems."""
    parser = cli.Parser("python -m flaxmnist.doctor", _DESCRIPTION)
    args = parser.parse_args(argv)
    console = Console()
    names = ("flaxmnist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    console.line(f"Python {platform.python_version()} on {platform.platform()}")
    console.line(versions)
    problems = list(problems_before_start())
    # XLA ends the process at a flag that it does not know.
    if not any("abort" in problem for problem in problems):
        cli.start_jax(args)
        for line in (*_devices(), _data(), _programs(args)):
            console.line(line)
        console.line(f"downloads and other caches: {cache_dir()}")
        problems += problems_with_devices()
    console.line()
    for problem in problems:
        console.line(f"problem: {problem}")
    if not problems:
        console.line("no problem found")
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return cli.exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
