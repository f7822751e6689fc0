"""A run on one page, ``report.html``, and its figures in ``plots/``."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxmnist.core.metrics import Metrics
from flaxmnist.data import SPLITS
from flaxmnist.errors import printable
from flaxmnist.report import plots, statistics, words
from flaxmnist.report.charts import charts, curve_table
from flaxmnist.report.comparison import log_of
from flaxmnist.report.gallery import drawable, filters, mistakes
from flaxmnist.report.mistakes import Mistakes
from flaxmnist.report.page import data_url, template
from flaxmnist.rundir.history import History
from flaxmnist.rundir.results import Figures, Summary
from flaxmnist.runtime.durable import make_directory, write_file

# Most images of mistakes in `plots/`, and most pairs of classes and classes in a table.
_SHOWN_MISTAKES, _SHOWN_PAIRS, _SHOWN_CLASSES = 36, 10, plots.MAX_NAMED


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


def _classes(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the table of the classes; of many, those with the lowest F1."""
    figures, counts = Metrics(0.0, confusion).per_class(), confusion.sum(axis=1)
    shown = np.arange(len(confusion))
    if len(shown) > _SHOWN_CLASSES:
        # A class without examples has no F1.
        order = np.lexsort((figures["f1"], counts == 0))
        shown = order[:_SHOWN_CLASSES]
    rows = []
    for label in shown.tolist():
        found = {name: values[label] for name, values in figures.items()}
        count, right = int(counts[label]), int(confusion[label, label])
        interval = statistics.interval(right, count) if count else (0.0, 1.0)
        name = printable(class_names[label])
        rows.append({"label": name, "count": count, "interval": interval, **found})
    return rows


def _averages(confusion: np.ndarray) -> list[dict[str, Any]]:
    """Returns the means over the classes, of all that have examples."""
    figures, counts = Metrics(0.0, confusion).per_class(), confusion.sum(axis=1)
    some = counts > 0
    return [
        {
            "label": label,
            "count": int(counts.sum()),
            **{
                name: float(np.average(values[some], weights=weights[some]))
                for name, values in figures.items()
            },
        }
        for label, weights in (
            ("macro mean", np.ones(len(counts))),
            ("mean weighted by examples", counts),
        )
    ]


def _confused(
    confusion: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, str, int]]:
    """Returns the most frequent mistakes: label, prediction and count."""
    wrong = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_SHOWN_PAIRS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    names = [printable(name) for name in class_names]
    return [
        (names[label], names[prediction], int(wrong[label, prediction]))
        for label, prediction in pairs
        if wrong[label, prediction]
    ]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a model takes.

    Attributes:
      leaves: name and shape of each parameter, and its number of values.
      flop: floating-point operations of one prediction; None if unknown.
      parameters_mb: megabytes of the parameters.
      optimizer_mb: megabytes of the state of the optimizer.
      images_mb: megabytes of the training images.
    """

    leaves: list[tuple[str, tuple[int, ...], int]]
    flop: float | None
    parameters_mb: float
    optimizer_mb: float
    images_mb: float


@dataclasses.dataclass(frozen=True)
class Results:
    """A trained model as a report shows it; all arrays are on the host.

    Attributes:
      history: the summary and the metrics of the run.
      outputs: predictions by split, of validation and test; see
        :func:`flaxmnist.training.evaluate.predict`.
      test_images: uint8 `[count, height, width]` or `[count, height, width,
        channels]`, in the order of the predictions.
      params: the parameters that are evaluated.
      costs: what the model takes.
    """

    history: History
    outputs: dict[str, dict[str, np.ndarray]]
    test_images: np.ndarray
    params: Any
    costs: Costs

    @property
    def summary(self) -> Summary:
        """The result of the run."""
        return self.history.summary

    @functools.cached_property
    def test(self) -> dict[str, np.ndarray]:
        """Predictions of the test split, with calibrated probabilities."""
        found = self.outputs["test"]
        probabilities = self.summary.calibration.probabilities(found["logits"])
        return found | {"probabilities": probabilities}


def write_report(results: Results, workdir: Path) -> Path:
    """Writes ``report.html``, one file that needs no other, and ``plots/*.png``.

    Args:
      results: of the run.
      workdir: the run directory.

    Returns:
      the path of the page.
    """
    path, summary, test = workdir / "report.html", results.summary, results.test
    temperature = summary.calibration.temperature
    # Of the logits as trained, and divided by the temperature.
    before, after = (
        statistics.reliability(test["logits"] / divisor, test["labels"])
        for divisor in (1.0, temperature)
    )
    figures = _draw(results)
    calibration = plots.reliability(before, after, temperature)
    figures["calibration"] = plots.png(calibration)
    make_directory(workdir / "plots")
    for name, content in figures.items():
        write_file(workdir / "plots" / f"{name}.png", content)
    confusion, data = _confusion(test), summary.dataset
    history, mistaken = results.history, Mistakes.of(test, results.test_images, data)
    page = template("report.html.j2").render(
        name=printable(workdir.resolve().name),
        summary=summary,
        splits=_splits(summary, results.outputs),
        banner=words.banner(data),
        charts=charts({"this run": [log_of(history)]}),
        table=curve_table(history.records),
        classes=_classes(confusion, data.class_names),
        averages=_averages(confusion),
        confused=_confused(confusion, data.class_names),
        mistakes=mistaken,
        model=results.costs,
        temperature=temperature,
        errors=[before.ece, after.ece],
        pictures={name: data_url(content) for name, content in figures.items()},
        config=json.dumps(summary.config, indent=2),
        use=words.use(data),
        command=words.command(summary),
    )
    write_file(path, page)
    return path


def _draw(results: Results) -> dict[str, bytes]:
    """Returns the figures but the reliability diagram as PNG files, by name."""
    test, dataset = results.test, results.summary.dataset
    names = dataset.class_names
    wrong = mistakes(test)[:_SHOWN_MISTAKES]
    captions = [
        (
            names[test["labels"][row]],
            names[test["classes"][row]],
            float(test["probabilities"][row].max()),
        )
        for row in wrong
    ]
    figures = {
        "curves": plots.curves(
            {printable(results.history.name): [results.history.records]},
            [change.step for change in results.summary.changes],
        ),
        "confusion": plots.confusion(_confusion(test), names),
        "mistakes": plots.mistakes(drawable(results.test_images[wrong]), captions),
    }
    if (tiled := filters(results.params, dataset.image_shape)) is not None:
        figures["filters"] = plots.filters(tiled)
    return {name: plots.png(figure) for name, figure in figures.items()}


def _confusion(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns examples by label and prediction, int `[classes, classes]`."""
    confusion = np.zeros((outputs["probabilities"].shape[1],) * 2, int)
    np.add.at(confusion, (outputs["labels"], outputs["classes"]), 1)
    return confusion
