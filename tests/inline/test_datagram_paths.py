"""Paths for datagrams between two ends open, close and move, and what comes by them is delivered and reported."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from random import Random

import pytest

from pipeline.policy.carrier import PASSES, UNHEARD, State
from pipeline.shm import datagram_status
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.layout import (
    DATAGRAM_PATH,
    DATAGRAM_RECEIVED_BYTES,
    DATAGRAM_RECOVERED,
    PEER_INDEX_BITS,
    RECORD_WORDS,
)
from pipeline.transport.address import format_address
from tests.inline.harness.datagrams import DatagramWay, share_secrets
from tests.inline.harness.ends import End, Make, ipv4, number_of, step_for, until
from tests.inline.harness.hub_ends import between, connected_hub, index_of, tls
from tests.inline.harness.plain_datagrams import PlainSender, duties
from tests.inline.test_sealed import sealed_pair
from workers.dgram.control import Control
from workers.dgram.path import Path
from workers.dgram.path_control import PathControl
from workers.dgram.receiver import Receiver

BULK_BYTES = 9000


Joined = Callable[..., tuple[End, End, DatagramWay]]


@pytest.fixture
def joined(make: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    """Makes two ends with a way for datagrams between them, over which paths are open. `m`: see PlainSender.

    No path goes dark because this machine is slow.
    """
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 5_000_000_000)
    with ExitStack() as stack:

        def join(lanes: tuple[int, int] = (1, 1), m: int = 0, **settings: object) -> tuple[End, End, DatagramWay]:
            plain = partial(duties, m=m)
            server, client = sealed_pair(make, lanes, carrier="auto", light_connections=1, dgram=plain, **settings)
            way = stack.enter_context(closing(DatagramWay(server.port)))
            share_secrets(server, client, port=way.port)
            until(
                lambda: (
                    all(open_paths(client, lane) for lane in range(lanes[1]))
                    and sum(len(open_paths(server, lane)) for lane in range(lanes[0])) == lanes[1]
                ),
                server,
                client,
                way,
            )
            return server, client, way

        yield join


def receiver(end: End, lane: int = 0) -> Receiver:
    found = end.workers[f"dgram-{lane}"].duty("inbound")
    assert isinstance(found, Receiver)
    return found


def sender(end: End, lane: int = 0) -> PlainSender:
    found = end.workers[f"dgram-{lane}"].duty("outbound")
    assert isinstance(found, PlainSender)
    return found


def word(end: End, name: int, lane: int = 0, peer: int = 0) -> int:
    return end.memory.peer_table.datagrams_in[lane][peer * RECORD_WORDS + name]


def open_paths(end: End, lane: int = 0) -> tuple[Path, ...]:
    return sender(end, lane).paths.of(end.memory.peer_table.peer_handle(0))


def is_open(*ends: End) -> bool:
    return all(word(end, DATAGRAM_PATH) == end.memory.peer_table.peer_handle(0) != 0 for end in ends)


def control(end: End) -> PathControl:
    inside: Control = receiver(end)._control
    (peer,) = inside._peers.values()
    (found,) = peer.controls.values()
    return found


def published(end: End) -> DatagramStatus:
    found = datagram_status.read(end.memory.peer_table.datagrams_in[0], 0)
    assert found is not None
    return found


def str_of(path_control: PathControl) -> str:
    assert path_control.address is not None
    return format_address(path_control.address)


def send(frm: End, to: End, numbers: range, *ends: object, size: int = BULK_BYTES) -> None:
    """Packets, each of which arrives."""
    found = len(numbers)
    before = len(to.packets())
    for number in numbers:
        until(frm.has_room, *ends)
        frm.write(ipv4(number, size))
    until(lambda: len(to.packets()) - before >= found, *ends)
    assert sorted(number_of(each) for each in to.packets()[before:]) == list(numbers)


def test_a_path_opens_at_both_ends_and_carries_blocks_both_ways(joined: Joined) -> None:
    server, client, way = joined()
    for frm, to in ((client, server), (server, client)):
        before = to.count("tcp.bytes_received")
        send(frm, to, range(100), server, client, way)
        send(frm, to, range(200, 220), server, client, way, size=90)
        assert to.count("dgram.segments_received") and to.count("tcp.bytes_received") - before < 2000
        assert word(to, DATAGRAM_RECEIVED_BYTES) == to.count("dgram.bytes_received") > 100 * BULK_BYTES


def test_segments_are_as_long_as_the_interface_and_the_path_carry(joined: Joined) -> None:
    server, client, way = joined()
    until(
        lambda: all(path.segment_most == 9000 - 28 for end in (server, client) for path in open_paths(end)),
        server,
        client,
        way,
    )
    way.fate = lambda number, to_server, datagram: int(len(datagram) <= 1472)
    for end in (server, client):
        (path,) = open_paths(end)
        path.too_big = True
    until(
        lambda: all(path.segment_most == 1200 for end in (server, client) for path in open_paths(end)),
        server,
        client,
        way,
    )


def test_what_has_come_is_reported_until_nothing_is_outstanding(joined: Joined) -> None:
    server, client, way = joined()
    send(client, server, range(200), server, client, way)
    (path,) = open_paths(client)
    until(lambda: path.outstanding_since is None, server, client, way)
    last = sender(client).reports[-1]
    assert last.counts.received == server.count("dgram.segments_received") and last.counts.lost == 0
    (stream,) = [each for each in last.streams if each.turn]
    assert stream.bits == b"" and not last.incomplete


def test_lost_rows_are_named_and_lost_segments_counted(joined: Joined) -> None:
    server, client, way = joined()
    lost = []

    def fate(number: int, to_server: bool, datagram: bytes) -> int:
        if to_server and len(datagram) > 2000 and number % 10 == 0:
            lost.append(number)
            return 0
        return 1

    way.fate = fate
    for number in range(100):
        until(client.has_room, server, client, way)
        client.write(ipv4(number, BULK_BYTES))
    until(lambda: len(lost) > 5 and sender(client).reports[-1].counts.lost == len(lost), server, client, way)
    named = [each for report in sender(client).reports for each in report.incomplete]
    assert named and all(each.missing for each in named)


def test_a_path_that_loses_all_goes_dark_and_comes_back(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client, way = joined()
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 100_000_000)
    way.fate = lambda number, to_server, datagram: 0
    client.write(ipv4(1, BULK_BYTES))
    until(lambda: not is_open(client), server, client, way)
    (path,) = [each.path for each in [control(client)]]
    assert not path.is_open and path.address is None
    assert client.count("dgram.paths_closed") == 1
    path.outstanding_since = None
    send(client, server, range(10, 20), server, client, way)
    assert server.count("dgram.segments_received") == 0, "they go by TCP"
    way.fate = lambda number, to_server, datagram: 1
    until(lambda: is_open(client), server, client, way)
    send(client, server, range(20, 30), server, client, way)
    assert server.count("dgram.segments_received") > 0


def test_observers_see_what_each_path_does_and_where_it_leads(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client, way = joined()
    until(lambda: control(client).segment_most > 1400 and control(server).segment_most > 1400, server, client, way)
    for end in (server, client):
        found = published(end)
        assert (found.carrier.state, found.carrier.reason) == (State.OPEN, PASSES)
        assert (found.endpoint, found.segment_bytes) == (str_of(control(end)), control(end).segment_most)
    assert published(client).endpoint.endswith(f":{way.port}")
    before = published(server).endpoint
    way.move()
    control(client).carrier.doubt()
    until(lambda: published(server).endpoint != before, server, client, way)
    assert published(server).endpoint == str_of(control(server))
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 100_000_000)
    way.fate = lambda number, to_server, datagram: 0
    client.write(ipv4(1, BULK_BYTES))
    until(lambda: not is_open(client), server, client, way)
    found = published(client)
    assert found.carrier == control(client).carrier.status and found.carrier.state is State.DARK
    assert found.carrier.reason.startswith("segments are outstanding, and nothing was reported for ")
    server.datagrams.secrets.erase(server.memory.peer_table.peer_handle(0))
    until(lambda: datagram_status.read(server.memory.peer_table.datagrams_in[0], 0) is None, server, client, way)


def test_a_server_that_has_heard_nothing_says_so(joined: Joined) -> None:
    server, client, way = joined()
    handle = server.memory.peer_table.peer_handle(0)
    secrets = server.datagrams.secrets.read(handle)
    assert secrets is not None
    server.datagrams.secrets.erase(handle)
    until(lambda: datagram_status.read(server.memory.peer_table.datagrams_in[0], 0) is None, server, client, way)
    way.fate = lambda number, to_server, datagram: 0
    server.datagrams.secrets.write(secrets._replace(peer_handle=handle + (1 << PEER_INDEX_BITS)))
    until(lambda: datagram_status.read(server.memory.peer_table.datagrams_in[0], 0) is not None, server, client, way)
    assert published(server).carrier[::2] == (State.PROBING, UNHEARD)


def test_a_client_behind_a_nat_that_forgets_is_found_at_its_new_port(joined: Joined) -> None:
    server, client, way = joined()
    (path,) = open_paths(server)
    before = path.address
    way.move()
    control(client).carrier.doubt()  # its keepalive does this, once an answer is missing
    until(lambda: path.address != before, server, client, way)
    send(server, client, range(50), server, client, way)
    assert client.count("dgram.segments_received") > 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_successor_goes_on_with_the_path_at_once(joined: Joined, which: int) -> None:
    server, client, way = joined()
    killed, other = (server, client)[which], (client, server)[which]
    send(killed, other, range(500, 510), server, client, way)
    killed.kill("dgram-0")
    killed.start("dgram-0")
    assert is_open(killed) and open_paths(killed), "without a step"
    process = killed.workers["dgram-0"].attachment.process
    send(killed, other, range(30), server, client, way)
    send(other, killed, range(100, 130), server, client, way)
    assert other.count("dgram.segments_received") and killed.count("dgram.segments_received")
    assert other.count("dgram.paths_closed") == killed.count("dgram.paths_closed") == 0
    until(lambda: sender(killed).reports, server, client, way)
    assert all(report.counts.sender == process for report in sender(killed).reports), "none is of the predecessor"


def test_an_ended_session_closes_its_paths(joined: Joined) -> None:
    server, client, way = joined()
    server.datagrams.secrets.erase(server.memory.peer_table.peer_handle(0))
    until(lambda: word(server, DATAGRAM_PATH) == 0, server, client, way)
    assert not sender(server).paths.of(server.memory.peer_table.peer_handle(0))


def test_a_successor_publishes_no_path_that_its_predecessor_had_published_and_it_has_not(joined: Joined) -> None:
    server, *_ = joined()
    server.kill("dgram-0")
    server.datagrams.secrets.erase(server.memory.peer_table.peer_handle(0))
    server.start("dgram-0")
    assert word(server, DATAGRAM_PATH) == 0


def test_parity_makes_whole_what_the_path_loses(joined: Joined) -> None:
    server, client, way = joined(m=3)
    way.fate = lambda number, to_server, datagram: int(not to_server or number % 9 > 0)
    send(client, server, range(200), server, client, way)
    assert server.count("dgram.blocks_recovered") > 0
    until(lambda: word(server, DATAGRAM_RECOVERED) == server.count("dgram.blocks_recovered"), server, client, way)


def test_datagrams_of_nobody_cost_a_counter(joined: Joined) -> None:
    server, client, way = joined()
    sock = server.datagrams.sockets[0]
    for data in (b"", b"abc", b"\0" * 4, b"\1" * 1400, b"\2" * 65000):
        sock.sendto(data, ("127.0.0.1", server.port))
    until(lambda: server.count("dgram.dropped_token_unknown") == 4, server, client, way)
    send(client, server, range(10), server, client, way)


def test_forged_control_datagrams_and_old_ones_open_and_move_nothing(joined: Joined) -> None:
    server, client, way = joined()
    heard: list[bytes] = []

    def fate(number: int, to_server: bool, datagram: bytes) -> int:
        if to_server:
            heard.append(datagram)
        return 1

    way.fate = fate
    control(client).carrier.doubt()
    until(lambda: heard, server, client, way)
    (path,) = open_paths(server)
    before = path.address
    for datagram in list(heard):
        for copy in (datagram, datagram[:-1] + bytes([datagram[-1] ^ 1]), datagram[:40]):
            client.datagrams.sockets[0].sendto(copy, ("127.0.0.1", server.port))
    until(lambda: server.count("dgram.dropped_control_refused") >= 3, server, client, way)
    assert path.address == before and path.is_open


def test_of_several_lanes_each_finds_a_path(joined: Joined) -> None:
    server, client, way = joined((2, 2), connections=4)
    for frm, to in ((client, server), (server, client)):
        for number in range(40):
            until(lambda: all(frm.has_room(lane) for lane in (0, 1)), server, client, way)
            frm.write(ipv4(number, BULK_BYTES), number % 2)
        until(lambda: len(to.packets()) == 40, server, client, way)
        assert to.count("dgram.segments_received") > 0


def test_a_full_ring_leaves_datagrams_in_the_socket(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.dgram.receiver.FULL_NS", 60_000_000_000)
    server, client, way = joined()
    tun = server.workers.pop("tun-0")
    for number in range(200):
        until(client.has_room, server, client, way)
        client.write(ipv4(number, BULK_BYTES))
    until(lambda: server.count("dgram.ring_full_waits") > 0, server, client, way)
    before = server.count("dgram.segments_received")
    step_for(0.1, server, client, way)
    assert server.count("dgram.segments_received") == before < way.counts()["to the server"] - 20
    server.workers["tun-0"] = tun
    until(lambda: len(server.packets()) == 200, server, client, way)


def test_while_the_ring_is_full_probes_are_answered(joined: Joined) -> None:
    server, client, way = joined()
    server.workers.pop("tun-0")
    for number in range(20):
        until(client.has_room, server, client, way)
        client.write(ipv4(number, BULK_BYTES))
    until(lambda: server.count("dgram.ring_full_waits") > 0, server, client, way)
    before = client.count("dgram.datagrams_control_received")
    control(client).carrier.doubt()
    until(lambda: control(client).carrier._is_doubted is False, server, client, way)
    assert client.count("dgram.datagrams_control_received") > before and is_open(client)


def test_a_path_that_swallows_long_datagrams_goes_on_with_short_ones(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client, way = joined()
    until(lambda: all(path.segment_most > 1472 for path in open_paths(client)), server, client, way)
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 100_000_000)
    way.fate = lambda number, to_server, datagram: int(len(datagram) <= 1472)
    client.write(ipv4(1, BULK_BYTES))
    until(lambda: not is_open(client), server, client, way)
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 5_000_000_000)
    control(client).path.outstanding_since = None
    until(lambda: is_open(client), server, client, way, seconds=20)
    assert [path.segment_most for path in open_paths(client)] == [1200]
    before = server.count("dgram.blocks_whole")
    send(client, server, range(10, 20), server, client, way)
    assert server.count("dgram.blocks_whole") == before + 10


def test_what_one_receive_has_brought_is_told_apart(joined: Joined) -> None:
    """Segments of one size, of which one is of nobody, and a shorter one behind them."""
    server, client, way = joined()
    heard: list[bytes] = []

    def fate(number: int, to_server: bool, datagram: bytes) -> int:
        if to_server and datagram[:4] == token:
            heard.append(datagram)
            return 0
        return 1

    token = control(client).path.session.send_token.to_bytes(4, "big")
    way.fate = fate
    for number, size in ((1, BULK_BYTES), (2, BULK_BYTES), (3, 90)):
        client.write(ipv4(number, size))
        until(lambda: client.count("tun.packets_read") == number, server, client, way)
    until(lambda: len(heard) == 5, server, client, way)
    *long, short = heard
    assert len({len(each) for each in long}) == 1
    of_nobody = bytes(4) + long[0][4:]
    together = b"".join([*long[:2], of_nobody, *long[2:], short])
    about = [(17, 103, struct.pack("=H", len(long[0])))]
    way.fate = lambda number, to_server, datagram: 1
    client.datagrams.sockets[0].sendmsg([together], about, 0, ("127.0.0.1", server.port))
    until(lambda: len(server.packets()) == 3, server, client, way)
    assert server.count("dgram.dropped_token_unknown") == 1
    assert server.count("dgram.segments_received") == 5
    client.datagrams.sockets[0].sendmsg([b"".join([*long, short])], about, 0, ("127.0.0.1", server.port))
    until(lambda: server.count("dgram.segments_received") == 10, server, client, way)


def test_nothing_is_left_to_do_when_nothing_comes(joined: Joined) -> None:
    server, client, way = joined()
    step_for(1.0, server, client, way)
    before = server.count("dgram.datagrams_control_sent") + client.count("dgram.datagrams_control_sent")
    step_for(1.0, server, client, way)
    assert server.count("dgram.datagrams_control_sent") + client.count("dgram.datagrams_control_sent") - before <= 4


def test_each_of_several_clients_has_its_path_and_none_waits_for_another(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.policy.carrier.SILENT_NS", 5_000_000_000)
    serving, dialling = tls()
    server, *clients = connected_hub(
        make,
        2,
        slots=8,
        seals=True,
        tls=serving,
        carrier="auto",
        light_connections=1,
        dgram=duties,
        clients={"tls": dialling},
    )
    for number, client in enumerate(clients, 1):
        share_secrets(server, client, index_of(server, number))
    every = (server, *clients)
    until(lambda: server.count("dgram.paths_opened") == 2 and all(map(open_paths, clients)), *every)
    tun = server.workers.pop("tun-0")
    busy, other = clients
    for packet in between(1, 0, range(100), size=BULK_BYTES):
        until(busy.has_room, *every)
        busy.write(packet)
    until(lambda: busy.count("tun.packets_read") == 100 and server.count("dgram.segments_received") == 200, *every)
    (ring,) = [each._ring._port for each in [receiver(server)]]
    assert ring.ready() > 0, "one alone has not all of the ring"
    (packet,) = between(2, 0, range(1), size=BULK_BYTES)
    before = ring.ready()
    other.write(packet)
    until(lambda: ring.ready() < before, *every)
    server.workers["tun-0"] = tun
    until(lambda: len(server.packets()) == 101, *every)
    for number, client in enumerate(clients, 1):
        sent = between(0, number, range(20), size=BULK_BYTES)
        for each in sent:
            until(server.has_room, *every)
            server.write(each)
        until(lambda: len(client.packets()) == 20, *every)
        assert client.packets() == sent and client.count("dgram.segments_received")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_from_anybody_ends_nothing(joined: Joined, seed: int) -> None:
    """Bytes at random, and genuine datagrams that were changed, cut, joined and repeated."""
    server, client, way = joined()
    chance = Random(seed)
    heard: list[bytes] = []

    def fate(number: int, to_server: bool, datagram: bytes) -> int:
        if to_server and len(heard) < 200:
            heard.append(datagram)
        return 1

    way.fate = fate
    send(client, server, range(20), server, client, way)
    sock = server.datagrams.sockets[0]
    for _ in range(400):
        genuine = bytearray(chance.choice(heard))
        changed = chance.randrange(5)
        if changed == 0:
            genuine[chance.randrange(len(genuine))] ^= 1 << chance.randrange(8)
        elif changed == 1:
            del genuine[chance.randrange(len(genuine)) :]
        elif changed == 2:
            genuine += chance.randbytes(chance.randrange(100))
        elif changed == 3:
            genuine[4:] = chance.randbytes(chance.choice([0, 1, 23, 24, 25, 56, 1400]))
        sizes = [(17, 103, struct.pack("=H", chance.choice([1200, 100, 30])))] if len(genuine) < 2000 else []
        with suppress(OSError):
            sock.sendmsg([genuine], sizes, 0, ("127.0.0.1", server.port))
        server.step()
    send(client, server, range(100, 120), server, client, way)
    assert is_open(server, client)
