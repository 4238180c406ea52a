"""The dialing of one server: which of a client's connections is dialed when, and at which address. Pure.

    step(now)       -> what to do: Resolve, Connect, Abandon
    connected       TCP is connected: the handshake begins          (of one dial slot each)
    failed          an address has not led to a connection
    established     the connection is there
    lost            the connection has ended
    renew, keep     it is to be dialed anew beside the one that still stands; no longer
    resolved        the resolver's answer
    want            the slots are others: a reserve gets its further connections, or loses them again
    hurry           the network has changed: every waiting dial is due at once

One object per server and tcp worker knows what all its slots share: the addresses, the backoff, whether the server is
within reach. While it is not, one slot alone tries, in the name of all. A failed attempt makes them all wait.

With several lanes, their workers know nothing of each other. Together they dial at most DIALS_AT_ONCE at a time: they
divide that number, or they take turns. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.policy.address_race import AddressRace
from pipeline.policy.backoff import Backoff
from pipeline.policy.server_addresses import ServerAddress, ServerAddresses

CONNECT_NS = 5_000_000_000
"""How long one address may take to answer: a SYN and two repetitions (1 + 2 s)."""

DIALS_AT_ONCE = 3
"""Attempts under way at a time, of all lanes: a server takes four handshakes from an address
(max_handshakes_per_address)."""

TURN_NS = 250_000_000
"""With more lanes than DIALS_AT_ONCE: how long some of them may begin attempts, before it is the turn of the next."""

STABLE_NS = 1_000_000_000
"""A connection that was established for so long was no failed attempt."""

LOOKUP_NS = 1_000_000_000
"""An answer of the resolver is used for so long before the name is looked up again."""

LOOKUP_SLOW_NS = 15_000_000_000
"""After so long a second lookup begins beside the first: glibc gives up after 5 s with each server, twice."""

LOOKUPS_AT_ONCE = 4  # a resolver that never returns costs so many threads at most

NO_ANSWER = "no answer"
UNRESOLVED = "the resolver does not answer: is the DNS server within reach?"


class Resolve(NamedTuple):
    """Look the server's name up; answer with resolved()."""


class Connect(NamedTuple):
    """Begin to connect; answer with connected() or failed()."""

    dial_index: int  # of the dial slot
    address: ServerAddress


class Abandon(NamedTuple):
    """Close the socket that connects to this address for this slot."""

    dial_index: int
    address: ServerAddress


Action = Resolve | Connect | Abandon


class FailedAttempt(NamedTuple):
    """Every address of an attempt has failed, or there was none."""

    failures: dict[ServerAddress, str]  # a reason for each
    why: str  # for want of addresses; else ""


class DialSlot:
    """One connection that the client keeps up."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.due_at: int | None = 0  # when the next attempt may begin; None: none is wanted
        self.race: AddressRace | None = None  # the attempt under way
        self.established_at: int | None = None
        self.attempts_before = 0  # of the backoff, when the connection was established


class Lookups:
    """The lookups of the server's name: when one is due, and what is under way."""

    def __init__(self) -> None:
        self.under_way = 0
        self._begun_at = -LOOKUP_SLOW_NS
        self._stale = False

    def begin(self, now: int, known: bool) -> bool:
        """Whether a lookup is to begin now; it counts as begun. `known`: there are addresses from an earlier one."""
        age = now - self._begun_at
        if self.under_way:
            due = self.under_way < LOOKUPS_AT_ONCE and (self._stale or age > LOOKUP_SLOW_NS)
        else:
            due = self._stale or not known or age >= LOOKUP_NS
        if due:
            self.under_way += 1
            self._begun_at = now
            self._stale = False
        return due

    def end(self) -> None:
        self.under_way -= 1

    def make_stale(self) -> None:
        """The network has changed: the next attempt looks the name up, although a lookup is under way."""
        self._stale = True


