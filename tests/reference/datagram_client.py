"""The datagrams of a client that has been welcomed, written from docs/wire.md alone. The program's code is not used.

    datagrams = DatagramClient(client, sock)     a connected UDP socket
    datagrams.probe()                            ask whether the way is open
    datagrams.send(packet, ...)                  packets in a block, in one segment; also send_block, send_segments
    datagrams.receive_packets(seconds)           bare IP packets; meanwhile it answers probes, and reports what comes
    datagrams.receive(seconds, until)            take what comes until a condition holds

`drops(segment)` says which segments count as lost on their way to it. It blocks, with a deadline for each step. A
Violation is an act of the server that the document forbids.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable

from tests.reference import datagrams, key_schedule
from tests.reference.client import WireClient
from tests.reference.datagrams import (
    COUNTS,
    INCOMPLETE_MOST,
    PROBE_FIELDS,
    SEALED_BYTES,
    SENDERS,
    STREAMS_MOST,
    Answer,
    Arrivals,
    ControlSeal,
    Counts,
    Incomplete,
    Probe,
    Report,
    Segment,
    Segments,
)
from tests.reference.key_schedule import TO_CLIENT, TO_SERVER
from tests.reference.sealed_blocks import BULK, LIGHT, Sealed

PROBE_LEAST, PROBE_BYTES = PROBE_FIELDS.size + SEALED_BYTES, 1200
REPORT_SECONDS = 0.005
GIVEN_UP_SECONDS = 1.0
BLOCKS_TOLD = 512
FAR = 8


class Arrived:
    """The segments of one process of the server that have come."""

    def __init__(self, sequence: int) -> None:
        self.first = self.highest = sequence
        self.sequences: set[int] = set()
        self.at = 0.0

    def add(self, sequence: int, now: float) -> None:
        self.sequences.add(sequence)
        if (sequence - self.highest) % COUNTS < COUNTS // 2:
            self.highest, self.at = sequence, now

    def counts(self, sender: int, now: float) -> Counts:
        span = (self.highest - self.first) % COUNTS
        lost = {each for each in range(span) if (self.first + each) % COUNTS not in self.sequences}
        pairs, far_pairs = (sum(each - behind in lost for each in lost) for behind in (1, FAR))
        age = int((now - self.at) * 1e6)
        return Counts(sender, self.highest, age, len(self.sequences), 0, 0, len(lost), pairs, far_pairs)


class DatagramClient:
    """Of one session and one lane of it. `way_back`: keys of the other direction, for tests that play the server."""

    def __init__(self, client: WireClient, sock: socket.socket) -> None:
        session = client.session
        self.session, self.socket = session, sock
        self.keys, self.way_back = (
            key_schedule.datagram_keys(session.root, session.context, direction) for direction in (TO_SERVER, TO_CLIENT)
        )
        self.sealer = ControlSeal(session.suite, self.keys)
        self._opener = ControlSeal(session.suite, self.way_back)
        self.segments = Segments()
        self.probes: list[Probe] = []
        self.answers: list[Answer] = []
        self.reports: list[Report] = []
        self.asked: dict[int, int] = {}  # sizes by challenge
        self.processes: set[int] = set()  # of the server, that control datagrams have named
        self.received = 0  # segments, those that were dropped included
        self.segment_bytes: set[int] = set()  # of them
        self.silent = False  # neither answers nor reports go out
        self.drops: Callable[[Segment], bool] = lambda segment: False
        self._arrived: dict[int, Arrived] = {}
        self._turns: dict[int, tuple[int, float]] = {}  # of each stream, and since when
        self._number = self._sequence = 0
        self._reported_at = 0.0
        self._untold: set[int] = set()
        self._ready: list[bytes] = []

    def go_on_from(self, other: DatagramClient) -> None:
        """Take over from a socket of this session: counts and sequences go on."""
        self._number, self._sequence = other._number, other._sequence
        self._opener, self._arrived, self._turns = other._opener, other._arrived, other._turns
        self.segments = other.segments

    # -- control datagrams

    def probe(self, size: int = PROBE_BYTES, wait: int = 0) -> int:
        """The challenge of the probe. `size`: of the datagram."""
        challenge = secrets.randbits(64)
        self.asked[challenge] = size
        self.send_control(datagrams.pack(Probe(challenge, self._clock(), wait, size - SEALED_BYTES)))
        return challenge

    def send_control(self, body: bytes) -> bytes:
        """The datagram that has gone out."""
        datagram = self.sealed_control(body)
        self.socket.send(datagram)
        return datagram

    def sealed_control(self, body: bytes) -> bytes:
        """The next control datagram. It counts as sent."""
        self._number += 1
        return self.sealer.seal(self.session.process, self.session.lane, self._number - 1, body)

    def answer_to(self, challenge: int) -> Answer | None:
        return next((each for each in self.answers if each.challenge == challenge), None)

    @staticmethod
    def _clock() -> int:
        return time.monotonic_ns() // 1000 % COUNTS

    def _on_control(self, datagram: bytes) -> None:
        count, body = self._opener.open(datagram)
        self.processes.add(count >> datagrams.NUMBER_BITS + datagrams.LANE_BITS)
        match found := datagrams.parse(body):
            case Probe():
                self.probes.append(found)
                if not self.silent and not found.wait:
                    self.send_control(datagrams.pack(Answer(found.challenge, found.clock, len(datagram))))
            case Answer():
                if found.challenge not in self.asked or self.asked[found.challenge] != found.size:
                    raise datagrams.Violation(f"{found} to probes {self.asked}")
                self.answers.append(found)
            case Report():
                self.reports.append(found)

    # -- segments

    def send(self, *packets: bytes, light: bool = False) -> None:
        self.send_block(self.session.seal(LIGHT if light else BULK, packets))

    def send_block(self, block: Sealed, n: int = 1, m: int = 0, row_bytes: int = 0) -> list[Segment]:
        """The segments that have gone out."""
        header, (sealed,) = block
        return self.send_segments(datagrams.segments_of(header, sealed, n, m, row_bytes))

    def numbered(self, segments: list[Segment]) -> list[Segment]:
        """With their sequence: they count as sent."""
        sender = self.session.process % SENDERS
        found = [
            each._replace(sequence=(self._sequence + number) % COUNTS, sender=sender)
            for number, each in enumerate(segments)
        ]
        self._sequence += len(segments)
        return found

    def send_numbered(self, segments: list[Segment]) -> None:
        for each in segments:
            self.socket.send(datagrams.pack_segment(self.keys, each))

    def send_segments(self, segments: list[Segment]) -> list[Segment]:
        numbered = self.numbered(segments)
        self.send_numbered(numbered)
        return numbered

    def _on_segment(self, datagram: bytes) -> None:
        segment = datagrams.read_segment(self.way_back, datagram)
        self.received += 1
        self.segment_bytes.add(len(datagram))
        if self.drops(segment):
            return
        now = time.monotonic()
        arrived = self._arrived.setdefault(segment.sender, Arrived(segment.sequence))
        arrived.add(segment.sequence, now)
        self._untold.add(segment.sender)
        self._turns.setdefault(segment.stream, (segment.number, now))
        found = self.segments.add(segment)
        if found is not None:
            self._ready += self.session.open(*found) or []

    def report(self, sender: int) -> Report:
        """What has come of the segments of one process."""
        now = time.monotonic()
        streams = [self._arrivals(stream, now) for stream in self._turns][-STREAMS_MOST:]
        lacking = [
            Incomplete(position, *each)
            for position, arrivals in enumerate(streams)
            for each in self.segments.lacking(arrivals.stream)
        ]
        return Report(self._arrived[sender].counts(sender, now), streams, lacking[:INCOMPLETE_MOST])

    def _arrivals(self, stream: int, now: float) -> Arrivals:
        turn, since = self._turns[stream]
        complete = {number for of_stream, number in self.segments.complete if of_stream == stream}
        while turn in complete or (now - since > GIVEN_UP_SECONDS and turn < max(complete, default=0)):
            turn, since = turn + 1, now
        self._turns[stream] = turn, since
        ahead = [number - turn - 1 for number in complete if turn < number <= turn + BLOCKS_TOLD]
        bits = sum(1 << each for each in ahead)
        return Arrivals(stream, turn, bits.to_bytes(-(-bits.bit_length() // 8), "little"))

    # -- what comes

    def receive(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Take what comes for so long, or until the condition holds. Whether it does."""
        deadline = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= deadline:
                return False
            due = self._reported_at + REPORT_SECONDS
            if self._untold and now >= due:
                self._report(now)
                continue
            self.socket.settimeout(min(deadline, due if self._untold else deadline) - now)
            try:
                self.take(self.socket.recv(65536))
            except TimeoutError:
                pass
        return True

    def receive_packets(self, seconds: float, count: int = 1) -> list[bytes]:
        """Bare IP packets, as soon as `count` of them have come; fewer when the time is over."""
        self.receive(seconds, lambda: len(self._ready) >= count)
        ready, self._ready = self._ready, []
        return ready

    def take(self, datagram: bytes) -> None:
        token = datagram[: datagrams.TOKEN_BYTES]
        if token == self.way_back.data_token:
            self._on_segment(datagram)
        elif token == self.way_back.control_token:
            self._on_control(datagram)
        else:
            raise datagrams.Violation(f"a datagram with token {token.hex()}")

    def _report(self, now: float) -> None:
        for sender in self._untold:
            if not self.silent:
                self.send_control(datagrams.pack(self.report(sender)))
        self._untold.clear()
        self._reported_at = now
