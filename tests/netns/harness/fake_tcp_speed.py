"""The speed of fake TCP beside that of a UDP socket with segmentation, one way between two namespaces.

    python -m tests.netns.harness.fake_tcp_speed [SECONDS]

Each sender is a thread of this process, as each receiver is: the two share the interpreter's lock, so a worker of its
own does better. The two carriers take turns, so that what else the machine does hits both.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
import time

from pipeline.faketcp.flow import IP_BYTES_MAX
from tests.netns.harness.fake_tcp import Routed, add_client, add_server

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SEGMENT = 1400
COUNT = min(46, (IP_BYTES_MAX - 60) // SEGMENT)
TRAIN = bytes(SEGMENT * COUNT)
ROUNDS = 3


def fake_tcp(lab: Routed, seconds: float) -> tuple[float, float]:
    (server,), port = add_server(lab.server)
    server.keep = False
    address = (lab.addresses[4], port)
    client = add_client(lab.client, address)
    time.sleep(0.1)
    begin, sent = time.monotonic(), 0
    while time.monotonic() < begin + seconds:
        try:
            client.send(TRAIN, SEGMENT, address)
            sent += len(TRAIN)
        except BlockingIOError:
            time.sleep(0)
    time.sleep(0.2)
    got = server.bytes_received
    client.close()
    server.close()
    return sent / seconds, got / seconds


def udp(lab: Routed, seconds: float) -> tuple[float, float]:
    to = lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM)
    to.setsockopt(SOL_UDP, UDP_GRO, 1)
    to.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
    to.bind((lab.addresses[4], 0))
    over = threading.Event()
    got = 0

    def receive() -> None:
        nonlocal got
        into = memoryview(bytearray(65536))
        while not over.is_set():
            if select.select([to], [], [], 0.05)[0]:
                got += to.recvmsg_into([into], 64)[0]

    thread = threading.Thread(target=receive)
    thread.start()
    by = lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    by.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
    by.setblocking(False)
    by.connect(to.getsockname())
    size = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", SEGMENT))]
    begin, sent = time.monotonic(), 0
    while time.monotonic() < begin + seconds:
        try:
            by.sendmsg([TRAIN], size)
            sent += len(TRAIN)
        except BlockingIOError:
            time.sleep(0)
    time.sleep(0.2)
    over.set()
    thread.join()
    by.close()
    to.close()
    return sent / seconds, got / seconds


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with Routed() as lab:
        lab.router.run(["nft", "delete", "table", "inet", "lab"])

        for _ in range(ROUNDS):
            for carrier in (udp, fake_tcp):
                sent, got = carrier(lab, seconds)
                print(f"{carrier.__name__:8}  sent {sent * 8e-9:5.1f} Gbit/s, received {got * 8e-9:5.1f} Gbit/s")


if __name__ == "__main__":
    main()
