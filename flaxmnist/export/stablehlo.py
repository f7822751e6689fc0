"""A program for `jax.export`, parameters included."""

from pathlib import Path

import jax
import numpy as np

from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.export.card import Card
from flaxmnist.export.parity import Logits

PLATFORMS = ("cpu", "cuda", "tpu")


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes a program that `jax.export.deserialize` reads, parameters included."""
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *state.image_shape), np.uint8)
    predict = jax.jit(lambda images: predict_step(state, images))
    exported = jax.export.export(predict, platforms=PLATFORMS)(image)
    path = folder / "model.stablehlo"
    path.write_bytes(exported.serialize())
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(jax.jit(again.call)(images)["logits"])
