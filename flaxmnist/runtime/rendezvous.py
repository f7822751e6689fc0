"""The meeting of several processes at process 0, before JAX connects them.

JAX aborts a process, with a C++ stack trace, when another one does not join or was
started with other flags. Meeting first, over a plain socket at the address that JAX
uses afterwards, finds these mistakes and reports them in every process.
"""

import contextlib
import json
import os
import socket
import time
from typing import Any

from flaxmnist.errors import UserError
from flaxmnist.runtime.cluster import Process

# First message of process 0; it distinguishes process 0 from other programs.
_GREETING = "flaxmnist process 0"
# Timeouts in seconds: for a connection, a greeting or a first message; for processes
# that start after a mistake was found, so that they also report it.
_ANSWER_SECONDS, _LINGER_SECONDS = 5, 3
_SAME_COMMAND = "start every process with the same command, except for --process_id"


def meet(process: Process, facts: dict[str, Any], timeout: int) -> None:
    """Returns when all processes have met and have the same `facts`.

    Args:
      process: this process; its `port` must be free on `host`.
      facts: name → value, as JSON can represent it; each process must have the same.
      timeout: seconds after the start of process 0 for the others to join, and after
        the start of another process for process 0 to start.

    Raises:
      UserError: in every process that has joined, with the same text.
    """
    host, port = process.host, process.port
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--coordinator {host}:{port}: unknown host {host!r} ({reason}); expected "
            "the name or address of the machine of process 0"
        ) from None
    facts = json.loads(json.dumps(facts))
    if process.index == 0:
        refusal = _host(port, process.count, facts, timeout)
    else:
        message = {"process": process.index, "facts": facts}
        refusal = _join(host, port, message, timeout)
    if refusal:
        raise UserError(refusal)


def difference(facts: dict[int, dict[str, Any]]) -> str | None:
    """Returns the first difference between processes, or None if all are alike.

    Args:
      facts: process → its facts.

    Returns:
      text such as ``"--devices is 0 in process 0 and 1 in process 3"``.
    """
    (first, expected), *others = sorted(facts.items())
    for process, found in others:
        for name in sorted(expected.keys() | found.keys()):
            ours, theirs = expected.get(name), found.get(name)
            if ours != theirs:
                return (
                    f"{name} is {ours} in process {first} and {theirs} in process "
                    f"{process}"
                )
    return None


def _host(
    port: int, num_processes: int, facts: dict[str, Any], timeout: int
) -> str | None:
    """Waits for the other processes; returns why they cannot start together."""
    try:
        server = _listen(port)
    except OSError as error:
        return (
            f"--coordinator: process 0 cannot listen on port {port} "
            f"({os.strerror(error.errno or 0)}); choose another port"
        )
    with contextlib.ExitStack() as stack:
        # JAX listens on the same port next: close it before the others go on.
        with server:
            peers, refusal = _gather(server, stack, num_processes, facts, timeout)
        for connection, _ in peers:
            with contextlib.suppress(OSError):
                connection.settimeout(_ANSWER_SECONDS)
                _send(connection, {"refusal": refusal})
    return refusal


def _gather(
    server: socket.socket,
    stack: contextlib.ExitStack,
    num_processes: int,
    facts: dict[str, Any],
    timeout: int,
) -> tuple[list[tuple[socket.socket, int]], str | None]:
    """Returns the processes that joined, and why they cannot start together."""
    until = time.monotonic() + timeout
    peers: list[tuple[socket.socket, int]] = []
    refusal = None
    server.settimeout(0.5)  # To notice in time that a process has ended.
    while time.monotonic() < until:
        peers = [(other, i) for other, i in peers if _is_open(other)]
        joined = {0, *(i for _, i in peers)}
        if refusal is None and len(joined) == num_processes:
            return peers, None
        try:
            connection = stack.enter_context(server.accept()[0])
        except (TimeoutError, ConnectionError):  # No process came, or it left at once.
            continue
        if (message := _greet(connection)) is None:
            continue
        process = message["process"]
        twice = any(i == process and _is_open(other) for other, i in peers)
        peers.append((connection, process))
        if refusal:
            continue
        if twice:
            refusal = f"two processes have --process_id {process}; {_SAME_COMMAND}"
        elif found := difference({0: facts, process: message["facts"]}):
            refusal = f"{found}; {_SAME_COMMAND}"
        if refusal:
            until = min(until, time.monotonic() + _LINGER_SECONDS)
    missing = ", ".join(str(i) for i in range(num_processes) if i not in joined)
    return peers, refusal or (
        f"timed out after {timeout} s waiting for process {missing} of "
        f"{num_processes}; start all processes at about the same time, each with its "
        "own --process_id"
    )


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True
        )
    return socket.create_server(("", port))


def _is_open(connection: socket.socket) -> bool:
    """Returns whether the process at the other end still runs."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _greet(connection: socket.socket) -> dict[str, Any] | None:
    """Returns the first message of another process; None if it is another program."""
    connection.settimeout(_ANSWER_SECONDS)
    try:
        _send(connection, {"greeting": _GREETING})
        message = _receive(connection)
    except (OSError, ValueError):
        return None
    process, facts = message.get("process"), message.get("facts")
    # Not `isinstance`: True is an integer, too.
    valid = type(process) is int and process > 0 and isinstance(facts, dict)
    return message if valid else None


def _join(host: str, port: int, message: dict[str, Any], timeout: int) -> str | None:
    """Joins process 0; returns why the processes cannot start together."""
    until = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
                if _receive(connection).get("greeting") == _GREETING:
                    _send(connection, message)
                    # Process 0 may have started only now, and wait for others.
                    connection.settimeout(timeout + _ANSWER_SECONDS)
                    return _receive(connection)["refusal"]
            reason = "another program listens there"
        except TimeoutError:
            reason = "no answer"
        except ValueError:
            reason = "another program listens there"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > until:
            return (
                f"--coordinator {host}:{port}: timed out after {timeout} s waiting for "
                f"process 0 ({reason}); start all processes at about the same time, "
                "with the address of process 0"
            )
        time.sleep(0.2)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    """Returns a message; raises ValueError if the sender is another program."""
    with connection.makefile("rb") as stream:
        line = stream.readline(1_000_000)
    if not line:
        raise ConnectionError("the connection was closed")
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError
    return message
