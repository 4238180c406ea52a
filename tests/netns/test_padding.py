"""Padding as somebody on the link sees it, and with ends that know it only from docs/wire.md, or do not know it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.handmade_clients import Dialer, inviting_server
from tests.netns.harness.hub import Client, Hub, reaches
from tests.netns.harness.wire_tap import DEVICE, WireTap
from tests.netns.test_wire import INSIDE, expect_reply
from tests.reference.blocks import Runs
from tests.reference.client import TAKES_PADDING, Ended, WireClient
from tests.reference.packets import echo_request
from tests.reference.records import PADDED_MOST
from tests.support import eventually
from tools.lab.network import Lab
from tools.load import generators

SIZES = {300, 600, 1170}  # docs/port-443.md
LEAST_MTU = 1280  # of IPv6
PINGS = [8, 40, 93, 150, 222, 333, 480, 611, 800, 1001]  # bytes of payload
PING_SECONDS = 10.0
SENT, RECEIVED = "tcp.bytes_padding_sent", "tcp.bytes_padding_received"
SECONDS = 5.0


def ping_each_size(client: Client, address: str) -> None:
    for size in PINGS:
        assert not client.node.inside(partial(generators.ping, address, 1, 0.01, size, PING_SECONDS)).lost


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.mark.parametrize("fec", ["off", "auto"])
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "bare"])
def test_the_records_of_ten_pings_of_ten_sizes_have_few_sizes_with_padding_and_ten_without(
    lab: Lab, tmp_path: Path, fec: str, padding: bool
) -> None:
    for node in lab.nodes:
        node.ip(f"link set {DEVICE} mtu {LEAST_MTU}")
    with Hub(lab, tmp_path, fec=fec, padding=padding) as hub:
        client = hub.join(lab.nodes[1], fec=fec, padding=padding)
        assert reaches(client.node, hub.server.address)
        with WireTap(hub.node, hub.port) as tap:
            ping_each_size(client, hub.server.address)
        for to_server in (True, False):
            records = tap.records(to_server)
            assert len(records) >= len(PINGS)
            if padding:
                assert set(records) <= SIZES, "of pings, and of all else that passes meanwhile"
                assert len(set(records)) == len(SIZES)
            else:
                assert len(set(records)) >= len(PINGS)
            segments = [each for each in tap.segments if each.to_server is to_server]
            assert len(segments) <= len(records), "a record is one segment"


def test_a_large_packet_costs_what_it_costs_without_padding(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, fec="off", padding=True) as hub:
        client = hub.join(lab.nodes[1], fec="off")
        assert reaches(client.node, hub.server.address)
        with WireTap(hub.node, hub.port) as tap:
            for _ in range(5):  # two that wait for the tun worker at once would be one record
                big = partial(generators.ping, hub.server.address, 1, 0.01, 1300, PING_SECONDS)
                assert not client.node.inside(big).lost
        there, back = (
            sorted(each for each in tap.records(to_server) if each > max(SIZES)) for to_server in (True, False)
        )
        assert there == back and len(back) == 5


def test_padding_is_switched_on_by_a_reload(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, fec="off") as hub:
        client = hub.join(lab.nodes[1], fec="off")
        assert reaches(client.node, hub.server.address) and not hub.server.counter(SENT)
        hub.configure(anew=True, padding=True)
        hub.wait_for_all()
        eventually(lambda: hub.server.counter(SENT), SECONDS, "padding of the server's")
        eventually(lambda: client.counter(RECEIVED), SECONDS, "padding has arrived")
        assert client.counter(SENT) == 0


def test_padding_is_inside_a_websocket_as_anywhere(lab: Lab, tmp_path: Path) -> None:
    server, node = lab.nodes[:2]
    address = f"{server.address}:{server.free_port()}"
    with Hub(lab, tmp_path, fec="off", padding=True, websocket_addr=address, websocket_path="/here") as hub:
        client = hub.join(node, fec="off", padding=True, websocket=f"ws://{address}/here")
        assert reaches(client.node, hub.server.address, count=5)
        eventually(lambda: hub.server.running()["websockets"]["open"], SECONDS, "it is one")
        for end in (client, hub.server):
            eventually(lambda: end.counter(SENT), SECONDS, f"padding of {end.name}")


# -- ends of other programs


@pytest.fixture(scope="module")
def dialer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialer]:
    with Lab() as lab, inviting_server(lab, tmp_path_factory.mktemp("hub"), fec="on", padding=True) as made:
        yield made


def ping(client: WireClient, number: int, padding: int = 0) -> None:
    request = echo_request(str(client.welcome.addresses[0].ip), INSIDE[0], number, bytes(number))
    block = client.session.seal(0, [request])
    client.send_sealed(block._replace(header=block.header._replace(padding=padding)))
    expect_reply(request, client)


@pytest.mark.parametrize("runs", [False, True], ids=["blocks", "runs"])
def test_a_client_that_does_not_take_padding_gets_none(dialer: Dialer, runs: bool) -> None:
    before = dialer.server.counter(SENT)
    with dialer.dial("one", **runs_if(runs)) as client:  # padding would be a violation to it
        assert client.welcome.features & TAKES_PADDING
        for number in (1, 50, 400):
            ping(client, number)
        assert len(set(client.frame_bytes)) >= 3
    assert dialer.server.counter(SENT) == before


@pytest.mark.parametrize("runs", [False, True], ids=["blocks", "runs"])
def test_a_client_written_from_the_document_takes_padding_and_pads(dialer: Dialer, runs: bool) -> None:
    before = dialer.server.counter(RECEIVED)
    with dialer.dial("two", takes_padding=True, **runs_if(runs)) as client:
        for number, padding in ((1, 0), (50, 1), (400, 777), (20, 1300)):
            ping(client, number, padding)
        assert set(client.frame_bytes) <= SIZES
    eventually(lambda: dialer.server.counter(RECEIVED) == before + 1 + 777 + 1300, SECONDS, "padding was counted")


def runs_if(wanted: bool) -> dict[str, Any]:
    return {"runs": Runs()} if wanted else {}


def test_a_frame_with_more_padding_than_there_may_be_ends_its_connection_and_no_other(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with dialer.dial("one", session=session) as other, dialer.dial("one", session=session, index=1) as client:
        block = client.session.seal(0, [echo_request(str(client.welcome.addresses[0].ip), INSIDE[0], 1)])
        most = PADDED_MOST - len(client.sealed_frame(block.header, block.shards[0]))
        with pytest.raises(Ended):
            client.send_sealed(block._replace(header=block.header._replace(padding=most + 1)))
            client.receive_packets(SECONDS)
        ping(other, 9)
