"""The topology table: which workers there are, and which rings they visit in which order.

    ring           compat                 fec off                fec on or auto
    plain i        tun_i -> { tcp_j }     tun_i -> { tcp_j }     tun_i -> { tcp_j }             bulk, not coded
    light i                               tun_i -> { tcp_j }     tun_i -> { tcp_j }             flows that send little
    coded i                                                      tun_i -> fec_i -> { tcp_j }    bulk, with parity
    inbound j      tcp_j -> { tun_i }     tcp_j -> { tun_i }     tcp_j -> { tun_i fec_i }       from the network
    decoded i                                                    fec_i -> tun_i                 blocks made of shards
    transit i      tun_i -> { tcp_j }     tun_i -> { tcp_j }     tun_i -> fec_i -> { tcp_j }    from peer to peer

Where blocks may travel in datagrams, each lane has a dgram worker. They stand behind the tcp workers in the groups of
the plain, light and transit rings. Each fills two rings of its own.

    arrived j      dgram_j -> { tun_i }      from datagrams
    returned j     dgram_j -> { tcp_i }      blocks that datagrams did not bring to the peer

Each tcp worker has one inbound ring; each lane has one ring of every other kind. Rings from peer to peer exist only
where more than one peer can be connected. `{ }` is a group: each member sees every slot and acts on its own slots.
Workers start in START_ORDER: the consumers of a ring start before the worker that fills it from TUN. So does, of a
worker that is two processes, the inbound duty before the outbound one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import NamedTuple

from pipeline.fec import shard
from pipeline.runtime.plan import PeerTablePlan, Plan, RingPlan, StageMember, WorkerPlan, WorkerSettings
from pipeline.shm import layout

MAY_SPLIT = ("tun", "fec")
"""Kinds of workers whose duties share nothing but shared memory and descriptors: they may be two processes of one duty
each. The duties of a tcp worker share its connections: what one has read decides what the other may send, and both move
what a connection that ends leaves behind."""

SHORT = {"outbound": "out", "inbound": "in"}


class Visitor(NamedTuple):
    """One entry of the table: a duty of the ring's own lane, or a group of them."""

    worker: str  # kind of worker
    duty: str
    group: bool = False  # one member of each lane
    rarely: bool = False  # few slots concern it: it is kicked only for them


class WorkerDuties(NamedTuple):
    """A worker: its name, and its duties."""

    name: str
    kind: str
    lane: int
    duties: tuple[str, ...]


# shape -> kinds of workers, in the order in which they start
START_ORDER = {
    "compat": ("tcp", "tun"),
    "off": ("tcp", "tun"),
    "fec": ("tcp", "fec", "tun"),
    "off, datagrams": ("tcp", "dgram", "tun"),
    "fec, datagrams": ("tcp", "dgram", "fec", "tun"),
}

# fmt: off
_TUN_READER, _TUN_WRITER = Visitor("tun", "outbound"), Visitor("tun", "inbound")
_ENCODER, _DECODER = Visitor("fec", "outbound"), Visitor("fec", "inbound")
_RECEIVER = Visitor("tcp", "inbound")
_SENDERS = Visitor("tcp", "outbound", group=True)
_DATAGRAM_RECEIVER, _DATAGRAM_SENDER = Visitor("dgram", "inbound"), Visitor("dgram", "outbound")
_DATAGRAM_SENDERS = Visitor("dgram", "outbound", group=True)
_TUN_WRITERS = Visitor("tun", "inbound", group=True)
_DECODERS = Visitor("fec", "inbound", group=True, rarely=True)  # slots without runs are none of theirs

Stages = tuple[tuple[Visitor, ...], ...]

# shape -> kind of ring -> stages
RINGS: dict[str, dict[str, Stages]] = {
    "compat": {
        "plain": ((_TUN_READER,), (_SENDERS,)),
        "inbound": ((_RECEIVER,), (_TUN_WRITERS,)),
        "transit": ((_TUN_WRITER,), (_SENDERS,)),
    },
    "off": {
        "plain": ((_TUN_READER,), (_SENDERS,)),
        "light": ((_TUN_READER,), (_SENDERS,)),
        "inbound": ((_RECEIVER,), (_TUN_WRITERS,)),
        "transit": ((_TUN_WRITER,), (_SENDERS,)),
    },
    "fec": {
        "plain": ((_TUN_READER,), (_SENDERS,)),
        "light": ((_TUN_READER,), (_SENDERS,)),
        "coded": ((_TUN_READER,), (_ENCODER,), (_SENDERS,)),
        "inbound": ((_RECEIVER,), (_TUN_WRITERS, _DECODERS)),
        "decoded": ((_DECODER,), (_TUN_WRITER,)),
        "transit": ((_TUN_WRITER,), (_ENCODER,), (_SENDERS,)),
    },
    "off, datagrams": {
        "plain": ((_TUN_READER,), (_SENDERS, _DATAGRAM_SENDERS)),
        "light": ((_TUN_READER,), (_SENDERS, _DATAGRAM_SENDERS)),
        "inbound": ((_RECEIVER,), (_TUN_WRITERS,)),
        "arrived": ((_DATAGRAM_RECEIVER,), (_TUN_WRITERS,)),
        "transit": ((_TUN_WRITER,), (_SENDERS, _DATAGRAM_SENDERS)),
        "returned": ((_DATAGRAM_SENDER,), (_SENDERS,)),
    },
    "fec, datagrams": {
        "plain": ((_TUN_READER,), (_SENDERS, _DATAGRAM_SENDERS)),
        "light": ((_TUN_READER,), (_SENDERS, _DATAGRAM_SENDERS)),
        "coded": ((_TUN_READER,), (_ENCODER,), (_SENDERS,)),
        "inbound": ((_RECEIVER,), (_TUN_WRITERS, _DECODERS)),
        "decoded": ((_DECODER,), (_TUN_WRITER,)),
        "arrived": ((_DATAGRAM_RECEIVER,), (_TUN_WRITERS,)),
        "transit": ((_TUN_WRITER,), (_ENCODER,), (_SENDERS, _DATAGRAM_SENDERS)),
        "returned": ((_DATAGRAM_SENDER,), (_SENDERS,)),
    },
}
# fmt: on

