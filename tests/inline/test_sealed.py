"""Sealed blocks through both ends: every ring carries ciphertext alone, and what is not the sender's never comes out.

What a middlebox or a taken-over tcp worker could do to a block is done to it in the inbound ring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.fec import shard
from pipeline.policy.epochs import EPOCH_NS
from pipeline.sealing import kinds
from pipeline.shm.layout import LINK_REQUESTS, SLOT_LENGTH_AT, TRANSIT_EPOCH_ACKNOWLEDGED
from pipeline.shm.link_requests import MASK
from pipeline.shm.slot import read_header
from pipeline.wire import framing
from tests.inline.harness.ends import End, Make, carry, ipv4, number_of, push, until
from tests.inline.harness.hub_ends import between, connected_hub, tls

pytestmark = pytest.mark.usefixtures("patient")

BULK_BYTES = 50_000
NOT_OPENED, EPOCH_UNKNOWN, REPLAYED = (f"tun.dropped_{why}" for why in ("not_opened", "epoch_unknown", "replayed"))

FEC = {"fec": "on", "connections": 3, "light_connections": 3}


def sealed_pair(
    make: Make,
    lanes: tuple[int, int] = (1, 1),
    each: Sequence[dict[str, object]] = ({}, {}),
    **settings: object,
) -> tuple[End, End]:
    """Server and client, connected, that seal. `each`: settings of the one and of the other."""
    serving, dialling = tls()
    server = make("server", lanes=lanes[0], seals=True, tls=serving, **settings, **each[0])
    client = make(
        "client",
        lanes=lanes[1],
        port=server.port,
        seals=True,
        tls=dialling,
        client_id=1,
        session=1,
        **settings,
        **each[1],
    )
    every = client.plan.settings.connections + client.plan.settings.light_connections
    until(lambda: server.established() == client.established() == every, server, client)
    if settings.get("fec") == "on":
        tables = [end.memory.peer_table for end in (server, client)]
        until(
            lambda: all(any(words[LINK_REQUESTS] & MASK for words in table.links) for table in tables), server, client
        )
    return server, client


def bulk(numbers: range) -> list[bytes]:
    return [ipv4(number, BULK_BYTES) for number in numbers]


def light(numbers: range) -> list[bytes]:
    return [ipv4(number, 100) for number in numbers]


def runs_in(end: End, worker: str) -> Iterator[tuple[memoryview, memoryview]]:
    """Each run frame, and its slot, that waits for this worker in the inbound rings; as a tcp worker may write them."""
    rings = {}
    for name in [name for name in end.workers if name.startswith("tcp")]:
        ring = end.workers[name].duty("inbound")._port.ring
        rings[ring.memory.name] = ring
    for port in end.workers[worker].duty("inbound")._ports:
        ring = rings.get(port.ring.memory.name)
        for ahead in range(port.ready() if ring is not None else 0):
            slot = ring.slots[(port.cursor + ahead) % ring.capacity]
            at, length, _, _ = read_header(slot)
            end_at = at + length
            while end_at - at > 4:
                size, kind = framing.FRAME.unpack_from(slot, at)
                if kind == framing.RUN:
                    yield slot[at : at + 4 + size], slot
                at += 4 + size


def fields(run: memoryview) -> dict[str, int]:
    names = ("length", "kind", "stream", "number", "n", "m", "first", "count", "size", "epoch", "packets")
    return dict(zip(names, shard.SEALED_RUN.unpack_from(run), strict=True))


def put(run: memoryview, **changed: int) -> None:
    shard.SEALED_RUN.pack_into(run, 0, *(fields(run) | changed).values())


def send_only(sender: End, receiver: End, packet: bytes) -> None:
    """Send one packet. It waits behind the tcp workers of the receiver, whose other workers do not run."""
    before = receiver.count("tcp.frames_received")
    sender.write(packet)
    tcp = [name for name in receiver.workers if name.startswith("tcp")]
    until(lambda: (receiver.step(*tcp), receiver.count("tcp.frames_received") > before)[1], sender, seconds=5)
    for _ in range(20):  # the other shards and copies
        sender.step()
        receiver.step(*tcp)


# -- it works


CASES = {
    "plain": ({}, bulk, {kinds.PLAIN}),
    "light": ({"light_connections": 1}, light, {kinds.LIGHT}),
    "coded": (FEC, bulk, {kinds.CODED}),
    "copied": (FEC, light, {kinds.COPIED}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lanes", [(1, 1), (2, 1), (1, 2)])
def test_packets_of_each_ring_arrive_and_nothing_is_dropped(make: Make, case: str, lanes: tuple[int, int]) -> None:
    settings, packets, expected = CASES[case]
    server, client = sealed_pair(make, lanes, **settings)
    seen: set[int] = set()
    for sender, receiver in ((client, server), (server, client)):
        send_only(sender, receiver, packets(range(1))[0])
        for name in [name for name in receiver.workers if name.startswith("tun")]:
            seen |= {fields(run)["stream"] & 7 for run, _ in runs_in(receiver, name)}
        until(receiver.packets, sender, receiver)
        carry(sender, receiver, packets(range(1, 120)))
        assert sorted({number_of(each) for each in receiver.packets()}) == list(range(120))
    assert seen == expected
    assert not drops(server) and not drops(client)


@pytest.mark.parametrize("case", CASES)
def test_no_ring_holds_plaintext(make: Make, case: str) -> None:
    settings, packets, _ = CASES[case]
    server, client = sealed_pair(make, **settings)
    marked = [each[:60] + b"in clear text " * 2 + each[88:] for each in packets(range(20))]
    carry(client, server, marked)
    assert all(b"in clear text" in each for each in server.packets())
    for end in (server, client):
        for worker in end.workers.values():
            for duty in worker.duties:
                for port in getattr(duty, "_ports", ()):
                    assert not any(b"in clear text" in bytes(slot) for slot in port.ring.slots)


@pytest.mark.parametrize("settings", [{}, FEC], ids=["plain", "coded"])
def test_a_hub_opens_with_the_key_of_the_sender_and_seals_with_that_of_the_receiver(
    make: Make, settings: dict[str, object]
) -> None:
    serving, dialling = tls()
    server, first, second = connected_hub(
        make, 2, seals=True, tls=serving, clients={"tls": dialling, "seals": True}, **settings
    )
    for size in (100, BULK_BYTES):
        before = len(second.packets())
        waiting = between(1, 2, range(30), size=size)
        until(lambda: push(first, waiting) and len(second.packets()) >= before + 30, server, first, second)
    assert server.count("tun.packets_forwarded") == 60
    assert not any(drops(end) for end in (server, first, second))


# -- it does not


def drops(end: End) -> dict[str, int]:
    return {name: value for name, value in end.counts().items() if ".dropped_" in name and value}


def flip(run: memoryview, slot: memoryview) -> None:
    run[shard.RUN_BYTES + 1000] ^= 1


def flip_tag(run: memoryview, slot: memoryview) -> None:
    run[-1] ^= 0x80


def cut_off(run: memoryview, slot: memoryview) -> None:
    put(run, length=fields(run)["length"] - 10)
    _, length, *_ = read_header(slot)
    slot[SLOT_LENGTH_AT : SLOT_LENGTH_AT + 8] = (length - 10).to_bytes(8, "little")


SPOILT: dict[str, tuple[Callable[[memoryview, memoryview], None], str]] = {
    "a flipped bit": (flip, NOT_OPENED),
    "a flipped bit of the tag": (flip_tag, NOT_OPENED),
    "an end that was cut off": (cut_off, NOT_OPENED),
    "another stream": (lambda run, slot: put(run, stream=fields(run)["stream"] ^ kinds.LIGHT), NOT_OPENED),
    "another lane": (lambda run, slot: put(run, stream=fields(run)["stream"] ^ 1 << 3), NOT_OPENED),
    "another process": (lambda run, slot: put(run, stream=fields(run)["stream"] + (1 << 8)), NOT_OPENED),
    "an earlier process": (lambda run, slot: put(run, stream=fields(run)["stream"] & 0xFF), REPLAYED),
    "another number": (lambda run, slot: put(run, number=fields(run)["number"] + 1), NOT_OPENED),
    "a number from before": (lambda run, slot: put(run, number=0), REPLAYED),
    "another copy": (lambda run, slot: put(run, first=1), NOT_OPENED),
    "the next epoch": (lambda run, slot: put(run, epoch=1), NOT_OPENED),
    "an epoch that never was": (lambda run, slot: put(run, epoch=2), EPOCH_UNKNOWN),
    "another count of packets": (lambda run, slot: put(run, packets=2), "tun.dropped_frame_malformed"),
    "shards where there is no decoder": (lambda run, slot: put(run, n=2, m=1), "tun.dropped_frame_unknown"),
}


@pytest.mark.parametrize(("spoil", "counter"), SPOILT.values(), ids=SPOILT.keys())
def test_a_block_that_is_not_as_it_was_sealed_costs_itself_alone(
    make: Make, spoil: Callable[[memoryview, memoryview], None], counter: str
) -> None:
    server, client = sealed_pair(make)
    carry(client, server, bulk(range(3)))
    send_only(client, server, bulk(range(3, 4))[0])
    ((run, slot),) = runs_in(server, "tun-0")
    spoil(run, slot)
    carry(client, server, bulk(range(4, 20)))
    assert [number_of(each) for each in server.packets()] == [*range(3), *range(4, 20)]
    assert drops(server) == {counter: 1} and not drops(client)
    assert server.established() == 1


@pytest.mark.parametrize("at", ["once more", "before and again"])
def test_a_block_that_is_repeated_is_written_once(make: Make, at: str) -> None:
    server, client = sealed_pair(make)
    carry(client, server, bulk(range(2)))
    send_only(client, server, bulk(range(2, 3))[0])
    ((run, _),) = runs_in(server, "tun-0")
    recorded = bytes(run)
    if at == "once more":
        until(lambda: len(server.packets()) == 3, server, client)
    else:
        run[:] = recorded
        until(lambda: len(server.packets()) == 3, server, client)
        server.kill("tun-0")
        server.start("tun-0")
    send_only(client, server, bulk(range(3, 4))[0])
    ((run, _),) = runs_in(server, "tun-0")
    run[:] = recorded
    carry(client, server, bulk(range(4, 9)))
    assert [number_of(each) for each in server.packets()] == [0, 1, 2, *range(4, 9)]
    assert drops(server) == {REPLAYED: 1}


def test_a_block_that_is_sent_back_or_to_another_client_is_never_opened(make: Make) -> None:
    server, client = sealed_pair(make)
    other_server, other = sealed_pair(make)
    for sender, receiver in ((server, client), (other, other_server)):
        carry(sender, receiver, bulk(range(5)))  # so that its numbers are new to the other window
    carry(client, server, bulk(range(1)))
    for turn, (sender, receiver) in enumerate(((server, client), (other, other_server))):
        send_only(sender, receiver, bulk(range(6, 7))[0])
        ((theirs, _),) = runs_in(receiver, "tun-0")
        send_only(client, server, bulk(range(1 + turn, 2 + turn))[0])
        ((run, _),) = runs_in(server, "tun-0")
        run[:] = theirs
        carry(client, server, bulk(range(20 + turn, 21 + turn)))
        assert drops(server) == {NOT_OPENED: 1 + turn}
    assert [number_of(each) for each in server.packets()] == [0, 20, 21]


def forge(run: memoryview, slot: memoryview) -> None:
    run[shard.RUN_BYTES : shard.RUN_BYTES + 64] = bytes(64)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_forged_shard_costs_the_block_and_nothing_else(make: Make, which: int) -> None:
    server, client = sealed_pair(make, **FEC)
    carry(client, server, bulk(range(3)))
    send_only(client, server, bulk(range(3, 4))[0])
    runs = [each for each in runs_in(server, "fec-0") if fields(each[0])["first"] < fields(each[0])["n"]]
    assert len(runs) > 2
    forge(*runs[which])
    carry(client, server, bulk(range(4, 20)))
    assert [number_of(each) for each in server.packets()] == [*range(3), *range(4, 20)]
    assert drops(server) == {NOT_OPENED: 1}


def test_shards_of_which_one_says_another_epoch_are_joined_without_it(make: Make) -> None:
    server, client = sealed_pair(make, **FEC | {"connections": 5})
    carry(client, server, bulk(range(3)))
    send_only(client, server, bulk(range(3, 4))[0])
    runs = [run for run, _ in runs_in(server, "fec-0")]
    put(runs[-1], epoch=1)
    carry(client, server, bulk(range(4, 9)))
    until(lambda: len(server.packets()) == 9, server, client)
    assert not any(name.startswith("tun.") for name in drops(server))


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_of_the_copies_of_a_block_the_first_that_can_be_opened_counts(make: Make, changed: int) -> None:
    server, client = sealed_pair(make, **FEC)
    carry(client, server, light(range(3)))
    copied = client.count("tun.copies_added")
    until(lambda: server.count("tun.copies_unneeded") == copied, server, client)
    until(lambda: not any(runs_in(server, "fec-0")), server, client)  # the ring is small
    send_only(client, server, light(range(3, 4))[0])

    def copies() -> list[memoryview]:
        return [run for run, _ in runs_in(server, "tun-0") if fields(run)["n"] == 1]

    until(lambda: (server.step("tcp-0"), len(copies()) == 3)[1], client)
    runs = copies()
    assert len({bytes(run[shard.RUN_BYTES :]) for run in runs}) == 3
    for run in runs[:changed]:
        run[-1] ^= 1
    carry(client, server, light(range(4, 20)))
    expected = [*range(3), *range(3 + (changed == 3), 20)]
    assert [number_of(each) for each in server.packets()] == expected
    assert drops(server) == {NOT_OPENED: changed}


# -- workers die


@pytest.mark.parametrize("case", CASES)
def test_successors_on_both_sides_go_on_and_no_block_is_refused(make: Make, case: str) -> None:
    settings, packets, _ = CASES[case]
    server, client = sealed_pair(make, **settings)
    for turn in range(4):
        carry(client, server, packets(range(10 * turn, 10 * turn + 10)))
        carry(server, client, packets(range(10 * turn, 10 * turn + 10)))
        for end in (server, client)[turn % 2 :]:
            end.kill("tun-0")
            end.start("tun-0")
    for end in (server, client):
        assert sorted({number_of(each) for each in end.packets()}) == list(range(40))
        assert not {name for name in drops(end) if name != REPLAYED}


def test_an_end_that_only_receives_acknowledges_each_epoch(make: Make) -> None:
    server, client = sealed_pair(make)
    now = time.monotonic_ns()
    for epoch in range(1, 4):
        for _ in range(3):
            now += EPOCH_NS
            for end in (client, server):
                end.tick_epochs(now)
        carry(client, server, light(range(10 * epoch, 10 * epoch + 5)))
        words = client.memory.peer_table.transit_numbers[0]
        until(lambda: words[TRANSIT_EPOCH_ACKNOWLEDGED] & 0xFFFF == epoch, server, client)
    assert server.count("tun.packets_read") == 0 and drops(client) == drops(server) == {}


# -- notes of supervisors


@pytest.mark.parametrize("padding", ["off", "small"])
def test_notes_come_to_the_supervisor_of_the_other_end_between_blocks(make: Make, padding: str) -> None:
    server, client = sealed_pair(make, padding=padding, connections=2)
    (handle,) = [server.memory.peer_table.peer_handle(0)]
    for number in range(20):
        server.send_note(handle, b"to the client" + bytes([number]) * 20 * number)
        client.send_note(client.memory.peer_table.peer_handle(0), b"to the server" + bytes(20 * number))
        carry(client, server, light(range(10 * number, 10 * number + 10)))
        carry(server, client, light(range(10 * number, 10 * number + 10)))
        until(lambda: len(server.notes) == len(client.notes) > number, server, client)
    assert client.notes[7] == (client.memory.peer_table.peer_handle(0), b"to the client" + b"\7" * 140)
    assert server.notes[3] == (handle, b"to the server" + bytes(60))
    assert drops(client) == drops(server) == {}


def test_a_note_for_a_session_that_has_ended_goes_to_nobody(make: Make) -> None:
    server, client = sealed_pair(make)
    server.send_note(server.memory.peer_table.peer_handle(0) + 4096, b"for another")
    server.send_note(server.memory.peer_table.peer_handle(0), b"for this one")
    until(lambda: client.notes, server, client)
    assert [note for _, note in client.notes] == [b"for this one"]
