"""Parts that all pages share: templates, pictures, scripts, and the time."""

import base64
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import markupsafe

from flaxmnist.errors import printable

_FOLDER = Path(__file__).parent


def data_url(png: bytes) -> str:
    """Returns a PNG file as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def template(name: str) -> jinja2.Template:
    """Returns a template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{share:.2%}"
    environment.filters["thousands"] = lambda count: f"{count:,.0f}"
    environment.filters["printable"] = printable
    environment.globals["asset"] = _asset
    environment.globals["written"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return environment.get_template(name)


def _asset(name: str) -> markupsafe.Markup:
    """Returns a script or a style sheet of this package, to embed as it is."""
    return markupsafe.Markup((_FOLDER / name).read_text(encoding="utf-8"))
