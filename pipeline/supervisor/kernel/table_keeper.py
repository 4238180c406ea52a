"""Keeps a table of ours in the firewall: the firewall's own tools remove it with theirs (`nft flush ruleset`).

    apply(wanted)    install the table, or remove what a run with it has left
    replace(table)   install another version of it, under its name
    tick(now)        look at the table if the kernel has news about it, and put it back
    close()          remove the table, or leave it where it is

The kernel tells of each change of nf_tables by a message that has the table's name in it (linux/netfilter/nfnetlink.h).
So no command runs while others change their own tables.
"""

from __future__ import annotations

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
    """`may_be_there`: a killed run may have left the table."""

    def __init__(self, table: OwnTable, *, may_be_there: bool = True) -> None:
        self._table = table
        self._may_be_there = may_be_there
        self._name = table.table.encode() + b"\0"
        self._expected = ""  # the table as nft prints it; "" while there is none to keep
        self._due = 0
        self._limit = PutBackLimit()
        self._events: socket.socket | None = None  # while there is a table to keep

    def apply(self, wanted: bool) -> list[str]:
        """Sentences about what is impossible, which have been logged."""
        self._limit.reset()
        if wanted:
            return self._install()
        if not self._may_be_there:
            return []
        warning, self._expected, self._may_be_there = self._table.remove(), "", False
        if warning:
            LOG.warning("%s", warning)
        return [warning] if warning else []

    def replace(self, table: OwnTable) -> list[str]:
        self._table = table
        return self._install()

    def _install(self) -> list[str]:
        self._may_be_there = True
        if self._events is None:
            self._events = _open()
        warning = self._table.install()
        self._expected = "" if warning else self._table.listing()
        if warning:
            LOG.warning("%s", warning)
        return [warning] if warning else []

    def tick(self, now: int) -> None:
        if self._events is None or not self._expected:
            return
        if self._has_news(self._events) and not self._due:
            self._due = now + SETTLE_NS
        if self._limit.rest_has_ended(now):
            self._due = now
        if self._due and now >= self._due:
            self._due = 0
            self._look(now)

    def _look(self, now: int) -> None:
        if self._limit.is_resting(now) or self._table.listing() == self._expected:
            return
        if not self._limit.may(now):
            LOG.error(
                "%s: others remove table inet %s again and again: it stays away for %s, or until a reload",
                *(self._table.setting, self._table.table, REST_TEXT),
            )
            return
        warning = self._table.install()
        done = f"{self._table.setting}: put back table inet {self._table.table}, which others had removed"
        LOG.warning("%s", warning or done)

    def _has_news(self, events: socket.socket) -> bool:
        """Whether anything has happened to our table, or more than the kernel could keep for us."""
        found = False
        for _ in range(READS_MAX):
            try:
                found = self._name in events.recv(RECEIVE_BYTES) or found
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS
                found = True
        return found

    def close(self, *, leave: bool = False) -> None:
        if self._events is not None:
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
