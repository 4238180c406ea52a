"""Load between two nodes: the generators of tools/load.py started inside them, their results as values.

    ping       echo round trips
    udp_flow   packets one way, with what became of each
    TcpFlow    one TCP connection that runs while something else happens; what arrived, as it arrives
"""

from __future__ import annotations

import subprocess
import sys
import threading
from types import TracebackType

import msgspec

from tools.load import Pings, Received, Sample, Sent, SinkEnd
from tools.namespace import LabError, Namespace, stop
from tools.waiting import until

LOAD = [sys.executable, "-P", "-m", "tools.load"]
READY_SECONDS = 10.0
END_SECONDS = 10.0


def ping(node: Namespace, address: str, *, count: int = 10, interval: float = 0.1, size: int = 56,
         timeout: float = 1.0) -> Pings:
    """Echo requests from `node`; see tools.load.ping."""
    said = node.run([*LOAD, "ping", address, "--count", count, "--interval", interval, "--size", size,
                     "--timeout", timeout], timeout=count * interval + timeout + READY_SECONDS)
    return msgspec.json.decode(said.stdout, type=Pings)


def udp_flow(source: Namespace, sink: Namespace, address: str, *, count: int, rate: float, size: int = 200,
             idle: float = 0.5) -> Received:
    """`count` packets from `source` to `address`, which is the sink's; every one of them is listed."""
    counting = sink.popen([*LOAD, "udp-sink", "--address", _any(address), "--idle", idle, "--each"],
                          stdout=subprocess.PIPE)
    with counting:
        port = _port(counting)
        source.run([*LOAD, "udp-source", address, port, "--count", count, "--rate", rate, "--size", size],
                   timeout=count / rate + READY_SECONDS)
        try:
            said, _ = counting.communicate(timeout=idle + END_SECONDS)
        except subprocess.TimeoutExpired:
            stop([counting], END_SECONDS)
            raise LabError(f"udp flow to {address}: none of {count} packets arrived") from None
    return msgspec.json.decode(said, type=Received)


class TcpFlow:
    """One connection from `source` to `address`, the sink's, for `seconds` or until close() is called."""

    def __init__(self, source: Namespace, sink: Namespace, address: str, *, seconds: float,
                 rate_mbit: float | None = None, interval: float = 0.005) -> None:
        self.samples: list[Sample] = []
        """Grows as bytes arrive."""
        self.end: SinkEnd | None = None
        self._sink = sink.popen([*LOAD, "tcp-sink", "--address", _any(address), "--interval", interval],
                                stdout=subprocess.PIPE)
        port = _port(self._sink)
        limit = [] if rate_mbit is None else ["--rate-mbit", rate_mbit]
        self._source = source.popen([*LOAD, "tcp-source", address, port, "--seconds", seconds, *limit],
                                    stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> TcpFlow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        stop([self._source, self._sink], END_SECONDS)
        self._reader.join()
        self._source.stdout.close()
        self._sink.stdout.close()

    @property
    def alive(self) -> bool:
        """Both ends of the connection are there."""
        return self._source.poll() is None and self.end is None

    def wait_for_bytes(self, count: int = 1, seconds: float = READY_SECONDS) -> None:
        """Until `count` more bytes have arrived."""
        before = self.samples[-1].bytes if self.samples else 0
        until(lambda: self.samples and self.samples[-1].bytes >= before + count or not self.alive,
              f"{count} bytes over the TCP connection", seconds)

    def finish(self, seconds: float) -> tuple[Sent, SinkEnd]:
        """Wait for the source's time to pass and for both ends' last words."""
        said, _ = self._source.communicate(timeout=seconds)
        self._reader.join(END_SECONDS)
        if self.end is None:
            raise LabError("tcp flow: the sink did not see the end of the connection")
        return msgspec.json.decode(said, type=Sent), self.end

    def _read(self) -> None:
        for line in self._sink.stdout:
            if b"time_ns" in line:
                self.samples.append(msgspec.json.decode(line, type=Sample))
            else:
                self.end = msgspec.json.decode(line, type=SinkEnd)


def _port(process: subprocess.Popen) -> int:
    """What a sink says first."""
    line = process.stdout.readline()
    if not line:
        raise LabError(f"load generator ended at once, exit status {process.wait()}")
    return msgspec.json.decode(line)["port"]


def _any(address: str) -> str:
    return "::" if ":" in address else "0.0.0.0"
