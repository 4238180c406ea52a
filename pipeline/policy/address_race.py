"""One attempt to connect: the addresses of a server race, each begun a moment after the one before (RFC 8305, 5).

    next_address    the address to connect to now, or None
    connected       the first address that connects wins: the others are abandoned
    failed          an address has failed, also in its handshake after it had won: the next one begins at once
    overdue         addresses that have had their time
    try_again       those that have failed, while silent ones have time left: the server may be back where it was

An abandoned address may be tried again in this race, if the winner's handshake fails. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from pipeline.policy.server_addresses import ServerAddress, ServerAddresses

SILENT_NS = 1_000_000_000  # without an answer: the kernel sends the SYN again (RFC 6298)


class AddressRace:
    """`winner`: the address that is connected; `failures`: the reason of each address that has ever failed."""

    def __init__(self, now: int) -> None:
        self.begun_at = now
        self.winner: ServerAddress | None = None
        self.connect_ns = 0  # that the winner took
        self.failures: dict[ServerAddress, str] = {}
        self.silent: list[ServerAddress] = []  # had not answered when the winner did
        self.is_waiting = False  # silent ones are under way, all others have failed and may be tried again later
        self._under_way: dict[ServerAddress, int] = {}  # when each was begun
        self._failed: set[ServerAddress] = set()  # not to be tried again for now
        self._next_at = now

    def next_address(self, addresses: ServerAddresses, now: int) -> ServerAddress | None:
        """The next address that is due. It counts as begun."""
        if self.winner is not None or now < self._next_at:
            return None
        for address in addresses.in_order():
            if address not in self._under_way and address not in self._failed:
                self._under_way[address] = now
                self._next_at = now + addresses.delay_after(address)
                return address
        return None

    def connected(self, address: ServerAddress, now: int) -> list[ServerAddress]:
        """This address has won. The addresses that are abandoned."""
        self.connect_ns = now - self._under_way.pop(address)
        self.winner = address
        abandoned = list(self._under_way)
        self.silent += abandoned
        self._under_way.clear()
        return abandoned

    def failed(self, address: ServerAddress, why: str) -> None:
        if self.winner == address:
            self.winner = None
        self._under_way.pop(address, None)
        self._failed.add(address)
        self.failures[address] = why
        self._next_at = 0

    def overdue(self, now: int, limit: int) -> list[ServerAddress]:
        """Addresses that have not answered for `limit` ns."""
        return [address for address, begun_at in self._under_way.items() if now - begun_at > limit]

    def try_again(self) -> None:
        self._failed.clear()
        self.is_waiting = False

    def abandon(self) -> list[ServerAddress]:
        """Nobody waits for this race any more: the addresses under way."""
        return list(self._under_way)

    def has_stalled(self, addresses: ServerAddresses, now: int) -> bool:
        """Whether some addresses have failed, and all others have been silent for a while."""
        silent = {address for address, begun_at in self._under_way.items() if now - begun_at >= SILENT_NS}
        return bool(self._failed) and all(each in silent or each in self._failed for each in addresses.known)

    def round(self) -> dict[ServerAddress, str]:
        """The addresses that have failed since try_again, with the reason of each."""
        return {address: self.failures[address] for address in self._failed}

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way: every address has failed, or there is none."""
        return self.winner is None and not self._under_way
