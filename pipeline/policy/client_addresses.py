"""The addresses from which the clients of a server are connected, and those from which they were a while ago.

    update(connected)     the addresses of now; whether anything has changed
    within(networks)      those of now, and the last GONE_MAX of before, that lie in one of these networks
    forget_gone()         those of before count no longer

A client whose connections have ended is about to come back. A route that would keep it out does not return meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline.policy.kernel_entries import IPAddress, Network, contains

GONE_MAX = 64


class ClientAddresses:
    def __init__(self) -> None:
        self._connected: frozenset[IPAddress] = frozenset()
        self._gone: dict[IPAddress, None] = {}  # the oldest one first
        self.were_any = False

    def update(self, connected: Collection[IPAddress]) -> bool:
        now = frozenset(connected)
        if now == self._connected:
            return False
        self._gone |= dict.fromkeys(self._connected - now)
        for address in now:
            self._gone.pop(address, None)
        while len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]
        self._connected = now
        self.were_any = True
        return True

    def forget_gone(self) -> None:
        self._gone.clear()
        self.were_any = bool(self._connected)

    def within(self, networks: Collection[Network]) -> list[IPAddress]:
        known = sorted((*self._connected, *self._gone), key=lambda each: (each.version, each))
        return [each for each in known if any(contains(network, each) for network in networks)]
