"""What a kernel makes of merged UDP packets: the packets that they were, wherever they go."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address

import pytest

from pipeline.packet import gso
from pipeline.packet.udp_merge import stretches, super_packet
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime import tun
from tests.harness.udp import udp, words_sum
from tools.lab.namespace import Namespace

OURS, THEIRS, BEHIND = "10.9.0.1", "10.9.0.2", "10.77.0.2"
OURS6, THEIRS6 = "fd09::1", "fd09::2"
INNER, INNER_THEIRS = "10.88.0.1", "10.88.0.2"
PORT, VXLAN_PORT, VNI = 5000, 4789, 7
COUNT = 100
SECONDS = 5.0
UDP_GRO = 104  # linux/udp.h


@pytest.fixture
def node() -> Iterator[Namespace]:
    with closing(Namespace("merged")) as made:
        made.run(["ip", "link", "set", "lo", "up"])
        yield made


@contextmanager
def device(node: Namespace, name: str, offload: bool, *addresses: str) -> Iterator[int]:
    """The file descriptor of a TUN device that is up."""
    made = node.inside(lambda: tun.open_device(name, 1, offload))
    try:
        if offload and made.offloads & tun.USO != tun.USO:
            pytest.skip("this kernel has no super-packets of UDP; Linux 6.2 has")
        for address in addresses:
            node.run(["ip", "address", "add", address, "dev", name, "nodad"])
        node.run(["ip", "link", "set", name, "up", "mtu", "1400"])
        yield made.fds[0]
    finally:
        made.close()


def ends(source: str, destination: str) -> bytes:
    return ip_address(source).packed + ip_address(destination).packed


def write_merged(fd: int, packets: list[bytes]) -> None:
    """As the tun worker does it; most of the packets must be merged."""
    view, lengths = memoryview(b"".join(packets)), tuple(map(len, packets))
    at = 0
    found = stretches(view, 0, lengths)
    assert max(count for _, count, merged in found if merged) > COUNT // 3
    for first, count, merged in found:
        these = lengths[first : first + count]
        if merged:
            os.writev(fd, super_packet(view, at, these[0], count))
        else:
            for packet in packets[first : first + count]:
                os.write(fd, packet)
        at += sum(these)


def received(sock: socket.socket, count: int, size: int = 65536) -> list[bytes]:
    sock.settimeout(SECONDS)
    return [sock.recv(size) for _ in range(count)]


def payloads(count: int = COUNT, size: int = 200) -> list[bytes]:
    return [number.to_bytes(2, "big") * (size // 2) for number in range(count)]


@pytest.mark.parametrize(("ours", "theirs"), [(OURS, THEIRS), (OURS6, THEIRS6)], ids=["ipv4", "ipv6"])
def test_a_socket_gets_each_datagram(node: Namespace, ours: str, theirs: str) -> None:
    version = ip_address(ours).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with device(node, "in0", True, f"{OURS}/24", f"{OURS6}/64") as fd, node.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", PORT))
        write_merged(fd, [udp(each, version, PORT, ends=ends(theirs, ours)) for each in payloads()])
        assert received(sock, COUNT) == payloads()


def test_a_socket_that_asks_for_super_packets_gets_all_bytes(node: Namespace) -> None:
    with device(node, "in0", True, f"{OURS}/24") as fd, node.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sock.bind(("", PORT))
        write_merged(fd, [udp(each, ends=ends(THEIRS, OURS)) for each in payloads()])
        got = b""
        sock.settimeout(SECONDS)
        while len(got) < COUNT * 200:
            got += sock.recv(65536)
        assert got == b"".join(payloads())


def test_a_router_passes_each_packet_on_with_a_checksum_of_its_own(node: Namespace) -> None:
    packets = [udp(each, ends=ends(THEIRS, BEHIND)) for each in payloads()]
    with device(node, "in0", True, f"{OURS}/24") as fd, device(node, "out0", False, "10.77.0.1/24") as out:
        node.sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
        write_merged(fd, packets)
        found = [read_v4(out) for _ in packets]
    expected = [gso.finish(each)[0] for each in packets]
    for packet, wanted in zip(found, expected, strict=True):
        inner = packet[VNET_HEADER_BYTES:]
        assert words_sum(inner[:20]) == 0xFFFF
        assert inner[8] == 63  # a hop less
        assert packet[:14] + packet[16:18] + packet[22:] == wanted[:14] + wanted[16:18] + wanted[22:]


def read_v4(fd: int) -> bytes:
    while True:
        assert select.select([fd], [], [], SECONDS)[0], "a packet is missing"
        packet = os.read(fd, 65600)
        if packet[VNET_HEADER_BYTES] >> 4 == 4:
            return packet


def test_datagrams_for_a_vxlan_device_are_taken_out_of_it_each(node: Namespace) -> None:
    with device(node, "in0", True, f"{OURS}/24") as fd, node.socket(kind=socket.SOCK_DGRAM) as sock:
        node.run(
            ["ip", "link", "add", "vx0", "type", "vxlan", "id", VNI, "local", OURS, "remote", THEIRS]
            + ["dstport", VXLAN_PORT, "udpcsum"]
        )
        node.run(["ip", "address", "add", f"{INNER}/24", "dev", "vx0"])
        node.run(["ip", "link", "set", "vx0", "up"])
        mac = link_address(node, "vx0")
        sock.bind(("", PORT))
        frames = [vxlan_frame(mac, each) for each in payloads()]
        write_merged(fd, [udp(each, 4, VXLAN_PORT, ends=ends(THEIRS, OURS)) for each in frames])
        assert received(sock, COUNT) == payloads()


def link_address(node: Namespace, name: str) -> bytes:
    words = node.run(["ip", "-o", "link", "show", name]).stdout.split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))


def vxlan_frame(mac: bytes, payload: bytes) -> bytes:
    """RFC 7348: its header, an Ethernet frame for `mac`, and a finished packet in it."""
    inner = gso.finish(udp(payload, ends=ends(INNER_THEIRS, INNER)))[0][VNET_HEADER_BYTES:]
    return struct.pack(">BxxxI", 8, VNI << 8) + mac + b"\2" + bytes(5) + b"\x08\0" + inner
