"""The addresses that a server remembers for its peers, and the file that holds them: saved until it has been written.

A disk may be full or read-only for a while. Nobody loses a connection for that: the error is said once, and the newest
addresses are saved again and again until that has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.errors import TunnelError
from pipeline.log import LOG

RETRY_NS = 10_000_000_000

Addresses = dict[str, list[str]]
"""Name of a peer -> its addresses, least recently admitted peer first."""


class RememberedAddresses:
    """`saved`: what the file holds; `save` writes it, TunnelError if it cannot be written."""

    def __init__(self, saved: Addresses, save: Callable[[Addresses], None]) -> None:
        self._saved = self._wanted = saved
        self._save = save
        self._retry_at = 0  # CLOCK_MONOTONIC ns; 0: the last write has succeeded

    def update(self, addresses: Mapping[str, Sequence[object]], now: int) -> None:
        """Save these addresses, at once if the last write has succeeded."""
        self._wanted = {name: list(map(str, each)) for name, each in addresses.items()}
        self.tick(now)

    def tick(self, now: int) -> None:
        """Write what is not saved yet, if it is time to."""
        if self._wanted == self._saved or now < self._retry_at:
            return
        try:
            self._save(self._wanted)
        except TunnelError as error:
            if not self._retry_at:
                LOG.error(
                    "%s; trying again every %d s: until then a restart may change addresses", error, RETRY_NS / 1e9
                )
            self._retry_at = now + RETRY_NS
            return
        if self._retry_at:
            LOG.info("the addresses of the peers are saved again")
        self._saved, self._retry_at = self._wanted, 0
