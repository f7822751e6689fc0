"""Weights, and a script that needs only NumPy."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from flaxmnist.core import models, ops
from flaxmnist.core.batch import ImageShape
from flaxmnist.core.ensemble import Ensemble, member_of
from flaxmnist.core.state import TrainState
from flaxmnist.errors import UserError
from flaxmnist.export import numpy_predictor
from flaxmnist.export.card import Card
from flaxmnist.export.parity import Logits

_MODELS = (models.SoftmaxRegression, models.MLP, models.CNN)


def _layers(
    model: Any, variables: Any, image_shape: ImageShape
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Returns the layers of one of our models as `numpy_predictor` reads them."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    arrays: dict[str, np.ndarray] = {}
    layers: list[dict[str, Any]] = []

    def add(kind: str, name: str, given: Any, **options: Any) -> None:
        held = {key: np.asarray(array) for key, array in given.items()}
        arrays.update({f"{name}.{key}": array for key, array in held.items()})
        names = {key: f"@{name}.{key}" for key in held}
        layers.append({"kind": kind, **options, **names})

    def activate(index: int) -> None:
        name = f"BatchNorm_{index}"
        if name in params:
            own, seen = params[name], stats[name]
            scale = own["scale"] / np.sqrt(seen["var"] + nn.BatchNorm.epsilon)
            shift = own["bias"] - seen["mean"] * scale
            add("affine", name, {"scale": scale, "shift": shift})
        layers.append({"kind": "activation", "name": model.activation})

    activations = 0
    side: Sequence[int] = image_shape[:2]
    for index, _ in enumerate(model.features if isinstance(model, models.CNN) else ()):
        pads = ops.explicit_padding(
            side, model.kernel_size, model.strides, model.padding
        )
        name = f"Conv_{index}"
        add("conv", name, params[name], strides=model.strides, padding=pads)
        side = tuple(
            (length + sum(pad) - kernel) // stride + 1
            for length, pad, kernel, stride in zip(
                side, pads, model.kernel_size, model.strides, strict=True
            )
        )
        activate(activations)
        activations += 1
        if model.pool is not None:
            layers.append({"kind": "pool", "name": model.pool})
            side = tuple(length // 2 for length in side)
    layers.append({"kind": "flatten"})
    hidden = getattr(model, "hidden", ())
    for index in range(len(hidden) + 1):
        name = f"Dense_{index}"
        add("dense", name, params[name])
        if index < len(hidden):
            activate(activations)
            activations += 1
    return layers, arrays


def _prefixed(layer: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns a layer whose names of arrays begin with a prefix."""
    return {
        key: f"@{prefix}{value[1:]}" if str(value)[0] == "@" else value
        for key, value in layer.items()
    }


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes weights and a script that needs only NumPy.

    Raises:
      UserError: the model has layers that the script does not compute.
    """
    variables = {"params": state.eval_params, **state.model_state}
    model, members = state.model, [variables]
    if isinstance(model, Ensemble):
        members = [member_of(variables, index) for index in range(model.size)]
        model = model.member
    if type(model) not in _MODELS:
        names = ", ".join(model.__name__ for model in _MODELS)
        raise UserError(
            f"--format numpy supports the models {names}, "
            f"not {type(model).__name__}; use --format stablehlo or onnx"
        )
    networks: list[list[dict[str, Any]]] = []
    arrays: dict[str, np.ndarray] = {}
    for index, member in enumerate(members):
        layers, own = _layers(model, member, state.image_shape)
        prefix = f"{index}." if len(members) > 1 else ""
        networks.append([_prefixed(layer, prefix) for layer in layers])
        arrays |= {prefix + name: array for name, array in own.items()}
    path = folder / "weights.npz"
    arrays["networks"] = np.array(json.dumps(networks))
    arrays["image_shape"] = np.array(state.image_shape)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    shutil.copyfile(numpy_predictor.__file__, folder / "predict.py")
    read = numpy_predictor.load(path)
    return lambda images: numpy_predictor.logits(read, images)
