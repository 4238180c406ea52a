"""docs/wire.md is true of datagrams: a client that was written from it exchanges packets with a real server by UDP."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.handmade_clients import Dialer, datagrams_of, inviting_server
from tests.reference import key_schedule
from tests.reference.client import WireClient
from tests.reference.datagram_client import PROBE_BYTES, PROBE_LEAST, DatagramClient
from tests.reference.datagrams import SEALED_BYTES, Segment, row_unit, segments_of
from tests.reference.packets import echo_request, is_reply
from tests.reference.sealed_blocks import BULK, LIGHT
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab

INSIDE = ("10.99.0.1", "fd99::1")
SECONDS = 5.0
ROW_MOST = 1172  # that every path carries


@pytest.fixture(scope="module")
def dialer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialer]:
    with Lab() as lab, inviting_server(lab, tmp_path_factory.mktemp("hub"), carrier="auto") as made:
        yield made


@contextmanager
def in_datagrams(dialer: Dialer, peer: str = "one", **options: Any) -> Iterator[tuple[WireClient, DatagramClient]]:
    """A client whose path is open at the server, too."""
    with (
        dialer.dial(peer, takes_datagrams=True, **options) as client,
        datagrams_of(dialer, client) as datagrams,
    ):
        open_path(client, datagrams)
        yield client, datagrams


def open_path(client: WireClient, datagrams: DatagramClient) -> None:
    def is_open() -> bool:
        datagrams.probe()
        datagrams.send(ping_of(client))
        return any(map(bool, datagrams.receive_packets(0.2)))

    eventually(is_open, SECONDS, "a reply in a datagram")


def ping_of(client: WireClient, number: int = 1, payload: int = 8, six: bool = False) -> bytes:
    return echo_request(
        str(client.welcome.addresses[six].ip), INSIDE[six], number, random.Random(number).randbytes(payload)
    )


def expect_replies(datagrams: DatagramClient, requests: list[bytes]) -> None:
    replies: list[bytes] = []

    def are_there() -> bool:
        replies.extend(datagrams.receive_packets(0.1, 1000))
        return all(any(is_reply(each, request) for each in replies) for request in requests)

    eventually(are_there, SECONDS, f"{len(requests)} replies")


@pytest.mark.parametrize("takes", [False, True])
def test_the_welcome_names_a_port_to_a_client_that_takes_datagrams(dialer: Dialer, takes: bool) -> None:
    with dialer.dial("one", takes_datagrams=takes) as client:
        assert (client.welcome.datagram_port is not None) == takes
        assert client.welcome.datagram_port in (None, 0, dialer.port)


def test_a_client_written_from_the_document_pings_by_datagrams_alone(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        client.receive_packets(0.1, 1000)
        for six in (False, True):
            for light in (False, True):
                requests = [ping_of(client, number, six=six) for number in range(1, 20)]
                for request in requests:
                    datagrams.send(request, light=light)
                expect_replies(datagrams, requests)
        assert client.receive_packets(0.1) == [] and datagrams.session.dropped == {}
        assert {stream & 7 for stream, _ in datagrams.segments.complete} <= {BULK, LIGHT}


def test_both_suites_seal_control_datagrams_and_blocks(dialer: Dialer) -> None:
    session = dialer.new_session("two", suite=key_schedule.CHACHA20_POLY1305)
    with in_datagrams(dialer, "two", session=session) as (client, datagrams):
        assert session.suite == key_schedule.CHACHA20_POLY1305
        datagrams.send(ping_of(client))
        expect_replies(datagrams, [ping_of(client)])


def test_of_the_copies_of_a_block_one_counts_whichever_comes(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        for number in range(3):
            request = ping_of(client, number)
            copies = client.session.seal_copies([request], 3)
            for each in copies[number:]:
                datagrams.send_block(each)
                datagrams.send_block(each)
            assert [is_reply(each, request) for each in datagrams.receive_packets(SECONDS)] == [True]
        assert datagrams.receive_packets(0.2) == []


# -- blocks of several rows


SHAPES = {
    "two rows": (2, 0, 1),
    "two rows and parity": (2, 1, 1),
    "more parity than data": (2, 6, 1),
    "thirteen and six": (13, 6, 1),
    "several codewords": (10, 3, 2),
    "the largest codeword": (37, 6, 1),
    "three of them without parity": (37, 0, 3),
}


def of_shape(client: WireClient, shape: str, first: int = 1) -> tuple[list[Segment], list[bytes]]:
    """The segments of a block that fills its rows, and the pings in it."""
    n, m, codewords = SHAPES[shape]
    row_bytes = ROW_MOST - ROW_MOST % row_unit(n, m)
    size = codewords * n * row_bytes - row_bytes // 2
    requests = [ping_of(client, first + number, 1300) for number in range(max(1, size // 1342))]
    header, (sealed,) = client.session.seal(BULK, requests)
    segments = segments_of(header, sealed, n, m, row_bytes)
    assert {each.codeword for each in segments} == set(range(codewords))
    return segments, requests


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_arrives_whatever_rows_of_each_codeword_are_lost(dialer: Dialer, shape: str) -> None:
    n, m, codewords = SHAPES[shape]
    lost = random.Random(7)
    with in_datagrams(dialer) as (client, datagrams):
        for number in range(3):
            segments, requests = of_shape(client, shape, 200 * number)
            gone = {(codeword, index) for codeword in range(codewords) for index in lost.sample(range(n + m), m)}
            left = [each for each in segments if (each.codeword, each.row_index) not in gone]
            lost.shuffle(left)
            datagrams.send_segments(left)
            expect_replies(datagrams, requests)


def test_the_server_reports_which_rows_it_lacks_and_takes_them_later(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        segments, requests = of_shape(client, "several codewords")
        missing = [each for each in segments if each.codeword == 1 and each.row_index in (0, 3, 7, 9)]
        datagrams.send_segments([each for each in segments if each not in missing])
        block = segments[0]

        def told() -> dict[int, int]:
            report = datagrams.reports[-1]
            streams = [each.stream for each in report.streams]
            return {
                each.codeword: each.missing
                for each in report.incomplete
                if (streams[each.position], each.block) == (block.stream, block.number)
            }

        assert datagrams.receive(SECONDS, lambda: told() == {1: sum(1 << each.row_index for each in missing)})
        datagrams.send_segments(missing[-1:])
        expect_replies(datagrams, requests)
        assert datagrams.receive(SECONDS, lambda: not told())
        arrivals = {each.stream: each for each in datagrams.reports[-1].streams}
        assert arrivals[block.stream].turn == block.number + 1


def test_the_server_reports_the_losses_that_the_sequence_tells(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        datagrams.receive(0.1)
        before = datagrams.reports[-1].counts
        segments = datagrams.numbered([each for n in range(20) for each in of_shape(client, "two rows", n)[0]])
        lost = {3, 4, 5, 11, 13, 19, 21}
        for number, each in enumerate(segments):
            if number not in lost:
                datagrams.send_numbered([each])
        growth = {"received": len(segments) - len(lost), "lost": len(lost), "pairs": 2, "far_pairs": 4, "marked": 0}
        last = segments[-1].sequence

        def told() -> dict[str, int]:
            counts = datagrams.reports[-1].counts
            return {name: getattr(counts, name) - getattr(before, name) for name in growth}

        assert datagrams.receive(SECONDS, lambda: told() == growth), told()
        counts = datagrams.reports[-1].counts
        assert (counts.sender, counts.highest) == (client.session.process, last)


def test_rows_that_this_end_reports_as_missing_come_again(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        gone: set[tuple[int, int]] = set()

        def is_lost_once(segment: Segment) -> bool:
            block = segment.stream, segment.number
            is_lost = segment.n > 1 and segment.row_index == 0 and block not in gone
            gone.update([block] * is_lost)
            return is_lost

        datagrams.drops = is_lost_once
        requests = [ping_of(client, number, 1300) for number in range(30)]
        datagrams.send_block(client.session.seal(BULK, requests), 37, 0)
        expect_replies(datagrams, requests)
        assert gone


def test_the_server_codes_what_it_sends_once_this_end_reports_losses(tmp_path: Path) -> None:
    """On a path that is too long for rows to be sent again."""
    lost = random.Random(7)
    with (
        Lab(link=LinkSpec(delay_ms=20)) as lab,
        inviting_server(lab, tmp_path, carrier="auto") as dialer,
        in_datagrams(dialer) as (client, datagrams),
    ):
        datagrams.drops = lambda segment: lost.random() < 0.1

        def recovers() -> bool:
            requests = [ping_of(client, number, 1300) for number in range(20)]
            datagrams.send_block(client.session.seal(BULK, requests), 37, 0)
            datagrams.receive(0.1)
            return datagrams.segments.recovered > 3

        eventually(recovers, 2 * SECONDS, "codewords that lack a row of data, and have parity")
        assert datagrams.session.dropped.keys() <= {"replayed"}


# -- control datagrams


@pytest.mark.parametrize("size", [PROBE_LEAST, 500, PROBE_BYTES, 1472])
def test_a_probe_of_each_size_is_answered_with_its_size(dialer: Dialer, size: int) -> None:
    with in_datagrams(dialer) as (_, datagrams):
        challenge = datagrams.probe(size)
        assert datagrams.receive(SECONDS, lambda: datagrams.answer_to(challenge) is not None)
        assert datagrams.answer_to(challenge).size == size


def test_a_probe_that_asks_for_a_late_answer_gets_one(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (_, datagrams):
        challenge = datagrams.probe(wait=1)
        assert not datagrams.receive(0.9, lambda: datagrams.answer_to(challenge) is not None)
        assert datagrams.receive(SECONDS, lambda: datagrams.answer_to(challenge) is not None)


def test_the_server_looks_for_the_largest_size_that_the_path_carries(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams):
        most = 1500 - 28

        def is_found() -> bool:
            datagrams.send_block(client.session.seal(BULK, [ping_of(client, n, 1300) for n in range(20)]), 37, 0)
            datagrams.receive(0.1)
            return any(PROBE_BYTES < size <= most for size in datagrams.segment_bytes)

        eventually(is_found, SECONDS, "segments as long as the path allows")
        assert max(each.size for each in datagrams.probes) + SEALED_BYTES == most


def test_another_port_of_the_host_is_used_at_once(dialer: Dialer) -> None:
    with in_datagrams(dialer) as (client, datagrams), datagrams_of(dialer, client) as other:
        other.go_on_from(datagrams)
        other.silent = True  # so that it proves nothing
        other.probe()
        other.send(ping_of(client))
        expect_replies(other, [ping_of(client)])
        assert other.probes, "the port is asked for a proof"


def test_another_host_has_to_answer_a_probe_first(dialer: Dialer) -> None:
    dialer.node.ip("address add 10.77.0.99/24 dev link0")
    try:
        with in_datagrams(dialer) as (client, datagrams), datagrams_of(dialer, client, "10.77.0.99") as other:
            other.go_on_from(datagrams)
            other.silent = True
            other.probe()
            other.send(ping_of(client))
            expect_replies(datagrams, [ping_of(client)])
            assert other.receive(SECONDS, lambda: bool(other.probes)) and not other.received
            other.silent = False

            def has_moved() -> bool:
                other.probe()
                other.send(ping_of(client, 2))
                return bool(other.receive_packets(0.1))

            eventually(has_moved, SECONDS, "packets at the other address")
    finally:
        dialer.node.ip("address del 10.77.0.99/24 dev link0")


def test_a_server_without_datagrams_names_no_port(tmp_path: Path) -> None:
    with Lab() as lab, inviting_server(lab, tmp_path) as dialer, dialer.dial("one", takes_datagrams=True) as client:
        assert client.welcome.datagram_port is None
