"""The control socket: one JSON object a line each way, over a UNIX socket of mode 0600.

    {"command": "status"}                  -> the status snapshot
    {"command": "stop"}                    -> {"ok": true, "pid": ...}, and the supervisor drains and ends
    {"command": "restart", "worker": ""}   -> {"ok": true, "workers": [...]}
    {"command": "reload"}                  -> {"ok": true, "changed": [...]} or {"ok": false, "error": ...}

The server side never blocks the supervisor: requests are short, answers are sent with a timeout.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import LocalError, NotRunning
from pipeline.supervisor.instance import Instance

REQUEST_BYTES_MAX = 4096
ANSWER_SECONDS = 1.0  # how long the supervisor waits for a client that does not read
CLIENT_SECONDS = 10.0  # how long a client waits for the supervisor


class ControlServer:
    """The supervisor's end. `answer` turns a request into a reply; it runs in the supervisor's loop."""

    def __init__(self, path: Path, answer: Callable[[dict], dict], selector: selectors.BaseSelector) -> None:
        self._path = path
        self._answer = answer
        self._selector = selector
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.setblocking(False)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        except OSError as error:
            raise LocalError(f"control socket {path}: {error.strerror}") from None
        finally:
            os.umask(mask)
        self._listener.listen(8)
        self._open: dict[socket.socket, bytearray] = {}
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        self._open[client] = bytearray()
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        buffer = self._open[client]
        try:
            data = client.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        buffer += data
        if b"\n" in buffer:
            self._reply(client, bytes(buffer))
        elif data and len(buffer) < REQUEST_BYTES_MAX:
            return
        self._selector.unregister(client)
        del self._open[client]
        client.close()

    def _reply(self, client: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            reply = self._answer(request if isinstance(request, dict) else {})
        except (ValueError, RecursionError):
            reply = {"ok": False, "error": "the request is not JSON"}
        client.settimeout(ANSWER_SECONDS)
        try:
            client.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # whoever asked has left

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            self._selector.unregister(sock)
            sock.close()
        self._path.unlink(missing_ok=True)


def ask(instance: Instance, request: dict) -> dict:
    """Send one request to a running supervisor. NotRunning if there is none, LocalError if it does not answer."""
    pid = instance.holder()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(CLIENT_SECONDS)
        try:
            sock.connect(str(instance.socket_path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f'instance "{instance.name}" (pid {pid}) is starting or stopping') from None
        except OSError as error:
            raise LocalError(
                f'instance "{instance.name}" (pid {pid}) does not answer: {error.strerror or error}'
            ) from None
    if not line:
        raise LocalError(f'instance "{instance.name}" (pid {pid}) ended while it was asked')
    return json.loads(line)
