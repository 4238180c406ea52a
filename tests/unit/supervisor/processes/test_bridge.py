"""The care for the bridge, with a shell script in its place: there where it is needed, it dies, hangs, comes back."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config import parse
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.supervisor.processes.bridge import Bridge
from pipeline.supervisor.processes.companion import HANG_NS
from pipeline.wire.approach import BRIDGED, Proxy
from tests.harness.companion_care import DIES, SECOND, WORKS, CompanionCare, Interpreter, Serve
from tests.harness.config_problems import CLIENT

COMMAND = {"proxy_command": ["/bin/cat"]}
PLAIN = Proxy("http", "proxy.test", 3128)


class Care(CompanionCare):
    OWNER = Bridge

    def configure(self, through: Proxy | None = None, **settings: Any) -> Proxy | None:
        """What workers dial."""
        way = self.owner.way_of(parse(CLIENT | settings), TlsSettings(None, b"", b"", proxy=through))
        self.owner.apply()
        return way


@pytest.fixture
def care(interpreter: Interpreter, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Care]:
    with Care.run(interpreter, serve, monkeypatch) as made:
        yield made


@pytest.mark.parametrize("proxy", [None, PLAIN], ids=["no proxy", "a plain one"])
def test_where_nothing_must_stay_around_a_connection_there_is_no_process(care: Care, proxy: Proxy | None) -> None:
    settings = {"proxy": "http://proxy.test:3128"} if proxy else {}
    assert care.configure(proxy, **settings) == proxy
    assert care.owner.pid == 0


def test_workers_dial_a_port_of_the_loopback_with_a_token_and_name_the_way_behind_it(care: Care) -> None:
    way = care.configure(**COMMAND)
    assert (way.scheme, way.host, str(way)) == (BRIDGED, "127.0.0.1", "proxy_command /bin/cat")
    assert len(way.login[1]) == 32
    assert care.owner.pid
    with socket.create_connection((way.host, way.port)):
        pass
    tls = care.configure(Proxy("https", "proxy.test", 443), proxy="https://proxy.test:443")
    assert (tls.port, tls.login, str(tls)) == (way.port, way.login, "proxy https://proxy.test:443")


def test_one_that_dies_comes_back_and_the_port_stays(care: Care) -> None:
    way = care.configure(**COMMAND)
    pid = care.owner.pid
    os.kill(pid, signal.SIGKILL)
    care.until(lambda: care.owner.pid not in (0, pid))
    assert care.events == [("bridge-died", "signal 9")]
    care.until(lambda: not care.owner.notes)
    with socket.create_connection((way.host, way.port)):
        pass


def test_one_that_dies_again_and_again_is_tried_for_ever_ever_more_seldom(care: Care, interpreter: Interpreter) -> None:
    interpreter(DIES)
    care.configure(**COMMAND)
    began = care.now
    care.until(lambda: len(care.events) == 12, step=0.2)
    assert care.now - began > 20 * SECOND
    assert care.owner.notes == ["no connection through proxy_command /bin/cat: the bridge has died: exit status 7"]
    interpreter(WORKS)
    care.until(lambda: not care.owner.notes, step=1.0)


def test_one_without_a_sign_of_life_is_replaced(care: Care, interpreter: Interpreter) -> None:
    interpreter("exec sleep 60")
    care.configure(**COMMAND)
    pid = care.owner.pid
    care.until(lambda: care.owner.pid not in (0, pid), step=0.5)
    assert care.events == [("bridge-died", f"no sign of life for {HANG_NS // SECOND} s")]


def test_a_reload_replaces_it_only_for_another_way_and_ends_it_where_it_is_not_needed(care: Care) -> None:
    care.configure(**COMMAND)
    pid = care.owner.pid
    care.configure(**COMMAND)
    assert care.owner.pid == pid
    care.configure(proxy_command=["/bin/other"])
    assert care.owner.pid not in (0, pid)
    care.configure()
    assert care.owner.pid == 0
