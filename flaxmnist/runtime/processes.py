"""Several processes that train one model together: start, synchronization, failures.

Each process runs the same program on its own devices, which JAX connects. Only process
0 prints and writes files, apart from the parts of sharded arrays.
"""

import atexit
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed as runtime
from jax.experimental import multihost_utils

from flaxmnist.errors import UserError
from flaxmnist.runtime import cluster, rendezvous

# Timeouts in seconds: for all processes to join; for a missed heartbeat of another
# process; between two looks for the failure of another process; for the others to find
# one before process 0 exits, which they would notice as another failure; for a network
# file system to show a new file.
JOIN_SECONDS = 45
HEARTBEAT_SECONDS = 30
POLL_SECONDS = 1
LINGER_SECONDS = 5
SHARED_SECONDS = 10

T = TypeVar("T")
_DAY_MS = 24 * 3600 * 1000
# The key under which a process reports its failure to the others.
_FAILURE = "flaxmnist/failure"
# Numbers the calls in which processes wait for each other; the same in all of them.
_calls = itertools.count()
_crash_reporter: subprocess.Popen[bytes] | None = None
_watcher: threading.Thread | None = None
_ending = threading.Event()


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Connects this process to the others, if any; call it before JAX finds devices.

    Args:
      coordinator: ``"host:port"`` of process 0. If None, JAX's cluster detection
        decides (Slurm, Open MPI, TPU pods and Kubernetes), unless `num_processes` is 1.
      num_processes: the number of processes.
      process_id: the number of this process, from 0.
      facts: name → value, such as flags, which must be the same in every process.

    Raises:
      UserError: the arguments or the environment are incomplete or invalid, the
        processes differ, or one does not join in time.
    """
    process = cluster.find(coordinator, num_processes, process_id, JOIN_SECONDS)
    if process is None:
        return
    facts = {"--num_processes": process.count, "jax": jax.__version__} | (facts or {})
    try:
        rendezvous.meet(process, facts, JOIN_SECONDS)
    except UserError as error:
        raise UserError(f"{error}{process.advice}") from None
    _connect(process)


class _NoPreemption:
    """Takes the place of JAX's preemption manager, and never reports a preemption."""

    def reached_sync_point(self, step: int) -> bool:
        return False

    def shutdown(self) -> None:
        pass


def _connect(process: cluster.Process) -> None:
    """Has JAX connect this process to the others, and watches for their failures."""
    global _watcher
    # Otherwise JAX would handle SIGTERM instead of `runtime.interrupts`. JAX 0.7.2
    # has no option for that. Orbax before 0.12 requires a manager.
    state = vars(runtime.global_state)
    state["initialize_preemption_sync_manager"] = lambda: None
    state["preemption_sync_manager"] = _NoPreemption()
    name = f"process {process.index} of {process.count}"
    _report_crash(
        f"flaxmnist: {name} ended, because it was killed or lost another process\n"
        "Start all of them with the same command again: the run resumes from its "
        "newest checkpoint"
    )
    try:
        jax.distributed.initialize(
            process.coordinator,
            process.count,
            process.index,
            process.device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # The type depends on the cluster.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--coordinator {process.coordinator}: {name} cannot start ({reason})"
            f"{process.advice}"
        ) from error
    client = runtime.global_state.client
    _watcher = threading.Thread(target=_watch, args=(client,), daemon=True)
    _watcher.start()


def check_devices() -> None:
    """Raises UserError in every process if they have different numbers of devices."""
    if not jax.distributed.is_initialized():
        return  # Leave the devices uninitialized for now.
    found = find_difference({"the number of devices": jax.local_device_count()})
    if found:
        raise UserError(f"{found}; give every process the same number of devices")


def _report_crash(text: str) -> None:
    """Has `text` printed if JAX aborts this process, as it does if another one dies.

    Python gets no control then. A shell prints the text when its input is closed.
    """
    global _crash_reporter
    _crash_reporter = subprocess.Popen(
        ["sh", "-c", 'read end || printf "%s\\n" "$0" >&2', text],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C does not reach it.
    )


