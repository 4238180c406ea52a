"""The supervisor's ends of the supervisor channels: a socket pair for each tcp worker, made anew for each generation.

The other end and the messages are in `pipeline.runtime.supervisor_channel`. A request is answered at once. A request
that is invalid, since its worker is broken or was broken into, is logged and lost; nothing else happens. A worker that
does not read its answers loses them.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable
from typing import Any

from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime.supervisor_channel import DATAGRAM_BYTES, Answer
from pipeline.supervisor.failures import Failures

SO_SNDBUFFORCE = 32  # asm-generic/socket.h; a datagram has to fit in
INVALID = TunnelError, ValueError, LookupError, TypeError, AttributeError, RecursionError
REQUESTS_PER_TURN = 64  # of one worker, before the loop goes on to anything else


class WorkerChannels:
    """One channel per tcp worker, by its name. `answer`: the answer to a request, None for no answer.

    A request may be any JSON. TunnelError, ValueError, LookupError, TypeError or AttributeError from `answer` mean that
    it is invalid; any other exception is recorded in `failures`.
    """

    def __init__(
        self, answer: Callable[[Any], Answer | None], selector: selectors.BaseSelector, failures: Failures
    ) -> None:
        self._answer = answer
        self._selector = selector
        self._failures = failures
        self._sockets: dict[str, socket.socket] = {}

    def open_channel(self, worker: str) -> int:
        """The descriptor of the worker's end, to be inherited by its process; close it after that."""
        self.close_channel(worker)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        try:
            ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, DATAGRAM_BYTES)
        except PermissionError:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DATAGRAM_BYTES)
        self._sockets[worker] = ours
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._answer_requests(worker, ours))
        return theirs.detach()

    def send_to_all(self, message: Answer) -> list[str]:
        """Send it to every worker that runs. Returns those that did not take it."""
        return [worker for worker, sock in self._sockets.items() if not self._send(worker, sock, message)]

    def close_channel(self, worker: str) -> None:
        sock = self._sockets.pop(worker, None)
        if sock is not None:
            self._selector.unregister(sock)
            sock.close()

    def close_all(self) -> None:
        for worker in list(self._sockets):
            self.close_channel(worker)

    def _answer_requests(self, worker: str, sock: socket.socket) -> None:
        if self._sockets.get(worker) is not sock:
            return  # an event of the channel of an earlier generation
        for _ in range(REQUESTS_PER_TURN):
            try:
                data = sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close_channel(worker)  # the worker has ended
                return
            try:
                answer = self._answer(json.loads(data))
            except INVALID as error:
                LOG.error("%s sent an invalid request: %s: %s", worker, type(error).__name__, error)
                continue
            except Exception:
                self._failures.record(f"the answer to a request of {worker}")
                continue
            if answer is not None:
                self._send(worker, sock, answer)

    @staticmethod
    def _send(worker: str, sock: socket.socket, message: Answer) -> bool:
        """False if the worker runs and has no room for it; one that has ended needs no answer."""
        try:
            sock.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            return True
        except OSError as error:
            LOG.warning("%s lost an answer: %s", worker, error.strerror)
            return False
        return True
