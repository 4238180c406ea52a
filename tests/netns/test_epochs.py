"""Epochs of a real pair, ten times as short as they may be: no packet is lost, and none is of an unknown epoch."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.shm.key_table import KeyTable
from tests.netns.harness.altered import altered
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import Client, Hub, established
from tests.netns.harness.instance import Instance
from tests.netns.harness.secret_tables import records_in
from tests.support import eventually
from tools.lab.network import Lab
from tools.load import generators

HASTY = """
from pipeline.peers import sealed_sessions
from pipeline.policy import epochs
epochs.EPOCH_BYTES = 1
epochs.EPOCH_NS_MIN //= 10
sealed_sessions.TICK_NS //= 10
"""
DROPS = ("tun.dropped_not_opened", "tun.dropped_epoch_unknown", "tun.dropped_replayed", "tun.dropped_no_key")
SECONDS = 20.0
CONNECTIONS = 8  # of a client with the default settings


def send_epoch(instance: Instance) -> int:
    (keys,) = records_in(instance, KeyTable)
    return keys.send_epoch


def drops(instance: Instance) -> dict[str, int]:
    counters = instance.running()["counters"]
    return {name: counters[name] for name in DROPS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        hub = stack.enter_context(Hub(lab, tmp_path_factory.mktemp("hub"), wrap=altered(HASTY), fec="on"))
        client = hub.join(lab["b"], wrap=altered(HASTY), fec="on")
        yield hub, client


def test_epochs_go_on_under_load_and_over_replaced_workers_and_no_packet_is_lost(pair: tuple[Hub, Client]) -> None:
    hub, client = pair
    ends = hub.server, client
    lost: list[int] = []

    def has_gone_on(epochs: dict[Instance, int]) -> bool:
        lost.extend(client.node.inside(lambda: generators.ping(hub.server.address, 20, 0.01, 56, 10.0)).lost)
        return all(send_epoch(end) >= epoch for end, epoch in epochs.items())

    with Flow(client, hub.server), Flow(hub.server, client):
        for end in ends:
            goal = {each: send_epoch(each) + 2 for each in ends}
            assert end.command("restart", "--rolling", "tun-0").returncode == 0
            eventually(lambda: has_gone_on(goal), SECONDS, f"epochs {goal}")
    assert lost == []
    assert [drops(end) for end in ends] == [dict.fromkeys(DROPS, 0)] * 2


def test_epochs_of_an_end_that_hears_no_packet_go_on_all_the_same(pair: tuple[Hub, Client]) -> None:
    """The other end acknowledges each with an empty block."""
    hub, client = pair
    with hub.node.socket(kind=socket.SOCK_DGRAM) as sink, client.node.socket(kind=socket.SOCK_DGRAM) as source:
        sink.bind((hub.server.address, 0))
        before, read = send_epoch(client), hub.server.counter("tun.packets_read")

        def has_gone_on() -> bool:
            source.sendto(bytes(1000), sink.getsockname())
            return send_epoch(client) >= before + 3

        eventually(has_gone_on, SECONDS, f"epoch {before + 3}")
        assert hub.server.counter("tun.packets_read") == read
    for end in (hub.server, client):
        assert drops(end) == dict.fromkeys(DROPS, 0)


def test_a_client_whose_first_offer_is_forgotten_dials_anew_with_the_next_one(tmp_path: Path) -> None:
    """Its workers go on, and say the key share that the supervisor has told them. Before, a handshake of the first ones
    that takes longer than the offer is kept may fail."""
    soon = altered("from pipeline.supervisor.roles import client_sealing; client_sealing.KEEP_USED_NS = 2 * 10**9")
    with Lab() as lab, Hub(lab, tmp_path) as hub:
        client = hub.join(lab.nodes[1], wrap=soon)
        eventually(lambda: established(client) == CONNECTIONS, what="all connections")
        before = client.counter("tcp.connections_established")
        threading.Event().wait(2.5)
        for _ in range(2):  # a whole turn of its supervisor lies between the answers, in which workers are told
            client.running()
        said = client.log
        hub.server.signal_worker("tcp-0", signal.SIGKILL)
        eventually(
            lambda: client.counter("tcp.connections_established") >= before + CONNECTIONS, what="all connections again"
        )
        assert "the handshake is none of this run" not in client.log.removeprefix(said)
