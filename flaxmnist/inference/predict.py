"""Predictions of pictures, in files or in memory."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from flaxmnist.core.mnist import IMAGE_SHAPE
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError
from flaxmnist.inference.pictures import Picture
from flaxmnist.inference.preprocess import Prepared, prepare

# A prediction whose probability is lower gets a warning.
SURE = 0.8
# Number of pictures per call of the model.
CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction of a picture.

    Attributes:
      prepared: the image that the model received, with warnings.
      probabilities: of the ten digits, float32 `[10]`.
    """

    prepared: Prepared
    probabilities: Float[np.ndarray, "10"]

    @property
    def digit(self) -> int | None:
        """The most probable digit; None if nothing is drawn."""
        return self.top(1)[0][0] if self.top(1) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the prediction."""
        sure = self.digit is None or self.probabilities.max() >= SURE
        return self.prepared.warnings + (() if sure else ("low confidence",))

    def top(self, count: int) -> list[tuple[int, float]]:
        """Returns the `count` most probable digits and their probabilities."""
        if not self.prepared.image.any():
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(digit), float(self.probabilities[digit])) for digit in order]


def predict_images(
    pictures: Iterable[Picture] | Picture, run: TrainState | str | os.PathLike[str]
) -> list[Prediction]:
    """Returns a trained model's predictions of pictures.

    Args:
      pictures: each a path, an open file, the bytes of a file, a Pillow image, or an
        array; see :func:`flaxmnist.inference.preprocess.prepare`. Or an array of
        several, `[count, height, width]` or `[count, height, width, 1 to 4]`. Or one
        picture.
      run: a state, or a run directory, whose best checkpoint on validation is used.

    Raises:
      UserError: the run does not exist, or one of the pictures is not a picture.
    """
    if not isinstance(run, TrainState | str | os.PathLike):
        raise UserError(
            f"run is a {type(run).__name__}; expected a TrainState or the path of a "
            "run directory"
        )
    if not isinstance(run, TrainState):
        # Not at the top of the module: a saved run predicts, too.
        from flaxmnist.inference.saved_run import open_run

        run = open_run(run).state
    return predict_pictures(pictures, run)


def predict_pictures(
    pictures: Iterable[Picture] | Picture, state: TrainState
) -> list[Prediction]:
    """Returns the predictions of a state; see :func:`predict_images`."""
    return predict_prepared([prepare(each) for each in _several(pictures)], state)


def _several(pictures: Any) -> Iterable[Picture]:
    """Returns pictures one by one, also a single one."""
    single = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    if isinstance(pictures, single) or hasattr(pictures, "read"):
        return [pictures]
    if hasattr(pictures, "__array__"):
        array = np.asarray(pictures)
        if array.ndim == 2 and array.shape[1] == 784 != array.shape[0]:
            raise UserError(
                f"array of shape {list(array.shape)}; expected [count, height, width]. "
                "For flat images, use array.reshape(-1, 28, 28)"
            )
        several = array.ndim > 3 or (array.ndim == 3 and array.shape[2] > 4)
        return array if several else [array]
    if not isinstance(pictures, Iterable):
        return [pictures]  # `prepare` raises the error.
    return pictures


def predict_prepared(
    prepared: Sequence[Prepared], state: TrainState
) -> list[Prediction]:
    """Returns the predictions of prepared pictures."""
    found: list[Prediction] = []
    for start in range(0, len(prepared), CHUNK):
        chunk = prepared[start : start + CHUNK]
        # One program serves any number of pictures.
        images = np.zeros((CHUNK, *IMAGE_SHAPE[:2]), np.uint8)
        images[: len(chunk)] = [picture.image for picture in chunk]
        probabilities = jax.device_get(predict_step(state, images)["probabilities"])
        # The other rows are padding.
        found += map(Prediction, chunk, probabilities[: len(chunk)])
    return found
