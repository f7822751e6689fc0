"""The progress of a training run: everything that a step changes."""

import dataclasses
from typing import Any

from flaxmnist.core.metrics import Metrics
from flaxmnist.core.state import TrainState
from flaxmnist.rundir.manifest import Best, LogPosition
from flaxmnist.rundir.metrics_log import Record
from flaxmnist.rundir.results import Figures

_NO_FIGURES = Figures(loss=0.0, accuracy=0.0, count=0)


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a training run between two dispatches.

    A dispatch donates the arrays of its progress, so use only the newest one.

    Attributes:
      step: number of updates made.
      state: the train state, on the mesh.
      metrics_since_log: metrics of the steps since the last log.
      best: the best evaluation on validation so far.
      rollbacks: number of times a non-finite loss caused a return to a checkpoint;
        each halved the learning rate.
      log_position: length of ``metrics.jsonl`` in the checkpoint that the run resumed
        from, if known.
      figures: of the steps since the log before the last dispatch.
      validation: figures of the evaluation at this step, if there was one.
      records: lines of ``metrics.jsonl`` that were written at this step.
      interrupt: number of the signal that stops the run after this step, or 0.
    """

    step: int
    state: TrainState
    metrics_since_log: Metrics
    best: Best = dataclasses.field(default_factory=Best)
    rollbacks: int = 0
    log_position: LogPosition | None = None
    figures: Figures = _NO_FIGURES
    validation: Figures | None = None
    records: tuple[Record, ...] = ()
    interrupt: int = 0

    @property
    def rate_scale(self) -> float:
        """Factor of the learning rate."""
        return 0.5**self.rollbacks

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays that a checkpoint contains."""
        return {"state": self.state, "window": self.metrics_since_log.sums}
