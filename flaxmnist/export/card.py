"""The model card of an export."""

import dataclasses
from collections.abc import Mapping

from flaxmnist.report import statistics
from flaxmnist.rundir.results import DatasetInfo, Figures

_USE = {
    "stablehlo": """\
```python
import jax
import numpy as np

model = jax.export.deserialize(open("model.stablehlo", "rb").read())
images = np.zeros((5, 28, 28, 1), np.uint8)  # any number of them
print(model.call(images)["probabilities"])  # and "classes", "logits"
```""",
    "onnx": """\
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((5, 28, 28, 1), np.float32)  # pixels divided by 255
print(session.run(None, {session.get_inputs()[0].name: images})[0])  # logits
```""",
    "numpy": """\
```bash
python predict.py images.npy    # uint8 [count, 28, 28]; NumPy alone is needed
```""",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
      format: "stablehlo", "onnx" or "numpy".
      model: name of the model.
      parameters: their number.
      step: of the checkpoint.
      is_best: whether that is the best on validation.
      test: figures of the test split; None if not measured.
      dataset: the data that the run was trained on.
      licence: of the images; None if unknown.
      versions: of the packages that trained the model.
      checked: the images by which the export was checked, such as "500 test images".
    """

    format: str
    model: str
    parameters: int
    step: int
    is_best: bool
    test: Figures | None
    dataset: DatasetInfo
    licence: str | None
    versions: Mapping[str, str]
    checked: str

    def render(self, difference: float) -> str:
        """Returns the card as Markdown.

        Args:
          difference: the largest difference of a logit to the checkpoint.
        """
        data = self.dataset
        # Without published files, the name is only what the user called the data.
        trained_on = data.name if self.licence else f"data named {data.name}"
        licence = f"is {self.licence}" if self.licence else "is not known"
        versions = ", ".join(f"{name} {v}" for name, v in self.versions.items())
        chosen = "the best on validation" if self.is_best else "chosen by its number"
        return f"""\
# {self.model}, trained on {trained_on}

{self.parameters:,} parameters, from the checkpoint of step {self.step:,}, {chosen}.
{self._accuracy()}

## Use

{_USE[self.format]}

## What it expects

Images of 28×28 pixels, one channel, white on black: the digit scaled into 20×20 keeping
its proportions, anti-aliased, and placed with its centre of mass in the middle, as in
MNIST. `python -m flaxmnist.predict` makes them from any picture. The model has no
class for other input, which it still labels as some class.

## Where it comes from

Data: {data.name} ({data.source}), {data.counts["train"]:,} images,
fingerprint {data.fingerprint}. The licence of the images {licence}.
Trained with flaxmnist (Apache-2.0); {versions}.

Checked against the checkpoint on {self.checked}: the largest difference of a logit was
{difference:.1e}.
"""

    def _accuracy(self) -> str:
        if self.test is None:
            return "Its test accuracy was not measured."
        accuracy, count = self.test.accuracy, self.test.count
        low, high = statistics.interval(round(accuracy * count), count)
        return (
            f"Test accuracy **{accuracy:.2%}** (95 %: {low:.2%} to {high:.2%}, "
            f"{count:,} images)."
        )
