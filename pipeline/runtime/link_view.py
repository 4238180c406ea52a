"""The link view: the state of the connections to each peer, as the tun and fec workers read it from the link records.

The tcp workers write the link records. A connection is (consumer, ordinal). Consumer is the position of its tcp worker
in the last stage of a ring. Ordinal is its number among that worker's connections to the peer for one traffic class.
The state may change right after it was read, so the tcp worker takes an ordinal modulo the number of its connections.

While a dgram worker has a path to the peer, that worker is the consumer of everything. Nothing is coded or copied then:
datagrams have parity and copies of their own. Its position is behind those of the tcp workers. Where it says that bulk
goes by TCP (pipeline.policy.bulk_carrier), it is the consumer of light blocks alone.

A connection is of the lane that gets what it brings (pipeline.policy.lane_pairs). That lane answers on it.

The records of a peer change when a connection comes or goes, and when a path gets better or worse. The state is
computed then; else a look at it is one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.fec import stripe
from pipeline.runtime import link_paths
from pipeline.runtime.link_paths import Paths
from pipeline.runtime.worker import Attachment
from pipeline.shm import link_requests
from pipeline.shm.layout import (
    DATAGRAM_BULK_BY_TCP,
    DATAGRAM_PATH,
    DATAGRAM_WAITS,
    LIGHT_LANES_SHIFT,
    LINK_ACCEPTS_SHARDS,
    LINK_ESTABLISHED,
    LINK_LANES,
    LINK_LIGHT,
    LINK_OFFLOADS,
    LINK_REQUESTS,
    PATH_BULK,
    PATH_RATES,
    PEER_HANDLE,
    PEER_OFFLOADS,
    RECORD_WORDS,
    STATE_WORDS,
)
from pipeline.shm.memory_order import REORDERS, fence

ConnectionRef = tuple[int, int]
"""Consumer and ordinal of a connection."""


class LinkState(NamedTuple):
    """The connections to one peer."""

    record: bytes  # of all tcp and dgram workers: this is what the rest follows from

    bulk_consumer: int
    """The consumer of this lane's plain blocks: a tcp worker that has a connection of this lane, its own one first.

    If there is none, it is the own one if that has connections at all, or another one. So a flow stays on one
    connection, in order, as long as the set of connections stays.
    """

    light_consumer: int
    """The consumer of this lane's light blocks: one that has a connection of this lane for light flows, that of its
    plain blocks first. If there is none, one that has a connection for light flows, in the same order."""

    has_light: bool  # there are connections for light flows
    is_foreign: bool  # there are, and none is of this lane

    offloads: int | None  # TUN_F_* bits that the peer accepts; None while it has no connection
    parity: int  # shards that the state of the connections calls for; 0 if the peer accepts no shards
    copies: int  # of a light packet that it calls for; -1 if the peer accepts none

    bulk_connections: tuple[ConnectionRef, ...]  # those for bulk; if there are none, those for light flows
    light_connections: tuple[ConnectionRef, ...]  # those for light flows; if there are none, those for bulk

    copy_connections: tuple[ConnectionRef, ...]
    """Those for light flows in the order in which the copies of a block take them.

    Of copies, ordinal 0 is the connection on which that tcp worker sends a light block of this lane that has none. So
    the first copy takes the connection that the block alone would take.
    Of a peer with uplinks, neighbours are on different uplinks, and each ordinal stands for its own connection.
    """

    has_paths: bool  # the peer has uplinks
    is_paired: bool  # on two of which light packets travel

    shares: tuple[float, ...]
    """How much of the bulk each of bulk_connections is to carry, by the rate of its uplink; () for equal shares.

    Of a peer with uplinks, backups are among the connections only while no main uplink carries anything.
    """

    by_datagrams: bool = False  # a dgram worker has a path: it is the consumer

    @property
    def is_coded(self) -> bool:
        """Whether bulk travels as runs: for parity, or over several uplinks."""
        return self.parity > 0 or self.has_paths


class LinkView:
    """The states of all peers, for one lane. `datagrams`: paths of dgram workers count."""

    def __init__(self, attachment: Attachment, datagrams: bool = True) -> None:
        self._words = attachment.peer_table.links
        self._path_words = attachment.peer_table.paths
        self._datagram_words = attachment.peer_table.datagrams_in if datagrams else []
        self._by_tcp_words = attachment.peer_table.datagrams_out if datagrams else []
        self._peer_words = attachment.peer_table.records
        self._alone = self._words[0] if len(self._words) == 1 and not self._datagram_words else None
        self._lane: int = attachment.worker.lane
        self._most = attachment.peer_table.status_rows  # connections of a worker, even if it runs amok
        self._states: dict[int, LinkState] = {}  # by peer index

    def state(self, peer: int) -> LinkState:
        """The state of a peer's connections now."""
        alone = self._alone
        if alone is not None:
            at = peer * RECORD_WORDS
            record = alone[at : at + STATE_WORDS].tobytes()
        else:
            record = self._read(peer)
        seen = self._states.get(peer)
        return seen if seen is not None and seen.record == record else self._follow(peer, record)

    def _read(self, peer: int) -> bytes:
        at = peer * RECORD_WORDS
        record = [words[at : at + STATE_WORDS] for words in self._words]
        if self._datagram_words:
            record += [words[at + DATAGRAM_PATH : at + DATAGRAM_PATH + 1] for words in self._datagram_words]
            by_tcp = at + DATAGRAM_BULK_BY_TCP
            record += [words[by_tcp : by_tcp + 1] for words in self._by_tcp_words]
            record.append(self._peer_words[at + PEER_HANDLE : at + PEER_HANDLE + 1])
        return b"".join(record)

    def _follow(self, peer: int, record: bytes) -> LinkState:
        if REORDERS:  # what a writer has stored before the count of connections is seen with it
            fence()
            record = self._read(peer)
        every = memoryview(record).cast("Q").tolist()
        end = STATE_WORDS * len(self._words)
        records = [every[at : at + STATE_WORDS] for at in range(0, end, STATE_WORDS)]
        bulk = _consumer(records, LINK_LANES, 1 << self._lane, LINK_ESTABLISHED, self._lane)
        light_bit = 1 << self._lane + LIGHT_LANES_SHIFT
        light = _consumer(records, LINK_LANES, light_bit, LINK_LIGHT, bulk)
        has_light = any(each[LINK_LIGHT] for each in records)
        connected = [each for each in records if each[LINK_ESTABLISHED]]
        accepts = all(each[LINK_ACCEPTS_SHARDS] for each in connected)
        requests = link_requests.most(each[LINK_REQUESTS] for each in connected)
        light_connections = self._connections(records, [each[LINK_LIGHT] for each in records])
        first = next((place for place, each in enumerate(light_connections) if each[0] == light), 0)
        copy_connections = light_connections[first:] + light_connections[:first]
        bulk_connections = self._connections(records, [each[LINK_ESTABLISHED] - each[LINK_LIGHT] for each in records])
        has_paths = accepts and any(each[LINK_ACCEPTS_SHARDS] > 1 for each in connected)
        shares: tuple[float, ...] = ()
        is_paired = False
        if has_paths:
            paths = self._paths(peer, records)
            bulk_connections, shares = _by_rate(bulk_connections, paths)
            copy_connections, is_paired = _in_turn(copy_connections, paths)
            light_connections = copy_connections
        state = self._states[peer] = LinkState(
            record=record,
            bulk_consumer=bulk,
            light_consumer=light,
            has_light=has_light,
            is_foreign=has_light and not records[light][LINK_LANES] & light_bit,
            offloads=connected[0][LINK_OFFLOADS] if connected else None,
            parity=requests.parity if accepts else 0,
            copies=requests.copies if connected and accepts else -1,
            bulk_connections=bulk_connections,
            light_connections=light_connections,
            copy_connections=copy_connections,
            has_paths=has_paths,
            is_paired=is_paired,
            shares=shares,
        )
        lane = self._lane_with_path(every[end:])
        if lane is not None:
            consumer = len(self._words) + lane
            state = state._replace(
                light_consumer=consumer,
                is_foreign=False,
                copies=-1,
                is_paired=False,
                by_datagrams=True,
                offloads=state.offloads if connected else self._peer_words[peer * RECORD_WORDS + PEER_OFFLOADS] or None,
            )
            if every[end + len(self._datagram_words) + lane] != every[-1]:
                state = state._replace(bulk_consumer=consumer, parity=0, has_paths=False)
            self._states[peer] = state
        return state

    def _lane_with_path(self, words: Sequence[int]) -> int | None:
        """The lane whose dgram worker has a path to the peer, or else takes its blocks without one; this one first.
        `words`: a handle of each lane for which that is so, one of each for whose bulk it is not, and the current
        handle."""
        if not words or not words[-1]:
            return None
        handles, current = words[: len(self._datagram_words)], words[-1]
        lanes: list[int] = [self._lane, *range(len(handles))]
        for wanted in (current, current | DATAGRAM_WAITS):
            for lane in lanes:
                if handles[lane] == wanted:
                    return lane
        return None

    def _paths(self, peer: int, records: Sequence[Sequence[int]]) -> list[Paths]:
        """The paths of each consumer's connections."""
        at = peer * RECORD_WORDS
        return [
            link_paths.unpack(
                words[at + PATH_BULK : at + PATH_RATES + 1],
                min(each[LINK_ESTABLISHED] - each[LINK_LIGHT], self._most),
                min(each[LINK_LIGHT], self._most),
            )
            for words, each in zip(self._path_words, records, strict=True)
        ]

    def _connections(self, records: Sequence[Sequence[int]], counts: list[int]) -> tuple[ConnectionRef, ...]:
        """So many connections of each consumer, or all of them if there are none."""
        if not any(counts):
            counts = [each[LINK_ESTABLISHED] for each in records]
        return stripe.connections([min(count, self._most) for count in counts])


