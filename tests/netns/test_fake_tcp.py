"""Fake TCP between real kernels: past a NAT and a firewall that follows windows, and without offloads.

The ends receive in threads without any right.
"""

from __future__ import annotations

import fcntl
import random
import select
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from io import FileIO

import pytest

from pipeline.faketcp.flow import WINDOW
from pipeline.faketcp.packet import FIN, RST, SYN
from pipeline.transport import fake_tcp
from tests.netns.harness.fake_tcp import (
    ETHTOOL_SGRO,
    Routed,
    Watch,
    add_client,
    add_server,
    ip,
    set_offloads,
)
from tests.netns.harness.fake_tcp_trains import (
    SECONDS,
    SEGMENT,
    cut,
    exchange,
    segments,
    send_all,
    start,
    train,
)
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import Namespace
from tools.lab.network import Lab

STRICT = """
table inet own {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established accept
    }
    chain output {
        type filter hook output priority filter; policy drop;
        ct state invalid drop
        ct state new,established accept
    }
}
"""
"""A firewall of an end that does not translate, and lets nothing in but answers."""

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000  # linux/if_tun.h


@pytest.fixture(scope="module")
def lab() -> Iterator[Routed]:
    with Routed() as made:
        yield made


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.parametrize("version", [4, 6])
def test_segments_pass_a_nat_and_a_firewall_that_follows_windows(lab: Routed, opened: ExitStack, version: int) -> None:
    before = lab.invalid()
    with Watch(lab.router, "near") as watch:
        client, server, address = start(opened, lab, version)
        seen = exchange(client, server, address)
        assert seen[0] == ("10.2.0.1" if version == 4 else "fd02::1")
        client.finish()
        eventually(lambda: not client.fake._flows and not server.fake._flows, SECONDS)
    assert lab.invalid() == before
    assert [packet.flags for packet in watch.packets if packet.flags & RST] == []
    assert sum(bool(packet.flags & SYN) for packet in watch.packets) == 2
    assert sum(bool(packet.flags & FIN) for packet in watch.packets) == 2
    of_kernels = [packet for packet in watch.packets if packet.window != WINDOW]
    assert len(of_kernels) == 3, "the kernels have made the handshake and nothing else"
    assert server.count("dgram.dropped_segment_outside") == client.count("dgram.dropped_segment_outside") == 0


def test_devices_without_offloads_carry_whole_segments_with_good_checksums(lab: Routed, opened: ExitStack) -> None:
    devices = [(lab.client, "link0"), (lab.router, "near"), (lab.router, "far"), (lab.server, "link0")]
    for node, device in devices:
        set_offloads(node, device, False)
        opened.callback(set_offloads, node, device, True)
    before = lab.invalid()
    with Watch(lab.router, "near") as watch:
        client, server, address = start(opened, lab)
        exchange(client, server, address)
    assert lab.invalid() == before
    assert max(packet.end - packet.begin for packet in watch.packets) == SEGMENT
    assert [packet for packet in watch.packets if packet.is_damaged or packet.flags & RST] == []


@pytest.mark.parametrize("reorder_percent", [0, 5])
def test_losses_and_reordering_leave_the_borders_of_segments(reorder_percent: float, opened: ExitStack) -> None:
    link = LinkSpec(delay_ms=3, loss_percent=3, reorder_percent=reorder_percent)
    lossy = opened.enter_context(Lab(link=link))
    near, far = lossy.nodes
    (server,), port = add_server(far)
    opened.callback(server.close)
    address = (far.address, port)
    client = add_client(near, address)
    opened.callback(client.close)
    trains = [train(number) for number in range(100)]
    send_all(client, address, trains)
    sent = {segment for each in trains for segment in cut(each)}
    eventually(lambda: len(segments(server)) > 0.9 * len(sent), SECONDS)
    got = segments(server)
    assert set(got) <= sent and len(got) == len(set(got)) < len(sent)


