"""The client's attempts to reach the server: names resolved anew each time, backoff, forever.

One dial slot per connection that this worker is to hold. An attempt tries the addresses of the name one after the
other (IPv6 and IPv4 in the resolver's order); when all have failed the slot waits by its backoff. Resolving can
take as long as a broken DNS server likes, so it happens in a thread of its own and rings `wake`.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import socket
import threading

from pipeline.log import LOG
from pipeline.policy.backoff import Backoff
from pipeline.transport.connection import WOULD_BLOCK, configure

CONNECT_NS = 5_000_000_000
"""How long one address may take to answer: a SYN and two repetitions (1 + 2 s)."""

DIALS_AT_ONCE = 3
"""Attempts under way at a time, of all lanes: a server takes four handshakes from an address
(max_handshakes_per_address)."""

SETTLED_NS = 1_000_000_000
"""A connection that has stood this long was no failed attempt."""

IDLE, RESOLVING, CONNECTING, HELD = "idle", "resolving", "connecting", "held"


class DialSlot:
    """One connection that the client keeps up."""

    def __init__(self, index: int, backoff: Backoff) -> None:
        self.index = index
        self.backoff = backoff
        self.state = IDLE
        self.due = 0  # CLOCK_MONOTONIC ns of the next attempt
        self.since = 0  # since when it is held
        self.addresses: list[tuple] = []  # still to be tried in this attempt


class Dialer:
    """Drives the slots; the caller watches the sockets that it begins and says what became of them."""

    def __init__(self, host: str, port: int, indexes: list[int], lanes: int, settings: dict) -> None:
        self._host = host
        self._port = port
        self._settings = settings
        self._at_once = max(1, DIALS_AT_ONCE // lanes)
        self._answers: queue.SimpleQueue[tuple[DialSlot, list | str]] = queue.SimpleQueue()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.failures = 0
        self.trouble = ""  # what was logged last: it is said once, not for each connection
        self.slots = {
            index: DialSlot(index, Backoff(settings["reconnect_min"], settings["reconnect_max"])) for index in indexes
        }

    def step(self, now: int) -> list[tuple[DialSlot, socket.socket, tuple]]:
        """Begin what is due and take the resolver's answers. New non-blocking sockets that are connecting."""
        begun = []
        under_way = sum(slot.state in (RESOLVING, CONNECTING) for slot in self.slots.values())
        for slot in self.slots.values():
            if slot.state is IDLE and slot.due <= now and under_way < self._at_once:
                self._resolve(slot)
                under_way += 1
        while not self._answers.empty():
            slot, answer = self._answers.get()
            if isinstance(answer, str):
                self._give_up(slot, now, answer)
                continue
            slot.addresses = answer
            started = self._connect(slot, now)
            if started:
                begun.append(started)
        return begun

    def refused(self, slot: DialSlot, now: int, why: str) -> tuple[DialSlot, socket.socket, tuple] | None:
        """An address did not lead to a connection: try the next, or wait and begin again."""
        LOG.debug("connection %d: %s", slot.index, why)
        return self._connect(slot, now, why)

    def held(self, slot: DialSlot, now: int) -> None:
        """The connection stands."""
        slot.state = HELD
        slot.since = now
        self.trouble = ""
        slot.addresses = []

    def lost(self, slot: DialSlot, now: int, why: str) -> None:
        """An established connection ended: dial again, at once if it had stood for a while."""
        if now - slot.since >= SETTLED_NS:
            slot.backoff.reset()
            slot.state = IDLE
            slot.due = now
        else:
            self._give_up(slot, now, why, counted=False)

    def _resolve(self, slot: DialSlot) -> None:
        slot.state = RESOLVING
        if _is_address(self._host):
            self._answer(slot)
        else:
            threading.Thread(target=self._answer, args=(slot,), name="resolver", daemon=True).start()

    def _answer(self, slot: DialSlot) -> None:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            answer: list | str = [(family, address) for family, _, _, _, address in found]
        except OSError as error:
            answer = f"{self._host}: {error.strerror or error}"
        self._answers.put((slot, answer))
        os.eventfd_write(self.wake, 1)

    def _connect(
        self, slot: DialSlot, now: int, why: str = "no address"
    ) -> tuple[DialSlot, socket.socket, tuple] | None:
        while slot.addresses:
            family, address = slot.addresses.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            except OSError as error:
                why = error.strerror
                continue
            configure(sock, self._settings)
            result = sock.connect_ex(address)
            if result in (0, *WOULD_BLOCK):
                slot.state = CONNECTING
                return slot, sock, address
            why = os.strerror(result)
            sock.close()
        self._give_up(slot, now, why)
        return None

    def _give_up(self, slot: DialSlot, now: int, why: str, counted: bool = True) -> None:
        delay = slot.backoff.delay()
        slot.state = IDLE
        slot.due = now + int(delay * 1e9)
        if counted:
            self.failures += 1
        if why != self.trouble:
            LOG.warning("server %s port %d: %s; trying again until it succeeds", self._host, self._port, why)
            self.trouble = why


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True
