"""One peer as a person sees it: what the supervisor knows of it, and what the peer table has of its traffic.

PeerRow       the first part; the supervisor publishes it in the overview when it changes
peer_status   both parts, at one moment; the command `peers`, `status` and all observers have it from here
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

from pipeline.packet.route_table import NO_PEER
from pipeline.peers.peer_datagrams import PeerDatagrams, carrier_now, peer_datagrams
from pipeline.policy.quota import QuotaState
from pipeline.sealing.key_schedule import SUITES
from pipeline.shm import link_requests
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import LINK_ACCEPTS_SHARDS, LINK_ESTABLISHED, LINK_LIGHT, LINK_REQUESTS, RECORD_WORDS
from pipeline.shm.peer_table import ARRIVED_CLASSES, CLASSES, PeerTable

if TYPE_CHECKING:
    from pipeline.sealing.session import SealedSession

SHUT_OUT = ("disabled", "ended")
"""States of a peer whose last connections are about to end, if it still has any."""

NOT_ENCRYPTED, IN_TLS = "none", "TLS"
"""Encryption of packets that are not sealed: none, or that of TLS, as the original program has it."""

ConnectionsOf = Callable[[int], list[ConnectionStatus]]
"""The established connections of a peer, by its index (PeerTable.connections_by_peer)."""


class PresentSession(NamedTuple):
    """The session under an index. `number`: that the client has given it at its start; 0 if it gives none."""

    name: str
    addresses: str = ""
    number: int = 0


class PeerRow(NamedTuple):
    """The counts are those of the peer table when the session began."""

    name: str
    addresses: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    rate_mbit: float = 0.0  # 0: no limit
    bulk_rate_mbit: float = 0.0  # of the class bulk, to the peer; 0: no limit
    state: str = "away"  # while it has no connection: away, broken, invited, expired, disabled, ended
    problem: str = ""  # of its file; "" for none
    until: int = 0  # UNIX time from which it is excluded; 0: none
    invitation: str = ""
    invitation_expires: int = 0
    invitation_uses_left: int = 0
    quota_bytes: int = 0  # in a month, both directions together; 0: no quota
    quota_used_bytes: int = 0  # some seconds ago
    quota_state: str = QuotaState.OPEN  # or slowed, stopped
    groups: tuple[str, ...] = ()
    may_reach: tuple[str, ...] | None = None  # the first of its targets, those of its groups included; None: everything
    may_reach_count: int = 0  # targets
    refused_packets: int = 0  # since the instance has started
    peer: int = NO_PEER  # index of its session; NO_PEER without one
    since_ns: int = 0  # CLOCK_MONOTONIC, of its session; 0 without one
    version: str = ""  # of its program, as it has said at the beginning of its session
    mtu: int = 0
    fec: bool | None = None  # whether it accepts shards
    encryption: str = NOT_ENCRYPTED  # or IN_TLS, or the suite of its session
    sent_epoch: int = 0  # of that session: of what we seal
    received_epoch: int = 0  # and of what the peer seals
    carrier: str = "tcp"  # the setting of this instance, if datagrams can be had here
    no_datagrams: str = ""  # why there are none with this peer; "": there may be
    sent: int = 0
    received: int = 0
    dropped: int = 0
    recovered: int = 0
    expired: int = 0
    classes: tuple[int, ...] = ()
    arrived: tuple[int, ...] = ()
    datagrams: tuple[int, ...] = ()

    def with_session(self, index: int, since_ns: int, table: PeerTable) -> PeerRow:
        """The row of a peer whose session begins now, under this index."""
        return self._replace(
            peer=index,
            since_ns=since_ns,
            sent=table.sent_bytes(index),
            received=table.received_bytes(index),
            dropped=table.dropped(index),
            recovered=table.recovered(index),
            expired=table.expired(index),
            classes=tuple(table.class_bytes(index)),
            arrived=tuple(table.arrived_bytes(index)),
            datagrams=tuple(table.datagram_counts(index)) if table.datagrams_in else (),
        )

    def sealed_by(self, session: SealedSession) -> PeerRow:
        """The row of a peer whose packets are sealed, in the present epochs."""
        return self._replace(
            encryption=SUITES[session.context.suite],
            sent_epoch=session.send_epoch,
            received_epoch=session.open_epoch,
        )

    def as_dict(self) -> dict[str, Any]:
        """For the overview: the fields that are not as usual."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults.get(name)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PeerRow:
        """The row again; of another version's fields those that there are here."""
        return cls(**{name: value for name, value in fields.items() if name in cls._fields})


