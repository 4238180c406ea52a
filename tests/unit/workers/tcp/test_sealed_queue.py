"""A send queue with sealed records, on a socket that takes what it likes: the other end reads whole frames in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fec import shard
from pipeline.sealing import frame_cut
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, HeaderSecret
from pipeline.sealing.padding import SIZES, PaddingSource
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.wire import framing
from tests.harness.send_queues import Ends, OutboundRing
from workers.tcp.backlog import Backlog
from workers.tcp.sealed_queue import SealedSendQueue
from workers.tcp.send_item import SendItem
from workers.tcp.send_queue import SendQueue

SECRET = HeaderSecret(bytes(range(32)))
BODY = 300
WIRE = 42 + BODY  # of a frame with such a body
PADDED = 600  # of that with padding
LARGE = 7000  # what a slot of the ring holds


class Sealed(Ends):
    """Queues with sealed records, and a scanner at the other end of each, which reads as bytes come."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = OutboundRing(slots=64)
        self._scanners: dict[SendQueue, tuple[RecordScanner, bytearray]] = {}
        self._found: dict[SendQueue, list[tuple[bool, int, int]]] = {}
        self.serial = 0

    def sealed(self, padding: PaddingSource | None = None) -> SealedSendQueue:
        plain = self.queue()
        plain.connection.send.writer = writer = RecordWriter(HeaderSealer(AES_256_GCM, SECRET), padding)
        queue = SealedSendQueue(plain.connection, writer)
        self._far[queue], self._received[queue] = self._far.pop(plain), self._received.pop(plain)
        self._scanners[queue] = RecordScanner(HeaderOpener(AES_256_GCM, SECRET)), bytearray()
        self._found[queue] = []
        return queue

    def item(self, size: int = BODY, light: bool = False, run: bool = False) -> SendItem:
        """An item that shows its number, its class and its size: a whole block, or a run with a header of its own."""
        self.serial += 1
        header = run_header(self.serial, light, size)
        body = bytes((self.serial + at) & 0xFF for at in range(size))
        return self.ring.item(header + body, head=shard.RUN_BYTES if run else 0, shards=run, light=light)

    def found(self, queue: SendQueue) -> list[tuple[bool, int, int]]:
        """The frames that have come out: whether light, number, bytes of the body."""
        self._read(queue)
        scanner, rest = self._scanners[queue]
        data, self._received[queue] = rest + self._received[queue], b""
        view = memoryview(bytearray(data))
        whole, *_ = scanner.scan(view, 0, len(view), framing.LENGTH_LIMIT)
        at = 0
        while at < whole:
            length, kind = framing.FRAME.unpack_from(view, at)
            if kind == framing.RUN:
                _, _, stream, number, *_, size, _, _ = shard.SEALED_RUN.unpack_from(view, at)
                body = bytes(view[at + shard.RUN_BYTES : at + 4 + length])
                assert body == bytes((number + each) & 0xFF for each in range(size))
                assert shard.SEALED_RUN.pack(*shard.SEALED_RUN.unpack_from(view, at)) == run_header(
                    number, bool(stream & 1), size
                )
                self._found[queue].append((bool(stream & 1), number, size))
            at += 4 + length
        self._scanners[queue] = (
            scanner,
            bytearray(data[whole:]),
        )  # as it came: a header is opened once, and no byte moved
        return self._found[queue]

    def numbers(self, queue: SendQueue) -> list[int]:
        return [number for _, number, _ in self.found(queue)]


def run_header(number: int, light: bool, size: int) -> bytes:
    return shard.SEALED_RUN.pack(
        shard.RUN_BYTES - 4 + size, framing.RUN, 1 << 8 | light, number, 1, 0, 0, 1, size, 3, 2
    )


