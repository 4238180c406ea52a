"""Small load generators, each a process that prints JSON: python -m tools.load.generators WHAT ...

    ping ADDR                 ICMP echo, IPv4 or IPv6; one line: sent, rtts_ms in the order of arrival
    tcp-sink                  takes one connection; first {"port": N}, then {"time_ns", "bytes"} as they come
    tcp-source ADDR PORT      sends for --seconds; one line at the end
    udp-sink                  first {"port": N}, then one line at the end: received, duplicates, delays ...
    udp-arrivals              first {"port": N}, then a line for each packet, until it is ended
    udp-source ADDR PORT      packets of --size at --rate a second; one line at the end

Times are CLOCK_MONOTONIC, which all network namespaces of a machine share: sender's and receiver's compare. A
packet has arrived when the kernel says so (SO_TIMESTAMPNS), not when this process got a core to read it.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY = 8, 0  # linux/icmp.h
ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY = 128, 129  # linux/icmpv6.h
ICMP = struct.Struct("!BBHHHQ")  # type, code, checksum, id, sequence; then our send time
UDP_STAMP = struct.Struct("!QQ")  # sequence, send time
CHUNK_BYTES = 256 * 1024
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 32, 33, 35  # asm-generic/socket.h
CLOCK_READING_NS = 20_000
OVERSLEPT_SECONDS = 0.1
TIMESPEC = struct.Struct("=qq")
UDP_BUFFER_BYTES = 4 * 1024 * 1024


class Pings(msgspec.Struct):
    sent: int
    rtts_ms: list[float]
    """One for each echo that came back in time, in the order of arrival."""
    lost: list[int]
    """Sequence numbers that never came back."""
    duplicates: int = 0


class Sample(msgspec.Struct):
    time_ns: int
    bytes: int
    """In all, so far."""


class SinkEnd(msgspec.Struct):
    """The last line of tcp-sink."""

    bytes: int
    error: str
    """Empty when the other side closed properly."""


class Sent(msgspec.Struct):
    count: int
    """Bytes for TCP, packets for UDP."""
    seconds: float
    error: str = ""


class Arrival(msgspec.Struct):
    """A line of udp-arrivals."""

    number: int
    time_ns: int
    delay_ms: float


class Received(msgspec.Struct):
    received: int
    """Copies not counted."""
    bytes: int
    duplicates: int
    overtaken: int
    """Packets that came after one with a higher number."""
    seconds: float
    """From the first to the last."""
    delays_ms: list[float] = []
    sequence: list[int] = []
    """Both in the order of arrival; only with --each."""


def ping(address: str, count: int, interval: float, size: int, timeout: float = 1.0) -> Pings:
    """`count` echo requests of `size` payload bytes, one every `interval` seconds; `timeout` for the last.

    What has come before the last look counts. Time in which this process did not run is not the echo's.
    """
    family, kind, *_, where = socket.getaddrinfo(address, None, type=socket.SOCK_RAW)[0]
    six = family == socket.AF_INET6
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    request, reply = (ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY) if six else (ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY)
    identity = os.getpid() & 0xFFFF
    padding = bytes(max(0, size - 8))
    waiting: set[int] = set()
    rtts: list[float] = []
    duplicates = 0
    with socket.socket(family, kind, protocol) as echo:
        echo.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        echo.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        start = time.monotonic()
        sent = 0
        end = start
        while sent < count or waiting:
            due = start + sent * interval if sent < count else end
            ready, _, _ = select.select([echo], [], [], max(0.0, due - time.monotonic()))
            if ready:
                packet, came, _ = receive(echo)
                message = packet if six else packet[(packet[0] & 15) * 4 :]  # IPv4 comes with its header
                if len(message) < ICMP.size:
                    continue
                what, _, _, identifier, number, stamp = ICMP.unpack_from(message)
                sequence = next((one for one in waiting if one & 0xFFFF == number), None)
                if what != reply or identifier != identity:
                    continue
                if sequence is None:
                    duplicates += 1
                else:
                    waiting.discard(sequence)
                    rtts.append((came - stamp) / 1e6)
            elif sent < count:
                message = _echo(request, identity, sent & 0xFFFF, padding, six)
                waiting.add(sent)
                sent += 1
                end = time.monotonic() + timeout
                try:
                    echo.sendto(message, where)
                except OSError:
                    continue  # no route, or no room: it counts as lost
            elif (overslept := time.monotonic() - end) > OVERSLEPT_SECONDS:
                end += 2 * overslept
            else:
                break
    return Pings(sent=sent, rtts_ms=rtts, lost=sorted(waiting), duplicates=duplicates)


def _echo(request: int, identity: int, number: int, padding: bytes, six: bool) -> bytes:
    """The kernel fills in the checksum for IPv6, not for IPv4."""
    stamp = time.monotonic_ns()
    message = ICMP.pack(request, 0, 0, identity, number, stamp) + padding
    if six:
        return message
    padded = message + b"\0" * (len(message) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ICMP.pack(request, 0, ~total & 0xFFFF, identity, number, stamp) + padding


def receive(source: socket.socket) -> tuple[bytes, int, Any]:
    """A datagram, the monotonic time of its arrival, and its address. The kernel's stamp, which a socket with
    SO_TIMESTAMPNS gets, is on the wall clock."""
    packet, ancillary, _, address = source.recvmsg(65536, 64)
    for _, kind, content in ancillary:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(content)
            return packet, seconds * 1_000_000_000 + nanoseconds - _wall_less_monotonic(), address
    return packet, time.monotonic_ns(), address


def _wall_less_monotonic() -> int:
    """Read anew each time, since the wall clock may be set; and again if we lost the core in between."""
    while True:
        before = time.monotonic_ns()
        wall = time.time_ns()
        if time.monotonic_ns() - before < CLOCK_READING_NS:
            return wall - before


def tcp_sink(address: str, port: int, interval: float) -> Iterator[dict | Sample | SinkEnd]:
    """Take one connection. A sample whenever bytes arrive, at most one every `interval` seconds."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        yield {"port": listener.getsockname()[1]}
        connection, _ = listener.accept()
    buffer = bytearray(CHUNK_BYTES)
    total, next_sample, error = 0, 0, ""
    with connection:
        try:
            while got := connection.recv_into(buffer):
                total += got
                now = time.monotonic_ns()
                if now >= next_sample:
                    next_sample = now + round(interval * 1e9)
                    yield Sample(time_ns=now, bytes=total)
        except OSError as failure:
            error = str(failure)
    yield SinkEnd(bytes=total, error=error)


