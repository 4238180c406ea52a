"""Reach on a running server: the rules are compiled when peers or settings change, and enforced.

    follow(...)          the peers and their sessions are these now; what differs is given to those who enforce it
    tick(now)            refusals become events, and what others have removed from the kernel is put back
    complete(rows)       the rows of peers, with their rules and refusals
    explain(...)         for `check --explain`

Two places enforce them: nftables for what this machine forwards and for itself, tun workers for what goes from peer to
peer. Without any rule neither has anything of this. While nftables has not its part, tun workers keep the packets of
peers with rules from the kernel.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from pipeline.config import Config
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.packet.flow import flow_of_packet
from pipeline.peers import reach_facts
from pipeline.peers.membership import Member
from pipeline.peers.peer_status import PeerRow
from pipeline.peers.reach_facts import facts_of, owners_of, terms_of
from pipeline.policy import reach_words
from pipeline.policy.reach import PeerFacts, Policy, Row, Terms, compile_policies, sources
from pipeline.policy.reach_words import Explained
from pipeline.policy.targets import Network
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.reach_rules import NO_POLICY
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.kernel.reach_guard import ReachGuard
from pipeline.supervisor.kernel.reach_table import Guarded
from pipeline.supervisor.run.reach_memory import ReachMemory

APPLY_SHARE = 4  # nft takes at most one part in so many more of the supervisor's time, while peers come
TARGETS_SHOWN = 16  # of a peer, in its row
LOOK_NS = 250_000_000  # between two looks at refusals
TOLD_NS = 10_000_000_000  # between two events of one text of one peer
TOLD_MAX = 20  # events of refusals in that time


class PeerReach:
    """`use` comes before the first peer, where rules can be enforced; with compat there are none."""

    def __init__(self, config: Config, events: Events) -> None:
        self._config = config
        self._events = events
        self._guard: ReachGuard | None = None
        self._memory: ReachMemory | None = None
        self._seen: tuple[Terms, tuple[PeerFacts, ...]] = (Terms(), ())
        self._policies: dict[str, Policy] = {}
        self._serial = 0  # of these policies
        self._guarded: list[Guarded] = []  # as the kernel is to have them
        self._is_pending = False  # they are others than those that the kernel has
        self._applied: dict[str, tuple[Network, ...]] = {}  # by name, the addresses that the kernel has
        self._apply_ns = 0  # before that, a peer that comes waits for the next ones
        self._handles: Mapping[str, int] = {}  # of the sessions, by name
        self._is_guarded = True  # as tun workers have been told
        self._between: Counter[str] = Counter()  # packets that tun workers have refused, by name
        self._counted: dict[int, int] = {}  # of them, by index
        self._told: dict[tuple[str, str], int] = {}  # when; by peer and text
        self._due = 0
        self.changes = 0  # of complete()

    def use(self, guard: ReachGuard, memory: ReachMemory) -> None:
        self._guard, self._memory = guard, memory

    def configure(self, config: Config) -> None:
        """Another configuration; follow() comes with its rules."""
        self._config = config

    def follow(self, config: Config, members: Sequence[Member], handles: Mapping[str, int]) -> None:
        """Before routes to these sessions are written: so no packet of a peer meets the rules of none."""
        self.configure(config)
        if self._policies:
            self._tell_refusals(time.monotonic_ns())  # with the rules that have refused
        self._count_between()
        self._handles = handles
        before, seen = self._seen, (terms_of(config), facts_of(members))
        differs, self._seen = seen != before, seen
        if differs:
            policies = compile_policies(seen[1], seen[0])
            differs = bool(policies or self._policies)
            self._policies = policies
        if differs:
            self._serial += 1
            self.changes += 1
            self._guarded, self._is_pending = self._guarded_of(seen[1]), True
            now = time.monotonic_ns()
            if now >= self._apply_ns or _is_urgent(before, seen):
                self._apply(now)
        if differs or self._policies:
            self._write_rules()

    def _guarded_of(self, facts: Sequence[PeerFacts]) -> list[Guarded]:
        if not self._policies:
            return []
        own: dict[str, list[Network]] = {}
        for network, name in sources(owners_of(self._config, facts)):
            own.setdefault(name, []).append(network)
        return [Guarded(name, tuple(own.get(name, ())), policy) for name, policy in self._policies.items()]

    def _apply(self, now: int) -> None:
        """Give the kernel its part. Where that takes long and peers come in numbers, it is done for many together."""
        if self._guard is None:
            return
        self._is_pending = False
        self._guard.apply(self._guarded)
        self._applied = {peer.name: peer.sources for peer in self._guarded}
        ended = time.monotonic_ns()
        self._apply_ns = ended + APPLY_SHARE * (ended - now)

    @property
    def _lacking(self) -> set[str]:
        """The peers with rules whose addresses the kernel has not heard of."""
        return {peer.name for peer in self._guarded if self._applied.get(peer.name) != peer.sources}

    def _write_rules(self) -> None:
        if self._memory is None or self._guard is None:
            return
        numbers: dict[int, int] = {}  # of each policy, by its identity
        policies: list[list[Row]] = []
        for policy in self._policies.values():
            if id(policy) not in numbers:
                numbers[id(policy)] = len(policies)
                policies.append(policy.rows)
        handles = {
            handle: numbers[id(self._policies[name])] if name in self._policies else NO_POLICY
            for name, handle in self._handles.items()
        }
        self._is_guarded = self._guard.is_in_place or not self._policies
        own = [interface.ip.packed for interface in self._config.tunnel_interfaces]
        kept = {self._handles[name] for name in self._lacking & self._handles.keys()}
        try:
            self._memory.rules.write(self._is_guarded, self._serial, own, handles, policies, kept)
        except LocalError as error:
            LOG.error("%s. Until then, peers with rules reach no other peer", error)
            self._memory.rules.write(self._is_guarded, self._serial, own, handles, [[] for _ in policies], kept)

    def tick(self, now: int) -> None:
        if self._guard is None or self._memory is None or not (self._policies or self._is_pending):
            return
        self._guard.tick(now)
        if self._is_pending and now >= self._apply_ns:
            self._apply(now)
            self._write_rules()
        if self._guard.is_in_place != self._is_guarded:
            self._write_rules()
        if now < self._due:
            return
        self._due = now + LOOK_NS
        before = self._refused()
        self._count_between()
        self.changes += self._refused() != before
        self._tell_refusals(now)

    def _tell_refusals(self, now: int) -> None:
        if self._guard is None or self._memory is None:
            return
        for name, packet in self._guard.take_refusals():
            if (flow := flow_of_packet(packet)) is not None:
                self._tell(name, flow.destination, flow.protocol, flow.port, now)
        names = {handle: name for name, handle in self._handles.items()}
        for note in self._memory.refusals.take_notes():
            if note.peer_handle in names:
                self._tell(names[note.peer_handle], note.destination, note.protocol, note.port, now)

    def _count_between(self) -> None:
        """Take over what tun workers have counted for the sessions that there are."""
        if self._memory is None or not self._policies:
            return
        for name, handle in self._handles.items():
            index = handle & PEER_INDEX_MASK
            count = self._memory.refusals.counts(index)
            if count != self._counted.get(index, 0):
                self._between[name] += count - self._counted.get(index, 0)
                self._counted[index] = count

    def _refused(self) -> Counter[str]:
        return self._between + self._guard.counts if self._guard is not None else self._between

    def _tell(self, name: str, destination: bytes, protocol: int, port: int, now: int) -> None:
        """An event for a packet that was refused: one for each target in a while, and few in all."""
        policy = self._policies.get(name)
        rules = f"; it may reach {reach_words.in_short(policy)}" if policy is not None else ""
        text = reach_words.refused(ip_address(destination), protocol, port) + rules
        self._told = {key: when for key, when in self._told.items() if now - when < TOLD_NS}
        if (name, text) not in self._told and len(self._told) < TOLD_MAX:
            self._told[name, text] = now
            self._events.record("reach-refused", name, text)

    def limits(self, name: str) -> bool:
        """Whether this peer has rules."""
        return name in self._policies

    # -- for people

    @property
    def notes(self) -> list[str]:
        """Sentences about rules that cannot be enforced as they should be."""
        return self._guard.notes if self._guard is not None else []

    def complete(self, rows: Iterable[PeerRow]) -> list[PeerRow]:
        refused = self._refused()
        if not self._policies and not refused:
            return list(rows)
        return [self._completed(row, refused[row.name]) for row in rows]

    def _completed(self, row: PeerRow, refused: int) -> PeerRow:
        policy = self._policies.get(row.name)
        if policy is None:
            return row._replace(refused_packets=refused)
        texts = tuple(rule.target.text for rule in policy.rules)
        return row._replace(may_reach=texts[:TARGETS_SHOWN], may_reach_count=len(texts), refused_packets=refused)

    def explain(self, members: Iterable[Member], name: str, text: str) -> Explained:
        """`members`: all of now. LocalError for a peer that there is not, or a question that is none."""
        terms, facts = terms_of(self._config), facts_of(members)
        return reach_facts.explain(self._config, terms, facts, self._policies, name, text)

    def about_invited(self, name: str) -> str:
        return reach_words.about_invited(self._policies.get(name), self._config.client_isolation)


def _is_urgent(before: tuple[Terms, tuple[PeerFacts, ...]], now: tuple[Terms, tuple[PeerFacts, ...]]) -> bool:
    """Whether rules have changed, and not only peers and their addresses."""
    known = {peer.name: (peer.allowed, peer.groups, peer.may_reach) for peer in before[1]}
    return before[0] != now[0] or any(
        known.get(peer.name, (peer.allowed, peer.groups, peer.may_reach)) != (peer.allowed, peer.groups, peer.may_reach)
        for peer in now[1]
    )
