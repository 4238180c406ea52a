"""Fake TCP under attack: forged packets, and floods. The attacker is the router, which can send anything."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pipeline.faketcp import filters
from pipeline.faketcp.flow import Agreed, Ends, Flow
from pipeline.faketcp.packet import SYN
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.supervisor.kernel.fake_tcp_sockets import open_tap
from pipeline.transport import fake_tcp_server
from pipeline.transport.next_hop import ETH_P_IP
from tests.netns.harness.fake_tcp import Routed, add_client, add_server
from tests.netns.harness.fake_tcp_trains import SECONDS, exchange, start
from tests.support import eventually
from tools.lab.namespace import Namespace


@pytest.fixture(scope="module")
def lab() -> Iterator[Routed]:
    with Routed() as made:
        yield made


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def forge(lab: Routed, flow: Flow, size: int = 0, at: int = 0, value: int = 0) -> None:
    """One packet with the headers that `flow` makes, as if from the router: anybody on the way could send it. A byte of
    its link header or IP header may be another one."""
    flow.set_link(lab.attack_link)
    header = flow.header(size, max(size, 1), time.monotonic_ns())
    if at:
        header[VNET_HEADER_BYTES + at] ^= value
    lab.attack.sendmsg([header, bytes(size)], [], 0, ("far", ETH_P_IP))


@pytest.fixture(scope="module")
def attacked(lab: Routed) -> Iterator[Routed]:
    """The lab with a packet socket of an attacker, whose link header leads to the server."""
    lab.attack = lab.router.inside(lambda: open_tap(ETH_P_IP, filters.tap_of_server(4, 1, 0, 1)))
    near, far = mac_of(lab.server, "link0"), mac_of(lab.router, "far")
    lab.attack_link = near + far + b"\x08\x00"
    yield lab
    lab.attack.close()


def mac_of(node: Namespace, device: str) -> bytes:
    shown = node.run(["ip", "-br", "link", "show", device]).stdout.split()
    return bytes.fromhex(next(word for word in shown if word.count(":") == 5).replace(":", ""))


def test_forged_packets_for_a_flow_cost_counters(attacked: Routed, opened: ExitStack) -> None:
    client, server, address = start(opened, attacked)
    seen = exchange(client, server, address, 3)
    source = random.Random(5)
    before = server.bytes_received
    for _ in range(300):
        ends = Ends(socket.inet_aton(seen[0]), seen[1], socket.inet_aton(address[0]), address[1])
        flow = Flow(
            ends, Agreed(7, 7, True, 5, 64, 1448), source.getrandbits(32), source.getrandbits(32), 0, ExitStack(), 0
        )
        forge(attacked, flow, source.choice([0, 1000]))
    eventually(lambda: server.count("dgram.dropped_segment_outside") >= 290, SECONDS)
    assert server.bytes_received - before <= 10 * 1000
    exchange(client, server, address, 3)
    assert client.count("dgram.flows_fake_opened") == server.count("dgram.flows_fake_opened") == 1


def test_fragments_and_packets_for_another_machine_reach_no_tap(attacked: Routed, opened: ExitStack) -> None:
    (server,), port = add_server(attacked.server)
    opened.callback(server.close)
    ends = Ends(bytes([10, 2, 0, 1]), 5000, socket.inet_aton(attacked.addresses[4]), port)
    flow = Flow(ends, Agreed(7, 7, True, 5, 64, 1448), 1, 1, 0, ExitStack(), 0)
    fragment_at = 14 + 7
    for at, value in ((5, 1), (fragment_at, 1), (0, 0)):
        forge(attacked, flow, 8, at, value)
    eventually(lambda: server.count("dgram.dropped_segment_no_flow"), SECONDS)
    assert server.count("dgram.dropped_segment_no_flow") == 1


def test_a_flood_of_connections_leaves_memory_bounded_and_flows_alone(lab: Routed, opened: ExitStack) -> None:
    """Somebody finishes handshakes and says nothing, from addresses of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tcp_server, "UNUSED_MOST", 16)
        client, server, address = start(opened, lab)
        seen = exchange(client, server, address, 3)
        for _ in range(100):
            with lab.client.socket() as sock:
                sock.settimeout(SECONDS)
                sock.connect(address)
        eventually(lambda: server.count("dgram.flows_fake_refused") > 50, SECONDS)
        assert len(server.fake._flows) + len(server.fake._fresh) <= 20
        assert exchange(client, server, address, 3) == seen


def test_more_connections_than_a_second_may_have_wait_in_the_kernel(lab: Routed, opened: ExitStack) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tcp_server, "ACCEPTS_MOST", 3)
        (server,), port = add_server(lab.server)
        opened.callback(server.close)
        flood = [opened.enter_context(lab.client.socket()) for _ in range(10)]
        for sock in flood:
            sock.settimeout(SECONDS)
            sock.connect((lab.addresses[4], port))
        began = time.monotonic()
        eventually(lambda: server.count("dgram.flows_fake_opened") + len(server.fake._fresh) == 10, SECONDS)
        assert time.monotonic() - began > 1.5


def test_a_flood_of_syns_costs_no_memory_here(attacked: Routed, opened: ExitStack) -> None:
    """The kernel answers with SYN cookies, and a client still gets its flow."""
    (server,), port = add_server(attacked.server)
    opened.callback(server.close)
    address = (attacked.addresses[4], port)
    source = random.Random(6)
    for _ in range(3000):
        ends = Ends(bytes([10, 9, source.getrandbits(8), source.getrandbits(8)]), source.randrange(1024, 65536),
                    socket.inet_aton(address[0]), port)  # fmt: skip
        flow = Flow(ends, Agreed(0, 0, False, 5, 64, 1448), source.getrandbits(32), 0, 0, ExitStack(), 0)
        flow.set_link(attacked.attack_link)
        header = flow.keepalive(0)
        header[len(header) - 7] = SYN
        attacked.attack.sendmsg([header], [], 0, ("far", ETH_P_IP))
    client = add_client(attacked.client, address)
    opened.callback(client.close)
    exchange(client, server, address, 3)
    assert len(server.fake._flows) + len(server.fake._fresh) == 1
