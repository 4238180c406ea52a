"""The speed of a TLS channel and its memory while idle. Start it from the repository's root:

    python -m tools.bench.tls [MB of each run] [rounds] [channels]

One process sends blocks of 64 KiB to another over loopback. The results are the throughput, the CPU time of either end
for a block, and the memory of channels at the server. The first two are medians of rounds in which the ways take turns.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import socket
import ssl
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.transport.tls_context import TlsContext, client_context, server_context
from tests.harness.tls_ends import NAME, VIEW, End, issue, tcp_pair, wait

BLOCK = 65536
HEAD = 11  # bytes of a block that are a piece of their own
WAYS = ("plain", "seal", "records", "SSLSocket")
MICRO = 1e6


class Cost(NamedTuple):
    """Of one end in a run, whole."""

    seconds: float
    user: float
    system: float
    faults: float


def _measured(work: Callable[[], None]) -> Cost:
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return Cost(
        seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    )


def _push(sock: socket.socket, pieces: list) -> None:
    size = sum(map(len, pieces))
    while True:
        try:
            sent = sock.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        if sent == size:
            return
        size -= sent
        pieces = [memoryview(b"".join(pieces))[sent:]]
        wait(sock, select.POLLOUT)


def _pull(receive: Callable[[memoryview], int], sock: socket.socket, total: int) -> None:
    view = memoryview(bytearray(VIEW))
    while total > 0:
        try:
            total -= receive(view)
        except BlockingIOError:
            wait(sock, select.POLLIN)


def _ready(end: End) -> End:
    while not end.step():
        wait(end.socket, select.POLLIN)
    return end


def _send(way: str, sock: socket.socket, context: TlsContext, blocks: int) -> Cost:
    block = memoryview(bytearray(BLOCK))
    pieces = [block[:HEAD], block[HEAD:]]
    if way == "SSLSocket":
        with context.wrap_socket(sock, server_hostname=NAME) as secure:
            return _measured(lambda: _repeat(blocks, lambda: _push_all(secure, pieces)))
    end = End(sock, context, server=False)
    if way == "plain":
        return _measured(lambda: _repeat(blocks, lambda: _push(sock, pieces)))
    channel = _ready(end).channel
    seal = channel.seal_records if way == "records" else lambda pieces: [channel.seal(pieces)]
    return _measured(lambda: _repeat(blocks, lambda: _push(sock, seal(pieces))))


def _push_all(sock: ssl.SSLSocket, pieces: Sequence[memoryview]) -> None:
    for piece in pieces:
        sock.sendall(piece)


def _repeat(times: int, act: Callable[[], object]) -> None:
    for _ in range(times):
        act()


def _receive(way: str, sock: socket.socket, context: TlsContext, blocks: int) -> Cost:
    if way == "SSLSocket":
        with context.wrap_socket(sock, server_side=True) as secure:
            return _measured(lambda: _pull(secure.recv_into, secure, blocks * BLOCK))
    end = End(sock, context, server=True)
    receive = sock.recv_into if way == "plain" else _ready(end).channel.receive
    return _measured(lambda: _pull(receive, sock, blocks * BLOCK))


def _run(way: str, client: TlsContext, server: TlsContext, blocks: int) -> tuple[Cost, Cost]:
    """The cost of a block at both ends, on average."""
    near, far = tcp_pair()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        far.close()
        os.write(writing, " ".join(map(str, _send(way, near, client, blocks))).encode())
        os._exit(0)
    near.close()
    os.close(writing)
    with far, open(reading) as file:
        received = _receive(way, far, server, blocks)
        sent = Cost(*map(float, file.read().split()))
    os.waitpid(child, 0)
    return Cost(*(each / blocks for each in sent)), Cost(*(each / blocks for each in received))


def _speed(client: TlsContext, server: TlsContext, megabytes: int, rounds: int) -> None:
    runs: dict[str, list[tuple[Cost, Cost]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            runs[way].append(_run(way, client, server, megabytes * (1 << 20) // BLOCK))
    print(f"{megabytes} MB, median of {rounds}; us of CPU and page faults for a block of {BLOCK} bytes")
    columns = f"{'':4}{'CPU':>6}{'user':>6}{'system':>7}{'faults':>7}"
    print(f"{'':10}{'MB/s':>8}{columns}{columns}   sending, receiving")
    for way, found in runs.items():
        sent, received = (
            Cost(*map(statistics.median, zip(*(run[end] for run in found), strict=True))) for end in (0, 1)
        )
        ends = "".join(
            f"{'':4}{MICRO * (end.user + end.system):6.1f}{MICRO * end.user:6.1f}{MICRO * end.system:7.1f}"
            f"{end.faults:7.2f}"
            for end in (sent, received)
        )
        print(f"{way:10}{BLOCK / received.seconds / 1e6:8.0f}{ends}")


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _memory(client: TlsContext, server: TlsContext, channels: int) -> None:
    pairs = [socket.socketpair() for _ in range(channels)]
    child = os.fork()
    if not child:
        for _, far in pairs:
            far.close()
        others = [_ready(End(near, client, server=False)) for near, _ in pairs]
        for end in others:
            end.send(bytes(BLOCK))
        for end in others:
            end.receive_all(BLOCK)
        os._exit(0)
    before = _resident()
    ends, figures = [], []
    for near, far in pairs:
        near.close()
        ends.append(End(far, server, server=True))
    begun = time.process_time()
    for end in ends:
        _ready(end)
    handshake = (time.process_time() - begun) / channels
    figures.append(_resident())
    for end in ends:
        end.receive_all(BLOCK)
    figures.append(_resident())
    for end in ends:
        end.send(bytes(BLOCK))
    figures.append(_resident())
    os.waitpid(child, 0)
    idle, received, busy = ((figure - before) // channels for figure in figures)
    print(
        f"{channels} channels: {idle} bytes each after the handshake ({MICRO * handshake:.0f} us of CPU), {received} "
        f"after a block came in, {busy} after one went out too"
    )


def _main(megabytes: int = 300, rounds: int = 5, channels: int = 500) -> None:
    own = issue(NAME)
    server = server_context(own.certificate, own.key)
    client = client_context(ca_pem=own.certificate, system_cas=False, verify=True)
    print(f"{ssl.OPENSSL_VERSION}, Python {sys.version.split()[0]}")
    _memory(client, server, channels)
    _speed(client, server, megabytes, rounds)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