@pytest.fixture
def ends() -> Iterator[Sealed]:
    with closing(Sealed()) as made:
        yield made


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("first", range(0, 3 * WIRE, 7))
def test_frames_are_whole_wherever_the_socket_stops(ends: Sealed, first: int, run: bool) -> None:
    queue = ends.sealed()
    queue.bulk.extend(ends.item(run=run) for _ in range(3))
    ends.send(queue, first)
    assert len(queue.bulk) == 3 - -(-first // WIRE)  # what was begun is taken from the queue
    assert ends.found(queue) == [(False, number, BODY) for number in range(1, first // WIRE + 1)]
    ends.send_all(queue)
    assert ends.numbers(queue) == [1, 2, 3]
    assert ends.ring.release() == 3


@pytest.mark.parametrize("first", range(1, PADDED + 40, 3))
def test_padded_frames_are_whole_wherever_the_socket_stops_and_their_padding_counts_once(
    ends: Sealed, first: int
) -> None:
    queue = ends.sealed(PaddingSource())
    queue.bulk.extend(ends.item() for _ in range(2))
    ends.send(queue, first)
    assert queue._writer.padding_bytes == (PADDED - WIRE) * -(-first // PADDED)
    queue.light.append(ends.item(light=True))
    ends.send(queue, 5)
    queue.copy_out_partial()
    queue.put_behind(queue.connection.keepalive())
    ends.send_all(queue)
    assert sorted(ends.numbers(queue)) == [1, 2, 3] and ends.ring.release() == 3
    assert queue._writer.padding_bytes == 3 * (PADDED - WIRE) + SIZES[0] - 42


@pytest.mark.parametrize("first", range(1, WIRE + 60))
def test_each_byte_at_which_a_frame_is_interrupted_comes_out_right(ends: Sealed, first: int) -> None:
    queue = ends.sealed()
    queue.bulk.extend(ends.item() for _ in range(2))
    ends.send(queue, first)
    queue.light.append(ends.item(light=True))
    ends.send(queue, 5)
    ends.send_all(queue)
    assert ends.numbers(queue) == ([1, 3, 2] if first <= WIRE else [1, 2, 3])  # between frames alone


def test_a_frame_of_which_no_byte_was_taken_may_be_overtaken(ends: Sealed) -> None:
    queue = ends.sealed()
    queue.bulk.append(ends.item())
    assert ends.send(queue, 0) == 0
    queue.light.append(ends.item(light=True))
    ends.send_all(queue)
    assert ends.found(queue) == [(True, 2, BODY), (False, 1, BODY)]


@pytest.mark.parametrize("first", range(1, WIRE, 11))
def test_the_rest_of_a_frame_that_is_copied_out_goes_before_all_else_and_its_slot_goes_on(
    ends: Sealed, first: int
) -> None:
    queue = ends.sealed()
    queue.bulk.extend(ends.item() for _ in range(2))
    ends.send(queue, first)
    queue.copy_out_partial()
    assert ends.ring.release() == 1 and queue.tail_is_block  # and the slot is overwritten
    ends.send(queue, 3)
    queue.copy_out_partial()
    ends.send_all(queue)
    assert ends.numbers(queue) == [1, 2] and not queue.tail_is_block


def test_a_frame_that_another_connection_takes_over_is_sent_from_its_beginning(ends: Sealed) -> None:
    ended, other = ends.sealed(), ends.sealed()
    ended.bulk.extend(ends.item() for _ in range(3))
    ends.send(ended, WIRE + 50)
    for item in ended.drain():
        other.append_moved(item)
    ends.send_all(other)
    assert ends.numbers(ended) == [1] and ends.numbers(other) == [2, 3]


def test_a_keepalive_and_an_end_stand_between_frames(ends: Sealed) -> None:
    queue = ends.sealed()
    queue.bulk.append(ends.item())
    ends.send_all(queue)
    queue.put_control(queue.connection.keepalive())
    ends.send(queue, 20)
    queue.bulk.append(ends.item())
    ends.send_all(queue)
    assert ends.numbers(queue) == [1, 2]
    queue.connection.shutdown()
    assert ends.numbers(queue) == [1, 2] and ends._scanners[queue][0].ended


@pytest.mark.parametrize("taken", [0, 1, 41, 50, WIRE - 1, WIRE, WIRE + 7])
def test_a_question_goes_before_all_frames_that_have_not_begun(ends: Sealed, taken: int) -> None:
    queue = ends.sealed()
    queue.bulk.extend(ends.item() for _ in range(3))
    if taken:
        ends.send(queue, taken)
    scanner = ends._scanners[queue][0]
    queue.put_behind(queue.connection.send.writer.question())
    begun = queue.partial is not None
    assert bool(queue.send_tail()) is not begun
    assert ends.numbers(queue) == list(range(1, taken // WIRE + 1)) and scanner.asked is not begun
    ends.send_all(queue)
    assert ends.numbers(queue) == [1, 2, 3] and scanner.asked


@pytest.mark.parametrize("taken", [0, 1, 41, 50, WIRE - 1, WIRE, WIRE + 7])
def test_the_news_that_an_end_is_about_to_stop_goes_behind_the_frame_that_has_begun(ends: Sealed, taken: int) -> None:
    queue = ends.sealed()
    queue.bulk.extend(ends.item() for _ in range(3))
    if taken:
        ends.send(queue, taken)
    queue.put_behind(queue.connection.send.writer.goaway())
    assert not ends._scanners[queue][0].leaving
    ends.send_all(queue)
    assert ends.numbers(queue) == [1, 2, 3] and ends._scanners[queue][0].leaving


@pytest.mark.parametrize("record", range(1, 4))
@pytest.mark.parametrize("beside", range(-6, 7))
def test_a_frame_of_several_records_is_whole_when_it_is_interrupted_at_any_of_their_headers(
    ends: Sealed, record: int, beside: int
) -> None:
    queue, backlog, size = ends.sealed(), Backlog(1 << 20), 60_000
    body = bytes((1 + at) & 0xFF for at in range(size))
    header = run_header(1, False, size)
    queue.bulk.append(SendItem(backlog, 0, 1, False, len(header) + size, header, body))
    ends.serial = 1
    queue.bulk.append(ends.item())
    ends.send(queue, record * frame_cut.UNIT_BYTES + beside)
    queue.light.append(ends.item(light=True))
    if beside % 2:
        queue.copy_out_partial()
    ends.send_all(queue)
    assert ends.found(queue) == [(False, 1, size), (True, 3, BODY), (False, 2, BODY)]
    assert backlog.used == -(len(header) + size)  # it was finished once


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("bulk"), st.sampled_from([0, 1, 100, LARGE]), st.booleans()),
        st.tuples(st.just("light"), st.sampled_from([1, 100]), st.booleans()),
        st.tuples(st.just("send"), st.one_of(st.integers(0, 100), st.integers(0, 20000)), st.booleans()),
        st.tuples(st.just("copy out"), st.just(0), st.booleans()),
        st.tuples(st.just("spill"), st.just(0), st.booleans()),
        st.tuples(st.just("keepalive"), st.just(0), st.booleans()),
    ),
    max_size=50,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_whatever_the_socket_takes_the_other_end_reads_each_frame_once_and_each_class_in_order(
    steps: list[tuple[str, int, bool]],
) -> None:
    with closing(Sealed()) as ends:
        queue = ends.sealed()
        given_: dict[bool, list[int]] = {False: [], True: []}
        for step, amount, flag in steps:
            if step in ("bulk", "light") and ends.ring.room():
                item = ends.item(amount + 1, light=step == "light", run=flag)
                queue.of_class(item.light).append(item)
                given_[item.light].append(ends.serial)
            elif step == "send" and not queue.idle:
                ends.send(queue, amount)
            elif step == "copy out":
                queue.copy_out_partial()
            elif step == "keepalive" and queue.idle:
                queue.put_control(queue.connection.keepalive())
            elif step == "spill":
                Backlog(1 << 20).spill(queue)
            ends.ring.release()
            ends.found(queue)
        ends.send_all(queue)
        ends.ring.release()
        found = ends.found(queue)
        for light, expected in given_.items():
            assert [number for each, number, _ in found if each == light] == expected
        assert ends.ring.room() == 64
