"""Keeps a table of ours in the firewall: the firewall's own tools remove it with theirs (`nft flush ruleset`).

    apply(wanted)    install the table, or remove what a run with it has left
    replace(table)   install another version of it, under its name
    tick(now)        look at the table if the kernel has news about it, and put it back
    close()          remove the table, or leave it where it is
    is_in_place      whether it is there, as far as the kernel has told
    has_failed       whether nft could not put it there

The kernel tells of each change of nf_tables by a message that has the table's name in it (linux/netfilter/nfnetlink.h).
So no command runs while others change their own tables.

Without a guard packets leave that must not. So its news wake the supervisor, it is put back at once, and it is
never given up. After too many times it comes back as late as other tables, without a word.
"""

from __future__ import annotations

import selectors
import socket

from pipeline.log import LOG
from pipeline.policy.put_back import REST_TEXT, PutBackLimit
from pipeline.supervisor.kernel.own_table import OwnTable

NETLINK_NETFILTER = 12  # linux/netlink.h
NFNLGRP_NFTABLES = 7
RECEIVE_BYTES = 1 << 16
READS_MAX = 300  # of one look; news may come as fast as they are read
SETTLE_NS = 500_000_000  # a firewall is often loaded in several steps


class TableKeeper:
    """`may_be_there`: a killed run may have left the table. `selector`: of the supervisor, if news are to wake it."""

    def __init__(
        self,
        table: OwnTable,
        *,
        may_be_there: bool = True,
        is_guard: bool = False,
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._table = table
        self._is_guard = is_guard
        self._selector = selector
        self._may_be_there = may_be_there
        self._name = table.table.encode() + b"\0"
        self._expected = ""  # the table as nft prints it; "" while there is none to keep
        self.is_in_place = self.has_failed = False
        self._due = 0
        self._limit = PutBackLimit()
        self._events: socket.socket | None = None  # while there is a table to keep
        self._has_heard = False

    def apply(self, wanted: bool) -> list[str]:
        """Sentences about what is impossible, which have been logged."""
        self._limit.reset()
        if wanted:
            return self._install()
        if not self._may_be_there:
            return []
        warning, self._expected, self._may_be_there = self._table.remove(), "", False
        self.is_in_place = self.has_failed = False
        if warning:
            LOG.warning("%s", warning)
        return [warning] if warning else []

    def replace(self, table: OwnTable) -> list[str]:
        self._limit.reset()
        self._table = table
        return self._install()

    def _install(self) -> list[str]:
        self._may_be_there = True
        if self._events is None:
            self._events = _open()
            if self._events is not None and self._selector is not None:
                self._selector.register(self._events, selectors.EVENT_READ, self._hear)
        warning = self._table.install()
        self._forget_news()
        self.has_failed = bool(warning)
        self._expected = "" if warning else self._table.listing()
        self.is_in_place = bool(self._expected)
        if warning:
            LOG.warning("%s", warning)
        return [warning] if warning else []

    def tick(self, now: int) -> None:
        self._hear()
        heard, self._has_heard = self._has_heard, False
        if not self._expected:
            return
        if heard and not self._due:
            at_once = self._is_guard and not self._limit.is_resting(now)
            self._due = now + (0 if at_once else SETTLE_NS)
            self.is_in_place = False
        if self._limit.rest_has_ended(now):
            self._due = now
        if self._due and now >= self._due:
            self._due = 0
            self._look(now)

    def _look(self, now: int) -> None:
        is_resting = self._limit.is_resting(now)
        if is_resting and not self._is_guard:
            return
        if self._table.listing() == self._expected:
            self.is_in_place = True
            return
        if not is_resting and not self._limit.may(now):
            cost = (
                f"it comes back half a second late for {REST_TEXT}, and packets may leave meanwhile"
                if self._is_guard
                else f"it stays away for {REST_TEXT}, or until a reload"
            )
            LOG.error(
                "%s: others remove table inet %s again and again: %s", *(self._table.setting, self._table.table, cost)
            )
            if not self._is_guard:
                return
        warning = self._table.install()
        self._forget_news()
        self.is_in_place = not warning
        if is_resting and not warning:
            return
        done = f"{self._table.setting}: put back table inet {self._table.table}, which others had removed"
        LOG.warning("%s", warning or done)

    def _hear(self) -> None:
        """Whether anything has happened to our table, or more than the kernel could keep for us."""
        if self._events is None:
            return
        for _ in range(READS_MAX):
            try:
                self._has_heard = self._name in self._events.recv(RECEIVE_BYTES) or self._has_heard
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS
                self._has_heard = True

    def _forget_news(self) -> None:
        """Those that the kernel has for us now are of our own change."""
        self._hear()
        self._has_heard = False

    def close(self, *, leave: bool = False) -> None:
        if self._events is not None:
            if self._selector is not None:
                self._selector.unregister(self._events)
            self._events.close()
        if not leave:
            self.apply(False)


def _open() -> socket.socket | None:
    """News of nf_tables; None where this kernel has none, and so no table."""
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        made.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
    except OSError:
        return None
    made.setblocking(False)
    return made
