"""The control socket: requests and answers, and clients that do not keep to the protocol."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LocalError, NotRunning
from pipeline.supervisor.control.control_socket import (
    CLIENTS_MAX,
    NO_ROOM_PAUSE,
    REQUEST_BYTES_MAX,
    ControlServer,
    send_request,
)
from pipeline.supervisor.instance import Instance
from tests.harness.no_descriptors import no_descriptor_left


class Supervisor:
    """A control server on a selector, as the supervisor's loop serves it."""

    def __init__(self, path: Path) -> None:
        self.requests: list[dict[str, Any]] = []
        self.selector = selectors.DefaultSelector()
        self.control = ControlServer(path, self._answer, self.selector)
        self.path = path

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        return {"ok": True, "number": len(self.requests)}

    def serve(self) -> None:
        """Turns of the loop, until nothing is left to do."""
        while events := self.selector.select(0):
            for key, _ in events:
                key.data()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(10)
        client.connect(str(self.path))
        return client

    def close(self) -> None:
        self.control.close()
        self.selector.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "control")
    yield made
    made.close()


def answer_of(client: socket.socket) -> bytes:
    with client.makefile("rb") as file:
        return file.read()


def test_a_request_is_answered_and_the_connection_ends(supervisor: Supervisor) -> None:
    with supervisor.connect() as client:
        client.sendall(b'{"command": "status"}\n')
        supervisor.serve()
        assert json.loads(answer_of(client)) == {"ok": True, "number": 1}
    assert supervisor.requests == [{"command": "status"}]


def test_a_request_may_come_in_pieces(supervisor: Supervisor) -> None:
    with supervisor.connect() as client:
        for piece in (b'{"comm', b'and": "st', b'op"}\n'):
            assert supervisor.requests == []
            client.sendall(piece)
            supervisor.serve()
        assert json.loads(answer_of(client))["ok"]
    assert supervisor.requests == [{"command": "stop"}]


def test_several_clients_are_served_side_by_side(supervisor: Supervisor) -> None:
    with supervisor.connect() as slow, supervisor.connect() as quick:
        slow.sendall(b'{"command": ')
        quick.sendall(b'{"command": "quick"}\n')
        supervisor.serve()
        assert json.loads(answer_of(quick))["number"] == 1
        slow.sendall(b'"slow"}\n')
        supervisor.serve()
        assert json.loads(answer_of(slow))["number"] == 2


@pytest.mark.parametrize("line", [b"hello\n", b"\xff\xfe\n", b'{"command": \n', b"[" * 4000 + b"\n"])
def test_a_request_that_is_not_json_is_told_so(supervisor: Supervisor, line: bytes) -> None:
    with supervisor.connect() as client:
        client.sendall(line)
        supervisor.serve()
        assert json.loads(answer_of(client)) == {"ok": False, "error": "the request is not JSON"}
    assert supervisor.requests == []


@pytest.mark.parametrize("line", [b"[]\n", b"7\n", b'"stop"\n', b"null\n"])
def test_a_request_that_is_no_object_has_no_command(supervisor: Supervisor, line: bytes) -> None:
    with supervisor.connect() as client:
        client.sendall(line)
        supervisor.serve()
        assert json.loads(answer_of(client))["ok"]
    assert supervisor.requests == [{}]


def test_a_request_without_an_end_is_closed_unanswered(supervisor: Supervisor) -> None:
    with supervisor.connect() as client:
        client.sendall(b"x" * REQUEST_BYTES_MAX)
        supervisor.serve()
        assert answer_of(client) == b""


def test_a_client_that_leaves_early_is_forgotten(supervisor: Supervisor) -> None:
    before = len(supervisor.selector.get_map())
    supervisor.connect().close()
    with supervisor.connect() as client:
        client.sendall(b'{"command": "status"}\n')
    supervisor.serve()
    assert len(supervisor.selector.get_map()) == before


def test_a_command_that_has_given_up_changes_nothing(supervisor: Supervisor) -> None:
    """The supervisor was stopped for minutes, and somebody has read that it does not answer."""
    with supervisor.connect() as client:
        client.sendall(b'{"command": "revoke"}\n')
    with supervisor.connect() as client:
        client.sendall(b'{"command": "status"}\n')
        client.shutdown(socket.SHUT_WR)  # it still reads
        supervisor.serve()
        assert json.loads(answer_of(client))["ok"]
    assert supervisor.requests == [{"command": "status"}]


def test_the_socket_is_for_its_owner_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "control")
    client = supervisor.connect()
    supervisor.serve()
    try:
        assert stat.S_IMODE(os.stat(supervisor.path).st_mode) == 0o600
    finally:
        supervisor.close()
    assert answer_of(client) == b""
    client.close()
    assert not supervisor.path.exists()


def test_a_socket_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    why = f"control socket {tmp_path}/missing/control: No such file or directory"
    with selectors.DefaultSelector() as selector, pytest.raises(LocalError, match=why):
        ControlServer(tmp_path / "missing" / "control", dict, selector)


