"""Gathers the content of a report from the devices of a run."""

import dataclasses
from typing import Any

import jax
import numpy as np

from flaxmnist.core import sharding
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.report.html import Costs, Results
from flaxmnist.rundir.history import History
from flaxmnist.runtime import devices
from flaxmnist.training.durations import make_optimizer
from flaxmnist.training.evaluate import predict
from flaxmnist.training.experiment import Evaluation


def collect(run: Evaluation, state: TrainState, history: History) -> Results:
    """Returns what :func:`flaxmnist.report.html.write_report` shows of a run.

    Args:
      run: the data and feeds of the run.
      state: the state that the summary in `history` describes.
      history: the summary and the metrics of the run.
    """
    outputs = {
        split: predict(state, run.eval_feeds[split], run.replicated)
        for split in ("validation", "test")
    }
    return Results(
        history=history,
        outputs=outputs,
        test_images=run.dataset.test.images,
        params=jax.device_get(jax.device_put(state.eval_params, run.replicated)),
        costs=_costs(run, state),
    )


def _costs(run: Evaluation, state: TrainState) -> Costs:
    """Returns each parameter, and the memory and FLOP that the model needs."""
    leaves = [
        (name, leaf.shape, leaf.size)
        for name, leaf in sharding.named_leaves(state.params)
    ]
    image = jax.ShapeDtypeStruct((1, *state.image_shape), np.uint8)
    described = sharding.abstract(lambda: dataclasses.replace(state, layout=None), None)
    # On GPU, the costs of convolutions, which are functions of a library, are unknown.
    with jax.default_device(devices.cpu()):
        lowered = predict_step.lower(described, image)
    # Not every backend can analyse a program before it is compiled.
    costs = lowered.cost_analysis() or lowered.compile().cost_analysis() or {}

    def megabytes(tree: Any) -> float:
        leaves = jax.tree.leaves(tree)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e6

    # A saved run is opened without its optimizer.
    tx, _, _ = make_optimizer(run.config, run.epochs)
    return Costs(
        leaves=leaves,
        flop=costs.get("flops"),
        parameters_mb=megabytes(state.params),
        optimizer_mb=megabytes(jax.eval_shape(tx.init, state.params)),
        images_mb=run.dataset.train.images.nbytes / 1e6,
    )