def unsealed(encryption: str) -> str:
    """The encryption of packets that are not sealed, by the setting."""
    return IN_TLS if encryption == "tls" else NOT_ENCRYPTED


class PeerStatus(TypedDict):
    """One peer as the command `peers` shows it; those of `status` have all keys."""

    name: str
    state: str  # connected, away, broken, invited (nobody has joined), expired (so), disabled or ended (past `until`)
    addresses: list[str]
    allowed: list[str]
    rate_mbit: float  # 0: no limit
    bulk_rate_mbit: float  # of the class bulk, to the peer; 0: no limit
    endpoint: str  # addresses from which it is connected; "" without a connection
    connections: int
    sent_bytes: int  # in this session
    received_bytes: int
    dropped: int
    session_seconds: float | None  # None without a connection
    version: str  # of its program; "" without a connection, or if it does not tell it
    mtu: int  # of its device; 0 without a connection
    fec: bool | None  # whether it accepts shards; None without a connection
    encryption: str  # AES-256-GCM, ChaCha20-Poly1305, TLS (compat) or none; "" without a connection
    sent_epoch: int  # epoch of what is sent to it; 0 where blocks are not sealed
    received_epoch: int
    carrier: str  # by which blocks for it go now: udp, tcp, or none; "" without a connection
    datagrams: PeerDatagrams | None  # None without a connection, or where `carrier` is "tcp"
    quota_bytes: int  # in a month, both directions together; 0: no quota
    quota_used_bytes: int  # in this month
    quota_state: str  # open, slowed or stopped
    groups: list[str]
    may_reach: list[str] | None  # the first 16 of its targets, those of its groups included; None: everything
    may_reach_count: int  # targets
    refused_packets: int  # that its rules do not allow, since the instance has started
    problem: str  # of its file; "" for none
    until: int  # UNIX time from which it is excluded; 0: none
    invitation: str  # open, expired, used or kept (pipeline.peers.enrollment); "" for none
    invitation_expires: int  # UNIX time; 0: never
    invitation_uses_left: int
    peer: NotRequired[int]  # its index; NO_PEER without a session
    light_connections: NotRequired[int]
    rtt_ms: NotRequired[float | None]  # of its fastest connection
    resent_segments: NotRequired[int]  # of its present connections
    sent_segments: NotRequired[int]
    fec_data: NotRequired[int]  # data shards of a full block; 0 with fec "off"
    fec_parity: NotRequired[int]  # parity shards that are in force now
    recovered_blocks: NotRequired[int]  # in this session, from the peer
    expired_blocks: NotRequired[int]
    class_bytes: NotRequired[dict[str, int]]  # of packets from TUN for it in this session, by class: CLASSES
    received_class_bytes: NotRequired[dict[str, int]]  # of packets from it in this session: ARRIVED_CLASSES
    transit_class_bytes: NotRequired[dict[str, int]]  # of packets of other peers for it in this session: the same


def describe_peers(rows: Iterable[PeerRow], table: PeerTable, now: int) -> list[PeerStatus]:
    """The peers with the traffic of this moment."""
    connections_of = table.connections_by_peer(range(len(table.links)))
    return [peer_status(row, table, connections_of, 0, now) for row in rows]


