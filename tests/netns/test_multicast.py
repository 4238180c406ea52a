"""Multicast and link-local packets inside: both ways where there is one peer, or if a hub allows them to one peer.

With `multicast_kbit` they go to all peers of a hub, to their real mDNS responders as well.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub, reaches
from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.lab.namespace import stop
from tools.lab.network import Lab

AVAHI = shutil.which("avahi-daemon")
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


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Instance]]:
    """A hub and two clients that hear each other's groups."""
    with (
        Lab(names=("hub", "one", "two")) as lab,
        Hub(lab, tmp_path_factory.mktemp("all"), multicast_kbit=128, **PLAIN) as hub,
    ):
        yield [hub.server, hub.join(lab["one"], **PLAIN), hub.join(lab["two"], **PLAIN)]


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("source", [0, 1], ids=["hub", "client"])
def test_with_multicast_everybody_else_hears_a_group(everybody: list[Instance], group: str, source: int) -> None:
    others = [end for end in everybody if end is not everybody[source]]
    with ExitStack() as stack:
        hearing = [stack.enter_context(member(end, group)) for end in others]
        sending = stack.enter_context(sender(everybody[source], group))
        assert is_heard(hearing[0], sending, group)
        assert all(sock.recv(100) == b"hello" for sock in map(patient, hearing[1:]))


@pytest.mark.parametrize("address", ["255.255.255.255", "10.99.0.255"])
def test_with_multicast_a_broadcast_is_heard_by_everybody_else(everybody: list[Instance], address: str) -> None:
    hub, one, two = everybody
    with ExitStack() as stack:
        hearing = [stack.enter_context(end.node.socket(socket.AF_INET, socket.SOCK_DGRAM)) for end in (hub, two)]
        for sock in hearing:
            sock.bind(("", PORT))
        sending = stack.enter_context(sender(one, ""))
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, one.tun_name.encode())
        assert is_heard(hearing[0], sending, address)
        assert patient(hearing[1]).recv(100) == b"hello"


def test_a_flood_of_one_client_is_limited_and_counted(everybody: list[Instance]) -> None:
    hub, one, two = everybody
    group = GROUPS["of-a-site"]
    before = hub.counter("tun.dropped_multicast_limit")
    with member(two, group) as hearing, sender(one, group) as sending:
        for _ in range(400):
            sending.sendto(bytes(1000), (group, PORT))
        eventually(lambda: hub.counter("tun.dropped_multicast_limit") > before + 200)
        assert reaches(two.node, hub.address)
        assert hearing.recv(2000)


@pytest.mark.skipif(AVAHI is None, reason="avahi-daemon is missing: apt-get install avahi-daemon avahi-utils")
def test_mdns_responders_of_the_clients_find_each_other_and_the_hub(everybody: list[Instance], tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number, end in enumerate(everybody):
            stack.enter_context(avahi(end, f"machine{number}", tmp_path))
        for number, end in enumerate(everybody):
            other = (number + 1) % len(everybody)
            want = everybody[other].address
            eventually(lambda: want in resolve(end, f"machine{other}.local"), 20, f"machine{other}.local found")


@contextmanager
def avahi(end: Instance, name: str, directory: Path) -> Iterator[None]:
    """A responder on the device of an end, with a bus and a run directory of its own."""
    config = directory / f"{name}.conf"
    config.write_text(
        f"[server]\nhost-name={name}\nallow-interfaces={end.tun_name}\nallow-point-to-point=yes\n"
        "enable-dbus=no\nuse-ipv6=no\n[publish]\npublish-addresses=yes\n[rlimits]\n"
    )
    argv = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    process = end.node.popen([*argv, AVAHI, "--no-drop-root", "--no-chroot", f"--file={config}"])
    try:
        yield
    finally:
        stop([process], 10)


def resolve(end: Instance, name: str) -> str:
    """The address that mDNS responders give for a name, asked by one question to the group (RFC 6762, 5.1)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 0, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    with sender(end, GROUPS["ipv4"]) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sock.settimeout(1)
        sock.sendto(question, (GROUPS["ipv4"], PORT))
        try:
            answer = sock.recv(2000)
        except TimeoutError:
            return ""
    return socket.inet_ntoa(answer[-4:])


def patient(sock: socket.socket) -> socket.socket:
    sock.settimeout(5)
    return sock


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
