"""An ONNX graph."""

from pathlib import Path

import jax
import numpy as np

from flaxmnist.core.state import TrainState
from flaxmnist.errors import UserError
from flaxmnist.export.card import Card
from flaxmnist.export.parity import Logits


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes an ONNX graph and runs it with onnxruntime.

    Raises:
      UserError: a package is not installed, or cannot convert the model.
    """
    try:
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError:
        raise UserError(
            "--format onnx needs jax2onnx and onnxruntime: "
            "pip install 'flaxmnist[onnx]'"
        ) from None
    path = folder / "model.onnx"
    variables = {"params": state.eval_params, **state.model_state}

    def logits(images):
        return state.model.apply(variables, images, train=False)

    try:
        to_onnx(
            logits,
            inputs=[jax.ShapeDtypeStruct(("batch", *state.image_shape), np.float32)],
            return_mode="file",
            output_path=str(path),
        )
    except OSError:
        raise
    # The converter raises many kinds of errors for operations that it does not know.
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"jax2onnx cannot convert {type(state.model).__name__} "
            f"({type(error).__name__}: {reason}); use --format stablehlo"
        ) from error
    for file in folder.iterdir():
        file.chmod(0o644)  # The converter makes one readable by its owner only.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images.astype(np.float32) / 255})[0]

    return run
