"""The choice of devices, and the cache of compiled programs."""

import contextlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax

from flaxmnist.errors import UserError
from flaxmnist.runtime import files, machine, processes
from flaxmnist.runtime.files import cache_dir

# The names of JAX for each platform, in the order in which they are tried. Without an
# NVIDIA GPU, JAX would start with the CPU alone for "cuda,cpu", and stay with it.
PLATFORMS = {"cpu": ("cpu",), "gpu": ("rocm,cpu", "cuda,cpu"), "tpu": ("tpu,cpu",)}


# JAX's warning of a compiled program that it cannot read.
_DAMAGED_PROGRAM = "Error reading persistent compilation cache entry"


def _keep_programs() -> None:
    """Has JAX keep compiled programs for later processes; deletes damaged files."""
    # Programs are of one kind of processor, and a home may be shared by several.
    try:
        folder = cache_dir() / "programs" / machine.cpu_kind()[1]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):  # A cache that cannot be kept is no reason not to run.
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    show = warnings.showwarning

    def delete_or_show(message: Warning | str, *details: Any, **options: Any) -> None:
        if not str(message).startswith(_DAMAGED_PROGRAM):
            return show(message, *details, **options)
        # JAX compiles anew, but never replaces a file, and does not say which it is.
        for path in folder.glob("*-cache"):
            with contextlib.suppress(OSError):
                path.unlink()

    warnings.showwarning = delete_or_show
    warnings.filterwarnings("always", _DAMAGED_PROGRAM)


def start(
    platform: str | None = None,
    num_cpu_devices: int | None = None,
    deterministic: bool = False,
    keep_programs: bool = True,
    join: Callable[[], None] | None = None,
) -> None:
    """Chooses the devices of this process; JAX reads its options at the first use.

    Args:
      platform: one of `PLATFORMS`; the best if None.
      num_cpu_devices: number of virtual devices of the CPU.
      deterministic: choose operations with equal bits on GPU, where that is slower.
      keep_programs: keep compiled programs, and unpacked data, for later processes.
      join: joins the other processes of a run, before JAX looks for devices.

    Raises:
      UserError: the platform has no device, or `join` raises it.
    """
    # Others may be on the same GPU; a user who sets the variable decides.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    files.cache_enabled = keep_programs
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if num_cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    if join is not None:
        join()
    # A user who keeps programs elsewhere decides. One of several processes that loads a
    # program while another compiles it does not take its part in the tuning for GPUs.
    alone = not jax.distributed.is_initialized()
    if keep_programs and alone and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_programs()
    wanted = "cpu" if num_cpu_devices is not None else platform
    if wanted is not None:
        _choose_platform(wanted)
    else:
        _check_devices()
    if join is not None:
        processes.check_devices()


def cpu() -> jax.Device | None:
    """Returns a device of the CPU; None if JAX may not use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _check_devices() -> None:
    """Raises UserError if JAX does not find the devices that it is told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["not built into this jaxlib"])[0]
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS={wanted!r}: jax finds no devices ({reason}); unset it, or "
            "install the jax build for them"
        ) from error


def _choose_platform(wanted: str) -> None:
    """Restricts JAX to a platform; raises UserError if that has no devices."""
    # "gpu" would fail in JAX where only one of the two kinds is installed.
    for name in PLATFORMS[wanted]:
        reason = ""
        jax.config.update("jax_platforms", name)
        try:
            if jax.devices()[0].platform == wanted:
                return
        except RuntimeError as error:
            reason = f" ({str(error).splitlines()[0]})"
        except AssertionError:  # JAX's, where it was built without that platform.
            pass
        jax.config.update("jax_platforms", None)
    there = ", ".join(sorted({device.platform for device in jax.devices()}))
    raise UserError(
        f"--platform {wanted}: there is none here, only {there}; for GPU and TPU, "
        f"install the jax build for them{reason}"
    )