_SPLIT = (("inbound",), ("outbound",))

BETWEEN_PEERS = ("transit",)
"""Kinds of rings that one peer alone has no use for."""

LIGHT_SLOTS = 64
LIGHT_SLOT_BYTES = 3 * layout.PAGE
"""For three copies of a sealed block, each with a packet of LIGHT_PACKET_BYTES, or with many small ones."""

STATUS_ROWS_MIN = 80  # connections of a tcp worker with one peer; a client keeps up to 72, and dials some anew
STATUS_ROWS_PER_PEER = 10  # for each further peer; eight connections are usual
STATUS_ROWS_MAX = 8192

OVERVIEW, EVENTS = "overview", "events"
"""Parts of names in /dev/shm by which an observer finds them (pipeline.observe)."""


def name_prefix(name: str) -> str:
    """The beginning of every name of an instance in /dev/shm; "@" cannot occur in an instance's name."""
    return f"tunnel@{name}@"


def build_plan(
    name: str,
    run_id: str,
    mode: str,
    lanes: int,
    slots: int,
    slot_bytes: int,
    settings: WorkerSettings,
    capacity: int = 1,
    name_key: bytes = b"",
    split: Collection[str] = (),
) -> Plan:
    """The plan of one run. `slots`, `slot_bytes`: of a ring for bulk; `capacity`: peers that can be connected; `split`:
    kinds of workers whose duties are processes of their own.

    Everybody may make names in /dev/shm. With a secret `name_key`, nobody can make one of the run's before we do.
    """
    shape = shape_of(settings.compat, settings.fec, settings.datagrams)
    base = f"/{name_prefix(name)}{run_id}@"

    def shm_name(what: str) -> str:
        return f"{base}{what}.{hashlib.blake2s(what.encode(), key=name_key, digest_size=8).hexdigest()}"

    workers = [
        WorkerPlan(name, kind, lane, page, {duty: shm_name(f"{kind}-{lane}.{duty}") for duty in duties})
        for page, (name, kind, lane, duties) in enumerate(list_workers(shape, lanes, split))
    ]
    geometry = {"light": (LIGHT_SLOTS, LIGHT_SLOT_BYTES)}
    if settings.fec != "off" and not settings.compat:
        geometry["coded"] = geometry["transit"] = slots, _coded_slot_bytes(settings.fec_data, settings.fec_parity)
    rings = [
        RingPlan(
            f"{kind}-{lane}",
            shm_name(f"{kind}-{lane}"),
            kind,
            lane,
            *geometry.get(kind, (slots, slot_bytes)),
            [[member for visitor in stage for member in _members(visitor, lane, lanes, split)] for stage in stages],
            [member for stage in stages for v in stage if v.rarely for member in _members(v, lane, lanes, split)],
        )
        for kind, stages in RINGS[shape].items()
        if capacity > 1 or kind not in BETWEEN_PEERS
        for lane in range(lanes)
    ]
    rows = min(STATUS_ROWS_MAX, STATUS_ROWS_MIN + STATUS_ROWS_PER_PEER * (capacity - 1))
    peers = PeerTablePlan(shm_name("peer-table"), capacity, rows)
    scoreboard, events, overview = (shm_name(what) for what in ("scoreboard", EVENTS, OVERVIEW))
    settings = settings._replace(lanes=lanes)
    return Plan(name, run_id, mode, lanes, scoreboard, events, overview, peers, workers, rings, settings)


def shape_of(compat: bool, fec: str, datagrams: bool = False) -> str:
    if compat:
        return "compat"
    return ("off" if fec == "off" else "fec") + ", datagrams" * datagrams


def list_workers(shape: str, lanes: int, split: Collection[str] = ()) -> list[WorkerDuties]:
    """The workers of an instance, in the order in which they start."""
    return [
        WorkerDuties(_worker_name(kind, lane, duties[0], split), kind, lane, duties)
        for kind in START_ORDER[shape]
        for duties in (_SPLIT if kind in split else (layout.DUTIES,))
        for lane in range(lanes)
    ]


def _members(visitor: Visitor, lane: int, lanes: int, split: Collection[str]) -> list[StageMember]:
    """The members that an entry of the table stands for, in the ring of this lane."""
    which = range(lanes) if visitor.group else (lane,)
    return [StageMember(_worker_name(visitor.worker, i, visitor.duty, split), visitor.duty) for i in which]


def _worker_name(kind: str, lane: int, duty: str, split: Collection[str]) -> str:
    """The name of the worker that has this duty."""
    return f"{kind}-{SHORT[duty]}-{lane}" if kind in split else f"{kind}-{lane}"


def _coded_slot_bytes(n: int, m: int) -> int:
    """Room for the longest block frame, its padding and its parity."""
    area = (n + m) * shard.shard_bytes(shard.BLOCK_BYTES_MAX, n, m)
    return -(-(layout.SLOT_BODY_AT + area) // layout.PAGE) * layout.PAGE
