"""The queue of unauthenticated clients: new connections, and bytes of handshakes under way.

The listening socket and all connections that are not established have an epoll of their own. That epoll's descriptor is
in the epoll of the worker, so that one call switches it off. While the HandshakeBudget allows nothing, unauthenticated
clients do not even wake the duty: they wait in the kernel.

    begin_turn(...)       whether clients may be served now, and until when
    ready()               the connections that have something to do, in the order in which they are served; then come
                          the clients of the fallback
    charge(...)           the time that one step of a handshake took
    end_turn(...)         the time that the turn took
    forget(...)           a connection has been established, or has ended

Owned by the connection manager of a server.
"""

from __future__ import annotations

import select
from collections.abc import Mapping

from pipeline.policy.handshake_budget import HandshakeBudget
from pipeline.transport.connection import Connection

CHEAP_NS = 1_000_000  # a handshake takes a third of it in all


class HandshakeQueue:
    """`worker_epoll`: where the duty waits. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, worker_epoll: select.epoll) -> None:
        self.epoll = select.epoll()
        self.has_work = False  # something is ready, and perhaps there was no time for it yet
        self.observe_at_ns = 0  # when begin_turn() wants to be called without work
        self._worker_epoll = worker_epoll
        self._budget = HandshakeBudget()
        self._off = False
        self._spent: dict[int, int] = {}  # ns, by serial number of the connection
        worker_epoll.register(self.fd, select.EPOLLIN)

    @property
    def fd(self) -> int:
        return self.epoll.fileno()

    def close(self) -> None:
        self.epoll.close()

    def begin_turn(self, byte_count: int, now: int) -> int:
        """The time until which clients may be served now; 0 if there is nothing to do, or no time for it.

        `byte_count`: that have passed all connections so far.
        """
        self.observe_at_ns = self._budget.observe(byte_count, now)
        if not self.has_work:
            return 0
        allowance = self._budget.allowance(now)
        if self._off is bool(allowance):
            self._off = not allowance
            self._worker_epoll.modify(self.fd, 0 if self._off else select.EPOLLIN)
        self.has_work = self._off
        return now + allowance if allowance else 0

    def ready(self, connections: Mapping[int, Connection]) -> tuple[list[Connection], list[int]]:
        """The connections that have something to do, in the order in which they are served; and all other descriptors.

        `connections`: the handshakes of the queue, by descriptor.
        """
        found, others = [], []
        for fd, _ in self.epoll.poll(0):
            if fd in connections:
                found.append(connections[fd])
            else:
                others.append(fd)
        found.sort(key=self._rank)
        return found, others

    def _rank(self, connection: Connection) -> tuple[bool, int]:
        """Handshakes that have begun come first: little is left to do, and their clients have worked for it. A
        handshake that has cost as much as three comes with the new ones. The oldest of each kind is first."""
        spent = self._spent.get(connection.serial, 0)
        return not 0 < spent < CHEAP_NS, connection.serial

    def charge(self, connection: Connection, ns: int) -> None:
        """The time that one step of a handshake took. It is part of that of the turn."""
        self._spent[connection.serial] = self._spent.get(connection.serial, 0) + ns

    def end_turn(self, ns: int) -> None:
        """The time that the turn took."""
        self._budget.spend(ns)

    def forget(self, connection: Connection, *, free: bool) -> None:
        """A connection is established, or has ended. `free`: what it has cost is not counted."""
        spent = self._spent.pop(connection.serial, 0)
        if free:
            self._budget.give_back(spent)
