"""Several processes that train one model: how they meet, agree, and part.

Each runs the same program on devices of its own, which JAX's runtime connects. What
one alone can do, such as writing a file, the first one does.
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
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as runtime
from jax._src.clusters import ClusterEnv, SlurmCluster
from jax.experimental import multihost_utils

from flaxmnist import rendezvous
from flaxmnist.checks import UserError

# Timeouts in seconds: for all processes to join; for a missed heartbeat of another
# process; between two looks for the failure of another process; for the others to find
# one before process 0 exits, which they would notice as another failure; for a network
# file system to show a new file.
JOIN_SECONDS = 45
HEARTBEAT_SECONDS = 30
POLL_SECONDS = 1
LINGER_SECONDS = 5
SHARED_SECONDS = 10

# The environment variables of one task of several that srun starts.
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
_DAY_MS = 24 * 3600 * 1000
_meetings = itertools.count()
_last_words: subprocess.Popen[bytes] | None = None
_FAILURE = "flaxmnist/failure"
_ending = threading.Event()
_watcher: threading.Thread | None = None


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
    global _watcher
    given = (coordinator, num_processes, process_id)
    advice = ""
    if given == (None, 1, None):
        return
    if given == (None, None, None):
        if (found := _cluster()) is None:
            return
        cluster, num_processes = found
        advice = (
            f"\nThis process is one of {num_processes} according to {cluster}; to run "
            "in one process, pass --num_processes 1"
        )
    elif None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: expected "
            "all three or none; for one process, --num_processes 1 is enough"
        )
    try:
        address, count, index, local = _detect(coordinator, num_processes, process_id)
        host, port = _check(address, count, index)
        own = {"--num_processes": count, "jax": jax.__version__} | (facts or {})
        rendezvous.meet(host, port, count, index, own, JOIN_SECONDS)
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    # Otherwise JAX would handle SIGTERM instead of `flaxmnist.signals`. JAX 0.7.2 has
    # no option for that.
    vars(runtime.global_state)["initialize_preemption_sync_manager"] = lambda: None
    _leave_words(
        f"flaxmnist: process {index} of {count} ended, because it was killed or lost "
        "another process\nStart all of them with the same command again: the run "
        "resumes from its newest checkpoint"
    )
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            local,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # Of many kinds, depending on the cluster.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--coordinator {address}: process {index} of {count} cannot start "
            f"({reason}){advice}"
        ) from error
    client = runtime.global_state.client
    _watcher = threading.Thread(target=_watch, args=(client,), daemon=True)
    _watcher.start()


def _cluster() -> tuple[str, int] | None:
    """Returns the cluster that JAX detects and its number of processes, if several."""
    with _detection_errors():
        for cluster in ClusterEnv._cluster_types:
            name, count = cluster.__name__.removesuffix("Cluster"), 1
            if cluster is SlurmCluster:
                count = _slurm_tasks()
            elif not cluster.opt_in_only_method and cluster.is_env_present():
                count = cluster.get_process_count()
            if count > 1:
                return name, count
    return None


def _slurm_tasks() -> int:
    """Returns how many tasks `srun` started; 1 if it did not start this process."""
    if not {"SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"} & os.environ.keys():
        return 1
    # In the interactive shell of `salloc`, SLURM_NTASKS is that of the whole job.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS")
    missing = [name for name in _SLURM if name not in os.environ]
    if tasks != "1" and missing:
        raise UserError(
            f"incomplete Slurm environment: {', '.join(missing)} not set; start every "
            "process with srun, or pass --num_processes 1 to run in one process"
        )
    return int(tasks or 1)


def _detect(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int, list[int] | None]:
    """Returns the arguments, completed by JAX, and the ids of the devices to use."""
    if coordinator is None:
        coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    given = (coordinator, num_processes, process_id)
    with _detection_errors():
        ids = os.environ.get("JAX_LOCAL_DEVICE_IDS")
        local = [int(i) for i in ids.split(",")] if ids else None
        try:
            return ClusterEnv.auto_detect_unset_distributed_params(  # type: ignore
                *given, local, None, JOIN_SECONDS
            )
        except Exception:
            if None in given:
                raise
            return *given, local  # type: ignore


@contextlib.contextmanager
def _detection_errors() -> Iterator[None]:
    """Turns the errors of JAX's cluster detection, of many kinds, into UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, KeyError):
            reason = f"the environment variable {error.args[0]} is not set"
        raise UserError(
            f"JAX cannot detect the cluster that this process runs in ({reason}); pass "
            "--num_processes 1 to run in one process, or --coordinator, "
            "--num_processes and --process_id"
        ) from error


