"""The model card of an export."""

from flaxmnist.report import statistics
from flaxmnist.rundir.manifest import Summary

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


def render(
    name: str,
    summary: Summary,
    licence: str | None,
    chosen: str,
    difference: float,
    count: int,
) -> str:
    """Returns the model card, as Markdown."""
    dataset, test = summary.dataset, summary.test
    low, high = statistics.interval(round(test.accuracy * test.count), test.count)
    # Without published files, the name is only what the user called the data.
    trained_on = dataset.name if licence else f"data named {dataset.name}"
    rights = f"is {licence}" if licence else "is not known"
    versions = ", ".join(f"{name} {v}" for name, v in summary.versions.items())
    return f"""\
# {summary.model.name}, trained on {trained_on}

{summary.model.parameters:,} parameters. Test accuracy **{test.accuracy:.2%}**
(95 %: {low:.2%} to {high:.2%}, {test.count:,} images), by the checkpoint of step
{summary.evaluated_step:,}, {chosen}.

## Use

{_USE[name]}

## What it expects

Images of 28×28 pixels, one channel, white on black: the digit scaled into 20×20 keeping
its proportions, anti-aliased, and placed with its centre of mass in the middle, as
MNIST's are. `python -m flaxmnist.predict` makes them from any picture. The model has no
class for other input, which it still labels as some class.

## Where it comes from

Data: {dataset.name} ({dataset.source}), {dataset.counts["train"]:,} images,
fingerprint {dataset.fingerprint}. The licence of the images {rights}.
Trained with flaxmnist (Apache-2.0); {versions}.

Checked against the checkpoint on {count:,} test images: the largest difference of a
logit was {difference:.1e}.
"""
