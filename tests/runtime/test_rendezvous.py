"""The rendezvous of processes before they start, simulated by threads."""

import functools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import free_port

from flaxmnist.errors import UserError
from flaxmnist.runtime import rendezvous
from flaxmnist.runtime.cluster import Process


def meet(*processes, port=None, timeout=20):
    """Returns the refusal of each of `processes`, given as (count, id, facts)."""
    port = port or free_port()

    def one(process):
        count, index, facts = process
        try:
            process = Process("127.0.0.1", port, count, index, None, "")
            rendezvous.meet(process, facts, timeout)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def test_equal_processes_meet_and_leave_the_port_to_jax(monkeypatch):
    port, send = free_port(), rendezvous._send

    def send_after_closing(connection, message):
        if "refusal" in message:
            socket.create_server(("127.0.0.1", port)).close()
        send(connection, message)

    monkeypatch.setattr(rendezvous, "_send", send_after_closing)
    facts = {"--num_processes": 3, "--mode": None, "shape": (1, 2)}
    processes = ((3, index, facts) for index in range(3))
    assert meet(*processes, port=port) == [None] * 3


@pytest.mark.parametrize(
    ("processes", "reason"),
    [
        (
            [(2, 0, {"n": 2}), (3, 1, {"n": 3})],
            "n is 2 in process 0 and 3 in process 1",
        ),
        # One process more than the first expects.
        ([(2, 0, {"n": 2}), (3, 2, {"n": 3})], "n is 2 in process 0 and 3 in process"),
        ([(2, 0, {}), (2, 1, {"--devices": "0"})], "--devices is None in process 0"),
        ([(3, 0, {}), (3, 1, {}), (3, 1, {})], "two processes have --process_id 1"),
    ],
)
def test_a_difference_is_refused_in_every_process(processes, reason, monkeypatch):
    monkeypatch.setattr(rendezvous, "_LINGER_SECONDS", 0.5)
    refusals = meet(*processes)
    assert all(reason in refusal for refusal in refusals), refusals


def test_a_missing_process_is_named_in_every_process():
    # Process 2 must join within this time, however busy this machine is.
    refusals = meet((4, 0, {}), (4, 2, {}), timeout=5)
    assert all("waiting for process 1, 3 of 4" in refusal for refusal in refusals)


def test_a_process_that_starts_after_a_refusal_receives_the_reason(monkeypatch):
    monkeypatch.setattr(rendezvous, "_LINGER_SECONDS", 5)
    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, (3, 0, {"n": 3}), port=port)
        with _patient_connection(port) as other:
            rendezvous._receive(other)
            rendezvous._send(other, {"process": 1, "facts": {"n": 4}})
            refusals = meet((3, 2, {"n": 3}), port=port) + first.result()
    assert all("n is 3 in process 0 and 4 in" in text for text in refusals), refusals


def test_a_process_that_ends_before_the_others_join_can_start_again():
    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, (3, 0, {}), port=port)
        with _patient_connection(port) as ended:
            rendezvous._receive(ended)
            rendezvous._send(ended, {"process": 1, "facts": {}})
        with _patient_connection(port) as second:
            rendezvous._receive(second)
            rendezvous._send(second, {"process": 2, "facts": {}})
            assert meet((3, 1, {}), port=port) == [None]
            assert rendezvous._receive(second) == {"refusal": None}
        assert first.result() == [None]


def _patient_connection(port):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            continue


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "no answer"),
        (b"SSH-2.0-x\r\n", "another program listens there"),
        (b"[1]\n", "another program listens there"),
        (b"{}\n", "another program listens there"),
    ],
)
def test_another_program_at_the_address(answer, reason, monkeypatch):
    if not answer:
        monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            held = []
            while True:
                try:
                    held.append(server.accept()[0])
                    held[-1].sendall(answer)
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        port = server.getsockname()[1]
        (joining,) = meet((2, 1, {}), port=port, timeout=0)
        (hosting,) = meet((2, 0, {}), port=port, timeout=0)
        server.shutdown(socket.SHUT_RDWR)
    where = f"127.0.0.1:{port}: timed out after 0 s waiting for process 0"
    assert f"{where} ({reason})" in joining
    assert f"cannot listen on port {port}" in hosting


def test_the_end_of_process_0_is_not_reported_as_another_program():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet_and_end():
            with server.accept()[0] as connection:
                rendezvous._send(connection, {"greeting": rendezvous._GREETING})
                rendezvous._receive(connection)

        threading.Thread(target=greet_and_end, daemon=True).start()
        (joining,) = meet((2, 1, {}), port=server.getsockname()[1], timeout=0)
    assert "process 0 (the connection was closed)" in joining


def test_an_unrelated_connection_to_process_0_is_ignored(monkeypatch):
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 2)
    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, (2, 0, {}), port=port)
        connect = functools.partial(_patient_connection, port)
        with connect() as silent, connect() as junk, connect() as other:
            junk.sendall(b"GET / HTTP/1.1\r\n\r\n")
            other.sendall(b"{}\n")
            second = meet((2, 1, {}), port=port)
            assert [*first.result(), *second] == [None, None]
            assert silent.fileno() >= 0  # Still connected.


@pytest.mark.parametrize("process", [[1], "1", True, 0, 1.0, None])
def test_a_message_with_an_invalid_process_is_ignored(process):
    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, (2, 0, {}), port=port)
        with _patient_connection(port) as invalid:
            rendezvous._receive(invalid)
            rendezvous._send(invalid, {"process": process, "facts": {}})
            second = meet((2, 1, {}), port=port)
        assert [*first.result(), *second] == [None, None]


def test_an_unknown_host_is_refused_at_once():
    process = Process("no-such-host.invalid", 1234, 2, 1, None, "")
    with pytest.raises(UserError, match="unknown host 'no-such-host"):
        rendezvous.meet(process, {}, timeout=1000)