def _check(coordinator: str, num_processes: int, process_id: int) -> tuple[str, int]:
    form = re.fullmatch(r"(\[[\w:.%]+\]|[\w.-]+):([0-9]{1,5})", coordinator)
    if form is None or not 0 < int(form[2]) < 2**16:
        raise UserError(
            f"--coordinator {coordinator!r}: expected HOST:PORT, the machine of "
            "process 0 and a port from 1 to 65535, such as host0:1234"
        )
    if num_processes < 1:
        raise UserError(f"--num_processes {num_processes}: expected 1 or more")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id {process_id}: expected 0 to {num_processes - 1}, one for "
            "each of --num_processes"
        )
    return form[1].strip("[]"), int(form[2])


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


def _take_back_words() -> None:
    if _last_words is not None and _last_words.returncode is None:
        _last_words.communicate(b"bye\n")


@atexit.register
def _end() -> None:
    _ending.set()
    if _watcher is not None:
        _watcher.join(LINGER_SECONDS)  # Before JAX closes its connection.
    _take_back_words()


def _watch(client: Any) -> None:
    """Ends this process if another one reports a failure, with the same exit code.

    The main thread may be waiting for that process, in a call that never returns.
    """
    while not _ending.wait(POLL_SECONDS):
        try:
            code, text = json.loads(client.key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError:
            continue  # None so far.
        if not _ending.is_set():
            _take_back_words()
            print(f"flaxmnist: {text}", file=sys.stderr, flush=True)
            # The main thread may fail now, too, because the other process has gone.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _exit(code)


def _exit(code: int) -> NoReturn:
    time.sleep(LINGER_SECONDS if is_first() else 2 * POLL_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def leave(code: int, failure: str | None = None) -> int:
    """Returns the exit code of a failed command; one of several processes exits.

    It does not wait for the others, as JAX would: they may be waiting for it.

    Args:
      code: the exit code.
      failure: the error, which the other processes print before they exit, too. None
        if another process was lost.
    """
    if _last_words is None:
        return code
    if failure is not None:
        _ending.set()
        _take_back_words()
        client, index = runtime.global_state.client, runtime.global_state.process_id
        if client is not None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was first.
                text = json.dumps([code, f"process {index}: {failure}"])
                client.key_value_set(_FAILURE, text)
    _exit(code)


def is_first() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return runtime.global_state.process_id == 0


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


def agree(number: int) -> int:
    """Returns the largest of the processes' numbers, 0 or more; waits for all."""
    if jax.process_count() == 1:
        return number
    wait_for_all()
    return int(multihost_utils.process_allgather(np.uint32(number)).max())


def from_first(text: str) -> str:
    """Returns the text of process 0, in every process; waits for it."""
    if (client := runtime.global_state.client) is None:
        return text
    key = f"flaxmnist/{next(_meetings)}"
    if is_first():
        client.key_value_set(key, text)
    return client.blocking_key_value_get(key, _DAY_MS)


def find_difference(facts: dict[str, Any]) -> str | None:
    """Returns the first difference between processes, as text; waits for all.

    Args:
      facts: name → value, as JSON can represent it.
    """
    if (client := runtime.global_state.client) is None:
        return None
    key = f"flaxmnist/{next(_meetings)}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(facts))
    found = {
        process: json.loads(client.blocking_key_value_get(f"{key}/{process}", _DAY_MS))
        for process in range(jax.process_count())
    }
    return rendezvous.difference(found)


def check_devices() -> None:
    """Raises UserError in every process if they have different numbers of devices."""
    if not jax.distributed.is_initialized():
        return  # JAX need not look for devices yet.
    found = find_difference({"the number of devices": jax.local_device_count()})
    if found:
        raise UserError(f"{found}; give every process the same number of devices")


def whole(array: jax.Array) -> np.ndarray:
    """Returns an array of which processes may hold parts; waits for all, if so."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
