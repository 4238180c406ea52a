"""The client's attempts to reach the server: its name is resolved anew for each, with backoff between them, for ever.

One dial slot for each connection that this worker keeps up. An attempt tries the addresses of the name one after the
other, in the resolver's order. When all have failed, the slot waits by its backoff. A broken DNS server can make the
resolver take any time. So it runs in a thread of its own and writes to the eventfd `wake` when it has an answer.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.log import LOG
from pipeline.policy.backoff import Backoff
from pipeline.transport.address import SocketAddress
from pipeline.transport.connection import WOULD_BLOCK
from pipeline.transport.settings import DialSettings
from pipeline.transport.socket_options import configure

CONNECT_NS = 5_000_000_000
"""How long one address may take to answer: a SYN and two repetitions (1 + 2 s)."""

DIALS_AT_ONCE = 3
"""Attempts under way at a time, of all lanes: a server takes four handshakes from an address
(max_handshakes_per_address)."""

STABLE_NS = 1_000_000_000
"""A connection that was established for so long was no failed attempt."""

DIAL_IDLE, DIAL_RESOLVING, DIAL_CONNECTING, DIAL_ESTABLISHED = "idle", "resolving", "connecting", "established"


class Attempt(NamedTuple):
    """A non-blocking socket that is connecting."""

    dial_index: int  # of the dial slot
    sock: socket.socket
    address: SocketAddress


class DialSlot:
    """One connection that the client keeps up. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, index: int, backoff: Backoff) -> None:
        self.index = index
        self.backoff = backoff
        self.state = DIAL_IDLE
        self.due_at = 0  # the next attempt
        self.established_at = 0
        self.addresses: list[tuple[int, SocketAddress]] = []  # family and address: to be tried in this attempt


class Dialer:
    """Drives the slots. The caller watches the sockets, and reports each as established, failed or lost."""

    def __init__(self, host: str, port: int, indexes: Iterable[int], lanes: int, settings: DialSettings) -> None:
        self._host = host
        self._port = port
        self._settings = settings
        self._at_once = max(1, DIALS_AT_ONCE // lanes)
        self._answers: queue.SimpleQueue[tuple[DialSlot, list[tuple[int, SocketAddress]] | str]] = queue.SimpleQueue()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.failures = 0  # attempts, all their addresses included; the caller counts them and sets this to 0
        self._last_warning = ""  # a reason is logged once, not for each connection
        self.slots = {
            index: DialSlot(index, Backoff(settings.reconnect_min, settings.reconnect_max)) for index in indexes
        }

    def start_due(self, now: int) -> list[Attempt]:
        """Start the attempts that are due, and connect to the addresses that the resolver has found."""
        under_way = sum(slot.state in (DIAL_RESOLVING, DIAL_CONNECTING) for slot in self.slots.values())
        for slot in self.slots.values():
            if slot.state is DIAL_IDLE and slot.due_at <= now and under_way < self._at_once:
                self._resolve(slot)
                under_way += 1
        started = []
        while not self._answers.empty():
            slot, answer = self._answers.get()
            if isinstance(answer, str):
                self._wait(slot, now, answer)
                continue
            slot.addresses = answer
            attempt = self._connect_next(slot, now, "no address")
            if attempt is not None:
                started.append(attempt)
        return started

    def attempt_failed(self, index: int, now: int, why: str) -> Attempt | None:
        """An address has not led to a connection: try the next one, or wait and begin again."""
        LOG.debug("connection %d: %s", index, why)
        return self._connect_next(self.slots[index], now, why)

    def established(self, index: int, now: int) -> None:
        slot = self.slots[index]
        slot.state = DIAL_ESTABLISHED
        slot.established_at = now
        slot.addresses = []
        self._last_warning = ""

    def connection_lost(self, index: int, now: int, why: str) -> None:
        """An established connection has ended: dial again, at once if it was stable."""
        slot = self.slots[index]
        if now - slot.established_at >= STABLE_NS:
            slot.backoff.reset()
            slot.state = DIAL_IDLE
            slot.due_at = now
        else:
            self._wait(slot, now, why, counted=False)

    def close(self) -> None:
        os.close(self.wake)

    def _resolve(self, slot: DialSlot) -> None:
        slot.state = DIAL_RESOLVING
        if _is_address(self._host):
            self._look_up(slot)
        else:
            threading.Thread(target=self._look_up, args=(slot,), name="resolver", daemon=True).start()

    def _look_up(self, slot: DialSlot) -> None:
        answer: list[tuple[int, SocketAddress]] | str
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            # a Python without IPv6 gives IPv6 addresses as bytes
            answer = [(family, address) for family, _, _, _, address in found if not isinstance(address[1], bytes)]
        except OSError as error:
            answer = f"{self._host}: {error.strerror or error}"
        self._answers.put((slot, answer))
        os.eventfd_write(self.wake, 1)

    def _connect_next(self, slot: DialSlot, now: int, why: str) -> Attempt | None:
        while slot.addresses:
            family, address = slot.addresses.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            except OSError as error:
                why = error.strerror or str(error)
                continue
            configure(sock, self._settings)
            result = sock.connect_ex(address)
            if result in (0, *WOULD_BLOCK):
                slot.state = DIAL_CONNECTING
                return Attempt(slot.index, sock, address)
            why = os.strerror(result)
            sock.close()
        self._wait(slot, now, why)
        return None

    def _wait(self, slot: DialSlot, now: int, why: str, counted: bool = True) -> None:
        slot.state = DIAL_IDLE
        slot.due_at = now + int(slot.backoff.next_delay() * 1e9)
        if counted:
            self.failures += 1
        if why != self._last_warning:
            LOG.warning("server %s port %d: %s; trying again until it succeeds", self._host, self._port, why)
            self._last_warning = why


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True
