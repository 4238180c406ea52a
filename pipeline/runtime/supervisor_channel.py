"""A tcp worker's end of its way to the supervisor, who alone knows the keys and decides who is a peer.

One JSON object a datagram each way, over a socket pair that never blocks:

    server    {"serial": 7, "hello": ..., "challenge": ..., "proof": ..., "certificate": ..., "hash": ...}
           <- {"serial": 7, "frame": ..., "seat": 49155}                  admitted: a WELCOME
           <- {"serial": 7, "frame": ..., "why": ...}                     refused: a REFUSED; no frame for a stranger
           <- {"tls": {...}, "max_handshakes": ...}                       what a reload has changed
    client    {"welcome": ..., "server": "192.0.2.1"}                     what the server has said, and its address

Bytes are hexadecimal. `why` is for our log.
"""

from __future__ import annotations

import json
import socket

from pipeline.errors import SupervisorGone

DATAGRAM_BYTES = 1 << 21  # certificates of a system's CAs are a quarter of that


class SupervisorChannel:
    """`fd` is this end of a SOCK_SEQPACKET pair."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)

    def ask(self, **request: int | str) -> bool:
        """Send a request. False if the supervisor has more of them than it can take now."""
        try:
            self.socket.send(json.dumps(request).encode())
        except BlockingIOError:
            return False
        return True

    def answers(self) -> list[dict]:
        """What has come. SupervisorGone if nothing ever will."""
        found = []
        while True:
            try:
                data = self.socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                data = b""
            if not data:
                raise SupervisorGone("the supervisor has closed its end of the desk")
            found.append(json.loads(data))
