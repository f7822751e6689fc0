"""What a run shows of itself beyond its figures: `log_tensors` and `summaries`."""

from typing import Any

import jax
import numpy as np
from tensorboard.plugins.text.summary_v2 import text_pb

from flaxmnist import sharding
from flaxmnist.console import Console
from flaxmnist.evaluate import predict
from flaxmnist.run import Run
from flaxmnist.state import TrainState
from flaxmnist.steps import norms, predict_step
from flaxmnist.writers import MetricsWriter, histogram, image

# How many validation images `log_tensors` looks at, and how many pictures are drawn.
WATCHED, DRAWN = 4, 64


def watched_norms(run: Run, state: TrainState, step: int) -> dict[str, float]:
    """Returns the norms that are written with the training figures, if asked for.

    One that float32 cannot hold is left out: JSON has no word for it.
    """
    if "norms" not in run.config.summaries:
        return {}
    batches, _ = next(run.feed.spans(step, step + 1))
    found = jax.device_get(norms(state, batches))
    return {name: float(norm) for name, norm in found.items() if np.isfinite(norm)}


def show_tensors(
    run: Run, state: TrainState, step: int, console: Console, writer: MetricsWriter
) -> None:
    """Tells `config.log_tensors` of the first validation images, as a hook would."""
    watched = run.dataset.validation
    images = sharding.put(watched.images[:WATCHED], run.everywhere)
    outputs = predict_step(state, images)
    outputs = jax.device_get(jax.device_put(outputs, run.everywhere))
    for name in run.config.log_tensors:
        rows = []
        for index, row in enumerate(np.reshape(outputs[name], (len(images), -1))):
            values = " ".join(f"{value:.4g}" for value in row)
            rows.append(f"{name}[{index}]  label {watched.labels[index]}  {values}")
            console.line(f"step {step}  {rows[-1]}")
        writer.show("validation", step, text_pb(name, "\n\n".join(rows)))


def show_summaries(
    run: Run, state: TrainState, step: int, writer: MetricsWriter
) -> None:
    """Writes the histograms and pictures of `config.summaries` for TensorBoard."""
    wanted = run.config.summaries
    if "histograms" in wanted or "filters" in wanted:
        # Whole on every device, so that every process can read all of it.
        params = jax.device_get(jax.device_put(state.params, run.everywhere))
    if "histograms" in wanted:
        for name, leaf in sharding.named_leaves(params):
            writer.show("train", step, histogram(name, leaf))
    if "filters" in wanted and (tiled := filters(params)) is not None:
        writer.show("train", step, image("filters", tiled))
    if "mistakes" in wanted:
        outputs = predict(state, run.eval_feeds["validation"], run.everywhere)
        rows = mistakes(outputs)[:DRAWN]
        told = [
            f"{place}: {outputs['labels'][row]} taken for {outputs['classes'][row]} "
            f"({outputs['probabilities'][row].max():.1%})"
            for place, row in enumerate(rows)
        ]
        writer.show(
            "validation",
            step,
            image("mistakes", tile(run.dataset.validation.images[rows])),
            text_pb("mistakes", "\n\n".join(told) or "none"),
        )


def filters(params: Any) -> np.ndarray | None:
    """Returns the first layer's kernels side by side, uint8 `[height, width]`.

    None where no kernel belongs to a convolution or to a dense layer of all pixels.
    """
    for name, kernel in sharding.named_leaves(params):
        if name.endswith("kernel") and kernel.ndim == 4:
            kernels = kernel[:, :, 0]
        elif name.endswith("kernel") and kernel.shape[0] == 28 * 28:
            kernels = kernel.reshape(28, 28, -1)
        else:
            continue
        kernels = np.moveaxis(kernels, -1, 0)[:DRAWN]
        low, high = kernels.min(), kernels.max()
        return tile((kernels - low) / max(high - low, 1e-12) * 255)
    return None


def mistakes(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which predictions are wrong, int `[mistakes]`, the surest ones first.

    Args:
      outputs: as :func:`flaxmnist.evaluate.predict` returns them.
    """
    wrong = np.flatnonzero(outputs["classes"] != outputs["labels"])
    surest = outputs["probabilities"][wrong].max(axis=-1)
    return wrong[np.argsort(-surest, kind="stable")]


def tile(images: np.ndarray, gap: int = 1) -> np.ndarray:
    """Returns images `[count, height, width]` in rows of eight, as one uint8 image."""
    count, height, width = images.shape
    rows = max(1, -(-count // 8))
    cells = np.zeros((rows * 8, height + gap, width + gap), np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, 8, height + gap, width + gap).swapaxes(1, 2)
    return grid.reshape(rows * (height + gap), 8 * (width + gap))
