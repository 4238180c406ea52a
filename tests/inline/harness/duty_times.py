"""How long each duty takes for one packet, both ends of a tunnel stepped by hand in one process.

    python -m tests.inline.harness.duty_times plain|sealed BYTES...

Medians of PACKETS packets of each size, in us, system calls included. Nothing else runs between two steps, so caches
are warm: in a tunnel under load a step takes up to twice as long.
"""

from __future__ import annotations

import statistics
import sys
import time

from pipeline.runtime.worker import Duty
from tests.inline.harness.ends import PACKET_READ_BYTES, End, ipv4, until
from tests.inline.harness.hub_ends import tls

PACKETS = 1500
SLOTS = 32


def connected(mode: str) -> tuple[End, End]:
    """Server and client."""
    sealed: tuple[dict[str, object], ...] = ({}, {})
    if mode == "sealed":
        sealed = tuple({"seals": True, "tls": side} for side in tls())
    server = End("server", slots=SLOTS, **sealed[0])
    client = End("client", slots=SLOTS, port=server.port, client_id=1, session=1, **sealed[1])
    until(lambda: server.established() == client.established() == 1, server, client)
    return server, client


def duties_of(server: End, client: End) -> dict[str, Duty]:
    """The duties in the order in which a packet of the client passes them."""
    return {
        "tun out": client.workers["tun-0"].duty("outbound"),
        "tcp out": client.workers["tcp-0"].duty("outbound"),
        "tcp in": server.workers["tcp-0"].duty("inbound"),
        "tun in": server.workers["tun-0"].duty("inbound"),
    }


def measure(server: End, client: End, size: int) -> dict[str, float]:
    """us of each duty for a packet of `size` bytes."""
    duties = duties_of(server, client)
    times: dict[str, list[float]] = {name: [] for name in duties}
    packet = ipv4(1, size)
    for _ in range(PACKETS):
        client.write(packet)
        for name, duty in duties.items():
            began = time.perf_counter()
            duty.wait(0)
            duty.work()
            times[name].append(1e6 * (time.perf_counter() - began))
        while not arrived(server):
            for duty in duties.values():
                duty.wait(0)
                duty.work()
    return {name: statistics.median(each) for name, each in times.items()}


def arrived(server: End) -> bool:
    try:
        return bool(server.outside[0].recv(PACKET_READ_BYTES))
    except BlockingIOError:
        return False


def main(mode: str, *sizes: str) -> None:
    server, client = connected(mode)
    try:
        for size in map(int, sizes):
            measure(server, client, size)
            found = measure(server, client, size)
            shown = ", ".join(f"{name} {each:.1f}" for name, each in found.items())
            print(f"{mode}, {size} bytes: {shown}; sum {sum(found.values()):.1f} us")
    finally:
        server.close()
        client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
