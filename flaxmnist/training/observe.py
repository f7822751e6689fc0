"""What a run shows beside its figures: tensors, summaries, and devices."""

import jax
import numpy as np
from tensorboard.plugins.text.summary_v2 import text_pb

from flaxmnist.core import sharding
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import norms, predict_step
from flaxmnist.report.gallery import (
    DRAWN,
    WATCHED,
    drawable,
    filters,
    mistakes,
    tile,
)
from flaxmnist.rundir.metrics_log import MetricsWriter
from flaxmnist.rundir.tensorboard import histogram, image
from flaxmnist.training import programs
from flaxmnist.training.evaluate import predict
from flaxmnist.training.experiment import Experiment


def observed_norms(
    experiment: Experiment, state: TrainState, step: int
) -> dict[str, float]:
    """Returns the norms that are logged with the training figures, if asked for.

    Norms that overflow float32 are omitted, because JSON cannot represent infinity.
    """
    if "norms" not in experiment.config.summaries:
        return {}
    batches, _ = next(experiment.feed.chunks(step, step + 1))
    like = {"gradient_norm": 0, "parameter_norm": 0}
    found = jax.device_get(programs.call(norms, like, state, batches))
    return {name: float(norm) for name, norm in found.items() if np.isfinite(norm)}


def show_tensors(
    experiment: Experiment, state: TrainState, step: int, writer: MetricsWriter
) -> list[str]:
    """Writes `config.log_tensors` of the first validation images for TensorBoard.

    Returns:
      a line of text per image and tensor.
    """
    watched = experiment.dataset.validation
    names = experiment.dataset.class_names
    images = sharding.put(watched.images[:WATCHED], experiment.replicated)
    outputs = predict_step(state, images)
    outputs = jax.device_get(jax.device_put(outputs, experiment.replicated))
    texts = []
    for name in experiment.config.log_tensors:
        rows = []
        for index, row in enumerate(np.reshape(outputs[name], (len(images), -1))):
            values = " ".join(f"{value:.4g}" for value in row)
            label = names[watched.labels[index]]
            rows.append(f"{name}[{index}]  label {label}  {values}")
        writer.show("validation", step, text_pb(name, "\n\n".join(rows)))
        texts += rows
    return texts


def show_summaries(
    experiment: Experiment, state: TrainState, step: int, writer: MetricsWriter
) -> None:
    """Writes the histograms and pictures of `config.summaries` for TensorBoard."""
    wanted = experiment.config.summaries
    if "histograms" in wanted or "filters" in wanted:
        # Replicate them, so that every process can read all of them.
        params = jax.device_get(jax.device_put(state.params, experiment.replicated))
    if "histograms" in wanted:
        for name, leaf in sharding.named_leaves(params):
            writer.show("train", step, histogram(name, leaf))
    if "filters" in wanted:
        tiled = filters(params, state.image_shape)
        if tiled is not None:
            writer.show("train", step, image("filters", tiled))
    if "mistakes" in wanted:
        feed = experiment.eval_feeds["validation"]
        outputs = predict(state, feed, experiment.replicated)
        rows = mistakes(outputs)[:DRAWN]
        names = experiment.dataset.class_names
        captions = [
            f"{place}: {names[outputs['labels'][row]]} taken for "
            f"{names[outputs['classes'][row]]} "
            f"({outputs['probabilities'][row].max():.1%})"
            for place, row in enumerate(rows)
        ]
        images = experiment.dataset.validation.images[rows]
        writer.show(
            "validation",
            step,
            image("mistakes", tile(drawable(images))),
            # TensorBoard shows neither of two summaries with the same tag.
            text_pb("mistakes/captions", "\n\n".join(captions) or "none"),
        )


def placement(experiment: Experiment, state: TrainState, step: int) -> list[str]:
    """Returns a line per parameter and array of a batch, with its devices."""
    batches, _ = next(experiment.feed.chunks(step, step + 1))
    batch = jax.jit(lambda batches, step: batches.at(step))(batches, state.step)
    tree = {"params": state.params, "batch": batch}
    mesh = experiment.replicated.mesh.shape
    return [f"mesh: {dict(mesh)}", *sharding.placement(tree)]
