"""flaxmnist: `train_steps` over a `DeviceFeed`.

Variant "loop" dispatches each step from Python; a number is of virtual CPU devices.
"""

import jax
import numpy as np

import flaxmnist
from benchmarks.peers import EVAL_BATCH, MODERN, RECIPES
from flaxmnist import models, optim, sharding
from flaxmnist.data import DeviceFeed, Split
from flaxmnist.evaluate import evaluate

OPTIONS = {
    "softmax": {"name": "softmax"},
    "mlp": {"name": "mlp", "hidden": (128, 32)},
    "cnn": {"name": "cnn", "dropout_rate": 0.5},
    "modern": {
        "name": "cnn",
        "features": MODERN,
        "kernel_size": (3, 3),
        "batch_norm": True,
        "hidden": (),
    },
}


class Peer:
    """See :mod:`benchmarks.peers`."""

    def __init__(self, network, batch_size, images, labels, test, variant):
        if variant.isdigit():
            jax.config.update("jax_num_cpu_devices", int(variant))
        self.mesh = sharding.make_mesh()
        self.everywhere = sharding.replicated(self.mesh)
        self.feed = DeviceFeed(Split(images, labels), batch_size, self.mesh, seed=0)
        self.test = DeviceFeed(Split(*test), EVAL_BATCH, self.mesh)
        name, rate = RECIPES[network]
        tx, _ = optim.build(name, rate, total_steps=1, steps_per_epoch=1)
        self.state = flaxmnist.create_state(
            models.build(**OPTIONS[network]), tx, 0, self.everywhere
        )
        self.metrics = sharding.zeros(flaxmnist.Metrics.empty, self.everywhere)
        self.step, self.loop = 0, variant == "loop"

    def train(self, steps):
        """Makes `steps` updates."""
        for batches, count in self.feed.spans(self.step, self.step + steps):
            calls, count = (count, 1) if self.loop else (1, count)
            number = sharding.put(np.int32(count), self.everywhere)
            for _ in range(calls):
                self.state, self.metrics = flaxmnist.train_steps(
                    self.state, self.metrics, batches, number
                )
        self.step += steps
        jax.block_until_ready(self.metrics)

    def evaluate(self):
        """Returns the accuracy on the test images."""
        return evaluate(self.state, self.test, self.everywhere).compute()["accuracy"]

    def predict(self, image):
        """Returns the class of an image."""
        return flaxmnist.predict_step(self.state, image[None])["classes"].item()
