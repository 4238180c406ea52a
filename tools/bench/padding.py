"""What padding costs (setting `padding`). Start it as root from the repository's root:

    python -m tools.bench.padding [rounds] [fec]

Small exchanges pass a tunnel between two namespaces, with padding at both ends and without, in turn. The bytes are
those of the link, both ways, with the headers of TCP, IP and Ethernet and the kernel's acknowledgements. CPU time is
that of all workers of both ends. For bulk: `bench pairs --set encryption=tls --first padding=true --second
padding=false`.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from tools.bench import measure
from tools.lab.network import Lab, Node
from tools.load.flows import ping
from tools.tunnel_pair import TunnelPair

DEVICE = "link0"
PINGS, PING_SECONDS = 600, 0.01
KEYS, KEY, KEY_SECONDS = 600, bytes(36), 0.01  # a keystroke in a packet of ssh
SCREEN_EACH, SCREEN = 10, bytes(420)  # what a command shows
VOICE, VOICE_PACKET, VOICE_SECONDS = 600, bytes(172), 0.01  # 20 ms of G.711, and the header of RTP
DNS, QUESTION, ANSWER, DNS_SECONDS = 300, bytes(40), bytes(160), 0.01
BULK_BYTES = 200_000_000


class Cost(NamedTuple):
    """Of one exchange, whole."""

    up: float  # bytes on the link, from the client
    down: float  # and to it
    cpu: float  # seconds
    rtt_ms: float  # median, where the exchange has one


def pings(client: Node, server: Node, address: str) -> float:
    return statistics.median(ping(client, address, count=PINGS, interval=PING_SECONDS).rtts_ms)


def shell(client: Node, server: Node, address: str) -> float:
    """Each key is echoed. Now and then there is a screen of output."""
    with server.socket() as listener:
        listener.bind((address, 0))
        listener.listen()

        def echo() -> None:
            with listener.accept()[0] as end:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for number in range(1, KEYS + 1):
                    end.recv(len(KEY), socket.MSG_WAITALL)
                    end.sendall(KEY if number % SCREEN_EACH else KEY + SCREEN)

        return _asking(client.socket(), listener.getsockname(), echo, KEYS, KEY, KEY_SECONDS)


def names(client: Node, server: Node, address: str) -> float:
    with server.socket(kind=socket.SOCK_DGRAM) as resolver:
        resolver.bind((address, 0))

        def answer() -> None:
            for _ in range(DNS):
                _, source = resolver.recvfrom(512)
                resolver.sendto(ANSWER, source)

        asking = client.socket(kind=socket.SOCK_DGRAM)
        return _asking(asking, resolver.getsockname(), answer, DNS, QUESTION, DNS_SECONDS)


def voice(client: Node, server: Node, address: str) -> float:
    """A call, both ways: nobody waits for the other."""
    with client.socket(kind=socket.SOCK_DGRAM) as near, server.socket(kind=socket.SOCK_DGRAM) as far:
        far.bind((address, 0))
        near.connect(far.getsockname())
        near.send(VOICE_PACKET)
        far.connect(far.recvfrom(512)[1])
        for _ in range(VOICE):
            near.send(VOICE_PACKET)
            far.send(VOICE_PACKET)
            time.sleep(VOICE_SECONDS)
    return 0.0


def _asking(
    near: socket.socket, to: tuple[str, int], answer: Callable[[], None], count: int, message: bytes, pause: float
) -> float:
    """Median milliseconds up to the first bytes of the answer."""
    with near:
        near.settimeout(5.0)
        answering = threading.Thread(target=answer)
        answering.start()
        near.connect(to)
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            near.send(message)
            near.recv(4096)
            times.append(1000 * (time.perf_counter() - begun))
            time.sleep(pause)
        answering.join()
    return statistics.median(times)


def download(client: Node, server: Node, address: str) -> float:
    """Bulk one way, and acknowledgements the other."""
    with server.socket() as listener:
        listener.bind((address, 0))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as end:
                end.sendall(bytes(BULK_BYTES))

        serving = threading.Thread(target=serve)
        serving.start()
        with client.socket() as near:
            near.connect(listener.getsockname())
            while near.recv(1 << 20):
                pass
        serving.join()
    return 0.0


EXCHANGES = {
    f"{PINGS} pings": pings,
    f"{KEYS} keys of a shell": shell,
    f"{DNS} questions of DNS": names,
    f"{VOICE} packets of voice": voice,
    f"{BULK_BYTES // 1_000_000} MB downloaded": download,
}


def on_link(node: Node) -> tuple[int, int]:
    """Bytes out and in."""
    (shown,) = json.loads(node.run(["ip", "-j", "-s", "link", "show", "dev", DEVICE]).stdout)
    return shown["stats64"]["tx"]["bytes"], shown["stats64"]["rx"]["bytes"]


def costs(lab: Lab, fec: str, padding: bool) -> dict[str, Cost]:
    server, client = lab.nodes
    found = {}
    with TunnelPair(server, client, {"encryption": "tls", "fec": fec, "padding": padding}) as pair:
        pids = [worker["pid"] for end in pair.ends().values() for worker in end.running()["workers"]]
        time.sleep(3.0)  # spares have started
        for name, exchange in EXCHANGES.items():
            before, cpu = on_link(client), sum(map(measure.cpu_seconds, pids))
            rtt = exchange(client, server, pair.server.address)
            time.sleep(0.1)
            up, down = (after - each for after, each in zip(on_link(client), before, strict=True))
            found[name] = Cost(up, down, sum(map(measure.cpu_seconds, pids)) - cpu, rtt)
    return found


def _main(given: str = "3", fec: str = "off") -> None:
    rounds = int(given)
    runs: dict[bool, list[dict[str, Cost]]] = {False: [], True: []}
    with Lab() as lab:
        for number in range(rounds):
            for padding in (False, True) if number % 2 == 0 else (True, False):
                runs[padding].append(costs(lab, fec, padding))
    print(f"fec {fec}, medians of {rounds}: without padding, with it")
    print(f"{'':24}{'kB to the server':>18}{'kB to the client':>18}{'CPU, ms':>16}{'answer, ms':>18}")
    for name in EXCHANGES:
        plain, padded = (
            Cost(*map(statistics.median, zip(*(run[name] for run in runs[way]), strict=True))) for way in (False, True)
        )
        print(
            f"{name:24}{plain.up / 1000:9.1f}{padded.up / 1000:9.1f}{plain.down / 1000:9.0f}{padded.down / 1000:9.0f}"
            f"{1000 * plain.cpu:8.0f}{1000 * padded.cpu:8.0f}{plain.rtt_ms:9.2f}{padded.rtt_ms:9.2f}"
        )


if __name__ == "__main__":
    _main(*sys.argv[1:])
