"""A flood of connections without a handshake: python -m tools.load.flood HOST PORT --rate 1000 --seconds 20

The connections are of the KINDS in turn. With --hellos each sends the first flight of our own TLS handshake, and leaves
with the answer. A connection ends when the server closes it, or after --patience seconds. With
--source PREFIX each connection comes from another address, so that limits on one address do not hold the flood back;
tools.load.client_swarm says what that needs. At the end, standard output gets one JSON object: how many connections
were opened, and how they ended.
"""

from __future__ import annotations

import argparse
import ipaddress
import random
import selectors
import socket
import ssl
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from pipeline.transport.settings import ALPN

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen by connect, which knows both ends
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() resets
LAG_SECONDS = 0.1  # connections that are due for longer are not made up for
READ_BYTES = 4096
SOURCES_MAX = 60000  # addresses used, at most


class Flooded(msgspec.Struct):
    """The result: counts of connections."""

    seconds: float
    opened: int
    connected: int
    failed: int
    """Connections that were opened and never connected."""
    ended: dict[str, int]
    """Connected ones, by their end: "closed" or "reset" by the server, "left" by it; with --hellos "answered"."""
    opened_a_second: float


def client_hello(protocol: str = "h2") -> bytes:
    """The first flight of a TLS handshake, for HTTPS."""
    context = ssl.create_default_context()
    context.set_alpn_protocols([protocol])
    out = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="example.org").do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("a TLS handshake that needs no answer")


HELLO = client_hello()
NOISE = random.Random(1).randbytes(65536)

KINDS: dict[str, Callable[[], bytes | None]] = {
    "garbage": lambda: NOISE[(at := random.randrange(60000)) : at + random.randrange(1, 2000)],
    "http": lambda: b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n",
    "ssh": lambda: b"SSH-2.0-OpenSSH_9.6\r\n",
    "tls": lambda: HELLO,
    "half": lambda: HELLO[: len(HELLO) // 2],
    "long": lambda: b"\x16\x03\x01\xff\xff" + NOISE[:1000],
    "record": lambda: HELLO + NOISE[:500],
    "silence": lambda: b"",
    "leaves": lambda: None,
    "resets": lambda: None,
}
"""The first bytes of a connection; None: it ends at once, and sends nothing."""

OUR_HELLO = client_hello(ALPN)


class Flood:
    """`rate` connections a second to one address. `network`: their source addresses; None: the kernel chooses.

    `hellos`: each sends OUR_HELLO.
    """

    def __init__(
        self,
        address: tuple[str, int],
        rate: float,
        patience: float,
        network: ipaddress.IPv4Network | None,
        hellos: bool = False,
    ) -> None:
        self._hellos = hellos
        self._address = address
        self._rate = rate
        self._patience_ns = int(patience * 1e9)
        self._network = network
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[tuple[int, socket.socket]] = deque()  # ns of opening, and the socket; closed ones too
        self._opened = self._connected = self._failed = 0
        self._ended: Counter[str] = Counter()

    def run(self, seconds: float) -> Flooded:
        kinds = list(KINDS)
        started = due = time.monotonic()
        while (now := time.monotonic()) < started + seconds:
            due = max(due, now - LAG_SECONDS)
            while due <= now:
                due += 1 / self._rate
                self._open(kinds[self._opened % len(kinds)])
            self._serve(max(0.0, min(due, started + seconds) - time.monotonic()))
        took = time.monotonic() - started
        for _, sock in self._waiting:
            if sock.fileno() >= 0:
                self._end(sock, "left")
        self._selector.close()
        return Flooded(took, self._opened, self._connected, self._failed, dict(self._ended), self._opened / took)

    def _open(self, kind: str) -> None:
        self._opened += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if self._network is not None:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind(
                    (str(self._network[1 + random.randrange(min(SOURCES_MAX, self._network.num_addresses - 2))]), 0)
                )
            sock.connect_ex(self._address)
            self._selector.register(sock, selectors.EVENT_WRITE, (sock, kind))
        except OSError:
            self._failed += 1
            sock.close()
            return
        self._waiting.append((time.monotonic_ns(), sock))

    def _serve(self, seconds: float) -> None:
        for key, events in self._selector.select(seconds):
            sock, kind = key.data
            if events & selectors.EVENT_WRITE:
                self._on_connected(sock, kind)
            else:
                self._read(sock)
        opened_before = time.monotonic_ns() - self._patience_ns
        while self._waiting and (self._waiting[0][1].fileno() < 0 or self._waiting[0][0] < opened_before):
            _, sock = self._waiting.popleft()
            if sock.fileno() >= 0:
                self._end(sock, "left")

    def _on_connected(self, sock: socket.socket, kind: str) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._failed += 1
            self._selector.unregister(sock)
            sock.close()
            return
        self._connected += 1
        data = OUR_HELLO if self._hellos else KINDS[kind]()
        if data is None:
            if kind == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._end(sock, "left")
            return
        try:
            if data:
                sock.send(data)
        except OSError:
            self._end(sock, "reset")
            return
        self._selector.modify(sock, selectors.EVENT_READ, (sock, kind))

    def _read(self, sock: socket.socket) -> None:
        try:
            how = "answered" if sock.recv(READ_BYTES) else "closed"
            if how == "answered":
                if not self._hellos:
                    return
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError:
            how = "reset"
        self._end(sock, how)

    def _end(self, sock: socket.socket, how: str) -> None:
        self._ended[how] += 1
        self._selector.unregister(sock)
        sock.close()


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    network = ipaddress.IPv4Network(options.source) if options.source else None
    flood = Flood((options.host, options.port), options.rate, options.patience, network, options.hellos)
    sys.stdout.buffer.write(msgspec.json.encode(flood.run(options.seconds)) + b"\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.load.flood", description=__doc__.partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=1000.0, metavar="N", help="connections a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S")
    parser.add_argument(
        "--patience",
        type=float,
        default=15.0,
        metavar="S",
        help="the flood ends a connection that the server has not closed after this time (%(default)s)",
    )
    parser.add_argument(
        "--hellos", action="store_true", help="send TLS handshakes of our own, and leave with the answer"
    )
    parser.add_argument("--source", metavar="PREFIX", default="", help="dial from all addresses of this network")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
