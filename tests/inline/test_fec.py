"""Forward error correction through both ends: the shards of a connection that stalls are recovered from the others."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from pipeline.fec import shard, stripe
from pipeline.policy.copy_budget import SAVED_BYTES
from pipeline.shm import layout
from pipeline.shm.layout import LINK_REQUESTS, NUMBER_COPIED
from pipeline.shm.link_requests import MASK
from pipeline.wire.framing import LIGHT
from tests.inline.harness.ends import (
    BLOCK,
    WELCOME,
    End,
    Make,
    Peer,
    block_of,
    carry,
    frame,
    hello,
    ipv4,
    ipv6,
    number_of,
    pair,
    push,
    until,
)
from tests.inline.harness.relay import Path

pytestmark = pytest.mark.usefixtures("patient")

BULK_BYTES = 50_000
UNDER_WAY_MAX = 6
RUN = 0x21
ACCEPTS_SHARDS = 1
RECOVERED = [f"fec.blocks_recovered_{lost}" for lost in range(1, 7)]


def bulk(numbers: range) -> list[bytes]:
    """Packets that are never light; each fills most of a block."""
    return [ipv4(number, BULK_BYTES) for number in numbers]


def light(numbers: range) -> list[bytes]:
    return [ipv4(number, 100) for number in numbers]


def recovered(end: End) -> int:
    return sum(end.count(name) for name in RECOVERED)


Joined = Callable[..., tuple[End, End, Path]]


@pytest.fixture
def joined(make: Make) -> Iterator[Joined]:
    """Connects server and client with a Path between them."""
    paths: list[Path] = []

    def join(
        connections: int = 5,
        light_connections: int = 3,
        seed: int = 0,
        lanes: tuple[int, int] = (1, 1),
        **settings: object,
    ) -> tuple[End, End, Path]:
        settings = {"fec": "on", "slots": 8} | settings
        server = make("server", lanes=lanes[0], **settings)
        path = Path(server.port, seed)
        paths.append(path)
        client = make(
            "client",
            lanes=lanes[1],
            port=path.port,
            connections=connections,
            light_connections=light_connections,
            client_id=1,
            session=1,
            **settings,
        )
        every = connections + light_connections
        until(lambda: server.established() == client.established() == every, server, client, path)
        return server, client, path

    yield join
    for path in paths:
        path.close()


def through(path: Path, sender: End, receiver: End, packets: list[bytes]) -> list[bytes]:
    """Give packets to an end, and wait until as many have come out of the other one; return these."""
    waiting = list(packets)
    before = len(receiver.packets())
    until(lambda: push(sender, waiting) and len(receiver.packets()) >= before + len(packets), sender, receiver, path)
    return receiver.packets()[before:]


# -- on a good path


@pytest.mark.parametrize("code", [(10, 3), (4, 2), (1, 1), (11, 6), (20, 5), (37, 6)])
def test_packets_of_every_size_arrive_in_order_byte_for_byte(make: Make, code: tuple[int, int]) -> None:
    server, client = pair(make, connections=5, light_connections=3, fec="on", fec_data=code[0], fec_parity=code[1])
    sizes = (65_535, 20, 1400, 2399, 2400, 9000, 40_000)
    packets = [ipv4(number, sizes[number % len(sizes)]) for number in range(70)]
    for sender, receiver in ((client, server), (server, client)):
        carry(sender, receiver, bulk(range(1)))  # from here on the receiver knows the stream
        carry(sender, receiver, packets)
        assert receiver.packets() == bulk(range(1)) + packets
    assert client.count("fec.blocks_coded") == server.count("fec.blocks_whole") + recovered(server)


def test_every_run_of_a_full_block_travels_on_a_connection_of_its_own(server_with_fec: End, dial: Callable) -> None:
    peers = [dial(server_with_fec, hello(index=index, connections=5, features=ACCEPTS_SHARDS)) for index in range(5)]
    server_with_fec.write(ipv4(1, 65_535))
    until(lambda: all(RUN in peer.kinds() for peer in peers), server_with_fec)
    counts = []
    for peer in peers:
        ((kind, body),) = [each for each in peer.frames if each[0] == RUN]
        _stream, _block, n, m, _first, count, size, _ = struct.unpack_from(">IIBBBBII", body)
        assert (kind, n, m) == (RUN, 10, 3)
        assert len(body) == 20 + count * shard.shard_bytes(size, 10, 3)
        counts.append(count)
    assert sorted(counts) == [2, 2, 3, 3, 3]


def test_a_peer_that_takes_no_shards_gets_plain_blocks(server_with_fec: End, dial: Callable) -> None:
    peer = dial(server_with_fec, hello())
    server_with_fec.write(ipv4(1, 5000))
    server_with_fec.write(ipv4(2, 100))
    until(lambda: len(peer.packets()) == 2, server_with_fec)
    assert set(peer.kinds()) == {WELCOME, BLOCK}
    peer.send(block_of(ipv4(3)))
    until(server_with_fec.packets, server_with_fec)
    assert server_with_fec.packets() == [ipv4(3)]


def test_a_light_packet_goes_out_on_three_connections_and_arrives_once(joined: Joined) -> None:
    server, client, path = joined()
    for number in range(20):
        assert through(path, client, server, light(range(number, number + 1))) == light(range(number, number + 1))
    assert client.count("tun.copies_added") == 40
    until(lambda: server.count("tun.copies_unneeded") == 40, server, client, path)
    assert server.count("tun.packets_written") == 20


def test_in_auto_light_packets_are_copied_once_from_the_first_one_on_and_meet_no_decoder(joined: Joined) -> None:
    server, client, path = joined(fec="auto")
    for number in range(20):
        assert through(path, client, server, light(range(number, number + 1))) == light(range(number, number + 1))
    assert client.count("tun.copies_added") == 20
    until(lambda: server.count("tun.copies_unneeded") == 20, server, client, path)
    assert server.count("tun.packets_written") == 20
    assert server.count("fec.runs_received") == client.count("fec.blocks_coded") == 0


@pytest.mark.parametrize("silent", [5, 6, 7])
def test_in_auto_a_light_connection_that_stands_still_holds_up_no_packet_from_the_first_one_on(
    joined: Joined, silent: int
) -> None:
    server, client, path = joined(fec="auto")
    path.strands[silent].held = True
    for turn in range(10):
        packets = light(range(5 * turn, 5 * turn + 5))
        assert through(path, client, server, packets) == packets


def test_copies_go_on_when_a_light_connection_was_dialed_anew(joined: Joined) -> None:
    server, client, path = joined(fec="auto")
    through(path, client, server, light(range(10)))
    path.strands[5].cut()
    until(lambda: client.count("tcp.connections_lost") and server.count("tcp.connections_lost"), server, client, path)
    until(lambda: server.established() == client.established() == 8, server, client, path)
    before = client.count("tun.copies_added")
    for number in range(10, 20):
        assert through(path, client, server, light(range(number, number + 1))) == light(range(number, number + 1))
    assert client.count("tun.copies_added") == before + 10


def test_copies_arrive_in_order_whichever_come_first(joined: Joined) -> None:
    server, client, path = joined(seed=7)
    for turn in range(40):
        strand = path.strands[5 + turn % 3]
        strand.held = turn % 2 == 0
        packets = light(range(10 * turn, 10 * turn + 10))
        assert through(path, client, server, packets) == packets
        strand.held = False


def test_a_light_flow_beyond_the_budget_is_copied_in_part(joined: Joined) -> None:
    server, client, path = joined(fec="auto")
    for number in range(100):
        through(path, client, server, [ipv4(number, 1400)])
    assert 0 < client.count("tun.copies_added") < 100
    copied = client.memory.peer_table.numbers[0][NUMBER_COPIED]
    assert SAVED_BYTES / 2 < copied <= 1600 * client.count("tun.copies_added")


def test_without_connections_for_light_flows_copies_take_those_for_bulk(joined: Joined) -> None:
    server, client, path = joined(light_connections=0, lanes=(2, 2))
    packets = light(range(30))
    assert sorted(through(path, client, server, packets)) == packets
    assert client.count("tun.copies_added") > 0
    assert server.count("tun.packets_written") == 30


@pytest.mark.parametrize("lanes", [(2, 2), (1, 3), (3, 1), (2, 3)])
def test_copies_meet_whatever_lanes_there_are(joined: Joined, lanes: tuple[int, int]) -> None:
    server, client, path = joined(lanes=lanes)
    for sender, receiver in ((client, server), (server, client)):
        packets = light(range(30))
        assert sorted(through(path, sender, receiver, packets)) == packets
        copied = sender.count("tun.copies_added")
        until(lambda: receiver.count("tun.copies_unneeded") == copied, server, client, path)
        assert receiver.count("tun.packets_written") == 30


@pytest.mark.parametrize("lanes", [(2, 2), (1, 3), (3, 1), (2, 3)])
def test_lanes_of_any_number_at_either_end_understand_each_other(joined: Joined, lanes: tuple[int, int]) -> None:
    server, client, path = joined(lanes=lanes)
    for sender, receiver in ((client, server), (server, client)):
        waiting = [(lane, packet) for lane in range(len(sender.outside)) for packet in bulk(range(20))]

        def push_all(sender: End = sender, waiting: list = waiting) -> bool:
            while waiting and sender.has_room(waiting[0][0]):
                sender.write(waiting[0][1], waiting[0][0])
                del waiting[0]
            return not waiting

        expected = len(waiting)
        until(lambda: push_all() and len(receiver.packets()) == expected, server, client, path)
        assert sorted(receiver.packets()) == sorted(bulk(range(20)) * len(sender.outside))


def test_with_one_connection_packets_arrive_and_a_warning_says_once_that_parity_cannot_help(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    server, client, path = joined(connections=1, light_connections=0)
    assert through(path, client, server, bulk(range(30))) == bulk(range(30))
    assert through(path, server, client, bulk(range(30))) == bulk(range(30))
    warnings = [record.getMessage() for record in caplog.records if "parity cannot help" in record.getMessage()]
    assert len(warnings) == 2  # once at each end


# -- on a bad one


def test_one_connection_that_stands_still_holds_no_packet_up(joined: Joined) -> None:
    server, client, path = joined()
    path.strands[0].held = True
    assert through(path, client, server, bulk(range(60))) == bulk(range(60))
    assert through(path, server, client, bulk(range(60))) == bulk(range(60))
    assert recovered(server) > 0 and recovered(client) > 0
    assert server.count("fec.blocks_expired") == client.count("fec.blocks_expired") == 0


def test_a_light_flow_passes_two_connections_of_three_that_stand_still(joined: Joined) -> None:
    server, client, path = joined()
    for strand in path.strands[5:7]:
        strand.held = True
    for number in range(200):
        assert through(path, client, server, light(range(number, number + 1))) == light(range(number, number + 1))


@pytest.mark.parametrize("seed", range(4))
def test_with_any_one_connection_stalled_at_any_time_every_packet_arrives_once_and_in_order(
    joined: Joined, seed: int
) -> None:
    server, client, path = joined(seed=seed)
    path.stalls = 1
    packets = bulk(range(200))
    assert through(path, client, server, packets) == packets
    path.stalls = 0
    for strand in path.strands:
        strand.held = False
    assert through(path, client, server, bulk(range(200, 205))) == bulk(range(200, 205))
    assert server.count("tun.packets_written") == 205


def test_recovered_blocks_are_counted_by_the_number_of_their_missing_shards(joined: Joined) -> None:
    server, client, path = joined()
    path.strands[2].held = True
    through(path, client, server, bulk(range(50)))
    lost = {int(name[-1]): server.count(name) for name in RECOVERED if server.count(name)}
    assert set(lost) <= {1, 2, 3} and sum(lost.values()) >= 20
    assert server.count("fec.dropped_block_checksum") == 0


def test_a_connection_that_is_cut_loses_no_packet(joined: Joined) -> None:
    server, client, path = joined()
    packets = bulk(range(100))
    waiting = list(packets)
    cut = []

    def done() -> bool:
        push(client, waiting)
        if len(server.packets()) >= 30 and not cut:
            path.strands[1].cut()
            cut.append(True)
        return not waiting and len(server.packets()) >= len(packets)

    until(done, server, client, path)
    assert [number_of(packet) for packet in server.packets()] == list(range(100))
    assert client.count("tcp.connections_lost") == 1
    until(lambda: client.established() == 8, server, client, path)


@pytest.mark.parametrize("worker", ["fec-0", "tun-0", "tcp-0"])
def test_a_killed_worker_costs_at_most_the_packets_that_it_had_in_hand(joined: Joined, worker: str) -> None:
    server, client, path = joined(timeout=5.0, keepalive=1.0)
    waiting = bulk(range(200))
    killed = []

    def done() -> bool:
        push(client, waiting)
        if len(server.packets()) >= 40 and not killed:
            for end in (client, server):
                end.kill(worker)
                end.start(worker)
            killed.append(worker)
        return not waiting and bool(server.packets()) and number_of(server.packets()[-1]) == 199

    until(done, server, client, path)
    numbers = [number_of(packet) for packet in server.packets()]
    assert len(set(numbers)) > 100
    assert through(path, client, server, bulk(range(200, 230)))[-1] == bulk(range(229, 230))[0]


# -- auto


def test_auto_on_a_good_path_sends_plain_blocks_and_no_parity(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.packet.flow_classifier.OVERDRAFT_BYTES", 1 << 30)  # the flow stays bulk for seconds
    server, client, path = joined(fec="auto")
    assert through(path, client, server, bulk(range(20))) == bulk(range(20))
    assert client.count("fec.blocks_coded") == 0
    assert server.count("fec.runs_received") == 0
    through(path, client, server, light(range(100, 101)))
    assert client.count("tun.copies_added") == 0


def test_a_connection_that_is_cut_is_no_sign_of_the_path(joined: Joined) -> None:
    server, client, path = joined(fec="auto")
    through(path, client, server, bulk(range(10)))
    path.strands[3].cut()
    until(
        lambda: client.count("tcp.connections_lost") == server.count("tcp.connections_lost") == 1, server, client, path
    )
    until(lambda: client.established() == 8, server, client, path)
    through(path, client, server, bulk(range(10, 20)))
    for end in (server, client):
        assert end.count("tcp.parity_raised") == end.count("fec.blocks_coded") == 0


def test_auto_calls_for_parity_when_a_connection_ends_for_want_of_an_answer_and_sends_coded_blocks_from_then_on(
    joined: Joined,
) -> None:
    server, client, path = joined(fec="auto", timeout=0.6, keepalive=0.1)
    through(path, client, server, bulk(range(10)))
    path.strands[3].held = True
    ends = server, client
    until(lambda: any(end.count("tcp.parity_raised") for end in ends), *ends, path)
    sender, receiver = ends if server.count("tcp.parity_raised") else ends[::-1]
    assert sender.memory.peer_table.links[0][LINK_REQUESTS] & MASK == 3
    through(path, sender, receiver, bulk(range(10, 20)))
    assert sender.count("fec.blocks_coded") > 0


# -- hostile


@pytest.fixture
def server_with_fec(make: Make) -> End:
    return make("server", fec="on")


def run_of(
    body: bytes,
    stream: int = 2,
    block: int = 0,
    n: int = 1,
    m: int = 0,
    first: int = 0,
    count: int = 1,
    size: int | None = None,
    checksum: int = 0,
) -> bytes:
    size = len(body) if size is None else size
    return frame(RUN, struct.pack(">IIBBBBII", stream, block, n, m, first, count, size, checksum) + body)


def test_a_run_written_by_hand_arrives(server_with_fec: End, dial: Callable) -> None:
    peer = dial(server_with_fec, hello(features=ACCEPTS_SHARDS))
    peer.send(run_of(block_of(ipv4(7))))
    until(server_with_fec.packets, server_with_fec)
    assert server_with_fec.packets() == [ipv4(7)]


@pytest.mark.parametrize(
    "data",
    [
        run_of(block_of(ipv4(1)), n=0),
        run_of(block_of(ipv4(1)), n=99),
        run_of(block_of(ipv4(1)), m=9),
        run_of(block_of(ipv4(1)), size=0),
        run_of(block_of(ipv4(1)), size=5),
        run_of(block_of(ipv4(1)), count=0),
        run_of(block_of(ipv4(1)), count=2),
        run_of(block_of(ipv4(1)), first=1),
        run_of(b""),
        frame(RUN, b""),
        frame(RUN, b"\0"),
        frame(RUN, bytes(19)),
        run_of(block_of(ipv4(1))[:-1]),
        run_of(bytes(100)),
        run_of(frame(BLOCK, b"\xff\xff")),
        run_of(run_of(block_of(ipv4(1)))),
    ],
)
def test_a_malformed_run_is_counted_and_the_connection_goes_on(
    server_with_fec: End, dial: Callable, data: bytes
) -> None:
    peer: Peer = dial(server_with_fec, hello(features=ACCEPTS_SHARDS))
    peer.send(data + run_of(block_of(ipv4(2)), block=1))
    until(server_with_fec.packets, server_with_fec)
    assert server_with_fec.packets() == [ipv4(2)]
    dropped = [name for name in server_with_fec.counts() if "dropped" in name]
    assert len(dropped) == 1
    assert not peer.read_frames().ended


COPIED = shard.stream(0, 1, LIGHT) | shard.COPIES


@pytest.mark.parametrize(
    "data",
    [
        run_of(b"", COPIED),
        run_of(block_of(ipv4(1)), COPIED, n=2),
        run_of(block_of(ipv4(1))[:-1], COPIED),
        run_of(frame(BLOCK, b"\xff\xff"), COPIED),
        run_of(run_of(block_of(ipv4(1))), COPIED),
        run_of(block_of(ipv4(1)) + b"\0", COPIED),
    ],
)
def test_a_malformed_copy_is_counted_and_the_connection_goes_on(
    server_with_fec: End, dial: Callable, data: bytes
) -> None:
    peer: Peer = dial(server_with_fec, hello(features=ACCEPTS_SHARDS))
    peer.send(data + run_of(block_of(ipv4(2)), COPIED, block=1))
    until(server_with_fec.packets, server_with_fec)
    assert server_with_fec.packets() == [ipv4(2)]
    assert [name for name in server_with_fec.counts() if "dropped" in name] == ["tun.dropped_frame_malformed"]
    assert not peer.read_frames().ended


@pytest.mark.parametrize("rest", [0, 7, 8, 9, 21])
def test_a_copy_too_short_for_its_header_is_counted_once(server_with_fec: End, dial: Callable, rest: int) -> None:
    peer: Peer = dial(server_with_fec, hello(features=ACCEPTS_SHARDS))
    peer.send(frame(RUN, COPIED.to_bytes(4, "big") + bytes(rest)) + block_of(ipv4(2)))
    until(lambda: [name for name in server_with_fec.counts() if "malformed" in name], server_with_fec)
    assert server_with_fec.packets() == [ipv4(2)]
    assert sum(count for name, count in server_with_fec.counts().items() if "dropped" in name) == 1


def test_parity_that_does_not_fit_the_data_never_becomes_a_packet(server_with_fec: End, dial: Callable) -> None:
    peer: Peer = dial(server_with_fec, hello(features=ACCEPTS_SHARDS))
    block = block_of(ipv4(1, 4000))
    each = shard.shard_bytes(len(block), 3, 1)
    data = block.ljust(3 * each, b"\0")
    peer.send(
        run_of(data[: 2 * each], n=3, m=1, count=2, size=len(block), checksum=1)
        + run_of(bytes(each), n=3, m=1, first=3, size=len(block), checksum=1)
        + run_of(block_of(ipv4(2)), block=1)
    )
    until(server_with_fec.packets, server_with_fec)
    assert server_with_fec.packets() == [ipv4(2)]
    assert server_with_fec.count("fec.dropped_block_checksum") == 1


def test_an_end_without_fec_skips_a_run_and_counts_it(make: Make, dial: Callable) -> None:
    server = make("server", fec="off")
    peer = dial(server, hello())
    peer.send(run_of(block_of(ipv4(1))) + block_of(ipv4(2)))
    until(server.packets, server)
    assert server.packets() == [ipv4(2)]
    assert server.count("tun.dropped_frame_unknown") == 1


def test_the_table_of_runs_has_room_for_every_spread() -> None:
    for connections in (1, 5, 64):
        for n in range(1, 38):
            for m in range(7):
                each = shard.shard_bytes(shard.BLOCK_BYTES_MAX, n, m)
                runs = stripe.spread(n + m, each, stripe.connections([connections]), 0)
                assert len(runs) <= layout.RUNS_MAX


# -- connections that lag, and light flows


def test_runs_of_a_full_connection_are_skipped_while_blocks_can_be_recovered_without_them(joined: Joined) -> None:
    """No more is under way than the other connections take, however slow this machine is."""
    server, client, path = joined(send_buffer_bytes=65_536)
    path.strands[1].held = True
    packets = bulk(range(400))
    waiting = list(packets)

    def have_come() -> bool:
        under_way = len(packets) - len(waiting) - len(server.packets())
        if waiting and under_way < UNDER_WAY_MAX and client.has_room():
            client.write(waiting.pop(0))
        return len(server.packets()) == len(packets)

    until(have_come, client, server, path)
    assert server.packets() == packets
    assert client.count("tcp.runs_skipped") > 0
    assert server.count("fec.blocks_expired") == 0


def test_runs_of_two_full_connections_are_moved(joined: Joined) -> None:
    server, client, path = joined(send_buffer_bytes=65_536)
    for strand in path.strands[1:3]:
        strand.held = True
    waiting = bulk(range(400))
    until(lambda: push(client, waiting) and client.count("tcp.runs_moved") > 0, client, server, path, seconds=20)
    for strand in path.strands:
        strand.held = False
    until(lambda: set(map(number_of, server.packets())) == set(range(400)), client, server, path)
    assert len(server.packets()) == 400


def test_plain_blocks_leave_a_connection_that_stands_still_for_another(joined: Joined) -> None:
    server, client, path = joined(connections=2, light_connections=0, fec="off", send_buffer_bytes=65_536)
    path.strands[0].held = True
    packets = bulk(range(200))
    waiting = list(packets)
    until(lambda: push(client, waiting) and client.count("tcp.runs_moved") > 0, client, server, path)
    path.strands[0].held = False
    until(lambda: {number_of(packet) for packet in server.packets()} == set(range(200)), client, server, path)
    assert client.count("tcp.connections_lost") == 0


def flow(source: int, number: int, size: int = 1400) -> bytes:
    """A packet that carries a number; all packets of one source are one flow."""
    head = struct.pack(">BBHQII", 0x45, 0, size, number, source, 0x0A000001)
    return bytes(10) + head + bytes(size - len(head))


def test_light_packets_without_copies_are_never_skipped(make: Make, dial: Callable) -> None:
    server = make("server", fec="auto", send_buffer_bytes=30_000)
    peers = [
        dial(
            server,
            hello(index=index, connections=5, traffic_class=int(index >= 5), features=0),
            receive_buffer=30_000,
        )
        for index in range(8)
    ]
    packets = [flow(source, number) for source in range(6) for number in range(60 * source, 60 * source + 60)]
    for packet in packets:
        server.write(packet)
    until(lambda: server.count("tcp.socket_full_waits") > 50, server)  # the light connection that they go on is full
    until(lambda: sum(len(peer.packets()) for peer in peers) >= len(packets), server)
    assert sorted(packet for peer in peers for packet in peer.packets()) == sorted(packets)
    assert server.count("tcp.runs_skipped") == 0


def test_copies_of_a_light_packet_are_skipped_on_a_full_connection(joined: Joined) -> None:
    server, client, path = joined(send_buffer_bytes=65_536)
    path.strands[6].held = True
    for source in range(40):
        through(path, client, server, [flow(source, number) for number in range(50)])
    assert client.count("tcp.runs_skipped") > 0
    assert client.count("tcp.runs_moved") == 0


def test_a_light_flow_goes_on_while_bulk_fills_a_path_that_stands_still(joined: Joined) -> None:
    server, client, path = joined(connections=1, light_connections=1, fec="off", send_buffer_bytes=65_536)
    path.strands[0].held = True
    numbers = iter(range(10_000))

    def bulk_is_dropped() -> bool:
        client.write(ipv4(next(numbers), 60_000))
        return client.count("tun.dropped_ring_full") > 20

    until(bulk_is_dropped, client, server, path)
    before = len(server.packets())
    for number in range(10):
        client.write(ipv6(number, 200))
    until(lambda: len(server.packets()) == before + 10, client, server, path)
    assert server.packets()[before:] == [ipv6(number, 200) for number in range(10)]


def test_bulk_of_the_overflow_queue_arrives_in_order_and_before_later_packets(joined: Joined) -> None:
    server, client, path = joined(connections=1, light_connections=1, fec="off", send_buffer_bytes=65_536)
    path.strands[0].held = True
    overflow = client.workers["tun-0"].duty("outbound")._overflow
    numbers = iter(range(10_000))

    def some_packets_are_queued() -> bool:
        client.write(ipv4(next(numbers), 60_000))
        return len(overflow.packets) > 10

    until(some_packets_are_queued, client, server, path)
    path.strands[0].held = False
    count = next(numbers)
    client.write(ipv4(count, 60_000))
    until(lambda: len(server.packets()) == count + 1, client, server, path)
    assert [number_of(packet) for packet in server.packets()] == list(range(count + 1))
    assert client.count("tun.dropped_ring_full") == 0
