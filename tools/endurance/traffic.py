"""Checked traffic inside a tunnel: sockets of two namespaces, threads of this process, every byte compared.

    Stream    one TCP connection, paced; its bytes are a known pattern
    Probe     datagrams of every size that the far end sends back; their round trips

Both note the longest silence since mark(). A stream or probe that has received other bytes than were sent says so in
`error`; it never raises in its thread.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Self

from tools.lab.namespace import Namespace
from tools.load.pattern import connect, is_piece, piece

CHUNK_BYTES = 32 * 1024
POLL_SECONDS = 0.2

PROBE = struct.Struct("!QQI")  # number, time of sending (CLOCK_MONOTONIC ns), checksum of the rest
PROBE_SECONDS = 0.02
PROBE_SIZES = (PROBE.size, 1380)


class Traffic:
    """What streams and probes have in common: threads, the longest silence, the first error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error = ""
        self.received = 0
        self._ending = False
        self._last_ns = time.monotonic_ns()
        self._longest_ns = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def mark(self) -> None:
        """From now on, the longest silence is counted anew."""
        self._longest_ns = 0

    def silence_ms(self) -> float:
        """The longest silence since mark(), or the present one."""
        return max(self._longest_ns, time.monotonic_ns() - self._last_ns) / 1e6

    def present_silence(self) -> float:
        """Seconds since the last arrival."""
        return (time.monotonic_ns() - self._last_ns) / 1e9

    def _arrived(self) -> int:
        now = time.monotonic_ns()
        self._longest_ns = max(self._longest_ns, now - self._last_ns)
        self._last_ns = now
        return now

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                work()
            except OSError as error:
                if not self._ending:
                    self.error = self.error or f"{self.name}: {error}"

        return guarded

    def _add_thread(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=self._guarded(work), daemon=True))


class Stream(Traffic):
    """`rate_mbit` of one TCP connection from `source` to `address`, which is the sink's."""

    def __init__(self, name: str, source: Namespace, sink: Namespace, address: str, rate_mbit: float) -> None:
        super().__init__(name)
        self._interval = CHUNK_BYTES * 8 / (rate_mbit * 1e6)
        self._sender, self._receiver = connect(source, sink, address)
        self._sockets = [self._sender, self._receiver]
        for sock in self._sockets:
            sock.settimeout(POLL_SECONDS)
        self._add_thread(self._send)
        self._add_thread(self._receive)

    def _send(self) -> None:
        sent = 0
        due = time.monotonic()
        while not self._ending:
            try:
                sent += self._sender.send(piece(sent, CHUNK_BYTES))
            except TimeoutError:
                continue
            now = time.monotonic()
            due = max(due + self._interval, now - self._interval)  # what a silence has cost is not made up for
            time.sleep(max(0.0, due - now))

    def _receive(self) -> None:
        buffer = memoryview(bytearray(4 * CHUNK_BYTES))
        while not self._ending:
            try:
                size = self._receiver.recv_into(buffer)
            except TimeoutError:
                continue
            if not size:
                self.error = f"{self.name}: the connection has ended"
                return
            if not is_piece(buffer[:size], self.received):
                self.error = f"{self.name}: other bytes than were sent, within {size} at {self.received}"
                return
            self.received += size
            self._arrived()


class Probe(Traffic):
    """Fifty datagrams a second from `source` to `address`, the far end's, and back."""

    def __init__(self, name: str, source: Namespace, far: Namespace, address: str) -> None:
        super().__init__(name)
        self.round_trips_ms: list[float] = []
        """Of those that have come back since the caller has emptied the list."""
        self.sent = 0
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._echoing = far.socket(family, socket.SOCK_DGRAM)
        self._echoing.bind((address, 0))
        self._probing = source.socket(family, socket.SOCK_DGRAM)
        self._to = (address, self._echoing.getsockname()[1])
        self._sockets = [self._echoing, self._probing]
        for sock in self._sockets:
            sock.settimeout(POLL_SECONDS)
        for work in (self._send, self._echo, self._receive):
            self._add_thread(work)

    def _send(self) -> None:
        sizes = random.Random(self.name)
        due = time.monotonic()
        while not self._ending:
            size = sizes.randint(*PROBE_SIZES)
            body = piece(self.sent, size - PROBE.size)
            head = PROBE.pack(self.sent, time.monotonic_ns(), zlib.crc32(body))
            self.sent += 1
            try:
                self._probing.sendto(head + bytes(body), self._to)
            except OSError:
                pass  # no route, or no address, for a moment: the silence shows it
            due = max(due + PROBE_SECONDS, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def _echo(self) -> None:
        while not self._ending:
            try:
                data, sender = self._echoing.recvfrom(2048)
                self._echoing.sendto(data, sender)
            except OSError:
                continue

    def _receive(self) -> None:
        while not self._ending:
            try:
                data = self._probing.recv(2048)
            except OSError:
                continue
            number, sent_ns, checksum = PROBE.unpack_from(data)
            if zlib.crc32(data[PROBE.size :]) != checksum or number >= self.sent:
                self.error = f"{self.name}: datagram {number} came back altered"
                return
            self.received += 1
            self.round_trips_ms.append((self._arrived() - sent_ns) / 1e6)
