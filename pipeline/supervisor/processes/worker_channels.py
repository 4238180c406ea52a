"""The supervisor's ends of the supervisor channels: a socket pair for each tcp worker, made anew for each generation.

The other end and the messages are in `pipeline.runtime.supervisor_channel`. A request is answered at once. A request
that is invalid, since its worker is broken or was broken into, is logged and lost; nothing else happens. While an
answer waits for a worker, since it has not read those before, nothing more is read from it.

A socket may come with a request: its worker may not choose the congestion control itself. It is closed as soon as the
request has been dealt with. So is whatever else comes with a request, one descriptor at most.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.errors import TunnelError
from pipeline.log import LOG
from pipeline.runtime.datagram_queue import DatagramQueue
from pipeline.runtime.supervisor_channel import DATAGRAM_BYTES, Answer
from pipeline.supervisor.run.failures import Failures

SO_SNDBUFFORCE = 32  # asm-generic/socket.h; a datagram has to fit in
INVALID = TunnelError, ValueError, LookupError, TypeError, AttributeError, RecursionError
REQUESTS_PER_TURN = 64  # of one worker, before the loop goes on to anything else
MESSAGES_WAITING = 16  # for one worker: one answer, and new settings
DESCRIPTORS_MOST = 1  # that come with a request; the kernel closes the others


class _Channel(NamedTuple):
    """Our end of one worker's channel."""

    worker: str
    socket: socket.socket
    messages: DatagramQueue


class WorkerChannels:
    """One channel per tcp worker, by its name. `answer`: the answer to a request, None for no answer.
    `set_congestion`: sets an algorithm on the socket behind a descriptor.

    A request may be any JSON. TunnelError, ValueError, LookupError, TypeError or AttributeError from `answer` mean that
    it is invalid; any other exception is recorded in `failures`.
    """

    def __init__(
        self,
        answer: Callable[[Any], Answer | None],
        selector: selectors.BaseSelector,
        failures: Failures,
        set_congestion: Callable[[Any, int], object],
    ) -> None:
        self._answer = answer
        self._set_congestion = set_congestion
        self._selector = selector
        self._failures = failures
        self._channels: dict[str, _Channel] = {}
        self._invalid: dict[str, int] = {}  # requests of each worker so far

    def open_channel(self, worker: str) -> int:
        """The descriptor of the worker's end, to be inherited by its process; close it after that."""
        self.close_channel(worker)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        try:
            ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, DATAGRAM_BYTES)
        except PermissionError:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DATAGRAM_BYTES)
        channel = self._channels[worker] = _Channel(worker, ours, DatagramQueue(ours, MESSAGES_WAITING))
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._serve(channel))
        return theirs.detach()

    def send_to_all(self, message: Answer) -> list[str]:
        """Send it to every worker that runs, as soon as it has room. Returns those that lose it."""
        lost = [worker for worker, channel in self._channels.items() if not self._send(channel, message)]
        for channel in self._channels.values():
            self._watch(channel)
        return lost

    def close_channel(self, worker: str) -> None:
        channel = self._channels.pop(worker, None)
        if channel is not None:
            self._selector.unregister(channel.socket)
            channel.socket.close()

    def close_all(self) -> None:
        for worker in list(self._channels):
            self.close_channel(worker)

    def _serve(self, channel: _Channel) -> None:
        """Send what waits, then answer requests."""
        if self._channels.get(channel.worker) is not channel:
            return  # an event of the channel of an earlier generation
        try:
            channel.messages.flush()
            self._answer_requests(channel)
        except OSError:
            self.close_channel(channel.worker)  # the worker has ended
        else:
            self._watch(channel)

    def _watch(self, channel: _Channel) -> None:
        """Wait for requests, or for room if messages wait."""
        events = selectors.EVENT_READ if channel.messages.is_empty else selectors.EVENT_WRITE
        key = self._selector.get_key(channel.socket)
        if key.events != events:
            self._selector.modify(channel.socket, events, key.data)

    def _answer_requests(self, channel: _Channel) -> None:
        """OSError if the worker has ended."""
        for _ in range(REQUESTS_PER_TURN):
            if not channel.messages.is_empty:
                return
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    channel.socket, DATAGRAM_BYTES, DESCRIPTORS_MOST, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            try:
                if not data:
                    raise ConnectionResetError
                self._handle(channel, data, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _handle(self, channel: _Channel, data: bytes, descriptors: list[int]) -> None:
        try:
            request, answer = json.loads(data), None
            if "congestion" in request:
                self._set_congestion(request["congestion"], descriptors[0])
            else:
                answer = self._answer(request)
        except INVALID as error:
            self._record_invalid(channel.worker, error)
            return
        except Exception:
            self._failures.record(f"the answer to a request of {channel.worker}")
            return
        if answer is not None:
            self._send(channel, answer)

    def _record_invalid(self, worker: str, error: Exception) -> None:
        """Count it, and log it each time that there are twice as many of the worker's: it may send them without end."""
        count = self._invalid[worker] = self._invalid.get(worker, 0) + 1
        if not count & (count - 1):
            LOG.error("%s sent an invalid request, %d so far: %s: %s", worker, count, type(error).__name__, error)

    @staticmethod
    def _send(channel: _Channel, message: Answer) -> bool:
        """False if the worker runs and loses the message; one that has ended needs none."""
        try:
            if channel.messages.send(json.dumps(message).encode()):
                return True
            reason = "it reads nothing"
        except (BrokenPipeError, ConnectionResetError):
            return True
        except OSError as error:
            reason = error.strerror or str(error)
        LOG.warning("%s lost a message: %s", channel.worker, reason)
        return False
