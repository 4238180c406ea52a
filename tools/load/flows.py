"""Load between two nodes: the generators of tools/load/generators.py, started inside the nodes, with values as results.

ping       echo round trips
Echoes     echo round trips that run beside something else
udp_flow   packets one way, and the fate of each
UdpFlow    packets one way until the caller ends it; arrivals as they happen
TcpFlow    one TCP connection that runs beside something else; arrivals as they happen
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Self

import msgspec

from tools.lab.namespace import LabError, Namespace, stop
from tools.lab.waiting import POLL_SECONDS, until
from tools.load.generators import Arrival, Pings, Received, Sample, Sent, SinkEnd

LOAD = [sys.executable, "-P", "-m", "tools.load.generators"]
READY_SECONDS = 10.0
END_SECONDS = 10.0


def ping(
    node: Namespace, address: str, *, count: int = 10, interval: float = 0.1, size: int = 56, timeout: float = 1.0
) -> Pings:
    """Echo requests from `node`; see tools.load.generators.ping."""
    said = node.run(
        _ping_command(address, count, interval, size, timeout), timeout=count * interval + timeout + READY_SECONDS
    )
    return msgspec.json.decode(said.stdout, type=Pings)


class Echoes:
    """A ping under way from `node`."""

    def __init__(
        self, node: Namespace, address: str, *, count: int, interval: float, size: int = 56, timeout: float = 1.0
    ) -> None:
        self._address = address
        self._seconds = count * interval + timeout + READY_SECONDS
        self._process = node.popen(_ping_command(address, count, interval, size, timeout), stdout=subprocess.PIPE)

    def finish(self) -> Pings:
        """Wait for the last echo or its time."""
        with self._process:
            try:
                said, _ = self._process.communicate(timeout=self._seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise LabError(f"ping to {self._address}: no end within {self._seconds:g} s") from None
        if not said:
            raise LabError(f"ping to {self._address}: exit status {self._process.returncode}")
        return msgspec.json.decode(said, type=Pings)


def udp_flow(
    source: Namespace, sink: Namespace, address: str, *, count: int, rate: float, size: int = 200, idle: float = 0.5
) -> Received:
    """`count` packets from `source` to `address`, which is the sink's; every one of them is listed."""
    counting = sink.popen(
        [*LOAD, "udp-sink", "--address", _any(address), "--idle", idle, "--each"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with counting:
        port = _port(counting)
        source.run(
            [*LOAD, "udp-source", address, port, "--count", count, "--rate", rate, "--size", size],
            timeout=count / rate + READY_SECONDS,
        )
        try:
            said, _ = counting.communicate(timeout=idle + END_SECONDS)
        except subprocess.TimeoutExpired:
            stop([counting], END_SECONDS)
            raise LabError(f"udp flow to {address}: none of {count} packets arrived") from None
    return msgspec.json.decode(said, type=Received)


class _Flow:
    """A source and a sink, two processes, and a thread that reads what the sink says, line by line."""

    _source: subprocess.Popen
    _sink: subprocess.Popen

    def _begin(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        stop([self._source, self._sink], END_SECONDS)
        self._reader.join()
        for stream in (self._source.stdin, self._source.stdout, self._sink.stdout):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self._sink.stdout is not None
        for line in self._sink.stdout:
            self._heard(line)

    def _heard(self, line: bytes) -> None:
        raise NotImplementedError


class UdpFlow(_Flow):
    """Packets of `size` payload bytes, `rate` a second, from `source` to `address`, the sink's, until end()."""

    def __init__(self, source: Namespace, sink: Namespace, address: str, *, rate: float, size: int = 200) -> None:
        self.arrivals: list[Arrival] = []
        """Grows as packets arrive."""
        self.sent = 0
        """Known after end()."""
        self._sink = sink.popen([*LOAD, "udp-arrivals", "--address", _any(address)], stdout=subprocess.PIPE)
        port = _port(self._sink)
        self._source = source.popen(
            [*LOAD, "udp-source", address, port, "--count", 0, "--rate", rate, "--size", size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._begin()

    def end(self) -> int:
        """No more packets; how many were sent."""
        try:
            said, _ = self._source.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(f"udp source: did not end within {END_SECONDS:g} s") from None
        if not said:
            raise LabError(f"udp source: ended early, exit status {self._source.returncode}")
        self.sent = msgspec.json.decode(said, type=Sent).count
        return self.sent

    def missing(self) -> int:
        """Packets sent that have not arrived."""
        return self.sent - len({arrival.number for arrival in list(self.arrivals)})

    def wait_for_all(self, deadline: float) -> None:
        """Until every packet has arrived, or time.monotonic() is `deadline`."""
        while self.missing() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _heard(self, line: bytes) -> None:
        self.arrivals.append(msgspec.json.decode(line, type=Arrival))


class TcpFlow(_Flow):
    """One connection from `source` to `address`, the sink's, for `seconds` or until close() is called."""

    def __init__(
        self,
        source: Namespace,
        sink: Namespace,
        address: str,
        *,
        seconds: float,
        rate_mbit: float | None = None,
        interval: float = 0.005,
    ) -> None:
        self.samples: list[Sample] = []
        """Grows as bytes arrive."""
        self.end: SinkEnd | None = None
        self._sink = sink.popen(
            [*LOAD, "tcp-sink", "--address", _any(address), "--interval", interval], stdout=subprocess.PIPE
        )
        self.port = _port(self._sink)
        """The sink's."""
        options = [] if rate_mbit is None else ["--rate-mbit", rate_mbit]
        self._source = source.popen(
            [*LOAD, "tcp-source", address, self.port, "--seconds", seconds, *options], stdout=subprocess.PIPE
        )
        self._begin()

    @property
    def alive(self) -> bool:
        """Both ends of the connection are there."""
        return self._source.poll() is None and self.end is None

    def wait_for_bytes(self, count: int = 1, seconds: float = READY_SECONDS) -> None:
        """Until `count` more bytes have arrived."""
        before = self.samples[-1].bytes if self.samples else 0
        until(
            lambda: (self.samples and self.samples[-1].bytes >= before + count) or not self.alive,
            f"{count} bytes over the TCP connection",
            seconds,
        )

    def finish(self, seconds: float) -> tuple[Sent, SinkEnd]:
        """Wait for the source's time to pass and for both ends' last words."""
        said, _ = self._source.communicate(timeout=seconds)
        self._reader.join(END_SECONDS)
        if self.end is None:
            raise LabError("tcp flow: the sink did not see the end of the connection")
        return msgspec.json.decode(said, type=Sent), self.end

    def _heard(self, line: bytes) -> None:
        if b"time_ns" in line:
            self.samples.append(msgspec.json.decode(line, type=Sample))
        else:
            self.end = msgspec.json.decode(line, type=SinkEnd)


def _ping_command(address: str, count: int, interval: float, size: int, timeout: float) -> list[object]:
    return [*LOAD, "ping", address, "--count", count, "--interval", interval, "--size", size, "--timeout", timeout]


def _port(process: subprocess.Popen) -> int:
    """The port that a sink prints first."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise LabError(f"load generator ended at once, exit status {process.wait()}")
    return msgspec.json.decode(line)["port"]


def _any(address: str) -> str:
    return "::" if ":" in address else "0.0.0.0"
