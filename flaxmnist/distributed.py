"""Several processes that train one model: how they meet, agree, and part.

Each runs the same program on devices of its own, which JAX's runtime connects. What
one alone can do, such as writing a file, the first one does.
"""

import atexit
import itertools
import os
import re
import socket
import subprocess
import sys
import time
import zlib

import jax
import numpy as np
from jax._src import distributed as runtime
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from flaxmnist.checks import UserError

# Seconds after which others are given up: those that do not come, those that fall
# silent; and those that the first stays, through whom the others hear of an error.
MEET_SECONDS, SILENT_SECONDS, STAY_SECONDS = 120, 30, 3

_DAY_MS = 24 * 3600 * 1000
_meetings = itertools.count()
_last_words: subprocess.Popen[bytes] | None = None


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Meets the other processes, if there are any; before JAX looks for devices.

    Args:
      coordinator: ``"host:port"``, where process 0 can be reached. If None, what JAX
        finds out of Slurm, Open MPI, a TPU pod or Kubernetes, if it runs in one.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: the arguments are not those of a process, or the first does not come.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        if not _in_cluster():
            return
        name = "a process"
    elif coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator, --num_processes, --process_id: expected all three or none"
        )
    else:
        host, port = _check(coordinator, num_processes, process_id)
        if process_id > 0:
            _reach(host, port)
        name = f"process {process_id} of {num_processes}"
    # Or JAX would hear SIGTERM in the place of `flaxmnist.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    _leave_words(
        f"flaxmnist: {name} waited {MEET_SECONDS} s, and not all came: expected all to "
        "be started at about the same time, with another --process_id each"
    )
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=MEET_SECONDS,
            heartbeat_timeout_seconds=SILENT_SECONDS,
        )
    except Exception as error:  # Of many kinds, depending on the cluster.
        raise UserError(
            f"{name} cannot start ({str(error).splitlines()[0]}): see --coordinator"
        ) from error
    _take_back_words()
    _leave_words(
        f"flaxmnist: {name} ended, because it was killed or another was lost\n"
        "Start all of them with the same command again: the run resumes from its "
        "newest checkpoint"
    )


def _check(coordinator: str, num_processes: int, process_id: int) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator {coordinator!r}: expected HOST:PORT, where process 0 can "
            "be reached"
        )
    if num_processes < 1:
        raise UserError(f"--num_processes {num_processes}: expected 1 or more")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id {process_id}: expected 0 to {num_processes - 1}, one for "
            "each of --num_processes"
        )
    return host.strip("[]"), int(port)


def _in_cluster() -> bool:
    """Returns whether JAX finds a cluster, and other processes in it."""
    for cluster in ClusterEnv._cluster_types:
        if not cluster.opt_in_only_method and cluster.is_env_present():
            return cluster.get_process_count() > 1
    return False


def _reach(host: str, port: int) -> None:
    """Returns when process 0 is there; JAX, waiting for it, would abort in the end."""
    until = time.monotonic() + MEET_SECONDS
    while True:
        try:
            return socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"--coordinator {host}:{port} was not reached in {MEET_SECONDS} s "
                    f"({error.strerror}): expected process 0 there"
                ) from None
        time.sleep(0.2)


def _leave_words(text: str) -> None:
    """Has `text` said if this process is aborted, as JAX does when others are lost.

    Python hears nothing of that; a shell does, when the pipe to it is closed.
    """
    global _last_words
    _last_words = subprocess.Popen(
        ["sh", "-c", 'read bye || printf "%s\\n" "$0" >&2', text],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it.
    )


@atexit.register
def _take_back_words() -> None:
    if _last_words is not None and _last_words.returncode is None:
        _last_words.communicate(b"bye\n")


def leave(code: int, lost: bool = False) -> int:
    """Returns the exit code of a failed command, which ends one of several processes.

    It does not wait for the others, as JAX would: they may be waiting for it.

    Args:
      code: the exit code.
      lost: whether the others are; what to do then is said.
    """
    if _last_words is None:
        return code
    if not lost:
        _take_back_words()
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(STAY_SECONDS)
    os._exit(code)


def is_first() -> bool:
    """Returns whether this process is the one that writes and speaks."""
    # One alone does not ask JAX, which would look for devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def lost(error: BaseException | None) -> bool:
    """Returns whether an error comes of another process that is no more."""
    several = jax.distributed.is_initialized()
    return (
        several
        and isinstance(error, jax.errors.JaxRuntimeError)
        and re.search(
            "gloo|nccl|barrier|unavailable|deadline", str(error), re.IGNORECASE
        )
        is not None
    )


def wait_for_all() -> None:
    """Returns when every process is here, however long that takes.

    Gloo would give up 30 s after the first came to where they meet for the first time:
    call it after what takes them unequally long, such as loading and compiling.
    """
    if (client := runtime.global_state.client) is not None:
        client.wait_at_barrier(f"flaxmnist/{next(_meetings)}", _DAY_MS)


def _of_all(number: int) -> np.ndarray:
    wait_for_all()
    return multihost_utils.process_allgather(np.uint32(number))


def agree(number: int) -> int:
    """Returns the largest of the processes' numbers, 0 or more; waits for all."""
    return number if jax.process_count() == 1 else int(_of_all(number).max())


def differs(text: str) -> bool:
    """Returns whether another process has another text; waits for all."""
    found = _of_all(zlib.crc32(text.encode()))
    return bool(found.min() != found.max())


def whole(array: jax.Array) -> np.ndarray:
    """Returns an array of which processes may hold parts; waits for all, if so."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