def peer_status(
    row: PeerRow, table: PeerTable, connections_of: ConnectionsOf, fec_data: int, now: int, *, by_class: bool = True
) -> PeerStatus:
    """`fec_data`: data shards of a full block, 0 with fec "off". Without `by_class` the bytes of each class are left
    out, and their memory is not mapped."""
    index = row.peer
    has_session = 0 <= index < table.capacity
    links = [words[index * RECORD_WORDS :][:RECORD_WORDS] for words in table.links] if has_session else []
    count = sum(link[LINK_ESTABLISHED] for link in links)
    own = connections_of(index) if count else []
    established = [link for link in links if link[LINK_ESTABLISHED]]
    accepts = bool(established) and all(link[LINK_ACCEPTS_SHARDS] for link in established)
    requests = link_requests.most(link[LINK_REQUESTS] for link in established if fec_data and accepts)

    def since(count: Callable[[int], int], before: int) -> int:
        return max(0, count(index) - before) if has_session else 0

    found: PeerStatus = {
        "name": row.name,
        "state": "connected" if count and row.state not in SHUT_OUT else row.state,
        "addresses": list(row.addresses),
        "allowed": list(row.allowed),
        "rate_mbit": row.rate_mbit,
        "bulk_rate_mbit": row.bulk_rate_mbit,
        "endpoint": ", ".join(sorted({each.address.rpartition(":")[0] for each in own})),
        "connections": count,
        "sent_bytes": since(table.sent_bytes, row.sent),
        "received_bytes": since(table.received_bytes, row.received),
        "dropped": since(table.dropped, row.dropped),
        "session_seconds": round((now - row.since_ns) / 1e9, 1) if count and row.since_ns else None,
        "version": row.version if count else "",
        "mtu": row.mtu if count else 0,
        "fec": row.fec if count else None,
        "encryption": row.encryption if count else "",
        "sent_epoch": row.sent_epoch if count else 0,
        "received_epoch": row.received_epoch if count else 0,
        "carrier": carrier_now(row.carrier, table, index) if count else "",
        "datagrams": peer_datagrams(row.no_datagrams, table, index, row.datagrams, now)
        if count and row.carrier != "tcp"
        else None,
        "quota_bytes": row.quota_bytes,
        "quota_used_bytes": row.quota_used_bytes,
        "quota_state": row.quota_state,
        "groups": list(row.groups),
        "may_reach": None if row.may_reach is None else list(row.may_reach),
        "may_reach_count": row.may_reach_count,
        "refused_packets": row.refused_packets,
        "problem": row.problem,
        "until": row.until,
        "invitation": row.invitation,
        "invitation_expires": row.invitation_expires,
        "invitation_uses_left": row.invitation_uses_left,
        "peer": index,
        "light_connections": sum(link[LINK_LIGHT] for link in established),
        "rtt_ms": min((each.rtt_us / 1000 for each in own if each.rtt_us), default=None),
        "resent_segments": sum(each.resent_segments for each in own),
        "sent_segments": sum(each.sent_segments for each in own),
        "fec_data": fec_data,
        "fec_parity": requests.parity,
        "recovered_blocks": since(table.recovered, row.recovered),
        "expired_blocks": since(table.expired, row.expired),
    }
    if by_class:
        _add_classes(found, row, table, has_session)
    return found


def _add_classes(found: PeerStatus, row: PeerRow, table: PeerTable, has_session: bool) -> None:
    """The bytes of each class, of the session; of a client, those since its start."""

    def grown(counts: Callable[[int], list[int]], before: tuple[int, ...], words: int) -> list[int]:
        if not has_session:
            return [0] * words
        return [max(0, count - old) for count, old in zip(counts(row.peer), before or (0,) * words, strict=True)]

    classes = grown(table.class_bytes, row.classes, len(CLASSES))
    arrived = grown(table.arrived_bytes, row.arrived, 2 * len(ARRIVED_CLASSES))
    found["class_bytes"] = dict(zip(CLASSES, classes, strict=True))
    found["received_class_bytes"] = dict(zip(ARRIVED_CLASSES, arrived, strict=False))
    found["transit_class_bytes"] = dict(zip(ARRIVED_CLASSES, arrived[len(ARRIVED_CLASSES) :], strict=True))
