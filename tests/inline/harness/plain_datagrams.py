"""A dgram worker whose outbound duty sends all at once, without pace, parity and repeats: for tests of the inbound one.

`duties`      the maker of the duties of an End's dgram workers
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Any

from pipeline.datagram.cut import cut
from pipeline.datagram.segment import HEADER_BYTES
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec import shard
from pipeline.fec.codec import Codec
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import DONE, NOTHING, Attachment, Duty
from pipeline.shm.slot import read_header
from pipeline.wire.control_datagram import Report
from workers.dgram.lane_sockets import lane_sockets
from workers.dgram.path import Path, Paths
from workers.dgram.receiver import Receiver

SOL_UDP, UDP_SEGMENT = 17, 103  # linux/udp.h
SEGMENTS_MOST = 44


def duties(attachment: Attachment, fds: WorkerFds, **options: Any) -> list[Duty]:
    paths = Paths()
    sender = PlainSender(attachment, paths, os.dup(fds.datagrams), **options)
    return [sender, Receiver(attachment, paths, lane_sockets(attachment, fds), fds)]


class PlainSender:
    """`m`: parity rows, or further copies of a block of one row. `reports`: all that have come.

    Blocks without a path are dropped. Whatever was sent counts as outstanding until a report has its sequence.
    """

    name = "outbound"

    def __init__(self, attachment: Attachment, paths: Paths, fd: int, m: int = 0) -> None:
        self.paths = paths
        self.m = m
        self.reports: list[Report] = []
        self.dropped = 0
        self._ports = [port for kind in ("light", "plain", "transit") for port in attachment.ports(self.name, kind)]
        self._socket = socket.socket(fileno=fd)
        self._segmenter = Segmenter(Codec(), attachment.process, 512)
        self._bell = attachment.doorbells[self.name]
        self._sequences: dict[Path, int] = {}
        self._masks: dict[Path, Any] = {}

    def work(self) -> int:
        found = NOTHING
        for port in self._ports:
            ready = port.ready()
            for ahead in range(ready):
                slot = port.slot(ahead)
                start, length, consumer, peer_handle = read_header(slot)
                if consumer == port.position:
                    self._send_runs(slot[start : start + length], peer_handle)
            if ready:
                port.advance(ready)
                found = DONE
        for path in self._sequences:
            while path.reports:
                _, report = path.reports.popleft()
                self.reports.append(report)
                if report.counts.highest == self._sequences[path] - 1:
                    path.outstanding_since = None
        return found

    def _send_runs(self, runs: memoryview, peer_handle: int) -> None:
        at = 0
        while at < len(runs):
            _, _, stream, number, _, _, copy, _, size, epoch, _ = shard.SEALED_RUN.unpack_from(runs, at)
            at += shard.RUN_BYTES
            ways = self.paths.of(peer_handle)
            if ways:
                self._send(ways[0], runs[at : at + size], stream, number, epoch, copy)
            else:
                self.dropped += 1
            at += size

    def _send(self, path: Path, sealed: memoryview, stream: int, number: int, epoch: int, copy: int) -> None:
        session = path.session
        sequence = self._sequences.setdefault(path, 0)
        mask = self._masks.get(path) or self._masks.setdefault(path, session.send_mask(512))
        how = cut(len(sealed), path.segment_most - HEADER_BYTES, self.m)
        if how.n == 1:
            heads = [
                self._segmenter.head_of_row(
                    sealed, session.send_token, mask, sequence + each, stream, number, epoch, self.m, copy + each
                )
                for each in range(self.m + 1)
            ]
            self._sequences[path] += len(heads)
            for head in heads:
                self._give([head, sealed], path, 0)
        else:
            memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
            train = self._segmenter.cut_block(
                memory, sealed, how, session.send_token, mask, sequence, stream, number, epoch
            )
            self._sequences[path] += train.count
            most = min(SEGMENTS_MOST, 65000 // train.segment_bytes) * train.segment_bytes
            for first in range(0, len(train.memory), most):
                self._give([train.memory[first : first + most]], path, train.segment_bytes)
        path.sent_ns = time.monotonic_ns()
        if path.outstanding_since is None:
            path.outstanding_since = path.sent_ns

    def _give(self, parts: list[Any], path: Path, segment_bytes: int) -> None:
        if path.address is None:
            return
        about = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment_bytes))] if segment_bytes else []
        self._socket.sendmsg(parts, [*path.ancillary, *about], 0, path.address)

    def wait(self, seconds: float) -> None:
        self._bell.wait(lambda: sum(port.ready() for port in self._ports), seconds)

    def drained(self) -> bool:
        return True

    def close_descriptors(self) -> None:
        self._socket.close()
