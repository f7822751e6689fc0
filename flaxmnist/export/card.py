"""The model card of an export."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

import jaxlib

from flaxmnist.core import mnist
from flaxmnist.core.calibration import UNCALIBRATED, Calibration
from flaxmnist.errors import printable
from flaxmnist.report import statistics
from flaxmnist.rundir.description import DatasetInfo
from flaxmnist.rundir.results import Figures

# The names of classes that a card lists, at most; `labels.txt` has all of them.
_MAX_LISTED = 40
# What the channels of an image are, by their number.
_CHANNELS = ("gray", "gray with opacity", "RGB", "RGB with opacity")
_GUARANTEES = (
    "https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees"
)
_USE = {
    "safetensors": """\
```python
import json

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

IMPORT

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
model = MODEL(**config["options"])
variables = unflatten_dict(load_file("model.safetensors"), sep=".")
images = np.zeros((5, SHAPE), np.uint8)  # or floating point in [0, 1]
PREDICT
```

The package `safetensors` reads the file in other frameworks, too. The kernel of a dense
layer is `[inputs, outputs]`, that of a convolution
`[height, width, inputs, outputs]`.""",
    "stablehlo": """\
```python
import jax.export
import numpy as np

model = jax.export.deserialize(open("model.stablehlo", "rb").read())
images = np.zeros((5, SHAPE), np.uint8)  # any number of them
print(model.call(images)["probabilities"])  # and "classes", "logits"
```

