"""A page to draw a digit on: what the network sees, thinks, and looks at."""

if __name__ == "__main__":
    from flaxmnist import startup

    startup.prepare()

import base64
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from flaxmnist import cli
from flaxmnist.checks import UserError
from flaxmnist.console import Console
from flaxmnist.pictures import Picture
from flaxmnist.preprocess import prepare
from flaxmnist.restore import load_state
from flaxmnist.state import TrainState
from flaxmnist.steps import predict_step

_DESCRIPTION = """\
Opens a page to draw a digit on; needs 'flaxmnist[demo]', and no network.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --host 0.0.0.0    (anyone who reaches this machine may draw)
"""
# Sides in pixels: of the canvas, of a pixel of the network's as it is shown.
_CANVAS, _ZOOM = 280, 8
_HTML = f"""\
<canvas width="{_CANVAS}" height="{_CANVAS}"></canvas>
<p>Draw with a mouse, a pen or a finger. <button type="button">Clear</button></p>
"""
_CSS = """\
canvas { display: block; border: 1px solid #999; background: #fff; cursor: crosshair;
         touch-action: none; }
button { padding: 0.2rem 0.8rem; border: 1px solid #999; border-radius: 0.3rem; }
"""
# While a stroke is drawn, the component's value is what there is of it.
_SCRIPT = """\
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
const tell = () => { props.value = canvas.toDataURL("image/png"); trigger("input"); };
const clear = () => { pen.fillStyle = "#fff"; pen.fillRect(0, 0, 999, 999); };
const stroke = (event) => {
  const scale = canvas.width / canvas.getBoundingClientRect().width;
  pen.lineTo(event.offsetX * scale, event.offsetY * scale);
  pen.stroke();
  tell();
};
pen.lineWidth = 18; pen.lineCap = pen.lineJoin = "round";
clear();
canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary) return;  // A second finger.
  canvas.setPointerCapture(event.pointerId);
  pen.beginPath();
  stroke(event); stroke(event);  // A point is drawn, too.
});
canvas.addEventListener("pointermove", (event) => {
  if (canvas.hasPointerCapture(event.pointerId)) stroke(event);
});
element.querySelector("button").addEventListener("click", () => { clear(); tell(); });
"""


@jax.jit
def saliency(
    state: TrainState, images: Float[Array, "batch 28 28 1"]
) -> Float[Array, "batch 28 28"]:
    """Returns how much each pixel weighs: the size of the first choice's gradient.

    Simonyan et al., 2013, "Deep Inside Convolutional Networks".

    Args:
      state: whose model looks.
      images: in [0, 1].
    """

    def first_choice(images: Array) -> Array:
        return predict_step(state, images)["logits"].max(axis=-1).sum()

    return jnp.abs(jax.grad(first_choice)(images))[..., 0]


def classify(
    state: TrainState, picture: Picture
) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Returns probabilities, and pictures of what the network sees and looks at.

    There is no probability where nothing is drawn.
    """
    seen = prepare(picture).image
    if not seen.any():
        return {}, _shown(seen), _shown(seen)
    images = seen[None, ..., None].astype(np.float32) / 255
    outputs = predict_step(state, images)
    weights = np.asarray(saliency(state, images)[0])
    looked_at = np.asarray(255 * weights / max(weights.max(), 1e-12), np.uint8)
    shares = np.asarray(outputs["probabilities"][0])
    probabilities = {str(digit): float(share) for digit, share in enumerate(shares)}
    return probabilities, _shown(seen), _shown(looked_at)


def _shown(image: UInt8[np.ndarray, "28 28"]) -> Image.Image:
    return Image.fromarray(np.kron(image, np.ones((_ZOOM, _ZOOM), np.uint8)))


def build(state: TrainState) -> Any:
    """Returns the page, a `gradio.Blocks`."""
    import gradio as gr

    def look(picture: str) -> tuple[Any, ...]:
        _, _, encoded = picture.partition(",")
        return classify(state, io.BytesIO(base64.b64decode(encoded)))

    with gr.Blocks(title="flaxmnist", analytics_enabled=False) as page:
        gr.Markdown("# Draw a digit")
        # Columns that do not fit beside each other stand below each other.
        with gr.Row():
            with gr.Column(min_width=_CANVAS + 40):
                canvas = gr.HTML(
                    html_template=_HTML, css_template=_CSS, js_on_load=_SCRIPT
                )
            with gr.Column(min_width=_CANVAS):
                label = gr.Label(label="what it is", num_top_classes=10)
            with gr.Column(min_width=_CANVAS):
                pictures = [
                    gr.Image(
                        label=text,
                        height=_ZOOM * 28 + 40,
                        interactive=False,
                        buttons=[],
                    )
                    for text in ("what the network sees", "what it looks at")
                ]
        canvas.input(
            look,
            canvas,
            [label, *pictures],
            show_progress="hidden",
            trigger_mode="always_last",
        )
    return page


def run(argv: Sequence[str]) -> None:
    """Does what the command line says, until it is interrupted.

    Raises:
      UserError: it cannot be done.
    """
    parser = cli.Parser("python -m flaxmnist.demo", _DESCRIPTION)
    parser.add_run()
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    args = parser.parse_args(argv)
    try:
        import gradio as gr
    except ImportError:
        raise UserError(
            "the page needs gradio: pip install 'flaxmnist[demo]'"
        ) from None
    cli.start_jax(args)
    page = build(load_state(args.workdir, args.step))
    # Gradio looks whether its page can be reached, and would ask a proxy for it.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), args.host]))
    Console().line(f"http://{args.host}:{args.port}")
    # Gradio's default themes fetch their fonts.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            theme=theme,
            quiet=True,
            footer_links=[],
            # Otherwise some clouds' notebooks would open a tunnel to the public.
            share=False,
        )
    except (OSError, OverflowError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"no page at {args.host}:{args.port}: another --port or --host may be free "
            f"({reason})"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return cli.exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
