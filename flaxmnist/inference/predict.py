"""Predictions of pictures, in files or in memory."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from flaxmnist.core import mnist
from flaxmnist.core.batch import MAX_CHANNELS, ImageShape
from flaxmnist.core.calibration import SURE, UNCALIBRATED, Calibration, energy
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError
from flaxmnist.inference.fit import fit
from flaxmnist.pictures.files import Picture, as_pixels, rereadable
from flaxmnist.pictures.prepare import Prepared, prepare
from flaxmnist.training import programs
from flaxmnist.training.evaluate import OUTPUTS

# Number of pictures per call of the model.
CHUNK = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction of a picture.

    Attributes:
      prepared: the image that the model received, with warnings.
      logits: of the classes, float32 `[classes]`.
      class_names: a name per class.
      calibration: the temperature of the probabilities, and the limit of the energy.
    """

    prepared: Prepared
    logits: Float[np.ndarray, " classes"]
    class_names: tuple[str, ...]
    calibration: Calibration = UNCALIBRATED

    def __repr__(self) -> str:
        likely = ", ".join(f"{name} {share:.1%}" for name, share in self.top(3))
        return f"Prediction({likely or 'no digit found'})"

    @functools.cached_property
    def probabilities(self) -> Float[np.ndarray, " classes"]:
        """The calibrated probabilities of the classes, float32 `[classes]`."""
        return self.calibration.probabilities(self.logits)

    @property
    def energy(self) -> float:
        """High if the image is unlike the training images; in nats."""
        return float(energy(self.logits))

    @property
    def label(self) -> str | None:
        """The name of the most probable class; None if no digit is found."""
        return self.top(1)[0][0] if self.top(1) else None

    @property
    def digit(self) -> int | None:
        """The most probable digit; None if no digit is found.

        Raises:
          AttributeError: the classes are not the ten digits.
        """
        if self.class_names != mnist.CLASS_NAMES:
            raise AttributeError("the classes are not the ten digits; use label")
        return None if self.label is None else int(self.label)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the prediction."""
        found = list(self.prepared.warnings)
        if self.is_unlike:
            digits = self.class_names == mnist.CLASS_NAMES
            found.append("not a digit?" if digits else "unlike the training images")
        if self.label is not None and self.probabilities.max() < SURE:
            found.append("low confidence")
        return tuple(found)

    @property
    def is_unlike(self) -> bool:
        """Whether the image is unlike those that the model was trained on.

        False if no digit is found, or if the run has no limit of the energy.
        """
        limit = self.calibration.energy_limit
        return limit is not None and self.label is not None and self.energy > limit

    def top(self, count: int) -> list[tuple[str, float]]:
        """Returns the names of the `count` most probable classes, with probabilities.

        The list is empty if no digit is found.
        """
        if self.prepared.is_empty:
            return []
        order = np.argsort(-self.logits, kind="stable")[:count]
        return [
            (self.class_names[row], float(self.probabilities[row])) for row in order
        ]


def predict_images(
    pictures: Iterable[Picture] | Picture,
    run: TrainState | str | os.PathLike[str],
    class_names: Iterable[str] = (),
) -> list[Prediction]:
    """Returns a trained model's predictions of pictures; see :func:`prepare_for`.

    Args:
      pictures: each a path, an open file, the bytes of a file, a Pillow image, or an
        array; see :func:`flaxmnist.pictures.prepare.prepare`. Or an array of
        several, `[count, height, width]` or `[count, height, width, 1 to 4]`. Or one
        picture.
      run: a state, or a run directory, whose best checkpoint on validation is used.
      class_names: a name per class; if empty, those of the run, or "0", "1", … for a
        state. If they are not the ten digits, a picture of MNIST's size remains as it
        is.

    Raises:
      UserError: the run does not exist, `class_names` has another length, or one of the
        pictures is not a picture.
    """
    return predict_pictures(pictures, *trained(run, class_names))


def trained(
    run: TrainState | str | os.PathLike[str], class_names: Iterable[str] = ()
) -> tuple[TrainState, tuple[str, ...], Calibration]:
    """Returns the state, a name per class, and the calibration."""
    class_names = tuple(class_names)
    if not isinstance(run, TrainState | str | os.PathLike):
        raise UserError(
            f"run is a {type(run).__name__}; expected a TrainState or the path of a "
            "run directory"
        )
    calibration = UNCALIBRATED
    if not isinstance(run, TrainState):
        # Not at the top of the module: a saved run predicts, too.
        from flaxmnist.inference.saved_run import open_run

        saved = open_run(run)
        run, calibration = saved.state, saved.calibration
        class_names = class_names or saved.manifest.dataset.class_names
    if class_names and len(class_names) != run.num_classes:
        raise UserError(
            f"{len(class_names)} class names for a model of {run.num_classes} classes"
        )
    return run, class_names or tuple(map(str, range(run.num_classes))), calibration


def predict_pictures(
    pictures: Iterable[Picture] | Picture,
    state: TrainState,
    class_names: tuple[str, ...],
    calibration: Calibration,
) -> list[Prediction]:
    """Returns the predictions of a state; see :func:`predict_images`."""
    shape = state.image_shape
    prepared = [
        prepare_for(each, shape, class_names) for each in _several(pictures, shape)
    ]
    return predict_prepared(prepared, state, class_names, calibration)


def prepare_for(
    picture: Picture, image_shape: ImageShape, class_names: tuple[str, ...]
) -> Prepared:
    """Returns a picture as an image for a model.

    A model of MNIST's image shape receives a drawing in the form of MNIST's images; see
    :func:`flaxmnist.pictures.prepare.prepare`. Any other model receives the whole
    picture, scaled and cropped; see :func:`flaxmnist.inference.fit.fit`. So does a
    model of other classes than digits if the picture has MNIST's size: it may be an
    image of the data, such as Fashion-MNIST, whose images are no drawings.

    Args:
      picture: as `prepare` takes it.
      image_shape: of the model: height, width and channels.
      class_names: of the model.

    Raises:
      UserError: `picture` is not a picture.
    """
    if image_shape != mnist.IMAGE_SHAPE:
        return fit(picture, image_shape)
    if class_names != mnist.CLASS_NAMES:
        picture = rereadable(picture)
        if as_pixels(picture).shape[:2] == image_shape[:2]:
            return fit(picture, image_shape)
    return prepare(picture)


def _several(pictures: Any, image_shape: ImageShape) -> Iterable[Picture]:
    """Returns pictures one by one, also a single one."""
    single = str | os.PathLike | bytes | bytearray | memoryview | Image.Image
    if isinstance(pictures, single) or hasattr(pictures, "read"):
        return [pictures]
    if hasattr(pictures, "__array__"):
        array = np.asarray(pictures)
        size = math.prod(image_shape)
        # Gray images need no axis of channels.
        shape = image_shape[:2] if image_shape[2] == 1 else image_shape
        if array.ndim == 2 and array.shape[1] == size != array.shape[0]:
            sizes = ", ".join(map(str, shape))
            raise UserError(
                f"array of shape {list(array.shape)}; expected [count, height, width]. "
                f"For flat images, use array.reshape(-1, {sizes}); for one picture, "
                "[array]"
            )
        several = array.ndim > 3 or (
            array.ndim == 3
            and (array.shape[2] > MAX_CHANNELS or array.shape[1:] == shape)
        )
        return array if several else [array]
    if not isinstance(pictures, Iterable):
        return [pictures]  # `prepare` raises the error.
    return pictures


def predict_prepared(
    prepared: Sequence[Prepared],
    state: TrainState,
    class_names: tuple[str, ...] = (),
    calibration: Calibration = UNCALIBRATED,
) -> list[Prediction]:
    """Returns the predictions of prepared pictures; see :func:`predict_images`."""
    names = class_names or tuple(map(str, range(state.num_classes)))
    found: list[Prediction] = []
    for start in range(0, len(prepared), CHUNK):
        chunk = prepared[start : start + CHUNK]
        # One program serves any number of pictures, and another a single one.
        size = 1 if len(prepared) == 1 else CHUNK
        images = np.zeros((size, *chunk[0].image.shape), np.uint8)
        images[: len(chunk)] = [picture.image for picture in chunk]
        outputs = programs.call(predict_step, OUTPUTS, state, images)
        logits = jax.device_get(outputs["logits"])
        # The other rows are padding.
        found += [
            Prediction(picture, row, names, calibration)
            for picture, row in zip(chunk, logits, strict=False)
        ]
    return found
