"""What a report reads of a run directory."""

import dataclasses
from pathlib import Path
from typing import Any

from flaxmnist import config as configs
from flaxmnist.errors import UserError
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.metrics_log import records
from flaxmnist.rundir.results import Summary

# Options that a run may change when it resumes, although its result depends on them.
# Those of a rollback decide nothing about most runs.
_DECISIVE = ("eval_every", "patience")


def read_records(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of ``metrics.jsonl``; none if the file does not exist.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return list(records(workdir / "metrics.jsonl"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from None


@dataclasses.dataclass(frozen=True)
class History:
    """The results of a finished run.

    Attributes:
      name: the run directory.
      summary: the content of ``summary.json``.
      records: the lines of ``metrics.jsonl``.
    """

    name: str
    summary: Summary
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, workdir: Path, summary: Summary | None = None) -> "History":
        """Reads a run directory.

        Args:
          workdir: the directory.
          summary: the summary of the run; read if None.

        Raises:
          UserError: the directory contains no finished run.
        """
        found = read_records(workdir)
        if summary is None:
            workdirs.saved_config(workdir, alone=True)
            summary = workdirs.saved_summary(workdir)
        if summary is None:
            raise UserError(
                f"{workdir} contains no finished run: summary.json is missing or "
                "damaged. Train the run to its end"
            )
        return cls(str(workdir), summary, found)

    @property
    def recipe(self) -> str:
        """A text that is equal for runs that differ only in their seeds."""
        config = configs.from_dict(self.summary.config)
        config = dataclasses.replace(config, seed=0)
        dataset = self.summary.dataset
        return repr(
            [
                # Older versions recorded the fingerprint of the training split only.
                dataset.fingerprints or dataset.fingerprint,
                self.summary.total_steps,
                self.summary.changes,
                self.summary.sources,
                configs.fixed_options(config),
                [getattr(config, name) for name in _DECISIVE],
            ]
        )
