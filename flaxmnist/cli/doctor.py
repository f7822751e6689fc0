"""`flaxmnist doctor`: checks this machine, its devices and the data."""

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import psutil
from packaging.requirements import Requirement

from flaxmnist.cli import command, exits
from flaxmnist.data import Dataset, download, duplicates
from flaxmnist.data.datasets import load, locate
from flaxmnist.errors import UserError
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.machine import PACKAGES, versions
from flaxmnist.runtime.memory import available_memory

_DESCRIPTION = """\
Prints versions, devices, memory and the source of the data, and lists problems.

  %(prog)s

The exit code is 1 if there is a problem.
"""
_ON = "(?i)^(1|true|yes|y|on|t)$"
# Environment variable, pattern in its value, problem.
_KNOWN_BAD = (
    (
        "XLA_FLAGS",
        "xla_cpu_use_thunk_runtime",
        "is no longer supported, and a later version of XLA will abort",
    ),
    (
        "XLA_FLAGS",
        "xla_force_host_platform_device_count",
        "is the old way to virtual devices: use --num_cpu_devices",
    ),
    ("JAX_DISABLE_JIT", _ON, "runs every operation by itself, a hundred times slower"),
    ("JAX_DEBUG_NANS", _ON, "reads every result back, and is slow: for debugging"),
    ("JAX_ENABLE_X64", _ON, "computes in float64 what is meant for float32"),
)
# Environment variable, pattern in a value that hides all GPUs.
_HIDING = (("JAX_PLATFORMS", "^cpu$"), ("CUDA_VISIBLE_DEVICES", r"^\s*(-1.*)?$"))
_MIN_DISK = 1e9


def problems_before_start() -> Iterator[str]:
    """Yields problems with versions and the environment; does not start JAX."""
    try:
        requirements = importlib.metadata.requires("flaxmnist") or ()
    except importlib.metadata.PackageNotFoundError:
        yield "flaxmnist is not installed: pip install -e . in its directory"
        requirements = ()
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed: pip install '{requirement}'"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield (
                f"{requirement.name} {version}: expected {requirement.specifier}; "
                f"pip install '{requirement}'"
            )
    found = versions(PACKAGES)
    if found["jax"] != found["jaxlib"]:
        yield (
            f"jax {found['jax']} with jaxlib {found['jaxlib']}: expected the same; "
            "pip install -U jax jaxlib"
        )
    for name, pattern, reason in _KNOWN_BAD:
        if re.search(pattern, os.environ.get(name, "")):
            yield f"{name}={os.environ[name]!r} {reason}; unset it"


def problems_with_devices(wanted: str | None) -> Iterator[str]:
    """Yields problems with devices, disk, data and network.

    Args:
      wanted: the platform that the user asked for.
    """
    found = jax.devices()[0].platform
    if wanted is None and shutil.which("nvidia-smi") and found == "cpu":
        advice = "JAX does not find it: pip install -U 'jax[cuda13]'"
        for name, pattern in _HIDING:
            if re.search(pattern, os.environ.get(name, "0")):
                advice = f"{name}={os.environ[name]!r} hides it: unset it"
        yield f"this machine has an NVIDIA GPU, but {advice}"
    if (free := shutil.disk_usage(".").free) < _MIN_DISK:
        yield f"{_size(free)} are free on this disk: checkpoints may not fit"
    try:
        if locate("mnist"):
            yield from _problems_with_data(load("mnist"))
        elif not download.reachable(download.registered("mnist")[0].url):
            yield (
                "MNIST is missing and its server cannot be reached: runs will train on "
                "the bundled subset of 5,000 images; set FLAXMNIST_DATA_DIR to the "
                "directory of the four files"
            )
    except UserError as error:
        yield str(error)


def _problems_with_data(dataset: Dataset) -> Iterator[str]:
    if count := duplicates.count(dataset):
        yield (
            f"{count:,} of the {len(dataset.test):,} test images of {dataset.name} are "
            "among its training or validation images, too: the test accuracy will be "
            "too high; remove them from one of the splits"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _devices() -> str:
    # Not every system reports the usable cores of a process.
    affinity = getattr(psutil.Process(), "cpu_affinity", list)
    cores = len(affinity()) or psutil.cpu_count()
    total = psutil.virtual_memory().total
    lines = [
        f"{cores} CPU cores, {_size(total)} of memory, "
        f"{_size(available_memory())} available"
    ]
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = f", {_size(limit)}" if limit else ""
        lines.append(f"{device}: {device.device_kind}{memory}")
    return "\n".join(lines)


def _data() -> str:
    if found := locate("mnist"):
        source, path = found
        name = "mnist" if source in ("idx", "tfds") else "data"
        return f"{name} from {path} ({source})"
    return "mnist by download, or, without a network, the bundled subset"


def _programs() -> str:
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is None:
        return "compiled programs are not kept"
    files = [path for path in Path(folder).glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return f"compiled programs: {_size(size)} in {folder}"


def _caches() -> str:
    return f"downloads and other caches: {download.cache_dir()}"


def run(argv: Sequence[str]) -> int:
    """Prints facts and problems; returns 1 if there are problems."""
    parser = command.Parser("doctor", _DESCRIPTION)
    args = parser.parse_args(argv)
    console = Console()
    found = versions(PACKAGES)
    console.line(f"Python {found['python']} on {platform.platform()}")
    console.line(", ".join(f"{name} {found[name]}" for name in PACKAGES))
    problems = list(problems_before_start())
    # In a process of its own: XLA ends it at a flag that it does not know.
    alone = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if alone.returncode:
        last = (alone.stderr.strip().splitlines() or ["no reason given"])[-1]
        problems.append(
            f"jax does not start ({last}); look at JAX_PLATFORMS and XLA_FLAGS, and "
            "install the jax build for the devices here"
        )
    else:
        command.start_jax(args)
        for describe in (_devices, _data, _programs, _caches):
            try:
                console.line(describe())
            except UserError as error:
                problems.append(str(error))
        problems += problems_with_devices(args.platform)
    console.line()
    for problem in dict.fromkeys(problems):
        console.line(f"problem: {problem}")
    if not problems:
        console.line("no problem found")
    return 1 if problems else 0


main = functools.partial(exits.exit_code, run)