class Dialing:
    """The slots `indexes` of the worker of `lane`; `connect_ns`: how long one address may take to answer."""

    def __init__(
        self, indexes: Iterable[int], lane: int, lanes: int, backoff: Backoff, connect_ns: int = CONNECT_NS
    ) -> None:
        self.slots = {index: DialSlot(index) for index in indexes}
        self.addresses = ServerAddresses()
        self.failed_attempts: list[FailedAttempt] = []  # since the caller has emptied it
        self._lane = lane
        self._lanes = lanes
        self._backoff = backoff
        self._connect_ns = connect_ns
        self._lookups = Lookups()
        self._wait_until = 0
        self._reached = False  # the last attempt has connected, or its connection stands
        self._actions: list[Action] = []

    @property
    def is_idle(self) -> bool:
        """Whether step() has nothing to do, now or later."""
        if self._actions or self._lookups.under_way:
            return False
        return all(slot.race is None and slot.due_at is None for slot in self.slots.values())

    @property
    def established_count(self) -> int:
        """How many connections stand."""
        return sum(slot.established_at is not None for slot in self.slots.values())

    # -- what to do

    def step(self, now: int) -> list[Action]:
        """Begin the attempts that are due, and go on with those under way."""
        for slot in self.slots.values():
            if slot.race is not None:
                self._go_on(slot, slot.race, now)
        self._begin_due(now)
        actions, self._actions = self._actions, []
        return actions

    def take_abandoned(self) -> list[Abandon]:
        """The sockets that nobody waits for since the last step. They are to be closed before they have news."""
        abandoned = [action for action in self._actions if isinstance(action, Abandon)]
        if abandoned:
            self._actions = [action for action in self._actions if not isinstance(action, Abandon)]
        return abandoned

    def _begin_due(self, now: int) -> None:
        for slot in self.slots.values():
            if slot.race is None and slot.due_at is not None and slot.due_at <= now and self._may_begin(now):
                slot.race = AddressRace(now)
                if self._lookups.begin(now, bool(self.addresses.known)):
                    self._actions.append(Resolve())
                self._go_on(slot, slot.race, now)

    def _may_begin(self, now: int) -> bool:
        turns = -(-self._lanes // DIALS_AT_ONCE)
        if turns > 1 and now // TURN_NS % turns != self._lane // DIALS_AT_ONCE:
            return False
        at_once = max(1, DIALS_AT_ONCE // self._lanes) if self._reached else 1
        return sum(slot.race is not None for slot in self.slots.values()) < at_once

    def _go_on(self, slot: DialSlot, race: AddressRace, now: int) -> None:
        for address in race.overdue(now, self._connect_ns):
            race.failed(address, NO_ANSWER)
            self._actions.append(Abandon(slot.index, address))
        following = race.next_address(self.addresses, now)
        if following is not None:
            self._actions.append(Connect(slot.index, following))
        elif race.is_over and self.addresses.known:
            self._give_up(slot, FailedAttempt(race.round(), ""), now)
        elif race.is_waiting:
            if slot.due_at is not None and slot.due_at <= now:
                race.try_again()
        elif race.winner is None and race.has_stalled(self.addresses, now):
            race.is_waiting = True
            self._fail(slot, FailedAttempt(race.round(), ""), now)
        elif race.is_over and now - race.begun_at > CONNECT_NS:
            self._give_up(slot, FailedAttempt({}, UNRESOLVED), now)

    def _give_up(self, slot: DialSlot, attempt: FailedAttempt, now: int) -> None:
        slot.race = None
        self._fail(slot, attempt, now)

    def _fail(self, slot: DialSlot, attempt: FailedAttempt, now: int) -> None:
        self.failed_attempts.append(attempt)
        if not self.established_count:
            self._reached = False
            for other in self.slots.values():
                if other is not slot and other.race is not None and other.race.winner is None:
                    self._abandon(other)
        self._wait(slot, now)

    def _wait(self, slot: DialSlot, now: int) -> None:
        """Wait by the backoff. Without any connection all slots wait, for they would fare no better."""
        if now >= self._wait_until:
            self._wait_until = now + int(self._backoff.next_delay() * 1e9)
        slot.due_at = self._wait_until
        if not self.established_count:
            for other in self.slots.values():
                if other.due_at is not None:
                    other.due_at = max(other.due_at, self._wait_until)

    # -- what has happened

    def resolved(self, answer: Iterable[ServerAddress], why: str, now: int) -> None:
        """The resolver has answered. An empty answer, for the reason `why`, leaves the addresses that are known."""
        self._lookups.end()
        addresses = list(answer)
        if addresses:
            self.addresses.take(addresses)
        elif not self.addresses.known:
            for slot in self.slots.values():
                if slot.race is not None:
                    self._give_up(slot, FailedAttempt({}, why), now)

    def connected(self, index: int, address: ServerAddress, now: int) -> None:
        """TCP is connected to this address."""
        race = self._race_of(index)
        self._reached = self._reached or not self._backoff.attempt
        self._actions += [Abandon(index, other) for other in race.connected(address, now)]
        self.addresses.connected(address, race.connect_ns)

    def failed(self, index: int, address: ServerAddress, why: str) -> None:
        """An address has not led to a connection: the next one is tried, or the slot waits and begins again."""
        race = self._race_of(index)
        if race.winner == address:
            self.addresses.rejected(address)
        race.failed(address, why)

    def established(self, index: int, now: int) -> dict[ServerAddress, str]:
        """The connection is there. The addresses that were tried before its own, with the reason of each."""
        slot, race = self.slots[index], self._race_of(index)
        if race.winner is None:
            raise LocalError(f"dial slot {index}: established, but no address has connected")
        self.addresses.worked(race.winner, race.connect_ns)
        if not self._reached:  # the others have waited for this
            self._wait_until = now
            self._let_all_begin(now)
        slot.race, slot.due_at, slot.established_at = None, None, now
        slot.attempts_before = self._backoff.attempt
        self._backoff.reset()
        self._reached = True
        return dict.fromkeys(race.silent, NO_ANSWER) | race.failures

    def lost(self, index: int, now: int) -> None:
        """The connection has ended: dial again, at once if it was stable, or if that has begun already."""
        slot = self.slots[index]
        if slot.established_at is None:
            raise LocalError(f"dial slot {index}: lost, but no connection stands")
        stood = now - slot.established_at
        slot.established_at = None
        if slot.due_at is not None:
            return
        slot.due_at = now
        if stood < STABLE_NS:
            self._backoff.attempt = max(self._backoff.attempt, slot.attempts_before)
            self._wait(slot, now)

    def want(self, indexes: Set[int], now: int) -> None:
        """Keep up these slots and no others. Nothing is reported of the others any more; their sockets are closed."""
        for index in [index for index in self.slots if index not in indexes]:
            del self.slots[index]
        for index in sorted(indexes - self.slots.keys()):
            slot = self.slots[index] = DialSlot(index)
            slot.due_at = now

    def renew(self, index: int, now: int) -> None:
        """Dial this slot anew, although its connection stands: the new one takes its place."""
        if self.slots[index].due_at is None:
            self.slots[index].due_at = now

    def keep(self, index: int) -> None:
        """The connection of this slot is as good as a new one, unless that is connected already."""
        slot = self.slots[index]
        if slot.established_at is None or (slot.race is not None and slot.race.winner is not None):
            return
        self._abandon(slot)
        slot.due_at = None

    def hurry(self, now: int) -> None:
        """The network has changed: begin every attempt anew that is not connected, and look the name up again."""
        self._lookups.make_stale()
        self._backoff.reset()
        self._wait_until = now
        for slot in self.slots.values():
            if slot.race is not None and slot.race.winner is None:
                self._abandon(slot)
        self._let_all_begin(now)

    def _let_all_begin(self, now: int) -> None:
        for slot in self.slots.values():
            if slot.due_at is not None:
                slot.due_at = now

    def _abandon(self, slot: DialSlot) -> None:
        if slot.race is not None:
            self._actions += [Abandon(slot.index, address) for address in slot.race.abandon()]
            slot.race = None

    def _race_of(self, index: int) -> AddressRace:
        race = self.slots[index].race
        if race is None:
            raise LocalError(f"dial slot {index}: news of an attempt, but none is under way")
        return race
