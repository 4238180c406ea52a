"""The baseline relay, the least that a tunnel in Python has to do: python -m tools.bench.baseline ...

One process serves each direction. The sender reads a packet from TUN into a buffer that never changes, writes the
length in front, and does one blocking send. The receiver does one large receive and one write for each packet.
Offloads are as in the tunnel. There are no rings, no second worker, no supervision, no checks and no reconnection.
The tunnel is slower than this relay by the cost of those; the bare link is faster by the cost of leaving the kernel.

    listen TUN ADDRESS PORT          dial TUN ADDRESS HOST PORT
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.runtime import tun
from tools.lab.namespace import die_with_parent, stop
from tools.lab.network import Node
from tools.lab.waiting import until
from tools.load.flows import ping

LENGTH = struct.Struct(">I")
MTU = 1400
QUEUE_PACKETS = 1000
PACKET_BYTES = 70_000
RECEIVE_BYTES = 400_000
NAME = "baseline0"
SERVER_ADDRESS, CLIENT_ADDRESS, PREFIX_LENGTH = "10.79.0.1", "10.79.0.2", 24
STOP_SECONDS = 5.0


@contextmanager
def baseline(server: Node, client: Node) -> Iterator[str]:
    """Run it between two nodes: the server's address inside."""
    port = server.free_port()
    command = [sys.executable, "-P", "-m", "tools.bench.baseline"]
    ends = [
        server.popen([*command, "listen", NAME, f"{SERVER_ADDRESS}/{PREFIX_LENGTH}", port]),
        client.popen([*command, "dial", NAME, f"{CLIENT_ADDRESS}/{PREFIX_LENGTH}", server.address, port]),
    ]
    try:
        until(lambda: not ping(client, SERVER_ADDRESS, count=1, timeout=0.5).lost, "a ping through the baseline")
        yield SERVER_ADDRESS
    finally:
        stop(ends, STOP_SECONDS)


def send(fd: int, connection: socket.socket) -> None:
    buffer = memoryview(bytearray(PACKET_BYTES))
    while True:
        length = os.readv(fd, [buffer[LENGTH.size :]])
        LENGTH.pack_into(buffer, 0, length)
        connection.sendall(buffer[: LENGTH.size + length])


def receive(fd: int, connection: socket.socket) -> None:
    buffer = memoryview(bytearray(RECEIVE_BYTES))
    end = 0
    while received := connection.recv_into(buffer[end:]):
        end += received
        at = 0
        while end - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, at)
            after = at + LENGTH.size + length
            if after > end:
                break
            os.write(fd, buffer[at + LENGTH.size : after])
            at = after
        buffer[: end - at] = bytes(buffer[at:end])
        end -= at


def main(argv: list[str]) -> int:
    role, name, address, *where = argv
    device = tun.open_device(name, 1, offload=True)
    for words in (
        f"link set dev {name} mtu {MTU} txqueuelen {QUEUE_PACKETS} addrgenmode none",
        f"link set dev {name} up",
        f"address add {address} dev {name}",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    os.set_blocking(device.fds[0], True)
    if role == "listen":
        with socket.create_server(("", int(where[0]))) as listener:
            connection, _ = listener.accept()
    else:
        connection = until(lambda: _dial(where[0], int(where[1])), f"an answer from {where[0]}")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end_with_sender = die_with_parent()
    if os.fork() == 0:
        end_with_sender()
        receive(device.fds[0], connection)
    else:
        send(device.fds[0], connection)
    return 0


def _dial(host: str, port: int) -> socket.socket | None:
    try:
        return socket.create_connection((host, port))
    except ConnectionRefusedError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
