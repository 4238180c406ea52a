"""What the supervisor does for workers that may not choose: sockets are set, nothing else of theirs is touched."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from pipeline.config import Config, parse
from pipeline.policy.congestion import CALM, LOSSY
from pipeline.supervisor.kernel import congestion
from pipeline.supervisor.kernel.congestion import CongestionControl
from pipeline.transport.socket_options import congestion_control


def config(setting: str) -> Config:
    return parse({"mode": "client", "remote_addr": "127.0.0.1:1", "encryption": "none", "congestion": setting})


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def test_the_socket_of_a_worker_is_set_and_stays_the_workers(sock: socket.socket) -> None:
    control = CongestionControl(config("reno"))
    control.set_on("reno", sock.fileno())
    assert congestion_control(sock) == "reno"
    assert control.notes == []


@pytest.mark.parametrize("name", ["dctcp", "x" * 200, "", "auto", None, 7, ["bbr"], {"bbr": 1}])
def test_a_name_that_the_setting_does_not_know_is_invalid(sock: socket.socket, name: object) -> None:
    before = congestion_control(sock)
    with pytest.raises(ValueError, match="knows no such name"):
        CongestionControl(config("auto")).set_on(name, sock.fileno())
    assert congestion_control(sock) == before


@pytest.mark.parametrize(("setting", "name"), [("reno", LOSSY), ("reno", CALM), ("", LOSSY), ("", "reno")])
def test_a_worker_gets_no_algorithm_that_only_another_setting_would_need(
    setting: str, name: str, monkeypatch: pytest.MonkeyPatch, sock: socket.socket
) -> None:
    monkeypatch.setattr(congestion, "_host_default", lambda: "htcp")
    with pytest.raises(ValueError, match="knows no such name"):
        CongestionControl(config(setting)).set_on(name, sock.fileno())


def test_workers_of_the_setting_before_a_reload_may_ask_for_what_it_needed(sock: socket.socket) -> None:
    control = CongestionControl(config("reno"))
    control.configure(config("auto"))
    control.set_on("reno", sock.fileno())
    assert congestion_control(sock) == "reno"


def test_what_a_route_had_given_a_socket_it_gets_back(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    monkeypatch.setattr(congestion, "_host_default", lambda: CALM)
    control = CongestionControl(config("auto"))
    if control.notes:
        pytest.skip("this kernel has no BBR")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    with pytest.raises(ValueError, match="knows no such name"):
        control.set_on("reno", sock.fileno())
    control.set_on(LOSSY, sock.fileno())
    assert congestion_control(sock) == LOSSY
    control.set_on("reno", sock.fileno())
    assert congestion_control(sock) == "reno"


def test_what_is_no_tcp_socket_is_invalid(sock: socket.socket) -> None:
    control = CongestionControl(config("reno"))
    near, far = socket.socketpair()
    reading, writing = os.pipe()
    try:
        with near, far, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            for fd in (near.fileno(), datagrams.fileno(), reading):
                with pytest.raises(ValueError, match="is no"):
                    control.set_on("reno", fd)
                os.fstat(fd)  # it is not closed here
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("no-such", "congestion control no-such cannot be had (the kernel does not have it): connections use what"),
        ("auto", "congestion control no-such cannot be had (the kernel does not have it): where the path loses"),
    ],
)
def test_what_the_kernel_does_not_have_is_said_with_what_it_costs_and_its_cure(
    setting: str, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sock: socket.socket
) -> None:
    monkeypatch.setattr(congestion, "LOSSY", "no-such")
    control = CongestionControl(config(setting))
    (note,) = control.notes
    assert note.startswith(words)
    assert "modprobe tcp_no-such" in note and "CONFIG_TCP_CONG_NO-SUCH" in note
    control.set_on("no-such", sock.fileno())
    assert caplog.messages == control.notes == [note], "it is said once"
    control.configure(config(""))
    assert control.notes == []


class Refusing:
    """In place of the kernel: it refuses with this error."""

    def __init__(self, error: int) -> None:
        self.error = error
        self.asked = 0

    def choose(self, sock: socket.socket, name: str) -> None:
        self.asked += 1
        raise OSError(self.error, os.strerror(self.error))


def test_a_kernel_that_does_not_have_it_is_asked_seldom_however_many_sockets_want_it(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket
) -> None:
    kernel = Refusing(errno.ENOENT)
    monkeypatch.setattr(congestion, "_choose", kernel.choose)
    control = CongestionControl(config("auto"))
    for _ in range(100):
        control.set_on(LOSSY, sock.fileno())
    assert kernel.asked == 1
    control._again_at[LOSSY] = 0  # AGAIN_NS have passed
    control.set_on(LOSSY, sock.fileno())
    assert kernel.asked == 2
    control.configure(config("auto"))
    assert kernel.asked == 3, "a reload asks at once"


def test_a_socket_that_the_kernel_refuses_holds_up_no_other_and_is_said_with_its_own_cure(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket
) -> None:
    kernel = Refusing(errno.EPERM)
    monkeypatch.setattr(congestion, "_choose", kernel.choose)
    control = CongestionControl(config("auto"))
    for _ in range(3):
        control.set_on(LOSSY, sock.fileno())
    assert kernel.asked == 4
    (note,) = control.notes
    assert "tcp_allowed_congestion_control" in note and "modprobe" not in note


def test_without_proc_the_listening_socket_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(congestion, "_host_default", lambda: "")
    control = CongestionControl(config(""))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        control.prepare(listener)
    assert control.notes == []


def test_a_note_ends_when_the_kernel_has_it(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    control = CongestionControl(config("auto"))
    control._missing["reno"] = errno.EPERM
    monkeypatch.setattr(congestion, "LOSSY", "reno")
    control.set_on("reno", sock.fileno())
    assert control.notes == []


@pytest.mark.parametrize(("setting", "first"), [("auto", CALM), ("reno", "reno"), ("", LOSSY)])
def test_accepted_connections_begin_with_the_algorithm_of_the_listening_socket(
    setting: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host whose default paces."""
    monkeypatch.setattr(congestion, "_host_default", lambda: LOSSY)
    control = CongestionControl(config("auto"))
    if control.notes:
        pytest.skip("this kernel has no BBR")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        control.prepare(listener)
        control.configure(config(setting))  # a reload
        control.prepare(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert congestion_control(accepted) == first
