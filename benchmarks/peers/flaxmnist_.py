"""flaxmnist: `train_steps` over a `DeviceFeed`.

Variant "loop" dispatches each step of it from Python, "step" calls `train_step` with
batches of the host; a number is of virtual CPU devices.
"""

import itertools

import jax
import numpy as np

import flaxmnist
from benchmarks.peers import EVAL_BATCH, MODERN, RECIPES, shuffled
from flaxmnist.core import models, optim, sharding
from flaxmnist.data import DeviceFeed, Split
from flaxmnist.training.evaluate import evaluate

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


def new_state(network, dtype="float32", everywhere=None):
    """Returns the state of a network before its first step."""
    name, rate = RECIPES[network]
    tx, _ = optim.build(name, rate, total_steps=1, steps_per_epoch=1)
    model = models.build(**OPTIONS[network], dtype=dtype)
    return flaxmnist.create_state(model, tx, 0, everywhere)


class Peer:
    """See :mod:`benchmarks.peers`."""

    def __init__(
        self, network, batch_size, images, labels, test, variant, dtype="float32"
    ):
        devices = int(variant) if variant.isdigit() else 1
        if devices > 1:
            jax.config.update("jax_num_cpu_devices", devices)
        self.mesh = sharding.make_mesh(devices)
        self.everywhere = sharding.replicated(self.mesh)
        self.feed = DeviceFeed(Split(images, labels), batch_size, self.mesh, seed=0)
        self.test = DeviceFeed(Split(*test), EVAL_BATCH, self.mesh)
        self.state = new_state(network, dtype, self.everywhere)
        self.metrics = sharding.zeros(flaxmnist.Metrics.empty, self.everywhere)
        self.step, self.variant = 0, variant
        self.batches = shuffled(images, labels.astype(np.int32), batch_size)

    def train(self, steps):
        """Makes `steps` updates."""
        if self.variant == "step":
            for images, labels in itertools.islice(self.batches, steps):
                batch = {"image": images, "label": labels}
                self.state, self.metrics = flaxmnist.train_step(self.state, batch)
            jax.block_until_ready((self.state, self.metrics))
            return
        for batches, count in self.feed.chunks(self.step, self.step + steps):
            calls, count = (count, 1) if self.variant == "loop" else (1, count)
            number = sharding.put(np.int32(count), self.everywhere)
            for _ in range(calls):
                self.state, self.metrics = flaxmnist.train_steps(
                    self.state, self.metrics, batches, number
                )
        self.step += steps
        jax.block_until_ready((self.state, self.metrics))

    def evaluate(self):
        """Returns the accuracy on the test images."""
        return evaluate(self.state, self.test, self.everywhere).compute()["accuracy"]

    def predict(self, image):
        """Returns the class of an image."""
        return flaxmnist.predict_step(self.state, image[None])["classes"].item()
