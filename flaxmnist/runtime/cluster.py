"""Detection of several processes, from flags or from the environment of a cluster."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator

from jax._src.clusters import ClusterEnv, SlurmCluster

from flaxmnist.errors import UserError

# The environment variables of one task of several that srun starts.
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of several.

    Attributes:
      host: the name or address of the machine of process 0.
      port: the port on which process 0 listens.
      count: the number of processes.
      index: the number of this process, from 0.
      device_ids: the local devices to use; None for all.
      advice: what an error message says about the source of these facts, or "".
    """

    host: str
    port: int
    count: int
    index: int
    device_ids: list[int] | None
    advice: str

    @property
    def coordinator(self) -> str:
        """The address of process 0, as JAX takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def find(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> Process | None:
    """Returns a description of this process, or None if it is the only one.

    Args:
      coordinator: address of process 0; see `flaxmnist.runtime.processes.start`.
      num_processes: the number of processes.
      process_id: the number of this process, from 0.
      timeout: seconds for JAX to look up the machine of process 0.

    Raises:
      UserError: the arguments or the environment are incomplete or invalid.
    """
    given = (coordinator, num_processes, process_id)
    advice = ""
    if given == (None, 1, None):
        return None
    if given == (None, None, None):
        if (found := _cluster()) is None:
            return None
        name, num_processes = found
        advice = (
            f"\nThis process is one of {num_processes} according to {name}; to run in "
            "one process, pass --num_processes 1"
        )
    elif None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: expected "
            "all three or none; for one process, give --num_processes 1 alone"
        )
    try:
        address, count, index, device_ids = _complete(
            coordinator, num_processes, process_id, timeout
        )
        host, port = _check(address, count, index)
    except UserError as error:
        raise UserError(f"{error}{advice}") from None
    return Process(host, port, count, index, device_ids, advice)


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


def _complete(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
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
                *given, local, None, timeout
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
