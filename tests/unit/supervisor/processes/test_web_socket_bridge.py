"""The care for the bridge of a server, with a shell script in its place: where it listens, that it comes back."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.bridge.counts import Counts
from pipeline.config import parse
from pipeline.supervisor.processes.web_socket_bridge import WebSocketBridge, plan_of
from tests.harness.companion_care import SECOND, WORKS, CompanionCare, Interpreter, Serve
from tests.harness.config_problems import SERVER
from tests.support import eventually

COUNTS = Counts(open=3, opened=7)
PATH = {"websocket_path": "/hidden"}


class Care(CompanionCare):
    OWNER = WebSocketBridge

    def configure(self, **settings: Any) -> None:
        self.owner.prepare(parse(SERVER | settings))
        self.owner.apply()


@pytest.fixture
def care(interpreter: Interpreter, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Care]:
    with Care.run(interpreter, serve, monkeypatch) as made:
        yield made


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        found: int = free.getsockname()[1]
        return found


def is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def test_without_the_setting_there_is_neither_process_nor_socket(care: Care) -> None:
    care.configure()
    assert (care.owner.pid, care.owner.inner, care.owner.status(), care.owner.notes) == (0, None, None, [])


def test_it_listens_for_web_servers_and_for_itself_before_tcp_workers(care: Care, port: int) -> None:
    care.configure(websocket_addr=port, **PATH)
    assert care.owner.pid and care.owner.inner is not None
    assert care.owner.inner.getsockname()[0] == "127.0.0.1"
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_its_counts_are_in_the_status_and_those_of_a_process_that_has_gone_are_not(
    care: Care, port: int, interpreter: Interpreter
) -> None:
    text = "".join(f"\\{byte:03o}" for byte in COUNTS.packed())
    interpreter(f"while printf '{text}' >&\"$channel\"; do sleep 0.02; done")
    care.configure(websocket_addr=port, **PATH)
    care.until(lambda: care.owner.status() == {"pid": care.owner.pid, **COUNTS._asdict()})
    interpreter(WORKS)
    os.kill(care.owner.pid, signal.SIGKILL)
    care.until(lambda: care.events == [("bridge-died", "signal 9")] and care.owner.pid)
    assert care.owner.status() == {"pid": care.owner.pid, **Counts()._asdict()}
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_a_web_server_that_passes_no_upgrade_on_is_noted_until_one_comes(
    care: Care, port: int, interpreter: Interpreter
) -> None:
    for counts, notes in ((Counts(without_upgrade=1), 1), (Counts(without_upgrade=1, opened=1), 0)):
        text = "".join(f"\\{byte:03o}" for byte in counts.packed())
        interpreter(f"while printf '{text}' >&\"$channel\"; do sleep 0.02; done")
        care.configure()
        care.configure(websocket_addr=port, **PATH)
        status = counts._asdict()
        care.until(lambda: care.owner.status() == {"pid": care.owner.pid, **status})
        assert ["Upgrade and Connection" in note for note in care.owner.notes] == [True] * notes


def test_an_address_that_is_taken_is_said_once_and_tried_again(
    care: Care, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        care.configure(websocket_addr=port, **PATH)
        care.until(lambda: care.now > 1020 * SECOND, step=1.0)
        (note,) = care.owner.notes
        assert "no connection by a WebSocket: websocket_addr 127.0.0.1" in note and not care.owner.pid
    care.until(lambda: care.owner.pid, step=1.0)
    assert care.owner.notes == [] and caplog.text.count("trying again") == 1


def test_a_reload_replaces_the_process_for_another_path_and_ends_it_where_it_is_not_wanted(
    care: Care, port: int
) -> None:
    care.configure(websocket_addr=port, **PATH)
    pid, inner = care.owner.pid, care.owner.inner
    care.configure(websocket_addr=port, **PATH)
    assert care.owner.pid == pid
    care.configure(websocket_addr=port, websocket_path="/another")
    assert care.owner.pid not in (0, pid) and care.owner.inner is inner
    care.configure()
    assert care.owner.pid == 0 and care.owner.status() is None
    eventually(lambda: is_free(port))  # a child of the script may have the socket for a moment


def test_its_plan_has_the_limits_of_the_server_and_the_web_server_of_the_fallback(care: Care, port: int) -> None:
    settings = {"max_clients": 3, "max_connections_per_client": 5, "max_handshakes": 7, "fallback": "127.0.0.1:8080"}
    config = parse(SERVER | PATH | settings | {"websocket_addr": port, "websocket_client_field": "Forwarded"})
    assert config.websocket_endpoint is not None
    plan = plan_of(config, config.websocket_endpoint, "00", None)
    assert (plan.tunnels, plan.requests, plan.field) == (3 * 5 + 7, 7, "forwarded")
    assert plan.web_server == ["127.0.0.1", 8080]
    assert plan.proxies == ["127.0.0.1/32", "::1/128"]
