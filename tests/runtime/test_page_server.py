"""The server of one page answers while other clients are slow."""

import contextlib
import json
import socket
import threading
import urllib.request

from flaxmnist.runtime.page_server import PageServer


def test_slow_uploads_do_not_keep_others_from_an_answer():
    with PageServer("127.0.0.1", 0) as server, contextlib.ExitStack() as stack:
        server.answer = lambda picture: {"text": str(len(picture.read()))}
        threading.Thread(target=server.serve_forever).start()
        stack.callback(server.shutdown)
        address = server.socket.getsockname()
        host = f"127.0.0.1:{address[1]}"
        for _ in range(4):
            slow = stack.enter_context(socket.create_connection(address))
            head = (
                f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n"
            )
            slow.sendall(head.encode() + b"12")
        with urllib.request.urlopen(
            f"http://{host}/predict", b"picture", timeout=10
        ) as reply:
            assert json.load(reply) == {"text": "7"}
