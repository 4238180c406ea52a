"""Sealed frames that somebody has replayed, reflected, cut, forged or moved: each costs what docs/wire.md says.

A real server from outside. The client has the keys of its session, or plays somebody on the path who changes bytes.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.harness.handmade_clients import Dialer, inviting_server
from tests.netns.test_wire import INSIDE, expect_reply, pings
from tests.reference import key_schedule, records, sealed_blocks
from tests.reference.blocks import RUN
from tests.reference.client import Ended, Runs, WireClient
from tests.reference.packets import echo_request
from tests.reference.sealed_blocks import BULK, Sealed, Session
from tests.support import eventually
from tools.lab.network import Lab

SECONDS = 5.0
NOT_OPENED, EPOCH, REPLAYED = "tun.dropped_not_opened", "tun.dropped_epoch_unknown", "tun.dropped_replayed"
CLOSED, UNOPENED = "tcp.closed_frame_too_long", "tcp.closed_unopened"
COUNTERS = NOT_OPENED, EPOCH, REPLAYED, CLOSED, UNOPENED
UNOPENED_MAX = 64


@pytest.fixture(scope="module")
def dialer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialer]:
    with Lab() as lab, inviting_server(lab, tmp_path_factory.mktemp("hub"), fec="on") as made:
        yield made


@contextmanager
def counted(dialer: Dialer, **more: int) -> Iterator[None]:
    """Of the counters above exactly these go up, by so many."""

    def found() -> dict[str, int]:
        counters = dialer.server.running()["counters"]
        return {name: counters[name] for name in COUNTERS}

    before = found()
    yield
    expected = {name: count + more.get(name.partition(".")[2], 0) for name, count in before.items()}
    eventually(lambda: found() == expected, SECONDS, f"{more} more than {before}, found {found()}")


def ping_of(client: WireClient, number: int = 1) -> bytes:
    return echo_request(str(client.welcome.addresses[0].ip), INSIDE[0], number)


def block_of(client: WireClient, number: int = 1) -> Sealed:
    return client.session.seal(BULK, [ping_of(client, number)])


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def ends(client: WireClient) -> None:
    with pytest.raises(Ended):
        client.receive_packets(SECONDS, 1000)


# -- costs the block alone


def replayed(client: WireClient, dialer: Dialer) -> Sealed:
    block = block_of(client)
    client.send_sealed(block)
    expect_reply(ping_of(client), client)
    return block


def reflected(client: WireClient, dialer: Dialer) -> Sealed:
    """A block of the server's."""
    client.send_sealed(block_of(client))
    while (found := client.receive_sealed(SECONDS))[0].kind != RUN:
        pass
    return Sealed(found[0], [found[1]])


def of_another_session(client: WireClient, dialer: Dialer) -> Sealed:
    other = dialer.new_session("one")
    other.agree(client.session.other_key_share, client.session.suite)
    return other.seal(BULK, [ping_of(client)])


def with_a_flipped_bit(client: WireClient, dialer: Dialer) -> Sealed:
    block = block_of(client)
    return block._replace(shards=[flipped(block.shards[0], secrets.randbelow(len(block.shards[0])))])


def cut_short(client: WireClient, dialer: Dialer) -> Sealed:
    block = block_of(client)
    return Sealed(block.header._replace(size=block.header.size - 1), [block.shards[0][:-1]])


def too_short_for_a_tag(client: WireClient, dialer: Dialer) -> Sealed:
    block = block_of(client)
    return Sealed(block.header._replace(size=1), [block.shards[0][:1]])


def header_with(**changes: int) -> Callable[[WireClient, Dialer], Sealed]:
    def make(client: WireClient, dialer: Dialer) -> Sealed:
        block = block_of(client)
        return block._replace(header=block.header._replace(**changes))

    return make


def of_an_earlier_process(client: WireClient, dialer: Dialer) -> Sealed:
    pings(client)
    client.session.process = 0
    return block_of(client)


def a_copy_as_a_whole_block(client: WireClient, dialer: Dialer) -> Sealed:
    """The second copy, whose nonce is another one."""
    _, copy = client.session.seal_copies([ping_of(client)], 2)
    return Sealed(copy.header._replace(m=0, first=0, packets=1), copy.shards)


def with_the_key_of_another_epoch(client: WireClient, dialer: Dialer) -> Sealed:
    block = block_of(client)
    return block._replace(header=block.header._replace(epoch=1))


