"""A server without TLS, to compare with: python -m tools.load.plain_server HOST PORT

It reads the first bytes of each connection, answers with as many bytes as a server's part of a TLS handshake has, and
closes. Standard output gets one line once it listens. It runs until it is ended.
"""

from __future__ import annotations

import selectors
import socket
import sys

ANSWER = bytes(900)
BACKLOG = 4096
READ_BYTES = 4096


def serve(address: tuple[str, int]) -> None:
    selector = selectors.DefaultSelector()
    with socket.create_server(address, backlog=BACKLOG) as listener:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        print("listening", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    selector.register(sock, selectors.EVENT_READ)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    _answer(key.fileobj)


def _answer(sock: socket.socket) -> None:
    with sock:
        try:
            if sock.recv(READ_BYTES):
                sock.send(ANSWER)
        except OSError:
            pass  # the client has left


if __name__ == "__main__":
    serve((sys.argv[1], int(sys.argv[2])))