def _cancel_crash_report() -> None:
    if _crash_reporter is not None and _crash_reporter.returncode is None:
        _crash_reporter.communicate(b"end\n")


@atexit.register
def _end() -> None:
    _ending.set()
    if _watcher is not None:
        _watcher.join(LINGER_SECONDS)  # Before JAX closes its connection.
    _cancel_crash_report()


def _watch(client: Any) -> None:
    """Ends this process if another one reports a failure, with the same exit code.

    The main thread may be waiting for that process, in a call that never returns.
    """
    while not _ending.wait(POLL_SECONDS):
        try:
            code, text = json.loads(client.key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError:  # No process failed so far.
            continue
        if not _ending.is_set():
            _cancel_crash_report()
            print(f"flaxmnist: {text}", file=sys.stderr, flush=True)
            # The main thread may fail now, too, because the other process has ended.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _exit(code)


def _exit(code: int) -> NoReturn:
    time.sleep(LINGER_SECONDS if is_first() else 2 * POLL_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def exit_process(code: int, failure: str | None) -> int:
    """Exits if this is one of several processes; otherwise returns the exit code.

    JAX would wait for the other processes at exit, while they wait for this one.

    Args:
      code: the exit code of a failed command.
      failure: the error, which the other processes print before they exit, too; None
        if the error is that another process was lost.
    """
    if _crash_reporter is None:
        return code
    if failure is not None:
        _ending.set()
        _cancel_crash_report()
        if (client := runtime.global_state.client) is not None:
            text = f"process {runtime.global_state.process_id}: {failure}"
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was first.
                client.key_value_set(_FAILURE, json.dumps([code, text]))
    _exit(code)


def is_first() -> bool:
    """Returns whether this process writes and prints: of several, only process 0."""
    return runtime.global_state.process_id == 0


def is_peer_failure(error: BaseException | None) -> bool:
    """Returns whether an error was caused by the loss of another process."""
    return (
        jax.distributed.is_initialized()
        and isinstance(error, jax.errors.JaxRuntimeError)
        and re.search(
            # NCCL also refuses devices, such as one GPU for two processes.
            "gloo|nccl(?!_|.*invalid)|barrier|unavailable|deadline",
            str(error),
            re.IGNORECASE,
        )
        is not None
    )


def wait_for_all() -> None:
    """Returns when every process has called it, however long that takes.

    Call it after work that takes processes different times, such as loading data and
    compiling: in their first collective operation, Gloo would time out after 30 s.
    """
    if (client := runtime.global_state.client) is not None:
        client.wait_at_barrier(f"flaxmnist/{next(_calls)}", _DAY_MS)


def all_processes_max(number: int) -> int:
    """Returns the largest `number`, 0 or more, of all processes; waits for them."""
    if jax.process_count() == 1:
        return number
    wait_for_all()
    return int(multihost_utils.process_allgather(np.uint32(number)).max())


def broadcast(value: T) -> T:
    """Returns the value of process 0, in every process; waits for it.

    Call it for a value that was read in a run directory and decides what all processes
    do next: a network file system may show the processes different files.

    Args:
      value: as JSON can represent it; that of other processes is ignored.
    """
    if (client := runtime.global_state.client) is None:
        return value
    key = f"flaxmnist/{next(_calls)}"
    if is_first():
        client.key_value_set(key, json.dumps(value))
    return json.loads(client.blocking_key_value_get(key, _DAY_MS))


def find_difference(facts: dict[str, Any]) -> str | None:
    """Returns the first difference between processes, as text; waits for all.

    Args:
      facts: name → value, as JSON can represent it.
    """
    if (client := runtime.global_state.client) is None:
        return None
    key = f"flaxmnist/{next(_calls)}"
    client.key_value_set(f"{key}/{runtime.global_state.process_id}", json.dumps(facts))
    found = {
        process: json.loads(client.blocking_key_value_get(f"{key}/{process}", _DAY_MS))
        for process in range(runtime.global_state.num_processes)
    }
    return rendezvous.difference(found)


def gather(array: jax.Array) -> np.ndarray:
    """Returns a whole array; waits for all processes if each has a part of it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
