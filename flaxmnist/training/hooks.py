"""What a run shows of itself beyond its figures: `log_tensors` and `summaries`."""

import jax
import numpy as np
from tensorboard.plugins.text.summary_v2 import text_pb

from flaxmnist.core import sharding
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import norms, predict_step
from flaxmnist.report.gallery import DRAWN, WATCHED, filters, mistakes, tile
from flaxmnist.rundir.metrics_log import MetricsWriter
from flaxmnist.rundir.tensorboard import histogram, image
from flaxmnist.runtime.console import Console
from flaxmnist.training.evaluate import predict
from flaxmnist.training.experiment import Run


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
