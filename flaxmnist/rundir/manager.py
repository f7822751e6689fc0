"""The settings of Orbax's checkpoint manager."""

import logging
import shutil
from pathlib import Path

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from flaxmnist.rundir.commit import SyncedPath
from flaxmnist.rundir.results import Figures
from flaxmnist.rundir.verify import ARRAYS, DELETED, RECORD
from flaxmnist.runtime import logs, processes


def _rank(metrics: dict[str, float]) -> float:
    """Ranks the validation figures that Orbax keeps beside a checkpoint."""
    return Figures.from_json(metrics).rank


def make_manager(directory: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    """Returns a manager that keeps the last `keep` checkpoints and the best.

    Deletes what a killed process left unfinished, unless `read_only`.
    """
    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        best_fn=_rank,
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        ),
        todelete_subdir=None if read_only else DELETED,
        temporary_path_class=SyncedPath,
        # In a thread, Orbax would wait forever for a directory that it cannot create.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        create=not read_only,
        # Orbax deletes them in a thread, which may outlive a short run.
        cleanup_tmp_directories=False,
        read_only=read_only,
        save_interval_steps=0 if read_only else 1,
    )
    if not read_only and processes.is_first():
        for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)
    while True:
        try:
            with logs.at_levels(absl=logging.ERROR):  # Orbax warns about `read_only`.
                return ocp.CheckpointManager(
                    directory, options=options, item_names=(ARRAYS, RECORD)
                )
        except FileNotFoundError:  # Another run has deleted a checkpoint.
            if not read_only:
                raise
