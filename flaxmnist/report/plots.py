"""The figures of a report, drawn without a display."""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flaxmnist.errors import printable
from flaxmnist.report.statistics import Reliability

_INK, _GRID = "#1f2933", "#d9dee3"
# Most classes whose names and counts a confusion matrix shows.
MAX_NAMED = 40
# A line of fewer points has a marker at each.
MIN_LINE = 16
# Longest name of a class in a figure, and longest caption on one line, in characters.
_MAX_NAME, _MAX_CAPTION = 16, 14


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _short(name: str) -> str:
    """Returns the name of a class for a figure."""
    name = printable(name)
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _tidy(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, size=10, color=_INK, loc="left")
    axis.set_xlabel(x, size=9)
    axis.set_ylabel(y, size=9)
    axis.tick_params(labelsize=8)
    axis.grid(color=_GRID, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def curves(
    groups: Mapping[str, Sequence[Sequence[dict[str, Any]]]], marks: Iterable[int] = ()
) -> Figure:
    """Draws loss and accuracy over the steps.

    Args:
      groups: the records of runs that differ only in their seeds, by name. Several runs
        are drawn as their mean and one standard deviation.
      marks: steps to mark with a vertical line.
    """
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axis, step in itertools.product((loss, accuracy), marks):
        axis.axvline(step, color="0.6", linewidth=0.9, linestyle=":")
    for index, (name, runs) in enumerate(groups.items()):
        for split, style in (("train", "-"), ("validation", "o--")):
            for axis, figure_name in ((loss, "loss"), (accuracy, "accuracy")):
                steps, values = _aligned(runs, split, figure_name)
                if not len(steps):
                    continue
                if len(steps) < MIN_LINE and style == "-":
                    style = "o-"
                mean = values.mean(axis=0)
                many = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
                axis.plot(
                    steps,
                    mean,
                    style,
                    color=f"C{index}",
                    alpha=0.55 if split == "train" else 1,
                    linewidth=1.1,
                    markersize=3.5,
                    label=f"{split}: {printable(name)}{many}",
                )
                if len(runs) > 1:
                    spread = values.std(axis=0, ddof=1)
                    axis.fill_between(
                        steps,
                        mean - spread,
                        mean + spread,
                        color=f"C{index}",
                        alpha=0.15,
                        linewidth=0,
                    )
    loss.set_yscale("log")
    _tidy(loss, "Loss", "step", "cross-entropy, nats")
    _tidy(accuracy, "Accuracy", "step", "share of correct predictions")
    if accuracy.get_legend_handles_labels()[1]:
        legend = accuracy.legend(fontsize=7, frameon=False, loc="lower right")
        for text in legend.get_texts():
            text.set_parse_math(False)  # A name may hold dollar signs.
    return figure


def _aligned(
    runs: Sequence[Sequence[dict[str, Any]]], split: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps that all runs logged for a split, and the values of each."""
    found = [
        {record["step"]: record[name] for record in records if record["split"] == split}
        for records in runs
    ]
    steps = sorted(set.intersection(*(set(one) for one in found)))
    return np.array(steps), np.array([[one[step] for step in steps] for one in found])


def confusion(
    matrix: Int[np.ndarray, "classes classes"], class_names: Sequence[str]
) -> Figure:
    """Draws labels (rows) against predictions (columns); correct ones are pale.

    More than `MAX_NAMED` classes are numbered, and their counts are colours only.
    """
    is_named = len(matrix) <= MAX_NAMED
    # From twenty classes on, a cell of a fixed size has room for its count.
    grow = max(1, len(matrix) / 20) if is_named else 1
    figure = Figure(figsize=(5.2 * grow, 4.8 * grow), layout="constrained")
    axis = figure.subplots()
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    shown = axis.imshow(wrong, cmap="Oranges", vmax=max(wrong.max(), 1))
    _tidy(axis, "Confusion matrix", "prediction", "label")
    axis.grid(False)
    if is_named:
        _name_cells(axis, matrix, wrong, class_names)
    else:
        ticks = MaxNLocator(integer=True)
        figure.colorbar(shown, shrink=0.8, ticks=ticks).ax.tick_params(labelsize=8)
    return figure


def _name_cells(
    axis: Any, matrix: np.ndarray, wrong: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes the names of the classes, and the count in each cell."""
    names = [_short(name) for name in class_names]
    places = range(len(names))
    upright = max(map(len, names)) > 2
    axis.set_xticks(places, names, rotation=90 * upright, parse_math=False)
    axis.set_yticks(places, names, parse_math=False)
    for label, row in enumerate(matrix):
        for prediction, count in enumerate(row):
            if not count:
                continue
            dark = label != prediction and count > 0.6 * wrong.max()
            color = "white" if dark else "0.6" if label == prediction else _INK
            axis.text(
                prediction,
                label,
                f"{count}",
                ha="center",
                va="center",
                size=7,
                color=color,
            )


def mistakes(
    images: UInt8[np.ndarray, "count height width *channels"],
    captions: Sequence[tuple[str, str, float]],
    columns: int = 9,
) -> Figure:
    """Draws images, each with a caption.

    Args:
      images: gray, or with 3 or 4 channels in colour.
      captions: label, prediction and the probability of the prediction.
      columns: number of images per row.
    """
    texts = [
        (_short(label), f"as {_short(prediction)} {probability:.0%}")
        for label, prediction, probability in captions
    ]
    is_long = any(len(" ".join(text)) > _MAX_CAPTION for text in texts)
    if is_long:
        columns = columns * 2 // 3
    rows = max(1, -(-len(images) // columns))
    height = 1.95 if is_long else 1.32
    figure = Figure(figsize=(9.5, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image, text in zip(axes, images, texts, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        caption = ("\n" if is_long else " ").join(text)
        axis.set_title(caption, size=8, color=_INK, pad=2, parse_math=False)
    return figure


def reliability(before: Reliability, after: Reliability, temperature: float) -> Figure:
    """Draws a reliability diagram, with and without a temperature."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for found, label, color in (
        (before, f"as trained, ECE {before.ece:.2%}", "C0"),
        (after, f"temperature {temperature:.2f}, ECE {after.ece:.2%}", "C1"),
    ):
        some = found.count > 0
        upper.plot(
            found.confidence[some],
            found.accuracy[some],
            "o-",
            markersize=3.5,
            linewidth=1,
            color=color,
            label=label,
        )
    upper.legend(fontsize=8, frameon=False)
    lower.bar(
        before.edges[:-1],
        before.count,
        width=np.diff(before.edges),
        align="edge",
        color="C0",
        alpha=0.5,
    )
    lower.set_yscale("symlog")
    _tidy(upper, "Calibration: accuracy by predicted probability", "", "accuracy")
    _tidy(lower, "", "probability of the prediction", "examples")
    return figure


def filters(tiled: UInt8[np.ndarray, "height width *channels"]) -> Figure:
    """Draws the kernels of the first layer, as `gallery.filters` tiles them."""
    height, width = tiled.shape[:2]
    figure = Figure(figsize=(4.6, max(0.6, 4.6 * height / width)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(tiled, cmap="gray")
    axis.axis("off")
    return figure
