"""Reports go out often enough for a sender that waits for them, and no more often."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import cast

import numpy as np
import pytest

from pipeline.datagram.arrival_counts import ArrivalCounts
from pipeline.datagram.cut import cut
from pipeline.datagram.segment import HEADER_BYTES
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec.codec import Codec
from pipeline.policy.carrier_order import Kind
from pipeline.shm.datagram_secrets import DatagramSecrets
from pipeline.shm.layout import RECORD_WORDS
from pipeline.wire.control_datagram import Report
from tests.harness.sealed_lane import handle, words
from workers.dgram.control import Control, Sender
from workers.dgram.path_control import PathControl
from workers.dgram.reception import Reception
from workers.dgram.reports import AGAIN_MOST, AGAIN_NS, LEAST_NS, REPORT_NS, Reports
from workers.dgram.sessions import Session

MS = 1_000_000
PROCESS = 7
BULK = 0x700
CODEC = Codec()


class Recorder:
    """It stands for the control: the reports that go out, with their time."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Report]] = []

    def send_report(self, sender: Sender, report: Report, now: int) -> bool:
        self.sent.append((now, report))
        return True


class Receiving:
    """A reception of one session, whose peer sends blocks from one process. `now` goes on by run()."""

    def __init__(self) -> None:
        send, receive = os.urandom(32), os.urandom(32)
        here = Session(DatagramSecrets(handle(1), 1, bytes(16), 0, send, receive))
        self.there = Session(DatagramSecrets(handle(1), 1, bytes(16), 0, receive, send))
        self.now = 10**12
        self.sender = Sender(cast("PathControl", None), ArrivalCounts(PROCESS), here)
        self.counters = words(320)
        self.words = words(RECORD_WORDS)
        self.reception = Reception(here, {PROCESS: self.sender}, CODEC, self.counters, self.words, False)
        self.recorder = Recorder()
        self.reports = Reports(cast("Control", self.recorder))
        self._segmenter, self._mask = Segmenter(CODEC, PROCESS, 512), self.there.send_mask(512)
        self._sequence = 0

    def come(self, number: int, size: int = 30_000, lost: tuple[int, ...] = (), is_marked: bool = False) -> None:
        """The segments of a block, together."""
        block = os.urandom(size)
        how = cut(size, 1200, 0)
        memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
        train = self._segmenter.cut_block(
            memory, memoryview(block), how, self.there.send_token, self._mask, self._sequence, BULK, number, 0
        )
        self._sequence += train.count
        left = np.delete(train.rows, list(lost), axis=0)
        for first in range(0, len(left), 64):
            self.reception.add_batch(left[first : first + 64], is_marked, self.now)
        self.reports.add(self.reception, Kind.UDP)

    def run(self, time: int, step: int = MS // 2) -> list[tuple[int, Report]]:
        """The reports that go out meanwhile: when, from now on."""
        before, known = self.now, len(self.recorder.sent)
        until = self.now + time
        while self.now < until:
            due = self.reports.due()
            self.reports.send(self.now)
            assert not due or self.reports.due() != due or due > self.now, "what is due goes out"
            self.now += step
        return [(at - before, report) for at, report in self.recorder.sent[known:]]


def test_the_first_segments_are_reported_at_once_and_twice_again() -> None:
    here = Receiving()
    here.come(0)
    times = [at for at, _ in here.run(2000 * MS)]
    assert times == [0, *AGAIN_NS]
    assert here.reports.due() == 0


def test_under_load_a_report_goes_out_each_5_ms() -> None:
    here = Receiving()
    sent = 0
    for number in range(200):
        here.come(number, 3000)
        sent += len(here.run(MS))
    assert 200 * MS // REPORT_NS - 1 <= sent <= 200 * MS // REPORT_NS + 1


def test_under_heavy_load_a_report_goes_out_each_2_ms_at_most() -> None:
    here = Receiving()
    times = []
    for number in range(0, 400, 4):
        for ahead in range(4):
            here.come(number + ahead, 130_000)
        times += [here.now - MS + at for at, _ in here.run(MS)]
    assert len(times) > 30
    assert min(later - earlier for earlier, later in pairwise(times)) >= LEAST_NS


def test_a_report_says_what_has_come_and_what_is_missing() -> None:
    here = Receiving()
    for number in range(3):
        here.come(number, lost=(4,) if number == 1 else ())
        found = here.run(5 * MS)
    found += here.run(20 * MS)
    report = found[-1][1]
    counts = report.counts
    assert (counts.sender, counts.received, counts.lost, counts.highest) == (PROCESS, 3 * 25 - 1, 1, 74)
    (stream,) = report.streams
    assert (stream.stream, stream.turn, stream.bits) == (BULK, 1, b"\1")
    (codeword,) = report.incomplete
    assert (codeword.block, codeword.codeword, codeword.missing) == (1, 0, 1 << 4)


def test_missing_rows_are_named_again_and_again_each_time_after_twice_as_long() -> None:
    here = Receiving()
    here.come(0, lost=(24,))
    found = here.run(900 * MS)
    assert all(report.incomplete for _, report in found[1:])
    times = [at for at, _ in found]
    assert times[:6] == [0, 10 * MS, 40 * MS, 80 * MS, 160 * MS, 320 * MS]
    assert here.sender.again <= AGAIN_MOST
    here.run(5000 * MS)
    assert here.reports.due() == 0


def test_rows_that_are_under_way_are_not_named() -> None:
    here = Receiving()
    here.come(0, lost=tuple(range(10, 25)))
    ((_, report),) = here.run(MS)
    assert report.incomplete == ()


def test_segments_of_a_process_that_is_not_known_are_in_no_report_and_their_block_arrives() -> None:
    here = Receiving()
    here.reception.senders.clear()
    here.come(0)
    assert here.run(100 * MS) == []
    assert here.reception.assembly.pop(here.now) is not None


@pytest.mark.parametrize("is_marked", [False, True])
def test_marked_segments_are_counted(is_marked: bool) -> None:
    here = Receiving()
    here.come(0, is_marked=is_marked)
    here.come(1, size=300, is_marked=is_marked)
    (*_, (_, report)) = here.run(20 * MS)
    assert report.counts.marked == report.counts.received * is_marked


def test_an_ended_session_gets_no_report() -> None:
    here = Receiving()
    here.come(0)
    here.reports.forget(here.reception)
    assert here.run(100 * MS) == []


def test_segments_without_room_are_refused_and_not_lost() -> None:
    here = Receiving()
    here.reception.assembly._buffers.limit = 1
    here.come(0)
    ((_, report),) = here.run(MS)
    assert report.counts.refused == report.counts.received == 25 and report.counts.lost == 0
