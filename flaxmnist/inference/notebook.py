"""A saved run as a notebook shows it."""

from html import escape
from typing import TYPE_CHECKING

from flaxmnist.core import models
from flaxmnist.data import SPLITS
from flaxmnist.rundir.results import Figures

if TYPE_CHECKING:
    from flaxmnist.inference.saved_run import SavedRun


def as_html(run: "SavedRun") -> str:
    """Returns a line about the model, a table of the splits, and the files of a run."""
    dataset, summary = run.manifest.dataset, run.summary
    count = models.num_parameters(run.state.params)
    line = (
        f"{run.model_name} ({count:,} parameters), {run.checkpoint}, "
        f"on {dataset.name} ({dataset.source})"
    )
    table = ""
    if summary is not None:
        rows = (_row(split, getattr(summary, split)) for split in SPLITS)
        head = "<tr><th><th>loss<th>accuracy<th>count"
        table = f"<table>{head}{''.join(rows)}</table>"
    report = run.workdir / "report.html"
    place = report if report.is_file() else run.workdir
    return f"<div>{escape(line)}{table}<code>{escape(str(place))}</code></div>"


def _row(split: str, figures: Figures) -> str:
    return (
        f"<tr><th>{split}<td>{figures.loss:.4f}<td>{figures.accuracy:.2%}"
        f"<td>{figures.count:,}"
    )
