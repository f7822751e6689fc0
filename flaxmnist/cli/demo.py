"""`flaxmnist demo`: a page to draw on."""

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from flaxmnist.cli import command, exits
from flaxmnist.core import mnist, models
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError, shown
from flaxmnist.inference.predict import Prediction, predict_prepared, prepare_for
from flaxmnist.inference.reading import Reading
from flaxmnist.inference.saved_run import SavedRun, open_run
from flaxmnist.pictures.prepare import prepare_ink
from flaxmnist.runtime.console import Console
from flaxmnist.runtime.page_server import MAX_REQUEST_BYTES, PageServer

_DESCRIPTION = """\
Opens a page to draw on, or to drop, paste or choose a picture. It needs no network.
A run on images of another shape than MNIST's takes pictures only.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --host 0.0.0.0    (anyone who reaches this machine may draw)
"""
# Most classes whose probabilities are shown.
_TOP_CLASSES = 10
# Digits of a number that are shown side by side.
_COLUMNS = 8
_TEMPLATE = Path(__file__).with_name("demo.html.j2")


@jax.jit
def saliency(
    state: TrainState, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch height width"]:
    """Returns the importance of each pixel: the gradient magnitude of the top logit.

    The largest of the channels counts. Simonyan et al., 2013, "Deep Inside
    Convolutional Networks".

    Args:
      state: the model and its parameters.
      images: in [0, 1].
    """

    def top_logit(images: Array) -> Array:
        return predict_step(state, images)["logits"].max(axis=-1).sum()

    return jnp.abs(jax.grad(top_logit)(images)).max(axis=-1)


def answer(run: SavedRun, picture: io.BytesIO) -> dict[str, Any]:
    """Returns the values that the page shows for a picture: of a digit or a number.

    Raises:
      UserError: `picture` is not a picture.
    """
    names = run.manifest.dataset.class_names
    if mnist.is_like(run.state.image_shape, names):
        reading = run.read(picture)
        if len(reading.digits) > 1:
            return _number(reading)
        prepared = prepare_ink(reading.ink)
    else:
        prepared = prepare_for(picture, run.state.image_shape, names)
    (prediction,) = predict_prepared([prepared], run.state, names, run.calibration)
    values = {"bars": _bars(prediction), "warnings": prediction.warnings}
    if prediction.label is None:
        return values
    seen = prediction.prepared.image
    images = seen.reshape(1, *run.state.image_shape).astype(np.float32) / 255
    weights = np.asarray(saliency(run.state, images)[0])
    mattering = np.asarray(255 * weights / max(weights.max(), 1e-12), np.uint8)
    return values | {
        "text": prediction.label,
        "seen": _data_url(seen),
        "mattering": _data_url(mattering),
    }


def _number(reading: Reading) -> dict[str, Any]:
    """Returns the values that the page shows for several digits.

    A box is left, top, right and bottom, as shares of the picture.
    """
    assert reading.ink is not None
    size = np.array(2 * reading.ink.size)
    warnings = [
        f"{digit.prediction.label}, digit {place}: {warning}"
        for place, digit in enumerate(reading.digits, 1)
        for warning in digit.warnings
    ]
    images = [digit.prediction.prepared.image for digit in reading.digits]
    columns = min(len(images), _COLUMNS)
    images += [np.zeros_like(images[0])] * (-len(images) % columns)
    rows = [images[at : at + columns] for at in range(0, len(images), columns)]
    return {
        "text": reading.text,
        "bars": [digit.prediction.top(1)[0] for digit in reading.digits],
        "boxes": [
            {"box": (digit.box / size).tolist(), "doubtful": bool(digit.warnings)}
            for digit in reading.digits
        ],
        "warnings": [*reading.warnings, *warnings],
        "seen": _data_url(np.block(rows)),
    }


def _bars(prediction: Prediction) -> list[tuple[str, float]]:
    """Returns classes and probabilities: all in order, or the most probable."""
    names = prediction.class_names
    if len(names) > _TOP_CLASSES:
        return prediction.top(_TOP_CLASSES)
    shares = dict(prediction.top(len(names)))
    return [(name, shares.get(name, 0.0)) for name in names]


def _data_url(image: UInt8[np.ndarray, "height width *channels"]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def page(run: SavedRun) -> str:
    """Returns the page as HTML."""
    dataset, state, summary = run.manifest.dataset, run.state, run.summary
    draws = state.image_shape == mnist.IMAGE_SHAPE
    names = dataset.class_names if len(dataset.class_names) <= _TOP_CLASSES else ()
    size = "×".join(map(str, state.image_shape))
    model = (
        f"{run.model_name} with {models.num_parameters(state.params):,} "
        f"parameters, trained on {dataset.name}"
    )
    if summary is not None:
        test = summary.test
        model += f": {test.accuracy:.2%} of {test.count:,} test images are right"
    bars = [(name, 0) for name in names]
    start = {"text": "", "bars": bars, "boxes": (), "warnings": ()}
    hint = "Draw with a mouse, a pen or a finger, or drop or paste a picture"
    if not draws:
        hint = f"Drop or paste a picture: this model takes images of {size}"
    digits = dataset.class_names == mnist.CLASS_NAMES
    subject = "digit" if digits else "picture"
    template = jinja2.Template(_TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    return template.render(
        title=f"{'Draw' if draws else 'Choose'} a {subject}",
        model=model,
        draws=draws,
        hint=hint,
        start=start,
        max_bytes=MAX_REQUEST_BYTES,
        blank=_data_url(np.zeros(state.image_shape[:2], np.uint8)),
    )


def run(argv: Sequence[str]) -> None:
    """Serves the page until it is interrupted.

    Raises:
      UserError: the flags, the run or the port cannot be used.
    """
    parser = command.Parser("demo", _DESCRIPTION)
    parser.add_run()
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    args = parser.parse_args(argv)
    command.start_jax(args)
    saved = open_run(args.workdir, args.step, trust_code=args.trust_code)
    try:
        server = PageServer(args.host, args.port)
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"--host={shown(args.host)} --port={args.port}: cannot listen ({error}). "
            "Give another --host or --port"
        ) from None
    with server:
        server.page, server.answer = page(saved), functools.partial(answer, saved)
        _compile(saved)
        Console().line(server.address)
        server.serve_forever()


def _compile(run: SavedRun) -> None:
    """Answers once, so that the first answer to a user does not wait."""
    drawing = np.full((64, 64), 255, np.uint8)
    drawing[12:52, 30:36] = 0
    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    file.seek(0)
    answer(run, file)


main = functools.partial(exits.exit_code, run)
