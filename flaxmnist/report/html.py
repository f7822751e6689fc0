"""A run on one page: ``report.html``, and its pictures under ``plots/``."""

import base64
import dataclasses
import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from flaxmnist import config as configs
from flaxmnist.core.metrics import Metrics
from flaxmnist.data import SPLITS
from flaxmnist.errors import UserError, printable
from flaxmnist.report import plots, statistics
from flaxmnist.report.gallery import filters, mistakes
from flaxmnist.rundir import folder as workdirs
from flaxmnist.rundir.metrics_log import records
from flaxmnist.rundir.results import Figures, Summary
from flaxmnist.runtime.durable import make_directory, write_file

_SHOWN_MISTAKES = 36


@dataclasses.dataclass(frozen=True)
class History:
    """What a run left behind.

    Attributes:
      name: its folder.
      summary: its ``summary.json``.
      records: its ``metrics.jsonl``.
    """

    name: str
    summary: Summary
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, workdir: Path, summary: Summary | None = None) -> "History":
        """Reads a run's folder.

        Args:
          workdir: the folder.
          summary: that of the run; read if None.

        Raises:
          UserError: there is no finished run in it.
        """
        found: list[dict[str, Any]] = []
        try:
            found = list(records(workdir / "metrics.jsonl"))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read ({error.strerror})"
            ) from None
        summary = summary or workdirs.saved_summary(workdir)
        if summary is None:
            raise UserError(
                f"{workdir} holds no finished run: its summary.json is missing or "
                "damaged. Train it to its end"
            )
        return cls(str(workdir), summary, found)

    @property
    def recipe(self) -> str:
        """What runs of the same recipe and other seeds have in common."""
        config = configs.from_dict(self.summary.config)
        config = dataclasses.replace(config, seed=0)
        dataset = self.summary.dataset
        return repr(
            [
                # Runs of older versions know that of the training split alone.
                dataset.fingerprints or dataset.fingerprint,
                self.summary.total_steps,
                configs.fixed_options(config),
            ]
        )


def _group(histories: Sequence[History]) -> dict[str, list[History]]:
    """Returns the runs of each recipe, by the name of its first."""
    recipes: dict[str, list[History]] = {}
    for history in histories:
        recipes.setdefault(history.recipe, []).append(history)
    return {runs[0].name: runs for runs in recipes.values()}


def _comparison(groups: dict[str, list[History]]) -> list[dict[str, Any]]:
    """Returns a row a recipe: mean and standard deviation of test over its seeds."""
    rows = []
    for runs in groups.values():
        accuracies = [run.summary.test.accuracy for run in runs]
        losses = [run.summary.test.loss for run in runs]
        summary = runs[0].summary
        dataset = summary.dataset
        rows.append(
            {
                "names": ", ".join(run.name for run in runs),
                "data": f"{dataset.name} ({dataset.source})",
                "count": summary.test.count,
                "seeds": len({run.summary.config["seed"] for run in runs}),
                "parameters": summary.model.parameters,
                "accuracy": np.mean(accuracies),
                "loss": np.mean(losses),
                "spread": np.std(accuracies, ddof=1) if len(runs) > 1 else None,
            }
        )
    return rows


def _splits(
    summary: Summary, outputs: dict[str, dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Returns the table of the splits, with confidence intervals."""
    rows = []
    for split in SPLITS:
        figures: Figures = getattr(summary, split)
        row = {"name": split, **dataclasses.asdict(figures)}
        right = round(figures.accuracy * figures.count)
        row["accuracy_interval"] = statistics.interval(right, figures.count)
        if split in outputs:
            found = outputs[split]
            losses = statistics.losses(found["logits"], found["labels"])
            row["loss_interval"] = statistics.mean_interval(losses)
        rows.append(row)
    return rows


def _classes(metrics: Metrics) -> list[dict[str, Any]]:
    """Returns the table of the classes."""
    figures, confusion = metrics.per_class(), np.asarray(metrics.confusion)
    rows = []
    for label, row in enumerate(confusion):
        found = {name: values[label] for name, values in figures.items()}
        count, right = int(row.sum()), int(row[label])
        interval = statistics.interval(right, count) if count else (0.0, 1.0)
        rows.append({"label": label, "count": count, "interval": interval, **found})
    return rows


@dataclasses.dataclass(frozen=True)
class Results:
    """A trained model as a report shows it; all arrays are on the host.

    Attributes:
      summary: the result of the run.
      outputs: predictions by split, of validation and test; see
        :func:`flaxmnist.training.evaluate.predict`.
      test_images: uint8 `[count, 28, 28]`, in the order of the predictions.
      params: the parameters that are evaluated.
      costs: size of each parameter, memory in MB, and FLOP of one prediction.
    """

    summary: Summary
    outputs: dict[str, dict[str, np.ndarray]]
    test_images: np.ndarray
    params: Any
    costs: dict[str, Any]


def write_report(
    results: Results, workdir: Path, others: Sequence[History] = ()
) -> Path:
    """Writes ``report.html``, one file that needs no other, and ``plots/*.png``.

    Args:
      results: of the run.
      workdir: the run's folder.
      others: runs to draw beside it.

    Returns:
      the path of the page.
    """
    path, summary, outputs = workdir / "report.html", results.summary, results.outputs
    validation, test = outputs["validation"], outputs["test"]
    temperature = statistics.fit_temperature(validation["logits"], validation["labels"])
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (test["labels"], test["classes"]), 1)
    wrong = mistakes(test)[:_SHOWN_MISTAKES]
    captions = [
        f"{test['labels'][row]} as {test['classes'][row]} "
        f"{test['probabilities'][row].max():.0%}"
        for row in wrong
    ]
    groups = _group([History.read(workdir, summary), *others])
    figures = {
        "curves": plots.curves(
            {name: [one.records for one in runs] for name, runs in groups.items()}
        ),
        "confusion": plots.confusion(confusion),
        "calibration": plots.reliability(
            statistics.reliability(test["logits"], test["labels"]),
            statistics.reliability(test["logits"] / temperature, test["labels"]),
            temperature,
        ),
        "mistakes": plots.mistakes(results.test_images[wrong], captions),
    }
    if (tiled := filters(results.params)) is not None:
        figures["filters"] = plots.filters(tiled)
    make_directory(workdir / "plots")
    pictures = {}
    for name, figure in figures.items():
        content = plots.png(figure)
        write_file(workdir / "plots" / f"{name}.png", content)
        pictures[name] = "data:image/png;base64," + base64.b64encode(content).decode()
    flags = configs.flags_of(configs.from_dict(summary.config))
    page = _template().render(
        name=printable(workdir.resolve().name),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        summary=summary,
        splits=_splits(summary, outputs),
        classes=_classes(Metrics(0.0, confusion)),
        comparison=_comparison(groups) if others else [],
        mistakes=int((test["labels"] != test["classes"]).sum()),
        model=results.costs,
        temperature=temperature,
        pictures=pictures,
        config=json.dumps(summary.config, indent=2),
        command=shlex.join(["python", "-m", "flaxmnist.main", *flags]),
    )
    write_file(path, page)
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{share:.2%}"
    environment.filters["thousands"] = lambda count: f"{count:,.0f}"
    return environment.get_template("report.html.j2")
