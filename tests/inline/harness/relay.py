"""A path between two ends on which each TCP connection can be held up or cut: a relay, stepped like an end.

A lossy path stalls one TCP connection while the others go on; `hold` does that on purpose.
Bytes that a held connection has taken from its sender wait here; no more than HELD_BYTES of them.
"""

from __future__ import annotations

import random
import socket

HELD_BYTES = 1 << 20
READ_BYTES = 1 << 16


class Strand:
    """One connection through the relay: two sockets, and the bytes on their way in each direction."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.sockets = (near, far)
        self.waiting = [bytearray(), bytearray()]  # for the far side, for the near side
        self.held = False
        self.dead = False

    def step(self) -> int:
        """Move what can be moved; the number of bytes."""
        moved = 0
        for way, (source, sink) in enumerate((self.sockets, self.sockets[::-1])):
            waiting = self.waiting[way]
            try:
                if len(waiting) < HELD_BYTES:
                    data = source.recv(READ_BYTES)
                    if not data:
                        self.cut()
                        return moved
                    waiting += data
                    moved += len(data)
            except BlockingIOError:
                pass
            except OSError:
                self.cut()
                return moved
            if self.held or not waiting:
                continue
            try:
                sent = sink.send(waiting)
                del waiting[:sent]
                moved += sent
            except BlockingIOError:
                pass
            except OSError:
                self.cut()
                return moved
        return moved

    def cut(self) -> None:
        """Both sides find the connection ended; what was on its way is lost."""
        self.dead = True
        for sock in self.sockets:
            sock.close()


class Path:
    """Listens on `port` and leads every connection to the server's port."""

    def __init__(self, server_port: int, seed: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)  # its connections have it, too
        self._listener.setblocking(False)
        self._server_port = server_port
        self._random = random.Random(seed)
        self.port = self._listener.getsockname()[1]
        self.strands: list[Strand] = []
        self.stalls = 0  # so many of the live connections are held at a time, changing by chance

    def step(self) -> int:
        try:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._server_port))
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.strands.append(Strand(near, far))
        except BlockingIOError:
            pass
        live = [strand for strand in self.strands if not strand.dead]
        if self.stalls:
            held = self._random.sample(live, min(self.stalls, len(live)))
            for strand in live:
                strand.held = strand in held
        return sum(strand.step() for strand in live)

    def counts(self) -> dict[str, int]:
        return {
            "connections": sum(not strand.dead for strand in self.strands),
            "held": sum(strand.held for strand in self.strands if not strand.dead),
        }

    def close(self) -> None:
        for strand in self.strands:
            if not strand.dead:
                strand.cut()
        self._listener.close()