def test_what_the_receiver_merges_keeps_its_borders(lab: Routed, opened: ExitStack) -> None:
    """Segments come one by one, of several sizes, with acknowledgements and timestamps that change, and some are lost.
    The receiver's device merges them (GRO)."""
    for node, device in ((lab.client, "link0"), (lab.router, "far")):  # veth merges nothing for a device that cuts
        set_offloads(node, device, False)
        opened.callback(set_offloads, node, device, True)
    set_offloads(lab.server, "link0", True, (ETHTOOL_SGRO,))
    opened.callback(set_offloads, lab.server, "link0", False, (ETHTOOL_SGRO,))
    client, server, address = start(opened, lab)
    seen = exchange(client, server, address, 1)
    source = random.Random(3)
    wanted: Counter[bytes] = Counter()
    with lab.rule("iifname", "near", "meta", "length", ">", "300", "numgen", "random", "mod", "100", "<", "2", "drop"):
        server.received.clear()
        for number in range(400):
            size = source.choice([300, 1000, 1000, SEGMENT, SEGMENT])
            payload = source.randbytes(source.randrange(1, 40) * size + source.choice([0, source.randrange(1, size)]))
            wanted += Counter(cut(payload, size))
            eventually(partial(client.may_send, payload, size, address), SECONDS)
            if number % 7 == 0:
                server.may_send(b"x", 1, seen)
        eventually(lambda: len(segments(server)) > 0.9 * wanted.total(), SECONDS)
    got = Counter(segments(server))
    assert not got - wanted
    assert got.total() < wanted.total()
    assert sum(len(each.content) > each.segment_bytes for each in server.received) > 100
    assert max(len(cut(each.content, each.segment_bytes)) for each in server.received) <= 40, "trains stay apart"


def test_the_first_data_open_a_flow_whose_handshake_lost_its_last_packet(lab: Routed, opened: ExitStack) -> None:
    with (
        Watch(lab.router, "far") as watch,
        lab.rule("iifname", "near", "meta", "length", "52", "tcp", "flags", "==", "ack", "drop"),
    ):
        client, server, address = start(opened, lab)
        assert server.count("dgram.flows_fake_opened") == 0
        eventually(lambda: client.may_send(train(0), SEGMENT, address) and len(segments(server)) > 20, SECONDS)
    assert not [packet for packet in watch.packets if packet.window != WINDOW and not packet.flags & SYN]
    exchange(client, server, address, 3)
    assert client.count("dgram.flows_fake_opened") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_loopback_carries_both_ends_of_a_flow(lab: Routed, opened: ExitStack, host: str) -> None:
    (server,), port = add_server(lab.server)
    opened.callback(server.close)
    client = add_client(lab.server, (host, port))
    opened.callback(client.close)
    exchange(client, server, (host, port), 3)


def test_devices_without_link_headers_carry_them_too(opened: ExitStack) -> None:
    """As PPP and tunnels of others: here two TUN devices, between which packets are carried by hand."""
    ends = [opened.enter_context(closing(Namespace(name))) for name in ("client", "server")]
    files = [node.inside(tun) for node in ends]
    for number, node in enumerate(ends):
        ip(node, f"address add 10.3.0.{number + 1} peer 10.3.0.{2 - number} dev tun0")
        ip(node, "link set tun0 up")
    over = threading.Event()
    carriers = [threading.Thread(target=carry, args=(*pair, over)) for pair in (files, files[::-1])]
    for file in files:
        opened.callback(file.close)
    for thread in carriers:
        thread.start()
        opened.callback(thread.join)
    opened.callback(over.set)
    (server,), port = add_server(ends[1])
    opened.callback(server.close)
    client = add_client(ends[0], ("10.3.0.2", port))
    opened.callback(client.close)
    exchange(client, server, ("10.3.0.2", port), 3)


def tun() -> FileIO:
    file = FileIO("/dev/net/tun", "r+")
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    return file


def carry(source: FileIO, to: FileIO, over: threading.Event) -> None:
    while not over.is_set():
        if select.select([source], [], [], 0.05)[0]:
            to.write(source.read(65536) or b"")


def test_the_route_of_the_own_address_decides_where_a_segment_leaves(lab: Routed, opened: ExitStack) -> None:
    """As on a server with two providers: answers go out on the way of the address that was dialed."""
    ip(lab.router, f"link add second type veth peer name link1 netns {lab.server.pid}")
    opened.callback(lambda: ip(lab.router, "link del second"))
    ip(lab.router, "address add 10.4.0.1/24 dev second")
    ip(lab.router, "link set second up")
    for words in (
        "address add 10.4.0.2/24 dev link1",
        "link set link1 up",
        "route add default via 10.4.0.1 table 44",
        "rule add from 10.4.0.2 lookup 44",
    ):
        ip(lab.server, words)
    opened.callback(lambda: ip(lab.server, "rule del from 10.4.0.2 lookup 44"))
    (server,), port = add_server(lab.server)
    opened.callback(server.close)
    client = add_client(lab.client, ("10.4.0.2", port))
    opened.callback(client.close)
    exchange(client, server, ("10.4.0.2", port), 3)
    assert [each.way.interface for each in server.fake._flows.values()] == ["link1"]


