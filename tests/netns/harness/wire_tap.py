"""Somebody who watches a link: the segments of all connections to one port, and the records in them."""

from __future__ import annotations

import socket
import struct
import threading
from collections import defaultdict
from types import TracebackType
from typing import NamedTuple, Self

from tools.lab.network import Node

ETH_P_ALL, ETH_P_IP = 0x3, 0x800
DEVICE = "link0"
BUFFER_BYTES = 1 << 24
SO_RCVBUFFORCE = 33


SEQUENCES = 1 << 32


class Segment(NamedTuple):
    """One with data that has not passed before. `to_server`: its direction; `port`: of the client's end."""

    to_server: bool
    port: int
    data: bytes


class WireTap:
    """Records what passes the device of a node, IPv4, from the beginning of the block to its end."""

    def __init__(self, node: Node, port: int) -> None:
        self._port = port
        self._socket = node.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._socket.bind((DEVICE, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self.segments: list[Segment] = []
        self._ends: dict[tuple[bool, int], int] = {}  # by direction and port: the sequence number that is next

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()

    def _record(self) -> None:
        while True:
            try:
                packet, (_, kind, *_) = self._socket.recvfrom(65536)
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            if kind == ETH_P_IP and packet[9] == socket.IPPROTO_TCP:
                self._take(packet)

    def _take(self, packet: bytes) -> None:
        at = (packet[0] & 15) * 4
        source, destination, sequence = struct.unpack_from(">HHI", packet, at)
        data = packet[at + (packet[at + 12] >> 4) * 4 : struct.unpack_from(">H", packet, 2)[0]]
        if data and self._port in (source, destination):
            to_server = destination == self._port
            way = to_server, source if to_server else destination
            again = (self._ends.get(way, sequence) - sequence) % SEQUENCES  # bytes that a kernel has sent once more
            assert again < SEQUENCES // 2, "a segment was not recorded"
            if again < len(data):
                self.segments.append(Segment(*way, data[again:]))
                self._ends[way] = (sequence + len(data)) % SEQUENCES

    def records(self, to_server: bool) -> list[int]:
        """The bytes of each record of one direction. The recording began between two records of each connection."""
        streams: dict[int, bytes] = defaultdict(bytes)
        for segment in self.segments:
            if segment.to_server is to_server:
                streams[segment.port] += segment.data
        found = []
        for stream in streams.values():
            at = 0
            while at < len(stream):
                assert stream[at : at + 3] == b"\x17\x03\x03", "no record begins here"
                found.append(5 + int.from_bytes(stream[at + 3 : at + 5], "big"))
                at += found[-1]
        return found
