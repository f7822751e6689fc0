"""A program for `jax.export`, parameters included."""

from pathlib import Path

import jax
import jax.export
import numpy as np

from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.export.card import Card
from flaxmnist.export.parity import Logits

PLATFORMS = ("cpu", "cuda", "tpu")
# JAX removes the matches of this pattern from the names of source files in a program.
_FILE_NAMES = "jax_hlo_source_file_canonicalization_regex"


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes a program that `jax.export.deserialize` reads, parameters included."""
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *state.image_shape), np.uint8)
    predict = jax.jit(lambda images: predict_step(state, images))
    before = jax.config.values[_FILE_NAMES]
    # A program for others must not contain paths of this machine.
    jax.config.update(_FILE_NAMES, ".*")
    try:
        exported = jax.export.export(predict, platforms=PLATFORMS)(image)
    finally:
        jax.config.update(_FILE_NAMES, before)
    path = folder / "model.stablehlo"
    path.write_bytes(exported.serialize())
    again = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(again(images)["logits"])
