"""Versions and processor, which determine the bits of a result, given its inputs."""

import functools
import importlib.metadata
import os
import platform
import zlib
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "flaxmnist",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
)


@functools.cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of Python and of the packages."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def cpu_kind() -> tuple[str, str]:
    """Returns the CPU's model name, and a CRC-32 of its instruction sets."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    sets = fields.get("flags") or fields.get("Features") or name
    return name, f"{zlib.crc32(sets.encode()):08x}"


def cpu_threads() -> int:
    """Returns the number of threads of XLA on CPU: one for each usable core."""
    for variable in ("PJRT_NPROC", "NPROC"):  # In this order, as XLA reads them.
        if (value := os.environ.get(variable, "")).isdigit():
            return int(value)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Returns the kind of device, and on CPU the number of threads."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return {"device": device.device_kind}
    name, sets = cpu_kind()
    return {"device": f"{name} (instruction sets {sets})", "threads": cpu_threads()}


def changes(
    saved_versions: dict[str, str], saved_machine: dict[str, Any]
) -> str | None:
    """Returns the differences between a checkpoint and this process, if there are any.

    Only values that the checkpoint records are compared; older versions recorded fewer.

    Args:
      saved_versions: as `versions` returned them for the checkpoint.
      saved_machine: as `describe` returned it.
    """
    now = _named(versions(PACKAGES), describe())
    before = _named(saved_versions, saved_machine)
    changed = [name for name in before if before[name] != now.get(name, before[name])]
    if not changed:
        return None
    text = (
        f"was saved with {', '.join(before[name] for name in changed)}; this process "
        f"has {', '.join(now[name] for name in changed)}: results agree within "
        "rounding, not bit for bit"
    )
    if changed == ["threads"]:
        threads = saved_machine["threads"]
        text += f"\nSet the environment variable PJRT_NPROC={threads} for equal bits."
    return text


def _named(versions: dict[str, str], machine: dict[str, Any]) -> dict[str, str]:
    named = {
        package: f"{package} {versions[package]}"
        for package in PACKAGES
        if package in versions and package != "orbax-checkpoint"
    }
    if "device" in machine:
        named["device"] = machine["device"]
    if count := machine.get("threads"):
        named["threads"] = f"{count} CPU core{'s' if count != 1 else ''}"
    return named