jaxlib VERSION wrote `model.stablehlo`. JAX
[guarantees](GUARANTEES)
that releases up to 6 months newer, or 3 weeks older, than that release read the file.
For later releases, export the run again.""",
    "onnx": """\
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((5, SHAPE), np.float32)  # pixels divided by 255
print(session.run(None, {session.get_inputs()[0].name: images})[0])  # logits
```""",
    "numpy": """\
```bash
python predict.py images.npy    # [count, SHAPE]; NumPy alone is needed
```

The images are uint8, or floating point in [0, 1].""",
    "web": """\
Open `index.html` in a browser, also from a file or on a phone. It needs no server and
no network, and sends nothing. Photographs need `flaxmnist predict`.""",
}
_HUB = {  # Identifiers of data sets on the Hugging Face hub.
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
# Every file that an export writes beside the card.
FILES = {
    "config.json": "the options of the model, the shape of an image and the classes",
    "index.html": "the page",
    "labels.txt": "the name of each class, a line per class",
    "model.onnx": "the graph",
    "model.onnx.data": "the parameters; keep this file beside `model.onnx`",
    "model.safetensors": "the parameters",
    "model.stablehlo": "the program with the parameters",
    "predict.py": "the script",
    "weights.npz": "the parameters",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
      format: a name of a format.
      model: name of the model.
      architecture: a class of `flaxmnist`, or the specification of the user's model.
      options: of the architecture.
      members: number of models of an ensemble; 0 for a single model.
      parameters: their number.
      checkpoint: its step, such as "step 1,716"; of an ensemble, those of its members.
      is_best: whether that is the best on validation.
      test: figures of the test split; None if not measured.
      dataset: the data that the run was trained on.
      licence: of the images; None if unknown.
      versions: of the packages that trained the model.
      checked: the images by which the export was checked, such as "500 test images".
      calibration: of the run.
    """

    format: str
    model: str
    architecture: str
    options: Mapping[str, Any]
    members: int
    parameters: int
    checkpoint: str
    is_best: bool
    test: Figures | None
    dataset: DatasetInfo
    licence: str | None
    versions: Mapping[str, str]
    checked: str
    calibration: Calibration = UNCALIBRATED

    def render(self, difference: float, files: Collection[str]) -> str:
        """Returns the card as Markdown.

        Args:
          difference: the largest difference of a logit to the checkpoint.
          files: names of the other files of the export, of `FILES`.
        """
        data = self.dataset
        # Without published files, the name is only what the user called the data.
        trained_on = data.name if self.licence else f"data named {data.name}"
        licence = f"is {self.licence}" if self.licence else "is not known"
        versions = ", ".join(f"{name} {v}" for name, v in self.versions.items())
        chosen = "the best on validation" if self.is_best else "chosen by its number"
        maker = "`flaxmnist predict` makes such images from any picture"
        if self.format == "web":
            maker = "The page makes such images from pictures"
            if data.image_shape == mnist.IMAGE_SHAPE:
                maker = (
                    "The page makes such images from drawings and evenly lit pictures"
                )
        listed = "\n".join(f"- `{name}`: {FILES[name]}" for name in sorted(files))
        return f"""\
{self._front_matter()}# {self.model}, trained on {trained_on}

{self.parameters:,} parameters, from the checkpoint of {self.checkpoint}, {chosen}.
{self._accuracy()}

## Files

{listed}

## Use

{self._use()}

## What it expects

{self._images()} {maker}.
The model has no class for other input, which it still labels as some class.

## What it returns

{self._classes()}
{self._probabilities()}

## Where it comes from

Data: {data.name} ({data.source}), {data.counts["train"]:,} images,
fingerprint {data.fingerprint}. The licence of the images {licence}.
Trained with flaxmnist (Apache-2.0); {versions}.

Checked against the checkpoint on {self.checked}: the largest difference of a logit was
{difference:.1e}.
"""

    def _use(self) -> str:
        shape = ", ".join(map(str, self.dataset.image_shape))
        text = _USE[self.format].replace("SHAPE", shape)
        text = text.replace("GUARANTEES", _GUARANTEES)
        text = text.replace("VERSION", jaxlib.__version__)
        module, _, name = self.architecture.rpartition(":")
        module = PurePath(module.removesuffix(".py")).name or "flaxmnist"
        text = text.replace("IMPORT", f"from {module} import {name}")
        logits = "model.apply(variables, images, train=False)"
        predict = f"print(jax.nn.softmax({logits}))"
        if self.members:  # The first axis of each variable is that of the members.
            predict = f"logits = jax.vmap(lambda variables: {logits})(variables)\n"
            predict += "print(jax.nn.softmax(logits).mean(0))"
        return text.replace("MODEL", name).replace("PREDICT", predict)

    def _front_matter(self) -> str:
        """Returns the metadata that the Hugging Face hub reads, as YAML."""
        if self.format != "safetensors":
            return ""
        data, test = self.dataset, self.test
        published = self.licence and data.source not in ("bundled", "synthetic")
        hub = _HUB.get(data.name) if published else None
        metadata: dict[str, Any] = {
            "license": "unknown",
            "library_name": "flaxmnist",
            "pipeline_tag": "image-classification",
            "tags": ["image-classification", "jax", "flax"],
        }
        if hub:
            metadata["datasets"] = [hub]
        if test is not None:
            result = {
                "task": {"type": "image-classification"},
                "dataset": {
                    "name": data.name,
                    "type": hub or data.name,
                    "split": "test",
                },
                "metrics": [{"type": "accuracy", "value": test.accuracy}],
            }
            metadata["metrics"] = ["accuracy"]
            metadata["model-index"] = [{"name": self.model, "results": [result]}]
        # JSON is YAML.
        lines = [
            f"{key}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in metadata.items()
        ]
        lines[0] += "  # Of the parameters: yours to choose."
        return "\n".join(["---", *lines, "---", "", ""])

    def _images(self) -> str:
        height, width, channels = self.dataset.image_shape
        if self.dataset.image_shape == mnist.IMAGE_SHAPE:
            drawn = """the drawing scaled into
20×20 keeping its proportions, anti-aliased, and placed with its centre of mass in the
middle, as in MNIST."""
            if self.dataset.class_names == mnist.CLASS_NAMES:
                return f"Images of 28×28 pixels, one channel, white on black: {drawn}"
            return f"""\
Images of 28×28 pixels, one channel. A picture of another size becomes white on black:
{drawn}"""
        return f"""\
Images of {height}×{width} pixels (height × width), {_CHANNELS[channels - 1]}. A picture
of another size is scaled to cover the image, keeping its proportions, and cropped to
its centre."""

    def _classes(self) -> str:
        names = [printable(name) for name in self.dataset.class_names]
        if len(names) > _MAX_LISTED:
            return (
                f"{len(names):,} classes; `labels.txt` has a line for each, in order."
            )
        return f"{len(names)} classes, in this order: {', '.join(names)}."

    def _probabilities(self) -> str:
        if (temperature := self.calibration.temperature) == 1:
            return ""
        if self.format == "web":
            return "The probabilities are calibrated on the validation split."
        logits = "log(mean probabilities)" if self.members else "logits"
        return f"""\
Probabilities are softmax({logits}), as trained. `flaxmnist predict` calibrates
them on the validation split: softmax({logits} / {temperature:.4g})."""

    def _accuracy(self) -> str:
        if self.test is None:
            return "Its test accuracy was not measured."
        accuracy, count = self.test.accuracy, self.test.count
        low, high = statistics.interval(round(accuracy * count), count)
        return (
            f"Test accuracy **{accuracy:.2%}** (95 %: {low:.2%} to {high:.2%}, "
            f"{count:,} images)."
        )
