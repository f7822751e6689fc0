"""The layers of our models, as the exports describe them that compute without JAX."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from flaxmnist.core import convnet, models, ops
from flaxmnist.core.batch import ImageShape
from flaxmnist.core.ensemble import Ensemble, member_of
from flaxmnist.core.state import TrainState
from flaxmnist.errors import UserError

# A layer has its kind, options and arrays, and the name of its module if it has arrays;
# see `numpy_predictor.LAYERS`.
Layer = dict[str, Any]
_MODELS = (models.SoftmaxRegression, models.MLP, models.CNN, models.ConvNet)


def networks_of(state: TrainState, format: str) -> list[list[Layer]]:
    """Returns the layers of a model, or those of each member of an ensemble.

    Raises:
      UserError: the model has layers that the format cannot compute.
    """
    variables = {"params": state.eval_params, **state.model_state}
    model, members = state.model, [variables]
    if isinstance(model, Ensemble):
        members = [member_of(variables, index) for index in range(model.size)]
        model = model.member
    if type(model) not in _MODELS:
        names = ", ".join(model.__name__ for model in _MODELS)
        raise UserError(
            f"--format {format} supports the models {names}, "
            f"not {type(model).__name__}; use --format stablehlo or onnx"
        )
    if isinstance(model, models.ConvNet) and model.crop is not None:
        raise UserError(
            f"--format {format} does not support model.crop={model.crop}; use --format "
            "stablehlo or onnx"
        )
    return [_Network(model, member, state.image_shape).layers for member in members]


class _Network:
    """The layers of one model.

    Attributes:
      layers: in the order of their computation.
    """

    def __init__(self, model: nn.Module, variables: Any, image_shape: ImageShape):
        self.layers: list[Layer] = []
        self._params = variables["params"]
        self._stats = variables.get("batch_stats", {})
        self._counts: Counter[str] = Counter()
        self._sides: Sequence[int] = image_shape[:2]
        if isinstance(model, models.ConvNet):
            for part in convnet.parts(model.layers):
                self._add_part(part)
        else:
            if isinstance(model, models.CNN):
                self._add_convolutions(model)
            for _ in getattr(model, "hidden", ()):
                self._dense()
                self._activate(model)
        self._dense()

    def _next(self, kind: str) -> dict[str, Any]:
        """Returns name and parameters of the next module of a kind."""
        name = f"{kind}_{self._counts[kind]}"
        self._counts[kind] += 1
        arrays = {
            key: np.asarray(array, np.float32)
            for key, array in self._params[name].items()
        }
        return {"module": name, **arrays}

    def _add(self, kind: str, **values: Any) -> None:
        self.layers.append({"kind": kind, **values})

    def _dense(self) -> None:
        self._add("flatten")
        self._add("dense", **self._next("Dense"))

    def _conv(
        self, kind: str, size: Sequence[int], strides: Sequence[int], padding: str
    ) -> None:
        pads = ops.explicit_padding(self._sides, size, strides, padding)
        self._add(kind, **self._next("Conv"), strides=[*strides], padding=pads)
        self._sides = [
            (length + sum(pad) - kernel) // stride + 1
            for length, pad, kernel, stride in zip(
                self._sides, pads, size, strides, strict=True
            )
        ]

    def _normalize(self) -> None:
        seen = self._stats[f"BatchNorm_{self._counts['BatchNorm']}"]
        own = self._next("BatchNorm")
        scale = own["scale"] / np.sqrt(seen["var"] + nn.BatchNorm.epsilon)
        shift = own["bias"] - seen["mean"] * scale
        arrays = {"scale": np.asarray(scale), "shift": np.asarray(shift)}
        self._add("affine", module=own["module"], **arrays)

    def _activate(self, model: Any) -> None:
        if model.batch_norm:
            self._normalize()
        self._add("activation", name=model.activation)

    def _pool(self, name: str, size: int, edge: bool) -> None:
        self._add("pool", name=name, size=size, edge=edge)
        self._sides = [
            1 if not size else -(-side // size) if edge else side // size
            for side in self._sides
        ]

    def _add_convolutions(self, model: models.CNN) -> None:
        for _ in model.features:
            self._conv("conv", model.kernel_size, model.strides, model.padding)
            self._activate(model)
            if model.pool is not None:
                self._pool(model.pool, 2, edge=False)

    def _add_part(self, part: convnet.Part) -> None:
        """Adds a layer of a `ConvNet`."""
        match part.name:
            case "C":
                self._conv("conv", 2 * (part.size,), 2 * (part.stride,), part.padding)
                self._add("activation", name="relu")
            case "N":
                self._dense()
                self._add("activation", name="relu")
            case "MP" | "AP":
                self._pool(convnet.POOL_NAMES[part.name], part.size, edge=True)
            case "BN":
                self._normalize()
            case "R":
                self._normalize()
                self._conv("residual", (3, 3), (1, 1), "SAME")
            case "SE":
                first, second = self._next("Dense"), self._next("Dense")
                self._add(
                    "excite",
                    module=first["module"],
                    kernel0=first["kernel"],
                    bias0=first["bias"],
                    kernel1=second["kernel"],
                    bias1=second["bias"],
                )
