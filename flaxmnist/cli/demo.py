"""`flaxmnist demo`: a page to draw on."""

import base64
import functools
import io
import ipaddress
import socket
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from flaxmnist.cli import command
from flaxmnist.core import mnist
from flaxmnist.core.state import TrainState
from flaxmnist.core.steps import predict_step
from flaxmnist.errors import UserError, shown
from flaxmnist.inference.saved_run import open_run
from flaxmnist.pictures.files import Picture
from flaxmnist.pictures.prepare import prepare
from flaxmnist.runtime.console import Console

_DESCRIPTION = """\
Opens a page to draw on; needs 'flaxmnist[demo]', and no network. The run must be on
images of MNIST's shape.

  %(prog)s --workdir runs/a
  %(prog)s --workdir runs/a --host 0.0.0.0    (anyone who reaches this machine may draw)
"""
# Sides in screen pixels: of the canvas; of a pixel of the model in a picture.
_CANVAS, _ZOOM = 280, 8
# Most classes whose probabilities are shown.
_TOP_CLASSES = 10
# A drawing takes about 20,000 bytes.
MAX_REQUEST_BYTES = 1 << 20
# Suffixes of the paths at which Gradio accepts uploads.
_UPLOADS = ("/upload", "/process_recording")
_HTML = f"""\
<canvas width="{_CANVAS}" height="{_CANVAS}"></canvas>
<p>Draw with a mouse, a pen or a finger. <button type="button">Clear</button></p>
"""
_CSS = """\
canvas { display: block; border: 1px solid #999; background: #fff; cursor: crosshair;
         touch-action: none; }
button { padding: 0.2rem 0.8rem; border: 1px solid #999; border-radius: 0.3rem; }
"""
# Sends the drawing after every movement of the pen, not only at the end of a stroke.
_SCRIPT = """\
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
const send = () => { props.value = canvas.toDataURL("image/png"); trigger("input"); };
const clear = () => { pen.fillStyle = "#fff"; pen.fillRect(0, 0, 999, 999); };
const stroke = (event) => {
  const scale = canvas.width / canvas.getBoundingClientRect().width;
  pen.lineTo(event.offsetX * scale, event.offsetY * scale);
  pen.stroke();
  send();
};
pen.lineWidth = 18; pen.lineCap = pen.lineJoin = "round";
clear();
canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary) return;  // Ignore a second finger.
  canvas.setPointerCapture(event.pointerId);
  pen.beginPath();
  stroke(event); stroke(event);  // Twice, so that a click draws a point.
});
canvas.addEventListener("pointermove", (event) => {
  if (canvas.hasPointerCapture(event.pointerId)) stroke(event);
});
element.querySelector("button").addEventListener("click", () => { clear(); send(); });
"""


@jax.jit
def saliency(
    state: TrainState, images: Float[Array, "batch height width 1"]
) -> Float[Array, "batch height width"]:
    """Returns the importance of each pixel: the gradient magnitude of the top logit.

    Simonyan et al., 2013, "Deep Inside Convolutional Networks".

    Args:
      state: the model and its parameters.
      images: in [0, 1].
    """

    def top_logit(images: Array) -> Array:
        return predict_step(state, images)["logits"].max(axis=-1).sum()

    return jnp.abs(jax.grad(top_logit)(images))[..., 0]


