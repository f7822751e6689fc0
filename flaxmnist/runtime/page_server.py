"""Serves one page to browsers on this machine."""

import http.server
import io
import ipaddress
import json
import socket
import socketserver
import sys
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from flaxmnist.errors import UserError

# The picture of a camera takes a few million bytes, a drawing about 20,000.
MAX_REQUEST_BYTES = 1 << 26
# Pictures that are received at once, and of these, those that are read: each of the
# latter takes memory of several times its pixels.
_MAX_UPLOADS, _MAX_READERS = 16, 2
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; frame-ancestors 'none'"
)


class PageServer(socketserver.ThreadingTCPServer):
    """Serves the page, and the answers to its pictures.

    Any website that the user visits can send requests to this machine, even under the
    website's own host name (DNS rebinding). Therefore a request must name this server
    as its host, come from this page, and be small.

    Args:
      host: the IP address or the name to listen on. If it is a loopback address,
        requests must name a loopback address, too.
      port: the port, or 0 for a free one.

    Attributes:
      page: the page as HTML.
      answer: returns the values that the page shows for a picture.
      address: of the page.

    Raises:
      OSError, OverflowError: the server cannot listen there.
    """

    daemon_threads = allow_reuse_address = True
    request_queue_size = 128  # The default of 5 resets further connections.
    page = ""
    answer: Callable[[io.BytesIO], dict[str, Any]]

    def __init__(self, host: str, port: int):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        host, port = self.socket.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.uploads = threading.BoundedSemaphore(_MAX_UPLOADS)
        self.readers = threading.BoundedSemaphore(_MAX_READERS)
        self.only_local = ipaddress.ip_address(host).is_loopback
        self.local = {"localhost", "127.0.0.1", "::1", host}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints the error, unless the browser has left."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # Seconds without a byte.

    def do_GET(self) -> None:
        if (status := self._refusal()) is not None:
            self._send(status, "refused")
        elif self.path == "/":
            self._send(200, self.server.page, "text/html")
        else:
            self._send(404, "not found")

    def do_POST(self) -> None:
        url, length = urllib.parse.urlsplit(self.path), self._length()
        status = self._refusal()
        if status is None and url.path != "/predict":
            status = 404
        if status is None and not 0 <= length <= MAX_REQUEST_BYTES:
            status = 411 if length < 0 else 413
        if status is not None:
            # The body is not read: it must not be taken for the next request.
            self.close_connection = True
            return self._send(status, "refused")
        with self.server.uploads:
            picture = io.BytesIO(self.rfile.read(length))
            picture.name = urllib.parse.parse_qs(url.query).get("name", ["picture"])[0]
            try:
                with self.server.readers:
                    values = self.server.answer(picture)
            except UserError as error:
                values = {"warnings": [str(error)]}
        self._send(200, json.dumps(values), "application/json")

    def _length(self) -> int:
        """Returns the number of bytes of the body, -1 if it is not announced."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1

    def _refusal(self) -> int | None:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.only_local and _host_name(host) not in self.server.local:
            return 421  # Misdirected Request
        if origin is not None and origin.partition("//")[2] != host:
            return 403
        return None

    def _send(self, status: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Prints nothing."""


def _host_name(host: str) -> str | None:
    """Returns the name in a Host header, without the port."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return None