def test_kernels_that_agree_on_no_options_carry_segments_within_a_small_window(lab: Routed, opened: ExitStack) -> None:
    names = ("net.ipv4.tcp_timestamps", "net.ipv4.tcp_window_scaling")
    lab.client.sysctl(*(f"{name}=0" for name in names))
    opened.callback(lab.client.sysctl, *(f"{name}=1" for name in names))
    before = lab.invalid()
    client, server, address = start(opened, lab)
    agreed = client.fake._current.flow.agreed
    assert (agreed.has_stamps, agreed.local_scale, agreed.remote_scale) == (False, 0, 0)
    assert client.fake.segment_most(address) == 1460
    exchange(client, server, address)
    assert lab.invalid() == before


def test_ends_on_one_link_whose_packets_begin_with_255_hops_keep_their_kernels_out(opened: ExitStack) -> None:
    with Lab() as near, Watch(near.nodes[1], "link0") as watch:
        for node in near:
            node.sysctl("net.ipv4.ip_default_ttl=255")
        (server,), port = add_server(near.nodes[1])
        opened.callback(server.close)
        address = (near.nodes[1].address, port)
        client = add_client(near.nodes[0], address)
        opened.callback(client.close)
        exchange(client, server, address, 3)
        opened.close()
    assert len([packet for packet in watch.packets if packet.window != WINDOW]) == 3


def test_a_gateway_may_have_an_address_of_the_other_version(opened: ExitStack) -> None:
    lab = opened.enter_context(Routed())
    lab.client.run(["ping", "-c", "1", "fd01::1"])  # the lab has no link-local addresses that could ask for it later
    ip(lab.client, "-4 route replace default via inet6 fd01::1 dev link0")
    client, server, address = start(opened, lab)
    exchange(client, server, address, 3)
    open_flow = client.fake._current
    assert lab.client.inside(lambda: client.fake._hops.find(open_flow.flow.ends, 0, None)) == open_flow.way


def test_a_segment_that_does_not_fit_the_interface_is_refused(lab: Routed, opened: ExitStack) -> None:
    client, server, address = start(opened, lab)
    whole = bytes(1500 - 52)
    with pytest.raises(OSError, match="too large"):
        client.send(whole + b"x", len(whole) + 1, address)
    client.send(whole, len(whole), address)
    eventually(lambda: server.received, SECONDS)


def test_nobody_is_sent_to_without_a_flow(lab: Routed, opened: ExitStack) -> None:
    _, server, _ = start(opened, lab)
    with pytest.raises(OSError, match="no fake flow"):
        server.send(b"x", 1, ("10.2.0.1", 1))


def test_a_full_window_waits_for_an_acknowledgement(lab: Routed, opened: ExitStack) -> None:
    client, _, address = start(opened, lab)
    flow = client.fake._current.flow
    with lab.rule("iifname", "far", "drop"):
        while client.may_send(train(0, 45 * SEGMENT), SEGMENT, address):
            pass
        assert flow.sent - flow.acknowledged & 0xFFFFFFFF <= flow.window
    eventually(lambda: client.may_send(train(0, 45 * SEGMENT), SEGMENT, address), SECONDS, "room")


# -- flows that die


def test_a_reset_by_a_box_on_the_way_makes_another_flow(lab: Routed, opened: ExitStack) -> None:
    """The firewall rejects what it knows, as a provider's does after a while."""
    client, server, address = start(opened, lab)
    exchange(client, server, address, 3)
    with lab.rule("tcp", "flags", "&", "syn", "!=", "syn", "reject", "with", "tcp", "reset"):
        client.may_send(train(0), SEGMENT, address)
        eventually(lambda: client.count("dgram.flows_fake_ended"), SECONDS)
    eventually(lambda: client.count("dgram.flows_fake_opened") == 2, SECONDS)
    exchange(client, server, address, 3)


def test_a_nat_that_forgets_makes_another_flow(lab: Routed, opened: ExitStack) -> None:
    """It drops what it does not know, in silence, as after a sleep or another address of a router."""
    client, server, address = start(opened, lab)
    seen = exchange(client, server, address, 3)
    lab.router.sysctl("net.netfilter.nf_conntrack_tcp_loose=0")
    try:
        lab.forget()

        def is_new() -> bool:
            client.may_send(train(0), SEGMENT, address)
            return client.count("dgram.flows_fake_opened") == 2

        eventually(is_new, SECONDS)
        assert exchange(client, server, address, 3) != seen
    finally:
        lab.router.sysctl("net.netfilter.nf_conntrack_tcp_loose=1")


