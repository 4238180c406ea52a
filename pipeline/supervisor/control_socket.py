"""The control socket: one JSON object a line each way, over a UNIX socket of mode 0600.

    {"command": "status"}                  -> the status snapshot
    {"command": "stop"}                    -> {"ok": true, "pid": ...}, and the supervisor drains and ends
    {"command": "restart", "worker": ""}   -> {"ok": true, "workers": [...]}
    {"command": "reload"}                  -> {"ok": true, "changed": [...]}
    {"command": one of PEER_COMMANDS, ...} -> see pipeline.cli.peer_commands
    any of them                            -> {"ok": false, "error": ...}

ControlServer never blocks the supervisor for long: requests are short, and an answer is sent with a timeout.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import LocalError, NotRunning
from pipeline.supervisor.instance import Instance

REQUEST_BYTES_MAX = 4096
ANSWER_SECONDS = 1.0  # how long the supervisor waits for a command that does not read its answer
COMMAND_SECONDS = 10.0  # how long a command waits for the supervisor

PEER_COMMANDS = ("peers", "invite", "revoke")
"""Commands about the peers of a server; pipeline.cli.peer_commands has their fields."""


class ControlServer:
    """The supervisor's end. `answer` turns a request into an answer; it runs in the supervisor's loop."""

    def __init__(
        self, path: Path, answer: Callable[[dict[str, Any]], dict[str, Any]], selector: selectors.BaseSelector
    ) -> None:
        self._path = path
        self._answer = answer
        self._selector = selector
        self._clients: dict[socket.socket, bytearray] = {}
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            raise LocalError(f"control socket {self._path}: {error.strerror}") from None
        finally:
            os.umask(mask)
        listener.listen(8)
        self._inode = self._path.stat().st_ino
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        return listener

    def listen_again(self) -> None:
        """The path is gone: make another socket there. LocalError if that is impossible."""
        listener = self._listen()
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = listener

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        self._clients[client] = bytearray()
        self._selector.register(client, selectors.EVENT_READ, lambda: self._read_request(client))

    def _read_request(self, client: socket.socket) -> None:
        buffer = self._clients[client]
        try:
            data = client.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        buffer += data
        if b"\n" in buffer:
            self._send_answer(client, bytes(buffer))
        elif data and len(buffer) < REQUEST_BYTES_MAX:
            return
        self._selector.unregister(client)
        del self._clients[client]
        client.close()

    def _send_answer(self, client: socket.socket, line: bytes) -> None:
        try:
            request = json.loads(line)
            answer = self._answer(request if isinstance(request, dict) else {})
        except (ValueError, RecursionError):
            answer = {"ok": False, "error": "the request is not JSON"}
        client.settimeout(ANSWER_SECONDS)
        try:
            client.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # the command has ended, or does not read

    def close(self) -> None:
        for sock in (self._listener, *self._clients):
            self._selector.unregister(sock)
            sock.close()
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def send_request(instance: Instance, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request to a running supervisor. NotRunning if there is none, LocalError if it does not answer."""
    pid = instance.supervisor_pid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(COMMAND_SECONDS)
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
        raise LocalError(f'instance "{instance.name}" (pid {pid}) ended before it answered')
    answer: dict[str, Any] = json.loads(line)
    return answer
