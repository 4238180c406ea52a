"""Rules of reach in the tun workers of a hub, packet by packet: answers, lanes, fragments, errors, changes."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from pipeline.packet.flow import flow_of_packet, told_of
from pipeline.policy.reach import PeerFacts, Terms, compile_policies
from pipeline.shm.reach_rules import NO_POLICY
from tests.inline.harness.ends import End, Make, Peer, block_of, until
from tests.inline.harness.hub_ends import FAMILIES, all_packets, index_of, inside, on_worker, super_packet
from tests.unit.packet.test_flow import v4, v6

UDP, TCP = 17, 6
SYN, ACK, FIN = 0x02, 0x10, 0x01
NO_VNET = bytes(10)
OWN = [ip_address(inside(0, version)).packed for version in FAMILIES]
VERSIONS = pytest.mark.parametrize("version", FAMILIES, ids=["ipv4", "ipv6"])


class RuledHub:
    """A stepped hub with clients 1 and 2, client 2 in the last lane."""

    def __init__(self, make: Make, lanes: int = 1) -> None:
        self.server: End = make("server", capacity=4, lanes=lanes, reach=True)
        self._peers = [on_worker(self.server, "tcp-0", 1), on_worker(self.server, f"tcp-{lanes - 1}", 2)]
        self._serial = 0

    def close(self) -> None:
        for peer in self._peers:
            peer.close()

    def limit(self, guarded: bool = True, **targets: list[str]) -> None:
        """`one`, `two`: targets of the clients; a client without any may reach everything."""
        self._serial += 1
        facts = [PeerFacts(name, may_reach=tuple(texts)) for name, texts in targets.items()]
        found = compile_policies(facts, Terms())
        names = [name for name in targets if name in found]
        handles = {
            self.handle(client): names.index(name) if name in names else NO_POLICY
            for client, name in ((1, "one"), (2, "two"))
        }
        rules = self.server.reach_memory.rules
        rules.write(guarded, self._serial, OWN, handles, [found[name].rows for name in names])

    def handle(self, client: int) -> int:
        return self.server.memory.peer_table.peer_handle(index_of(self.server, client))

    def send(self, sender: int, *packets: bytes) -> list[bytes]:
        """Send packets in one block, and wait. The packets that the other client got."""
        before = self._seen()
        arrived = len(all_packets(self[3 - sender]))
        self[sender].send(block_of(*(NO_VNET + each for each in packets)))
        until(lambda: self._seen() >= before + len(packets) and self._is_quiet(), self.server)
        return [each[10:] for each in all_packets(self[3 - sender])[arrived:]]

    def answers(self, client: int) -> list[bytes]:
        """The packets that a client has got in all."""
        return [each[10:] for each in all_packets(self[client])]

    def refused(self, client: int) -> int:
        return self.server.reach_memory.refusals.counts(index_of(self.server, client))

    def __getitem__(self, client: int) -> Peer:
        return self._peers[client - 1]

    def _seen(self) -> int:
        names = ("packets_forwarded", "dropped_not_reachable", "packets_written", "dropped_unguarded")
        return sum(self.server.count(f"tun.{name}") for name in names)

    def _is_quiet(self) -> bool:
        """Whether all packets that were passed on have arrived."""
        return sum(len(all_packets(peer)) for peer in self._peers) == self.server.count("tun.packets_forwarded")


@pytest.fixture(params=[1, 2], ids=["one-lane", "two-lanes"])
def hub(make: Make, request: pytest.FixtureRequest):
    made = RuledHub(make, request.param)
    yield made
    made.close()


def ends(sender: int, receiver: int, version: int) -> bytes:
    return ip_address(inside(sender, version)).packed + ip_address(inside(receiver, version)).packed


def ip_packet(sender: int, receiver: int, version: int, protocol: int, body: bytes) -> bytes:
    return (v4 if version == 4 else v6)(protocol, body, ends=ends(sender, receiver, version))


def udp(sender: int, version: int, source_port: int, port: int, size: int = 8) -> bytes:
    body = struct.pack(">HHHH", source_port, port, size, 0).ljust(size, b"u")
    return ip_packet(sender, 3 - sender, version, UDP, body)


def tcp(sender: int, version: int, source_port: int, port: int, flags: int = ACK) -> bytes:
    body = struct.pack(">HHIIBBHHH", source_port, port, 1, 2, 0x50, flags, 500, 0, 0)
    return ip_packet(sender, 3 - sender, version, TCP, body)


def echo(sender: int, version: int, number: int, reply: bool = False) -> bytes:
    kinds = ((8, 0), (128, 129))[version == 6]
    body = struct.pack(">BBHHH", kinds[reply], 0, 0, number, 1)
    return ip_packet(sender, 3 - sender, version, 1 if version == 4 else 58, body)


def to(client: int, version: int, service: str = "") -> str:
    address = inside(client, version)
    return f"[{address}]{service}" if version == 6 and service.startswith(":") else f"{address}{service}"


@VERSIONS
def test_packets_that_a_rule_names_pass_and_others_are_refused(hub: RuledHub, version: int) -> None:
    hub.limit(one=[to(2, version, ":53/udp"), to(2, version, ":443/tcp")])
    allowed = [udp(1, version, 9, 53), tcp(1, version, 9, 443, SYN), tcp(1, version, 9, 443)]
    refused = [udp(1, version, 9, 54), tcp(1, version, 9, 442, SYN), tcp(1, version, 9, 53), echo(1, version, 5)]
    assert hub.send(1, *allowed, *refused) == allowed
    assert hub.refused(1) == len(refused) == hub.server.count("tun.dropped_not_reachable")
    assert {note.port for note in hub.server.reach_memory.refusals.take_notes()} == {54, 442, 53, 5}


@VERSIONS
def test_without_any_rule_nothing_is_looked_at(hub: RuledHub, version: int) -> None:
    packets = [udp(1, version, 9, 54), echo(1, version, 5)]
    assert hub.send(1, *packets) == packets
    hub.limit(two=["any"])
    assert hub.send(1, *packets) == packets
    writers = [hub.server.workers[name].duty("inbound") for name in hub.server.workers if name.startswith("tun")]
    assert all(writer._forwarder is writer._unfiltered for writer in writers)


@VERSIONS
def test_an_answer_passes_whatever_lane_it_comes_in(hub: RuledHub, version: int) -> None:
    hub.limit(two=[])
    begun = [udp(1, version, 9, 53), tcp(1, version, 9, 443, SYN), echo(1, version, 5)]
    answers = [udp(2, version, 53, 9), tcp(2, version, 443, 9, SYN | ACK), echo(2, version, 5, reply=True)]
    assert hub.send(2, *answers) == [], "before anything was begun"
    hub.limit(two=[])
    assert hub.send(1, *begun) == begun
    assert hub.send(2, *answers) == answers
    own = [udp(2, version, 54, 9), tcp(2, version, 443, 9, SYN), tcp(2, version, 443, 10), echo(2, version, 5)]
    assert hub.send(2, *own) == [], "of these nobody but client 2 is the begin"


@VERSIONS
def test_an_answer_passes_after_every_tun_worker_was_killed(hub: RuledHub, version: int) -> None:
    hub.limit(two=[])
    hub.send(1, udp(1, version, 9, 53))
    for name in [name for name in hub.server.workers if name.startswith("tun")]:
        hub.server.kill(name)
        hub.server.start(name)
    answer = udp(2, version, 53, 9)
    assert hub.send(2, answer) == [answer] and hub.send(2, udp(2, version, 54, 9)) == []


def test_rules_that_change_hold_from_the_next_packet_on(hub: RuledHub) -> None:
    packet = udp(1, 4, 9, 53)
    hub.limit(one=[to(2, 4)])
    assert hub.send(1, packet) == [packet]
    hub.limit(one=[to(2, 4, ":54/udp")])
    assert hub.send(1, packet) == []
    assert hub.send(2, udp(2, 4, 53, 9)) == [udp(2, 4, 53, 9)], "nobody limits client 2"
    assert hub.send(1, packet) == [], "and its answer is no begin"
    hub.limit(one=[to(2, 4)])
    assert hub.send(1, packet) == [packet]


def test_a_flow_that_one_has_begun_ends_though_the_other_goes_on_sending(hub: RuledHub) -> None:
    """Segments that are sent again are no connection that the other end has begun."""
    hub.limit(one=[to(2, 4, ":443/tcp")])
    assert len(hub.send(1, tcp(1, 4, 9, 443, SYN), tcp(1, 4, 9, 443))) == 2
    hub.send(2, tcp(2, 4, 443, 9, SYN | ACK), tcp(2, 4, 443, 9))
    hub.limit(one=[])
    hub.send(2, tcp(2, 4, 443, 9), tcp(2, 4, 443, 9, FIN | ACK))
    assert hub.send(1, tcp(1, 4, 9, 443)) == []


@VERSIONS
def test_the_first_refused_packet_is_answered(hub: RuledHub, version: int) -> None:
    hub.limit(one=[])
    refused = udp(1, version, 9, 53)
    hub.send(1, *[refused] * 5)
    (answer,) = hub.answers(1)
    flow = flow_of_packet(answer)
    assert flow.source == OWN[version == 6] and told_of(answer, flow).key == flow_of_packet(refused).key


def test_answers_to_refused_packets_are_limited(hub: RuledHub) -> None:
    hub.limit(one=[])
    for first in range(0, 1000, 250):
        hub.send(1, *(udp(1, 4, 9, 1000 + port) for port in range(first, first + 250)))
    assert 50 <= len(hub.answers(1)) <= 200 and hub.refused(1) == 1000


@VERSIONS
def test_an_error_passes_with_the_flow_that_it_tells_of(hub: RuledHub, version: int) -> None:
    hub.limit(two=[])
    lost, unknown = udp(1, version, 9, 53), udp(1, version, 9, 54)
    hub.send(1, lost)
    protocol, kind = (1, 3) if version == 4 else (58, 1)
    errors = [
        ip_packet(2, 1, version, protocol, struct.pack(">BBHI", kind, 0, 0, 0) + each) for each in (lost, unknown)
    ]
    assert hub.send(2, *errors) == errors[:1]


def fragments(sender: int, version: int, port: int, ident: int) -> list[bytes]:
    """Two fragments of a datagram."""
    header = struct.pack(">HHHH", 9, port, 24, 0)
    if version == 4:
        both = ends(sender, 3 - sender, 4)
        return [v4(UDP, header, 0x2000, ident, ends=both), v4(UDP, bytes(16), 1, ident, ends=both)]
    extensions = [bytes([UDP, 0]) + struct.pack(">HI", place, ident) for place in (1, 8)]
    return [
        v6(44, extension + body, ends(sender, 3 - sender, 6))
        for extension, body in zip(extensions, (header, bytes(16)), strict=True)
    ]


@VERSIONS
def test_later_fragments_go_with_the_first_one(hub: RuledHub, version: int) -> None:
    hub.limit(one=[to(2, version, ":53/udp")])
    good, bad, late = (fragments(1, version, port, ident) for port, ident in ((53, 1), (54, 2), (53, 3)))
    assert hub.send(1, *good, *bad) == good
    assert hub.send(1, *reversed(late)) == late[:1], "it has overtaken the first one"
    hub.limit(one=[to(2, version)])
    assert hub.send(1, *reversed(late)) == [*reversed(late)], "every port is allowed"


@VERSIONS
def test_a_super_packet_is_a_packet_of_its_flow(hub: RuledHub, version: int) -> None:
    hub.limit(one=[to(2, version, ":2/tcp")])
    before = hub.server.count("tun.packets_forwarded")
    packet = super_packet(inside(1, version), inside(2, version))
    hub[1].send(block_of(packet))
    until(lambda: hub.server.count("tun.packets_forwarded") == before + 4, hub.server)
    hub.limit(one=[to(2, version, ":3/tcp")])
    hub[1].send(block_of(packet))
    until(lambda: hub.refused(1) == 1, hub.server)


@VERSIONS
def test_while_the_kernel_lacks_the_rules_packets_of_peers_with_rules_do_not_get_there(
    hub: RuledHub, version: int
) -> None:
    outside = "198.51.100.1" if version == 4 else "2001:db8::1"
    first, second = (
        (v4 if version == 4 else v6)(
            UDP,
            struct.pack(">HHHH", 9, 53, 8, 0),
            ends=ip_address(inside(client, version)).packed + ip_address(outside).packed,
        )
        for client in (1, 2)
    )
    hub.limit(guarded=False, one=["any/udp"])
    hub.send(1, first)
    hub.send(2, second)
    assert [each[10:] for each in hub.server.packets()] == [second]
    assert hub.server.count("tun.dropped_unguarded") == 1
    hub.limit(one=["any/udp"])
    hub.send(1, first)
    assert sorted(each[10:] for each in hub.server.packets()) == [first, second]


def test_a_session_that_the_rules_do_not_know_reaches_no_peer(hub: RuledHub) -> None:
    hub.limit(two=[])
    rules = hub.server.reach_memory.rules
    rules.write(True, 9, OWN, {hub.handle(2): 0}, [[]])
    assert hub.send(1, udp(1, 4, 9, 53)) == []
