"""Training examples whose labels are probably wrong: a table and a page."""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from flaxmnist.errors import printable
from flaxmnist.report.mistakes import thumbnails
from flaxmnist.report.page import template


@dataclasses.dataclass(frozen=True)
class Suspect:
    """An example whose label is probably wrong.

    Attributes:
      index: of the example in its split, from 0.
      label: name of the class that it is labelled as.
      suggestion: name of the class that it probably belongs to.
      label_probability: of `label`, by a model that was not trained on the example.
      suggestion_probability: of `suggestion`, by the same model.
    """

    index: int
    label: str
    suggestion: str
    label_probability: float
    suggestion_probability: float


def find_suspects(
    labels: Int[np.ndarray, " count"],
    probabilities: Float[np.ndarray, "count classes"],
    class_names: Sequence[str],
) -> list[Suspect]:
    """Returns the examples off the diagonal of the confident joint, surest first.

    Northcutt, Jiang and Chuang, 2021, "Confident Learning: Estimating Uncertainty in
    Dataset Labels", in the variant without pruning. The threshold of a class is its
    mean probability over the examples that have it as their label. An example counts
    for the most probable class of those that reach their threshold. Its label is
    suspect if that is another class.

    Args:
      labels: of the examples.
      probabilities: by models that were not trained on the example.
      class_names: a name per class.
    """
    rows, (_, classes) = np.arange(len(labels)), probabilities.shape
    own, counts = probabilities[rows, labels], np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, own, classes)
    thresholds = np.where(counts, sums / np.maximum(counts, 1), np.inf)
    counted = np.where(probabilities >= thresholds, probabilities, -1)
    counted_own = counted[rows, labels]
    found = np.where(counted.max(axis=1) > counted_own, counted.argmax(axis=1), labels)
    margins = probabilities[rows, found] - own
    suspect = np.flatnonzero(found != labels)
    return [
        Suspect(
            index,
            class_names[labels[index]],
            class_names[found[index]],
            float(own[index]),
            float(probabilities[index, found[index]]),
        )
        for index in suspect[np.argsort(-margins[suspect], kind="stable")].tolist()
    ]


def table(suspects: Sequence[Suspect]) -> str:
    """Returns suspects as the text of a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(Suspect))
    for one in suspects:
        *names, own, other = dataclasses.astuple(one)
        writer.writerow((*names, f"{own:.6f}", f"{other:.6f}"))
    return file.getvalue()


def page(
    name: str,
    origin: str,
    accuracy: float,
    suspects: Sequence[Suspect],
    images: np.ndarray,
) -> str:
    """Returns a page with the pictures of suspects.

    Args:
      name: of the page.
      origin: model and data of the predictions.
      accuracy: of the predictions.
      suspects: the surest first.
      images: uint8 of their split.
    """
    by_index = {one.index: one for one in suspects}
    pictures = [
        (by_index[index], address) for index, address in thumbnails(images, [*by_index])
    ]
    return template("suspects.html.j2").render(
        name=printable(name),
        origin=origin,
        accuracy=accuracy,
        count=len(suspects),
        total=len(images),
        pictures=pictures,
    )