COSTS_THE_BLOCK = {
    "replayed": (replayed, REPLAYED),
    "reflected": (reflected, NOT_OPENED),
    "of another session": (of_another_session, NOT_OPENED),
    "a flipped bit": (with_a_flipped_bit, NOT_OPENED),
    "cut short": (cut_short, NOT_OPENED),
    "too short for a tag": (too_short_for_a_tag, NOT_OPENED),
    "another stream": (header_with(stream=1 << 8 | 1), NOT_OPENED),
    "another lane": (header_with(stream=1 << 8 | 31 << 3), NOT_OPENED),
    "another number": (header_with(number=1000), NOT_OPENED),
    "an earlier process": (of_an_earlier_process, REPLAYED),
    "another copy": (a_copy_as_a_whole_block, NOT_OPENED),
    "the next epoch, with the key of this": (with_the_key_of_another_epoch, NOT_OPENED),
    "an epoch to come": (header_with(epoch=2), EPOCH),
    "the epoch before the first": (header_with(epoch=0xFFFF), EPOCH),
}


@pytest.mark.parametrize("what", COSTS_THE_BLOCK)
def test_a_block_that_is_not_what_it_says_costs_itself_and_nothing_else(dialer: Dialer, what: str) -> None:
    make, counter = COSTS_THE_BLOCK[what]
    with dialer.dial("one") as client, counted(dialer, **{counter.partition(".")[2]: 1}):
        client.send_sealed(make(client, dialer))
        client.session.process = 2
        pings(client)