def classify(
    state: TrainState, class_names: Sequence[str], picture: Picture
) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Returns probabilities, and pictures of the network's input and of `saliency`.

    For an empty drawing, the probabilities are empty.
    """
    seen = prepare(picture).image
    if not seen.any():
        return {}, _shown(seen), _shown(seen)
    images = seen[None, ..., None].astype(np.float32) / 255
    outputs = predict_step(state, images)
    weights = np.asarray(saliency(state, images)[0])
    looked_at = np.asarray(255 * weights / max(weights.max(), 1e-12), np.uint8)
    shares = np.asarray(outputs["probabilities"][0]).tolist()
    probabilities = dict(zip(class_names, shares, strict=True))
    return probabilities, _shown(seen), _shown(looked_at)


def _shown(image: UInt8[np.ndarray, "height width"]) -> Image.Image:
    return Image.fromarray(np.kron(image, np.ones((_ZOOM, _ZOOM), np.uint8)))


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def build(state: TrainState, class_names: Sequence[str]) -> Any:
    """Returns the page as an ASGI application."""
    import fastapi
    import gradio as gr

    def look(picture: str) -> tuple[Any, ...]:
        try:
            encoded = base64.b64decode(picture.partition(",")[2], validate=True)
            probabilities, *images = classify(state, class_names, encoded)
        except (UserError, AttributeError, ValueError):
            raise gr.Error("expected a PNG as a data URL", print_exception=False) from (
                None
            )
        return probabilities, *map(_data_url, images)

    with gr.Blocks(title="flaxmnist", analytics_enabled=False) as page:
        digits = class_names == mnist.CLASS_NAMES
        gr.Markdown("# Draw a digit" if digits else "# Draw a picture")
        # On a narrow screen, Gradio stacks the columns.
        with gr.Row():
            with gr.Column(min_width=_CANVAS + 40):
                canvas = gr.HTML(
                    html_template=_HTML, css_template=_CSS, js_on_load=_SCRIPT
                )
            with gr.Column(min_width=_CANVAS):
                label = gr.Label(label="what it is", num_top_classes=_TOP_CLASSES)
            with gr.Column(min_width=_CANVAS):
                pictures = [
                    # gr.Image would write a file of each picture to disk.
                    gr.HTML(
                        _data_url(_shown(np.zeros(mnist.IMAGE_SHAPE[:2], np.uint8))),
                        label=text,
                        html_template=f'<img alt="{text}" src="${{value}}">',
                        css_template="img { margin: auto; }",
                        show_label=True,
                        container=True,
                        js_on_load=None,
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
    # Gradio's default fonts would need a network.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        theme=theme,
        footer_links=[],
        # With SSR, Gradio starts a second server, without `guard`, if Node is present.
        ssr_mode=False,
    )


def guard(app: Any, host: str) -> Any:
    """Returns an ASGI application that forwards only requests of its page to `app`.

    Any website that the user visits can send requests to this machine, even under the
    website's own host name (DNS rebinding). Therefore a request must name this server
    as its host, come from this page, be small, and not upload a file.

    Args:
      app: the ASGI application.
      host: the IP address of the server. If it is a loopback address, requests must
        name a loopback address, too.
    """
    from starlette.responses import PlainTextResponse

    local = {"localhost", "127.0.0.1", "::1", host}
    only_local = ipaddress.ip_address(host).is_loopback

    def refusal(scope: Any) -> int | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        requested, origin = headers.get(b"host", ""), headers.get(b"origin")
        if only_local and _host_name(requested) not in local:
            return 421  # Misdirected Request
        foreign = origin is not None and origin.partition("//")[2] != requested
        if foreign or scope["path"].rstrip("/").endswith(_UPLOADS):
            return 403
        return None

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        status, body, more = refusal(scope), b"", True
        while more and status is None:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message.get("more_body", False)
            if len(body) > MAX_REQUEST_BYTES:
                status = 413
        if status is not None:
            return await PlainTextResponse("refused", status)(scope, receive, send)
        first = [{"type": "http.request", "body": body}]

        async def receive_again() -> Any:
            return first.pop() if first else await receive()

        await app(scope, receive_again, send)

    return guarded


def _host_name(host: str) -> str | None:
    """Returns the name in a Host header, without the port."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return None


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
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError(
            "the page requires Gradio: pip install 'flaxmnist[demo]'"
        ) from None
    command.start_jax(args)
    saved = open_run(args.workdir, args.step)
    dataset = saved.manifest.dataset
    if dataset.image_shape != mnist.IMAGE_SHAPE:
        size = "×".join(map(str, dataset.image_shape))
        raise UserError(
            f"{args.workdir} is a run on images of {size}; demo expects images of "
            "MNIST's shape. Use flaxmnist predict with files of pictures"
        )
    app = build(saved.state, dataset.class_names)
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listener = socket.create_server((args.host, args.port), family=family)
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"--host={shown(args.host)} --port={args.port}: cannot listen ({error}). "
            "Give another --host or --port"
        ) from None
    host, port = listener.getsockname()[:2]
    Console().line(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    config = uvicorn.Config(guard(app, host), log_level="warning", ws="none")
    server = uvicorn.Server(config)
    # In another thread uvicorn does not handle signals, so Ctrl-C ends at once.
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    thread.join()


main = functools.partial(command.exit_code, run)
