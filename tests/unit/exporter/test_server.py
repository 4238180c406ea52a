"""The HTTP server over real sockets: answers, and clients that are slow, many, silent or rude."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pipeline.exporter import server as module
from pipeline.exporter.request import REQUEST_BYTES_MAX, Request
from pipeline.exporter.server import CONNECTIONS_MAX, Answer, Server
from tests.support import eventually

LARGE = b"x" * (8 << 20)

Connect = Callable[[], socket.socket]


def answer(request: Request, address: str) -> Answer:
    if request.path == "/fault":
        raise ZeroDivisionError("by zero")
    body = LARGE if request.path == "/large" else f"{request.path} for {address}".encode()
    return Answer(200, "text/plain", body, {"X-One": "1"})


class Running:
    """A server in a thread of its own, and its clients."""

    def __init__(self, stack: ExitStack) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.server = Server(listener, answer, {"X-All": "yes"})
        self._stack = stack
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            self.server.turn(0.01)

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        self.server.close()

    def connect(self) -> socket.socket:
        return self._stack.enter_context(socket.create_connection(self.address, timeout=10))

    def connections(self) -> int:
        return len(self.server._connections)


@pytest.fixture
def running() -> Iterator[Running]:
    with ExitStack() as stack:
        made = Running(stack)
        stack.callback(made.close)
        yield made


def get(path: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def read_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        assert more, f"the connection ended after {data!r}"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = dict(each.split(": ", 1) for each in rest)
    while len(body) < int(headers["Content-Length"]):
        body += sock.recv(1 << 20)
    return int(line.split()[1]), headers, body


def has_ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1 << 20) == b""
    except ConnectionResetError:
        return True


def test_a_connection_carries_one_request_after_the_other(running: Running) -> None:
    sock = running.connect()
    for path in ("/one", "/two"):
        sock.sendall(get(path))
        status, headers, body = read_answer(sock)
        assert (status, body) == (200, f"{path} for 127.0.0.1".encode())
        assert (headers["X-All"], headers["X-One"], headers["Connection"]) == ("yes", "1", "keep-alive")
    sock.sendall(get("/three", "Connection: close"))
    assert read_answer(sock)[1]["Connection"] == "close"
    assert has_ended(sock)


def test_requests_that_come_at_once_or_in_pieces_are_answered_in_order(running: Running) -> None:
    sock = running.connect()
    sent = get("/a") + get("/b") + get("/c", "Connection: close")
    for at in range(0, len(sent), 7):
        sock.sendall(sent[at : at + 7])
    data = b""
    while piece := sock.recv(4096):
        data += piece
    assert [data.index(f"/{name} for".encode()) for name in "abc"] == sorted(
        data.index(f"/{name} for".encode()) for name in "abc"
    )


def test_head_has_the_length_and_no_body(running: Running) -> None:
    sock = running.connect()
    sock.sendall(get("/large", "Connection: close").replace(b"GET", b"HEAD", 1))
    data = b""
    while piece := sock.recv(4096):
        data += piece
    assert f"Content-Length: {len(LARGE)}\r\n".encode() in data
    assert data.endswith(b"\r\n\r\n")


def test_what_is_no_request_gets_the_reason_and_its_connection_ends(running: Running) -> None:
    sock = running.connect()
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers, body = read_answer(sock)
    assert (status, headers["Allow"], headers["Connection"]) == (405, "GET, HEAD", "close")
    assert b"only shows" in body
    assert has_ended(sock)
    other = running.connect()
    other.sendall(b"\x16\x03\x01" * (REQUEST_BYTES_MAX // 3 + 1))
    assert read_answer(other)[0] == 431
    assert has_ended(other)


def test_a_fault_in_an_answer_costs_that_answer_alone(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    sock = running.connect()
    for _ in range(module.FAULTS_LOGGED + 3):
        sock.sendall(get("/fault"))
        status, _, body = read_answer(sock)
        assert status == 500
        assert b"ZeroDivisionError" in body
    sock.sendall(get("/after"))
    assert read_answer(sock)[0] == 200
    assert caplog.text.count("the answer to /fault failed") == module.FAULTS_LOGGED


def test_a_large_answer_arrives_whole_while_others_are_served(running: Running) -> None:
    slow, quick = running.connect(), running.connect()
    slow.sendall(get("/large"))
    for _ in range(5):
        quick.sendall(get("/quick"))
        assert read_answer(quick)[0] == 200
    assert read_answer(slow)[2] == LARGE


def test_a_client_that_sends_a_byte_now_and_then_ends_at_the_deadline(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.3)
    sock = running.connect()
    sock.settimeout(0.05)
    sent = 0

    def ended() -> bool:
        nonlocal sent
        try:
            sock.sendall(b"G")
            sent += 1
            return sock.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    eventually(ended)
    assert sent > 1
    eventually(lambda: running.connections() == 0)


def test_a_client_that_reads_nothing_is_dropped_at_the_deadline(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    sock = running.connect()
    sock.sendall(get("/large") * 4)
    eventually(lambda: running.connections() == 1)
    eventually(lambda: running.connections() == 0)


def test_a_silent_connection_ends(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)
    sock = running.connect()
    sock.sendall(get())
    read_answer(sock)
    assert has_ended(sock)


def test_of_too_many_connections_the_one_that_is_silent_longest_ends_and_the_new_one_is_served(
    running: Running,
) -> None:
    first = running.connect()
    first.sendall(get())
    read_answer(first)
    for _ in range(CONNECTIONS_MAX + 5):
        sock = running.connect()
        sock.sendall(get("/new"))
        assert read_answer(sock)[0] == 200
    assert running.connections() <= CONNECTIONS_MAX
    assert has_ended(first)


def test_beginnings_of_requests_keep_nobody_out(running: Running) -> None:
    for _ in range(CONNECTIONS_MAX):
        running.connect().sendall(b"GET / HT")
    sock = running.connect()
    sock.sendall(get())
    assert read_answer(sock)[0] == 200


def test_connections_that_are_reset_at_once_do_no_harm(running: Running) -> None:
    for _ in range(50):
        sock = running.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.sendall(get("/large"))
        sock.close()
    last = running.connect()
    last.sendall(get())
    assert read_answer(last)[0] == 200