def tcp_source(address: str, port: int, seconds: float, rate_mbit: float | None) -> Sent:
    """Send zeroes as fast as they go, or at `rate_mbit`."""
    chunk = memoryview(bytes(CHUNK_BYTES if rate_mbit is None else 16 * 1024))
    total, error = 0, ""
    start = time.monotonic()
    try:
        with socket.create_connection((address, port), timeout=max(10.0, seconds)) as connection:
            start = time.monotonic()
            while (passed := time.monotonic() - start) < seconds:
                if rate_mbit is not None and total * 8 > rate_mbit * 1e6 * passed:
                    time.sleep(0.001)
                    continue
                total += connection.send(chunk)
    except OSError as failure:
        error = str(failure)
    return Sent(count=total, seconds=time.monotonic() - start, error=error)


def udp_sink(address: str, port: int, idle: float, each: bool) -> Iterator[dict | Received]:
    """Count until standard input has ended and nothing has come for `idle` seconds, after the first packet."""
    with _udp_listener(address, port) as sink:
        yield {"port": sink.getsockname()[1]}
        seen: set[int] = set()
        result = Received(received=0, bytes=0, duplicates=0, overtaken=0, seconds=0.0)
        highest, first, last = -1, 0, 0
        sink.settimeout(None)
        while True:
            try:
                packet, came, _ = receive(sink)
            except TimeoutError:
                if select.select([sys.stdin], [], [], 0)[0]:
                    break
                continue
            number, stamp = UDP_STAMP.unpack_from(packet)
            if not first:
                first = came
                sink.settimeout(idle)
            last = came
            if each:
                result.sequence.append(number)
                result.delays_ms.append((came - stamp) / 1e6)
            if number in seen:
                result.duplicates += 1
                continue
            seen.add(number)
            result.received += 1
            result.bytes += len(packet)
            result.overtaken += number < highest
            highest = max(highest, number)
        result.seconds = (last - first) / 1e9
        yield result


