"""The control socket: one JSON object a line each way, over a UNIX socket of mode 0600.

    {"command": "status"}                  -> the status snapshot
    {"command": "stop"}                    -> {"ok": true, "pid": ...}, and the supervisor drains and ends
    {"command": "restart", "worker": ""}   -> {"ok": true, "workers": [...]}
    {"command": "reload"}                  -> {"ok": true, "changed": [...], ...}: pipeline.supervisor.commands.reload
    {"command": one of PEER_COMMANDS, ...} -> see pipeline.cli.peer_commands, invite_command
    any of them                            -> {"ok": false, "error": ...}

ControlServer never blocks the supervisor for long: requests are short, and an answer is sent with a timeout. Commands
that connect and send nothing cannot keep others out: of CLIENTS_MAX, the oldest one is closed for the next.

A command that has given up before its request was read changes nothing: a peer must not be revoked minutes after
somebody has read that the supervisor does not answer.

When the process has no descriptor left, commands are served with those that were kept for them: `revoke` and `stop`
work then, too.
"""

from __future__ import annotations

import errno
import json
import os
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import LocalError, NotRunning
from pipeline.supervisor.instance import Instance
from pipeline.version import NAME

REQUEST_BYTES_MAX = 4096
ANSWER_SECONDS = 1.0  # how long the supervisor waits for a command that does not read its answer
CLIENTS_MAX = 16
SPARE_DESCRIPTORS = 4  # for the command's connection, and for what its answer opens
NO_ROOM_PAUSE = 0.05  # seconds; a connection that cannot be accepted stays readable, and must not take a core
COMMAND_SECONDS = 10.0  # how long a command waits for the supervisor

NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Request = dict[str, Any]
Answer = dict[str, Any]

PEER_COMMANDS = ("peers", "invite", "withdraw", "revoke", "disable", "enable", "quota", "explain")
"""Commands about the peers of a server; pipeline.cli.peer_commands and invite_command have their fields."""


class SpareDescriptors:
    """Descriptors that are kept for the time when no other is left."""

    def __init__(self) -> None:
        self._kept: list[int] = []
        self.keep()

    def keep(self) -> None:
        """Keep as many as there should be, or as there are."""
        try:
            while len(self._kept) < SPARE_DESCRIPTORS:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass  # the next call tries again

    def free(self) -> None:
        while self._kept:
            os.close(self._kept.pop())


class ControlServer:
    """The supervisor's end. `answer` turns a request into an answer; it runs in the supervisor's loop.

    `unsent(request, answer)` is called when a command has ended before it got its answer.
    """

    def __init__(
        self,
        path: Path,
        answer: Callable[[Request], Answer],
        selector: selectors.BaseSelector,
        unsent: Callable[[Request, Answer], None] = lambda request, answer: None,
    ) -> None:
        self._path = path
        self._answer = answer
        self._unsent = unsent
        self._selector = selector
        self._clients: dict[socket.socket, bytearray] = {}  # the oldest first
        self._spare = SpareDescriptors()
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            self._spare.free()
            raise LocalError(f"control socket {self._path}: {error.strerror or error}") from None
        finally:
            os.umask(mask)
        listener.listen(CLIENTS_MAX)
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
        client = self._accepted()
        if client is None:
            return
        client.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX:
            self._close_client(next(iter(self._clients)))
        self._clients[client] = bytearray()
        self._selector.register(client, selectors.EVENT_READ, lambda: self._read_request(client))

    def _accepted(self) -> socket.socket | None:
        """The next connection, None if there is none, or if there is no descriptor for it."""
        try:
            return self._listener.accept()[0]
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in NO_ROOM:
                return None  # the command has ended already
        self._spare.free()
        try:
            return self._listener.accept()[0]
        except OSError:
            time.sleep(NO_ROOM_PAUSE)
            return None

    def _read_request(self, client: socket.socket) -> None:
        buffer = self._clients[client]
        try:
            data = client.recv(REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        buffer += data
        try:
            if b"\n" in buffer and not _has_given_up(client):
                self._send_answer(client, bytes(buffer))
            elif data and b"\n" not in buffer and len(buffer) < REQUEST_BYTES_MAX:
                return
        except BaseException:
            self._close_client(client)
            raise
        self._close_client(client)

    def _send_answer(self, client: socket.socket, line: bytes) -> None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            request, answer = {}, {"ok": False, "error": "the request is not JSON"}
        else:
            request = found if isinstance(found, dict) else {}
            self._spare.free()
            answer = self._answer(request)
        client.settimeout(ANSWER_SECONDS)
        try:
            client.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:  # the command has ended, or does not read
            self._unsent(request, answer)

    def _close_client(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._clients[client]
        client.close()
        self._spare.keep()

    def close(self) -> None:
        for sock in (self._listener, *self._clients):
            self._selector.unregister(sock)
            sock.close()
        self._spare.free()
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _has_given_up(client: socket.socket) -> bool:
    """Whether the command has closed its end. One that has closed its writing half alone still reads."""
    poll = select.poll()
    poll.register(client, 0)  # POLLHUP and POLLERR are told unasked
    return bool(poll.poll(0))


def send_request(instance: Instance, request: dict[str, Any], seconds: float = COMMAND_SECONDS) -> dict[str, Any]:
    """Send one request to a running supervisor. NotRunning if there is none, LocalError if it does not answer."""
    pid = instance.supervisor_pid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(str(instance.socket_path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f'instance "{instance.name}" (pid {pid}) is starting or stopping') from None
        except TimeoutError:
            raise LocalError(
                f'instance "{instance.name}" (pid {pid}) does not answer: what was asked for is not done, '
                f"unless it had begun. `{NAME} doctor --name {instance.name}` says what is wrong"
            ) from None
        except OSError as error:
            raise LocalError(
                f'instance "{instance.name}" (pid {pid}) does not answer: {error.strerror or error}'
            ) from None
    if not line:
        raise LocalError(
            f'instance "{instance.name}" (pid {pid}) ended, or closed the connection, before it answered: '
            "what was asked for may be done or not"
        )
    answer: dict[str, Any] = json.loads(line)
    return answer
