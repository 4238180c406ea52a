"""Multicast and link-local packets inside: both ways where there is one peer, or if a hub allows them to one peer."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub
from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.lab.network import Lab

PORT = 5353
GROUPS = {"ipv4": "224.0.0.251", "of-a-site": "239.1.2.3", "ipv6": "ff02::fb"}
Ends = tuple[Instance, Instance]
EVERY_GROUP = ("--allow=224.0.0.0/4", "--allow=ff00::/8", "--allow=fe80::/10", "--allow=255.255.255.255/32")


@pytest.fixture(scope="module", params=["one-peer", "allowed"])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """A server and its client, which have multicast between them."""
    one = request.param == "one-peer"
    with Lab() as lab, Hub(lab, tmp_path_factory.mktemp("hub"), multi_client=not one, **PLAIN) as hub:
        yield hub.server, hub.join(lab.nodes[1], "", *(() if one else EVERY_GROUP), **PLAIN)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("forth", [True, False], ids=["to-the-client", "to-the-server"])
def test_a_group_is_heard_at_the_other_end(ends: Ends, group: str, forth: bool) -> None:
    source, sink = ends if forth else ends[::-1]
    with member(sink, group) as hearing, sender(source, group) as sending:
        assert is_heard(hearing, sending, group)


def test_a_broadcast_is_heard_at_the_other_end(ends: Ends) -> None:
    for source, sink in (ends, ends[::-1]):
        with sink.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearing, sender(source, "") as sending:
            hearing.bind(("", PORT))
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.tun_name.encode())
            assert is_heard(hearing, sending, "255.255.255.255")


def test_the_ends_reach_each_other_by_link_local_addresses(ends: Ends) -> None:
    for number, end in enumerate(ends, 1):
        end.node.run(["ip", "address", "replace", f"fe80::{number}/64", "dev", end.tun_name])
    for source, sink, address in ((*ends, "fe80::2"), (*ends[::-1], "fe80::1")):
        with sink.node.socket(socket.AF_INET6, socket.SOCK_DGRAM) as hearing, sender(source, "ff02::1") as sending:
            hearing.bind(("::", PORT))
            assert is_heard(hearing, sending, address, scope=index_of(source))


def test_peers_of_a_hub_have_no_multicast_and_counters_say_so(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path, **PLAIN) as hub:
        client = hub.join(lab.nodes[1], **PLAIN)
        for source, counter in ((client, "tun.dropped_multicast"), (hub.server, "tun.dropped_no_peer")):
            before = hub.server.counter(counter)
            with sender(source, GROUPS["ipv4"]) as sending:
                sending.sendto(b"hello", (GROUPS["ipv4"], PORT))
            eventually(lambda: hub.server.counter(counter) > before)


def member(end: Instance, group: str) -> socket.socket:
    """A socket that hears the group on the end's device."""
    sock = end.node.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", PORT))
    if ":" in group:
        joined = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index_of(end))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
    else:
        joined = socket.inet_aton(group) + bytes(4) + struct.pack("@i", index_of(end))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
    return sock


def sender(end: Instance, group: str) -> socket.socket:
    """A socket that sends to groups by the end's device."""
    sock = end.node.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM)
    if ":" in group:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index_of(end))
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("@i", index_of(end)))
    return sock


def is_heard(hearing: socket.socket, sending: socket.socket, address: str, scope: int = 0) -> bool:
    hearing.settimeout(5)
    sending.sendto(b"hello", (address, PORT, 0, scope) if ":" in address else (address, PORT))
    return hearing.recv(100) == b"hello"


def index_of(end: Instance) -> int:
    return json.loads(end.node.run(["ip", "-j", "link", "show", "dev", end.tun_name]).stdout)[0]["ifindex"]