def _by_rate(
    connections: tuple[ConnectionRef, ...], paths: Sequence[Paths]
) -> tuple[tuple[ConnectionRef, ...], tuple[float, ...]]:
    """Of the connections for bulk those that are to carry some, and the share of each by the rate of its uplink."""
    numbers = [_number(paths[consumer].bulk, ordinal) for consumer, ordinal in connections]
    used = _used(connections, numbers, paths)
    rates = []
    for (consumer, _), number in used:
        of_consumer = paths[consumer]
        rates.append(of_consumer.rates.get(number, 0.0) / max(1, of_consumer.bulk.count(number)))
    total = sum(rates)
    return tuple(each for each, _ in used), tuple(rate / total for rate in rates) if total else ()


def _in_turn(connections: tuple[ConnectionRef, ...], paths: Sequence[Paths]) -> tuple[tuple[ConnectionRef, ...], bool]:
    """Of the connections for light flows those that are to carry some, in turn of their uplinks; and whether they are
    on several."""
    numbers = [_number(paths[consumer].light, ordinal) for consumer, ordinal in connections]
    used = _used(connections, numbers, paths)
    turns = [
        (sum(other == number for _, other in used[:place]), place, each) for place, (each, number) in enumerate(used)
    ]
    return tuple(each for *_, each in sorted(turns)), len({number for _, number in used}) > 1


def _number(numbers: Sequence[int], ordinal: int) -> int:
    """The uplink of a connection; -1 while there is none of its traffic class, and another one stands in for it."""
    return numbers[ordinal] if ordinal < len(numbers) else -1


def _used(
    connections: Sequence[ConnectionRef], numbers: Sequence[int], paths: Sequence[Paths]
) -> list[tuple[ConnectionRef, int]]:
    """The connections on main uplinks that carry anything, or else all of them; each with the number of its uplink."""
    every = list(zip(connections, numbers, strict=True))
    mains = [
        (each, number)
        for each, number in every
        if number in paths[each[0]].mains and paths[each[0]].rates.get(number, 0.0)
    ]
    return mains or every


def _consumer(records: Sequence[Sequence[int]], lanes: int, bit: int, count: int, first: int) -> int:
    """A consumer with this bit in its word `lanes`; else one whose word `count` is not 0. `first` comes first."""
    order = [first, *range(len(records))]
    found = [at for at in order if records[at][lanes] & bit] or [at for at in order if records[at][count]]
    return found[0] if found else first
