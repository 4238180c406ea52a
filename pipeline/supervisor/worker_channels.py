"""The supervisor's ends of the ways to its tcp workers: a socket pair for each, made anew with each
generation.

A question is answered at once. What makes no sense, because the worker is broken or was broken into, is logged and
costs that question; a worker that does not read its answers loses them.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable

from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime.supervisor_channel import DATAGRAM_BYTES

SO_SNDBUFFORCE = 32  # asm-generic/socket.h; a datagram has to fit in
QUESTIONS_AT_ONCE = 64  # of one worker, before anything else has its turn


class WorkerChannels:
    """`answer`: what to say to a worker's question, None for nothing. By name of the worker."""

    def __init__(self, answer: Callable[[dict], dict | None], selector: selectors.BaseSelector) -> None:
        self._answer = answer
        self._selector = selector
        self._open: dict[str, socket.socket] = {}

    def open(self, worker: str) -> int:
        """A descriptor for the worker that is about to be spawned; close it after that."""
        self.close(worker)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        try:
            ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, DATAGRAM_BYTES)
        except PermissionError:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DATAGRAM_BYTES)
        self._open[worker] = ours
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._serve(worker, ours))
        return theirs.detach()

    def tell(self, message: dict) -> None:
        """Tell all of them."""
        for worker, sock in self._open.items():
            self._send(worker, sock, message)

    def close(self, worker: str) -> None:
        sock = self._open.pop(worker, None)
        if sock is not None:
            self._selector.unregister(sock)
            sock.close()

    def close_all(self) -> None:
        for worker in list(self._open):
            self.close(worker)

    def _serve(self, worker: str, sock: socket.socket) -> None:
        if self._open.get(worker) is not sock:
            return  # an event of its predecessor's
        for _ in range(QUESTIONS_AT_ONCE):
            try:
                data = sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close(worker)  # it has ended
                return
            try:
                reply = self._answer(json.loads(data))
            except (TunnelError, ValueError, LookupError, TypeError, RecursionError) as error:
                LOG.error("%s asks what makes no sense: %s: %s", worker, type(error).__name__, error)
                continue
            if reply is not None:
                self._send(worker, sock, reply)

    @staticmethod
    def _send(worker: str, sock: socket.socket, message: dict) -> None:
        try:
            sock.send(json.dumps(message).encode())
        except OSError as error:
            LOG.warning("%s does not take an answer: %s", worker, error.strerror)