def test_a_block_is_replayed_on_no_other_connection_of_its_session(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with (
        dialer.dial("one", session=session) as one,
        dialer.dial("one", session=session, index=1) as other,
        counted(dialer, dropped_replayed=1),
    ):
        block = block_of(one)
        one.send_sealed(block)
        expect_reply(ping_of(one), one, other)
        other.send_sealed(block)
        pings(one, other)


def test_shards_that_somebody_has_forged_cost_their_block(dialer: Dialer) -> None:
    """Of a coded block: one shard of another one, which nobody notices before the tag."""
    with dialer.dial("one", runs=Runs()) as client, counted(dialer, dropped_not_opened=1):
        block = client.session.seal_coded([ping_of(client)], 4, 2)
        block.shards[2] = secrets.token_bytes(len(block.shards[2]))
        client.send_sealed(block, 1, 4)
        pings(client)
        good = client.session.seal_coded([ping_of(client, 7)], 4, 2)
        client.send_sealed(good, 1, 4)
        expect_reply(ping_of(client, 7), client)


def test_the_server_follows_our_epoch_and_acknowledges_it_and_opens_the_one_before_for_a_while(dialer: Dialer) -> None:
    with dialer.dial("one") as client:
        session = client.session
        late, too_late = block_of(client, 100), iter([block_of(client, 101) for _ in range(2000)])
        session.go_to_next_epoch()
        pings(client)
        assert session.told == 1
        client.send_sealed(late)
        expect_reply(ping_of(client, 100), client)
        session.go_to_next_epoch()

        def is_acknowledged() -> bool:
            """Its supervisor makes the next keys once a second. Until then the block is one of an unknown epoch."""
            client.send_sealed(block_of(client, 102))
            client.receive_packets(0.3)
            return session.told == 2

        eventually(is_acknowledged, SECONDS, "epoch 2 is acknowledged")
        pings(client)
        before = dialer.server.counter(EPOCH)

        def is_too_late() -> bool:
            client.send_sealed(next(too_late))
            client.receive_packets(0.2)
            return dialer.server.counter(EPOCH) > before

        eventually(is_too_late, SECONDS, "epoch 0 is opened no more")
        pings(client)


def test_a_connection_that_brings_only_blocks_which_cannot_be_opened_ends(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with dialer.dial("one", session=session) as good, dialer.dial("one", session=session, index=1) as bad:
        with counted(dialer, dropped_not_opened=UNOPENED_MAX, closed_unopened=1):
            for _ in range(UNOPENED_MAX):
                bad.send_sealed(with_a_flipped_bit(bad, dialer))
            ends(bad)
        pings(good)


# -- ends the connection


def sealed_frame(client: WireClient) -> bytes:
    block = block_of(client)
    return client.sealed_frame(block.header, block.shards[0])


def a_frame_twice(client: WireClient) -> bytes:
    return 2 * sealed_frame(client)


def a_frame_left_out(client: WireClient) -> bytes:
    sealed_frame(client)
    return sealed_frame(client)


def frames_exchanged(client: WireClient) -> bytes:
    first = sealed_frame(client)
    return sealed_frame(client) + first


def header_flipped(at: int) -> Callable[[WireClient], bytes]:
    return lambda client: flipped(sealed_frame(client), at)


def of_another_connection(client: WireClient) -> bytes:
    """Sealed for the same session, with other nonces in its handshake."""
    client.received_welcome = flipped(client.received_welcome, len(client.received_welcome) - 40)
    sealer, _ = client.header_seals()
    block = block_of(client)
    return records.records(sealer, block.header, block.shards[0])


def a_record_of_tls(client: WireClient) -> bytes:
    return bytes.fromhex("1703030013") + secrets.token_bytes(0x13)


def an_alert(client: WireClient) -> bytes:
    return bytes.fromhex("15030300020100")


def a_longer_record(client: WireClient) -> bytes:
    return records.RECORD.pack(records.RECORD_BEGINS, 0x4012) + sealed_frame(client)[5:]


def second_record_header_flipped(client: WireClient) -> bytes:
    client.session.next_number(0)
    plain = client.session.plaintext([ping_of(client)] * 500)
    block = client.session.seal_plaintext(BULK, plain, 500)
    frame = client.sealed_frame(block.header, block.shards[0])
    assert frame[records.UNIT : records.UNIT + 3] == records.RECORD_BEGINS
    return flipped(frame, records.UNIT + 4)


ENDS_THE_CONNECTION = {
    "a frame twice": a_frame_twice,
    "a frame left out": a_frame_left_out,
    "frames in another order": frames_exchanged,
    "a flipped bit in the record header": header_flipped(0),
    "a flipped bit in its length": header_flipped(4),
    "a flipped bit in the header": header_flipped(5),
    "a flipped bit in the tag of the header": header_flipped(41),
    "a flipped bit in a further record header": second_record_header_flipped,
    "a frame of another connection": of_another_connection,
    "a record of TLS": a_record_of_tls,
    "an alert in clear": an_alert,
    "a longer record": a_longer_record,
}


@pytest.mark.parametrize("what", ENDS_THE_CONNECTION)
def test_a_header_that_is_not_proved_ends_its_connection_and_no_other(dialer: Dialer, what: str) -> None:
    session = dialer.new_session("one")
    with dialer.dial("one", session=session) as other, dialer.dial("one", session=session, index=1) as client:
        with counted(dialer, closed_frame_too_long=1):
            client.socket.sendall(ENDS_THE_CONNECTION[what](client))
            ends(client)
        pings(other)


def test_records_of_the_server_end_the_connection_that_brings_them_back(dialer: Dialer) -> None:
    with dialer.dial("one") as client, counted(dialer, closed_frame_too_long=1):
        client.send_sealed(block_of(client))
        client.socket.settimeout(SECONDS)
        client.socket.sendall(client.socket.recv(65536))
        ends(client)


def test_a_frame_that_is_cut_off_costs_itself(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with dialer.dial("one", session=session) as other, dialer.dial("one", session=session, index=1) as client:
        with counted(dialer):
            client.socket.sendall(sealed_frame(client)[:-1])
            client.socket.shutdown(socket.SHUT_WR)
            ends(client)
        pings(other)


# -- the ends of a connection


def test_an_end_is_answered_with_an_end(dialer: Dialer) -> None:
    with dialer.dial("one") as client, counted(dialer):
        client.end()
        with pytest.raises(Ended) as ended:
            client.receive_packets(SECONDS, 1000)
        assert ended.value.how in ("close_notify", "closed")


def test_a_server_that_stops_says_so_in_a_sealed_record(tmp_path: Path) -> None:
    with Lab() as lab, inviting_server(lab, tmp_path) as dialer, dialer.dial("one") as client:
        pings(client)
        dialer.server.stop()
        with pytest.raises(Ended) as ended:
            client.receive_packets(SECONDS, 1000)
        assert ended.value.how == "close_notify"


def test_a_client_with_the_key_alone_cannot_read_or_write_in_a_session_that_it_joins(dialer: Dialer) -> None:
    session = dialer.new_session("two")
    with dialer.dial("two", session=session) as first:
        other = Session(session.number, key=dialer.key("two"))
        with dialer.dial("two", session=other, index=1, connections=2) as client:
            assert other.other_key_share == session.other_key_share and other.key_share != session.key_share
            client.send_sealed(block_of(client))
            ends(client)
        pings(first)


def test_a_session_whose_connections_have_all_ended_goes_on_with_its_keys_or_with_new_ones(dialer: Dialer) -> None:
    """Each hello has the key share for the next session. Numbers of blocks never go back; a new key would allow it."""
    session = dialer.new_session("two")
    for _ in range(3):
        with dialer.dial("two", session=session) as client, counted(dialer):
            pings(client)
            client.end()
            ends(client)
        eventually(lambda: dialer.server.running()["connections"] == [])


def test_both_suites_carry_packets(dialer: Dialer) -> None:
    session = dialer.new_session("one", suite=key_schedule.CHACHA20_POLY1305)
    with dialer.dial("one", session=session) as client:
        assert session.suite == key_schedule.CHACHA20_POLY1305
        pings(client)


def test_a_key_share_that_makes_x25519_zero_is_answered_with_silence(dialer: Dialer) -> None:
    extension = bytes([sealed_blocks.KEY_SHARE, 33, key_schedule.AES_256_GCM]) + bytes(32)
    with dialer.dial_tls("three") as client, pytest.raises(Ended):
        client.send_hello(extensions=extension)
        client.receive_challenge()
        client.send_proof(client.proof())
        client.receive_welcome()
    with dialer.dial("three") as client:
        pings(client)
