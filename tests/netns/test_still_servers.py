"""A client of two servers, of which one stands still: its processes are stopped, and its kernel still acknowledges.

The machine answers pings and takes connections all the time, so nothing but its program can tell.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.harness.instance import Instance
from tests.netns.test_servers import INSIDE, site
from tests.support import eventually
from tools.lab.network import Lab, Node

STANDS_STILL = 5.0
"""Seconds without a packet that are allowed."""


def processes_of(server: Instance) -> list[int]:
    """The supervisor first: it must not notice that its workers stand still."""
    status = server.running()
    return [status["pid"], *(worker["pid"] for worker in status["workers"])]


def udp(node: Node) -> socket.socket:
    return node.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


class Still:
    """Stops processes until the end of the block. Late answers of theirs would hide a gap, so that is behind it."""

    def __init__(self) -> None:
        self._pids: list[int] = []

    def __enter__(self) -> Still:
        return self

    def stop(self, server: Instance) -> None:
        self._pids += processes_of(server)
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("client", "a", "b")) as made:
        yield made


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("standby", [True, False], ids=["standby", "no-standby"])
def test_a_server_that_stands_still_costs_less_than_five_seconds(lab: Lab, tmp_path: Path, standby: bool) -> None:
    with site(lab, tmp_path, standby=standby) as here, Still() as still:
        if standby:
            here.wait_for_standby()
        with here.gap(7.0) as gap:
            still.stop(here.servers["a"])
            here.wait_until_at("b")
        assert gap[0] < STANDS_STILL
        here.client.wait_for_log("because the server before it was silent")


@pytest.mark.slow
def test_where_both_servers_stand_still_the_client_stays(lab: Lab, tmp_path: Path) -> None:
    with site(lab, tmp_path) as here, Still() as still:
        here.wait_for_standby()
        with here.gap(6.0):
            for server in here.servers.values():
                still.stop(server)
            threading.Event().wait(5.0)
            assert here.server_of_client() == "a"


@pytest.mark.slow
def test_a_client_that_sends_one_way_alone_stays_at_a_server_that_works(lab: Lab, tmp_path: Path) -> None:
    """Nothing but answers to questions comes back from the server."""
    with site(lab, tmp_path) as here, udp(lab["a"]) as sink, udp(lab["client"]) as source:
        here.wait_for_standby()
        sink.bind((INSIDE, 0))
        before = here.servers["a"].counter("tcp.keepalives_sent")
        until = time.monotonic() + 5.0

        def has_answered() -> bool:
            source.sendto(b"x", sink.getsockname())
            threading.Event().wait(0.02)
            return time.monotonic() > until and here.servers["a"].counter("tcp.keepalives_sent") - before >= 3

        eventually(has_answered, 15.0, "it was asked, and has answered")
        assert here.server_of_client() == "a"


@pytest.mark.slow
def test_an_idle_client_leaves_a_server_that_stands_still_after_its_next_keepalive(lab: Lab, tmp_path: Path) -> None:
    with site(lab, tmp_path, keepalive=1.0) as here, Still() as still:
        here.wait_for_standby()
        still.stop(here.servers["a"])
        here.wait_until_at("b", 8.0)