def test_a_worker_that_is_killed_is_followed_by_another_flow(lab: Routed, opened: ExitStack) -> None:
    """The kernel resets what comes for it: with numbers that fit. Its successor has the same port."""
    (server,), port = add_server(lab.server)
    address = (lab.addresses[4], port)
    client = add_client(lab.client, address)
    opened.callback(client.close)
    exchange(client, server, address, 3)
    server.die()
    (successor,), _ = add_server(lab.server, port=port)
    opened.callback(successor.close)
    client.may_send(train(0), SEGMENT, address)
    eventually(lambda: client.count("dgram.flows_fake_ended"), SECONDS)
    eventually(lambda: client.count("dgram.flows_fake_opened") == 2, SECONDS)
    exchange(client, successor, address, 3)


def test_a_neighbour_that_the_kernel_forgets_is_the_one_that_is_heard(lab: Routed, opened: ExitStack) -> None:
    client, server, address = start(opened, lab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tcp, "WAY_NS", 0)
        for node in (lab.client, lab.server):
            ip(node, "neigh flush dev link0")
        looked = [end.fake._flows.copy().popitem()[1] for end in (client, server)]
        before = [each.looked_ns for each in looked]
        eventually(lambda: all(each.looked_ns > then for each, then in zip(looked, before, strict=True)), SECONDS)
        exchange(client, server, address, 3)
    assert client.count("dgram.flows_fake_opened") == 1


def test_an_interface_that_goes_down_and_up_again_brings_another_flow(opened: ExitStack) -> None:
    lab = opened.enter_context(Routed())
    client, server, address = start(opened, lab)
    ip(lab.client, "link set link0 down")
    with pytest.raises(OSError, match="no way"):
        client.send(b"x", 1, address)
    ip(lab.client, "link set link0 up")
    ip(lab.client, "route add default via 10.1.0.1")
    eventually(lambda: client.may_send(train(0), SEGMENT, address) and segments(server), 2 * SECONDS)
    exchange(client, server, address, 3)


@pytest.mark.slow
def test_a_flow_that_is_doubted_is_replaced(lab: Routed, opened: ExitStack) -> None:
    client, server, address = start(opened, lab)
    client.fake.doubt()
    eventually(lambda: client.count("dgram.flows_fake_opened") == 2, SECONDS)
    exchange(client, server, address, 3)
    eventually(lambda: len(client.fake._flows) == 1, SECONDS)


def test_an_idle_flow_is_kept_alive(lab: Routed, opened: ExitStack) -> None:
    with pytest.MonkeyPatch.context() as patch, Watch(lab.router, "near") as watch:
        patch.setattr(fake_tcp, "KEEPALIVE_NS", 0)
        client, server, address = start(opened, lab)
        begin = client.fake._current.flow.heard_ns
        eventually(lambda: client.fake._current.flow.heard_ns > begin + 1_500_000_000, SECONDS, "two keepalives")
    assert len([packet for packet in watch.packets if packet.window == WINDOW]) >= 5
    exchange(client, server, address, 3)
    assert client.count("dgram.flows_fake_opened") == 1


def test_a_flow_without_a_proof_of_a_peer_is_ended(lab: Routed, opened: ExitStack) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tcp, "UNUSED_NS", 0)
        client, server, _ = start(opened, lab)
        eventually(lambda: client.fake._current.flow.has_ended, SECONDS)
        eventually(lambda: client.count("dgram.flows_fake_opened") == 2, SECONDS)
        eventually(lambda: len(server.fake._flows) <= 1, SECONDS)


# -- a firewall of this machine, and other lanes


def test_an_end_with_a_strict_firewall_of_its_own_needs_no_rule_for_it(lab: Routed, opened: ExitStack) -> None:
    lab.client.run(["nft", "-f", "-"], input=STRICT)
    opened.callback(lambda: lab.client.run(["nft", "delete", "table", "inet", "own"]))
    client, server, address = start(opened, lab)
    with Watch(lab.router, "near") as watch:
        exchange(client, server, address)
    assert [packet for packet in watch.packets if packet.flags & RST] == []


def test_each_lane_gets_its_own_flows(lab: Routed, opened: ExitStack) -> None:
    servers, port = add_server(lab.server, lanes=3)
    address = (lab.addresses[4], port)
    clients = [add_client(lab.client, address, lane, 2) for lane in (0, 1)]
    for end in (*servers, *clients):
        opened.callback(end.close)
    for number, client in enumerate(clients):
        send_all(client, address, [train(number)])
    eventually(lambda: sum(len(segments(server)) for server in servers) == 2 * 20, SECONDS)
    for lane, server in enumerate(servers):
        assert {payload.address[1] % 3 for payload in server.received} <= {lane}
    for number, client in enumerate(clients):
        assert client.fake._current.flow.ends.local_port % 2 == number
        assert client.count("dgram.dropped_segment_no_flow") == 0
