"""Weights, and a script that needs only NumPy."""

import json
import shutil
from pathlib import Path

import numpy as np

from flaxmnist.core.state import TrainState
from flaxmnist.export import numpy_predictor
from flaxmnist.export.card import Card
from flaxmnist.export.layers import networks_of
from flaxmnist.export.parity import Logits


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes weights and a script that needs only NumPy.

    Raises:
      UserError: the model has layers that the script does not compute.
    """
    arrays: dict[str, np.ndarray] = {}
    networks = networks_of(state, "numpy")
    for index, layers in enumerate(networks):
        prefix = f"{index}." if len(networks) > 1 else ""
        for layer in layers:
            module = prefix + layer.pop("module", "")
            for key, value in layer.items():
                if isinstance(value, np.ndarray):
                    arrays[f"{module}.{key}"] = value
                    layer[key] = f"@{module}.{key}"
    path = folder / "weights.npz"
    arrays["networks"] = np.array(json.dumps(networks))
    arrays["image_shape"] = np.array(state.image_shape)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    shutil.copyfile(numpy_predictor.__file__, folder / "predict.py")
    read = numpy_predictor.load(path)
    return lambda images: numpy_predictor.logits(read, images)