def udp_arrivals(address: str, port: int) -> Iterator[dict | Arrival]:
    """Every packet as it comes, copies too, until this process is ended."""
    with _udp_listener(address, port) as sink:
        yield {"port": sink.getsockname()[1]}
        while True:
            packet, came, _ = receive(sink)
            number, stamp = UDP_STAMP.unpack_from(packet)
            yield Arrival(number=number, time_ns=came, delay_ms=(came - stamp) / 1e6)


def _udp_listener(address: str, port: int) -> socket.socket:
    sink = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, UDP_BUFFER_BYTES)
    sink.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sink.bind((address, port))
    return sink


def udp_source(address: str, port: int, size: int, rate: float, count: int) -> Sent:
    """`count` packets of `size` payload bytes, `rate` a second; with 0, until standard input ends."""
    padding = bytes(max(0, size - UDP_STAMP.size))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as source:
        source.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, UDP_BUFFER_BYTES)
        source.connect((address, port))
        start = time.monotonic()
        sent = 0
        while not count or sent < count:
            wait = max(0.0, start + sent / rate - time.monotonic())
            if count:
                time.sleep(wait)
            elif select.select([sys.stdin], [], [], wait)[0]:
                break
            source.send(UDP_STAMP.pack(sent, time.monotonic_ns()) + padding)
            sent += 1
        return Sent(count=sent, seconds=time.monotonic() - start)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.load.generators", description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("ping")
    one.add_argument("address")
    one.add_argument("--count", type=int, default=10)
    one.add_argument("--interval", type=float, default=0.1, help="seconds")
    one.add_argument("--size", type=int, default=56, help="payload bytes")
    one.add_argument("--timeout", type=float, default=1.0, help="seconds to wait for the last answer")
    one = what.add_parser("tcp-sink")
    one.add_argument("--address", default="0.0.0.0")
    one.add_argument("--port", type=int, default=0)
    one.add_argument("--interval", type=float, default=0.005, help="seconds between samples, at least")
    one = what.add_parser("tcp-source")
    one.add_argument("address")
    one.add_argument("port", type=int)
    one.add_argument("--seconds", type=float, default=5.0)
    one.add_argument("--rate-mbit", type=float)
    one = what.add_parser("udp-sink")
    one.add_argument("--address", default="0.0.0.0")
    one.add_argument("--port", type=int, default=0)
    one.add_argument("--idle", type=float, default=1.0, help="seconds of silence at the end")
    one.add_argument("--each", action="store_true", help="list every packet")
    one = what.add_parser("udp-arrivals")
    one.add_argument("--address", default="0.0.0.0")
    one.add_argument("--port", type=int, default=0)
    one = what.add_parser("udp-source")
    one.add_argument("address")
    one.add_argument("port", type=int)
    one.add_argument("--size", type=int, default=200)
    one.add_argument("--rate", type=float, default=1000.0, help="packets a second")
    one.add_argument("--count", type=int, default=1000, help="0: until standard input ends")
    return parser


def _results(arguments: argparse.Namespace) -> Iterator[object]:
    options = vars(arguments)
    what = options.pop("what")
    sinks: dict[str, Callable[..., Iterator[object]]] = {
        "tcp-sink": tcp_sink,
        "udp-sink": udp_sink,
        "udp-arrivals": udp_arrivals,
    }
    if what in sinks:
        yield from sinks[what](**options)
    else:
        sources: dict[str, Callable[..., object]] = {"ping": ping, "tcp-source": tcp_source, "udp-source": udp_source}
        yield sources[what](**options)


def main(argv: list[str]) -> int:
    for result in _results(_parser().parse_args(argv)):
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