# -- the command's end


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """An instance whose lock is held by this process."""
    made = Instance("test")
    made.lock_path, made.socket_path = tmp_path / "test.lock", tmp_path / "test.sock"
    made.lock_path.write_text(f"{os.getpid()}\n")
    with open(made.lock_path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield made


def serve_once(path: Path, answer: Callable[[socket.socket], None]) -> threading.Thread:
    """A supervisor that answers one request in its own way."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            client.recv(4096)
            answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_command_gets_the_answer_as_an_object(instance: Instance) -> None:
    thread = serve_once(instance.socket_path, lambda client: client.sendall(b'{"ok": true}\n'))
    assert send_request(instance, {"command": "stop"}) == {"ok": True}
    thread.join()


def test_a_supervisor_that_ends_before_it_answers_is_a_message(instance: Instance) -> None:
    thread = serve_once(instance.socket_path, lambda client: None)
    with pytest.raises(
        LocalError, match=rf'instance "test" \(pid {os.getpid()}\) ended, or closed the connection, before'
    ):
        send_request(instance, {"command": "stop"})
    thread.join()


def test_a_supervisor_without_its_socket_is_starting_or_stopping(instance: Instance) -> None:
    with pytest.raises(NotRunning, match=rf'instance "test" \(pid {os.getpid()}\) is starting or stopping'):
        send_request(instance, {"command": "stop"})


def test_a_supervisor_that_does_not_answer_is_a_message_with_what_to_do(instance: Instance) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stopped:
        stopped.bind(str(instance.socket_path))
        stopped.listen()
        with pytest.raises(LocalError, match=r"does not answer: .*not done, .* `tunnel-supervisor doctor --name test`"):
            send_request(instance, {"command": "stop"}, seconds=0.01)


def test_an_instance_without_a_lock_file_does_not_run(tmp_path: Path) -> None:
    instance = Instance("test")
    instance.lock_path = tmp_path / "none.lock"
    with pytest.raises(NotRunning, match='instance "test" does not run'):
        send_request(instance, {"command": "stop"})


# -- commands that only cost


def test_commands_that_say_nothing_keep_nobody_out(supervisor: Supervisor) -> None:
    """A monitoring script that leaks its connections."""
    idle = [supervisor.connect() for _ in range(CLIENTS_MAX)]
    supervisor.serve()
    with supervisor.connect() as client:
        client.sendall(b'{"command": "status"}\n')
        supervisor.serve()
        assert json.loads(answer_of(client))["ok"]
    assert answer_of(idle[0]) == b""
    idle[1].sendall(b'{"command": "late"}\n')
    supervisor.serve()
    assert json.loads(answer_of(idle[1]))["ok"]
    for each in idle:
        each.close()


def test_without_a_free_descriptor_commands_are_served_with_those_kept_for_them(supervisor: Supervisor) -> None:
    """It matters most that `revoke` and `stop` work then."""
    opened: list[int] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        opened.append(os.open("/", os.O_RDONLY))  # as to flush a directory
        os.close(opened[-1])
        return {"ok": True}

    supervisor.control._answer = answer
    clients = [supervisor.connect() for _ in range(3)]
    for client in clients:
        client.sendall(b'{"command": "revoke"}\n')
    with no_descriptor_left():
        supervisor.serve()
        answers = [os.read(client.fileno(), 100) for client in clients]
    assert [json.loads(each) for each in answers] == [{"ok": True}] * 3 and len(opened) == 3
    for client in clients:
        client.close()


def test_a_connection_that_cannot_be_accepted_at_all_takes_no_core(supervisor: Supervisor) -> None:
    supervisor.control._spare.free()
    client = supervisor.connect()
    with no_descriptor_left():
        begun = time.monotonic()
        for _ in range(3):
            for key, _ in supervisor.selector.select(0):
                key.data()
        assert time.monotonic() - begun >= 3 * NO_ROOM_PAUSE
    client.sendall(b'{"command": "status"}\n')
    supervisor.serve()
    assert json.loads(answer_of(client))["ok"]
    client.close()


def test_an_answer_that_finds_no_reader_is_told_to_the_supervisor(tmp_path: Path) -> None:
    """An invitation that nobody has seen must not stay."""
    lost: list[Any] = []
    supervisor = Supervisor(tmp_path / "control")
    supervisor.control._unsent = lambda request, answer: lost.append((request["name"], answer["number"]))
    client = supervisor.connect()

    def answer_as_the_command_ends(request: dict[str, Any]) -> dict[str, Any]:
        client.close()
        return supervisor._answer(request)

    supervisor.control._answer = answer_as_the_command_ends
    client.sendall(b'{"command": "invite", "name": "ann"}\n')
    supervisor.serve()
    supervisor.close()
    assert lost == [("ann", 1)]


def test_an_answer_that_fails_closes_the_connection_and_leaves_the_server(supervisor: Supervisor) -> None:
    supervisor.control._answer = lambda request: {"ok": object()}
    with supervisor.connect() as client:
        client.sendall(b'{"command": "status"}\n')
        with pytest.raises(TypeError):
            supervisor.serve()
        assert answer_of(client) == b""
    supervisor.control._answer = supervisor._answer
    with supervisor.connect() as client:
        client.sendall(b'{"command": "status"}\n')
        supervisor.serve()
        assert json.loads(answer_of(client))["ok"]
