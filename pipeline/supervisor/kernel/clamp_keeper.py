"""Keeps the table of the MSS clamp in the kernel: the firewall's own tools remove it with theirs (`nft flush ruleset`).

    apply(wanted)    install the table, or remove what a run with a clamp has left
    tick(now)        look at the table if the kernel has news about it, and put it back
    close()          remove the table

The kernel tells of each change of nf_tables by a message that has the table's name in it (linux/netfilter/nfnetlink.h).
So no command runs while others change their own tables.
"""

from __future__ import annotations

import socket

from pipeline.log import LOG
from pipeline.policy.put_back import REST_TEXT, PutBackLimit
from pipeline.supervisor.kernel.mss_clamp import MssClamp

NETLINK_NETFILTER = 12  # linux/netlink.h
NFNLGRP_NFTABLES = 7
RECEIVE_BYTES = 1 << 16
READS_MAX = 300  # of one look; news may come as fast as they are read
SETTLE_NS = 500_000_000  # a firewall is often loaded in several steps


class ClampKeeper:
    def __init__(self, tun_name: str, instance_name: str) -> None:
        self._clamp = MssClamp(tun_name, instance_name)
        self._name = self._clamp.table.encode() + b"\0"
        self._expected = ""  # the table as nft prints it; "" while there is none to keep
        self._due = 0
        self._limit = PutBackLimit()
        self._events = _open()

    def apply(self, wanted: bool) -> list[str]:
        """Sentences about what is impossible, which have been logged."""
        self._limit.reset()
        warning = self._clamp.install() if wanted else self._clamp.remove()
        self._expected = self._clamp.listing() if wanted and not warning else ""
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
        if self._limit.is_resting(now) or self._clamp.listing() == self._expected:
            return
        if not self._limit.may(now):
            LOG.error(
                "mss_clamp: others remove table inet %s again and again: it stays away for %s, or until a reload",
                *(self._clamp.table, REST_TEXT),
            )
            return
        warning = self._clamp.install()
        LOG.warning("%s", warning or f"mss_clamp: put back table inet {self._clamp.table}, which others had removed")

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

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        warning = self._clamp.remove()
        if warning:
            LOG.warning("%s", warning)


def _open() -> socket.socket | None:
    """News of nf_tables; None where this kernel has none, and so no clamp."""
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        made.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
    except OSError:
        return None
    made.setblocking(False)
    return made
