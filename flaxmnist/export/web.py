"""A page that predicts drawings and pictures in a browser, without a network."""

import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from flaxmnist.core import mnist
from flaxmnist.core.calibration import SURE
from flaxmnist.core.state import TrainState
from flaxmnist.errors import printable
from flaxmnist.export import numpy_predictor
from flaxmnist.export.card import Card
from flaxmnist.export.layers import networks_of
from flaxmnist.export.parity import Logits

_TEMPLATE = Path(__file__).with_name("web.html.j2")
_SCRIPTS = ("web.js", "web_drawing.js")


def write(state: TrainState, folder: Path, card: Card) -> Logits:
    """Writes the page, with the parameters in float32.

    Raises:
      UserError: the model has layers that the page does not compute.
    """
    networks, content = networks_of(state, "web"), bytearray()
    for layer in (layer for layers in networks for layer in layers):
        layer.pop("module", None)
        for key, value in layer.items():
            if isinstance(value, np.ndarray):
                layer[key] = {"offset": len(content), "shape": value.shape}
                content += value.astype("<f4").tobytes()
    template = jinja2.Template(_TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    draws = state.image_shape == mnist.IMAGE_SHAPE
    data, test = card.dataset, card.test
    page = template.render(
        draws=draws,
        subject="digit" if data.class_names == mnist.CLASS_NAMES else "picture",
        card=card,
        accuracy=f"{test.accuracy:.2%} of {test.count:,}" if test else None,
        class_names=[printable(name) for name in data.class_names],
        shape=state.image_shape,
        networks=networks,
        calibration={**dataclasses.asdict(card.calibration), "sure": SURE},
        weights=base64.b64encode(content).decode(),
        scripts=[
            _TEMPLATE.with_name(name).read_text(encoding="utf-8") for name in _SCRIPTS
        ],
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    read = state.image_shape, _decode(path.read_text(encoding="utf-8"))
    return lambda images: numpy_predictor.logits(read, images)


def _decode(page: str) -> list[list[dict[str, Any]]]:
    """Returns the networks in a page, as `numpy_predictor` computes them."""
    networks, weights = (
        re.search(rf'<script id="{name}" [^>]*>(.*?)</script>', page, re.S)[1]  # type: ignore[index]
        for name in ("networks", "weights")
    )
    content = base64.b64decode(weights)

    def array(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        count = int(np.prod(value["shape"]))
        found = np.frombuffer(content, "<f4", count, value["offset"])
        return found.reshape(value["shape"])

    return [
        [{key: array(value) for key, value in layer.items()} for layer in layers]
        for layers in json.loads(networks)
    ]
