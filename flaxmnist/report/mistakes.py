"""The wrong predictions of a report, each with its image."""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from flaxmnist.errors import printable
from flaxmnist.report import gallery
from flaxmnist.report.label_errors import known_errors
from flaxmnist.report.page import data_url
from flaxmnist.rundir.description import DatasetInfo

# Most images, most characters of their addresses, and largest side of one in pixels.
_MAX_COUNT, _MAX_BYTES, _MAX_SIDE = 500, 1_000_000, 64


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong prediction.

    Attributes:
      index: of the image in the test split, from 0.
      label: name of the class of the image.
      prediction: name of the predicted class.
      probability: of the prediction.
      image: address of the image.
      note: what is known of the label, if it is known to be wrong.
    """

    index: int
    label: str
    prediction: str
    probability: float
    image: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """The wrong predictions of the test split, most confident first.

    Attributes:
      count: number of all of them.
      shown: those with an image; without those in `mislabelled`.
      mislabelled: those whose labels are known to be wrong.
    """

    count: int
    shown: Sequence[Mistake]
    mislabelled: Sequence[Mistake]

    @property
    def pictured(self) -> list[Mistake]:
        """All that have an image."""
        return [*self.shown, *self.mislabelled]

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Label and prediction of each that has an image."""
        return {(one.label, one.prediction) for one in self.pictured}

    @property
    def is_complete(self) -> bool:
        """Whether all of them are shown."""
        return self.count == len(self.pictured)

    @classmethod
    def of(
        cls, outputs: dict[str, np.ndarray], images: np.ndarray, dataset: DatasetInfo
    ) -> "Mistakes":
        """Returns the wrong predictions.

        Args:
          outputs: predictions of the test split.
          images: uint8 of the test split, as :func:`gallery.drawable` takes them.
          dataset: the data.
        """
        known = known_errors(dataset.fingerprints)
        names = [printable(name) for name in dataset.class_names]
        wrong = gallery.mistakes(outputs)
        # Known errors are shown in any case.
        chosen = sorted(wrong.tolist(), key=lambda index: index not in known)
        shown: list[Mistake] = []
        for index, image in thumbnails(images, chosen):
            prediction = int(outputs["classes"][index])
            mistake = Mistake(
                index,
                names[outputs["labels"][index]],
                names[prediction],
                float(outputs["probabilities"][index].max()),
                image,
                _note(known, index, prediction),
            )
            shown.append(mistake)
        return cls(
            len(wrong),
            [one for one in shown if one.index not in known],
            [one for one in shown if one.index in known],
        )


def _note(known: Mapping[int, int | None], index: int, prediction: int) -> str:
    if index not in known:
        return ""
    people = known[index]
    if people is None:
        return "people do not agree on a class"
    same = ", as the model" if people == prediction else ""
    return f"most people see {people}{same}"


def thumbnails(images: np.ndarray, indices: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yields the index and the address of images, as many as fit on a page.

    Args:
      images: uint8, as :func:`gallery.drawable` takes them.
      indices: of the images, in the order of the page.
    """
    size = 0
    for index in indices[:_MAX_COUNT]:
        address = _thumbnail(gallery.drawable(images[index : index + 1])[0])
        size += len(address)
        if size > _MAX_BYTES:
            return
        yield index, address


def _thumbnail(pixels: np.ndarray) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return data_url(file.getvalue())
