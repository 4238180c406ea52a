"""The speed of fake TCP beside that of a UDP socket with segmentation, one way through a router.

    python -m tests.netns.harness.fake_tcp_speed [SECONDS]

The receiver is a process of its own. The two carriers take turns, so that what else the machine does hits both.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from tests.netns.harness.fake_tcp import Routed, add_client, add_server

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
BUFFER_BYTES = 8 << 20
SEGMENT = 1400
TRAIN = bytes(SEGMENT * 46)
ROUNDS = 3
ANSWER = struct.Struct("Q")

Receiver = Callable[[], tuple[int, Callable[[], int]]]
"""Its port, and how many bytes have come."""


def received(receiver: Receiver, send: Callable[[int], int], seconds: float) -> tuple[float, float]:
    """Run the receiver in a child, and send for some seconds: bytes a second at both ends."""
    to_parent, to_child = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        port, count = receiver()
        os.write(to_parent[1], ANSWER.pack(port))
        os.read(to_child[0], 1)
        time.sleep(0.2)
        os.write(to_parent[1], ANSWER.pack(count()))
        os._exit(0)
    port = ANSWER.unpack(os.read(to_parent[0], ANSWER.size))[0]
    sent = send(port)
    os.write(to_child[1], b"x")
    got = ANSWER.unpack(os.read(to_parent[0], ANSWER.size))[0]
    os.waitpid(child, 0)
    for fd in (*to_parent, *to_child):
        os.close(fd)
    return sent / seconds, got / seconds


def send_for(seconds: float, send: Callable[[], object]) -> int:
    end, sent = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        try:
            send()
            sent += len(TRAIN)
        except BlockingIOError:
            time.sleep(0)
    return sent


def fake_tcp(lab: Routed, seconds: float) -> tuple[float, float]:
    def receive() -> tuple[int, Callable[[], int]]:
        (server,), port = add_server(lab.server)
        server.keep = False
        return port, lambda: server.bytes_received

    def send(port: int) -> int:
        address = (lab.addresses[4], port)
        client = add_client(lab.client, address)
        sent = send_for(seconds, lambda: client.send(TRAIN, SEGMENT, address))
        client.close()
        return sent

    return received(receive, send, seconds)


def udp(lab: Routed, seconds: float) -> tuple[float, float]:
    def receive() -> tuple[int, Callable[[], int]]:
        sock = lab.server.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.bind((lab.addresses[4], 0))

        got = [0]

        def work() -> None:
            into = memoryview(bytearray(65536))
            while True:
                got[0] += sock.recvmsg_into([into], 64)[0]

        threading.Thread(target=work, daemon=True).start()
        return sock.getsockname()[1], lambda: got[0]

    def send(port: int) -> int:
        sock = lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
        sock.setblocking(False)
        sock.connect((lab.addresses[4], port))
        size = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", SEGMENT))]
        sent = send_for(seconds, lambda: sock.sendmsg([TRAIN], size))
        sock.close()
        return sent

    return received(receive, send, seconds)


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
