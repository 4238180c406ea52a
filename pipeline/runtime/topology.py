"""The topology table: which workers there are, and which rings they visit in which order.

    ring           compat                 fec off                fec on or auto
    outbound i     tun_i -> { tcp_j }     tun_i -> { tcp_j }     tun_i -> { tcp_j }             bulk, not coded
    light i                               tun_i -> { tcp_j }     tun_i -> { tcp_j }             flows that send little
    coded i                                                      tun_i -> fec_i -> { tcp_j }    bulk, with parity
    inbound j      tcp_j -> { tun_i }     tcp_j -> { tun_i }     tcp_j -> { tun_i fec_i }
    decoded i                                                    fec_i -> tun_i
    transit i                             tun_i -> { tcp_j }     tun_i -> fec_i -> { tcp_j }    from peer to peer

One inbound ring per tcp worker, one of each other kind per lane; transit with more than one peer alone. `{ }` is a
group: each member sees every slot and acts on what is its own. Workers start in the order of KINDS: those that take
from a ring before those that fill it from TUN.
"""

from __future__ import annotations

from pipeline.fec import shard
from pipeline.runtime.plan import PeerTablePlan, Plan, RingPlan, StageMember, WorkerPlan
from pipeline.shm import layout

EACH = "*"  # a group: one member per lane

KINDS = {"compat": ("tcp", "tun"), "off": ("tcp", "tun"), "fec": ("tcp", "fec", "tun")}

# fmt: off
_TUN_OUT, _FEC_OUT, _TCP_OUT = ("tun", "outbound", ""), ("fec", "outbound", ""), ("tcp", "outbound", EACH)
_TUN_BACK = ("tun", "inbound", "")
_TCP_IN, _TUN_IN, _FEC_IN = ("tcp", "inbound", ""), ("tun", "inbound", EACH), ("fec", "inbound", EACH)

# shape -> ring kind -> stages, each of one or more (worker kind, duty, EACH or "" for the ring's own lane)
RINGS = {
    "compat": {
        "outbound": ((_TUN_OUT,), (_TCP_OUT,)),
        "inbound": ((_TCP_IN,), (_TUN_IN,)),
    },
    "off": {
        "outbound": ((_TUN_OUT,), (_TCP_OUT,)),
        "light": ((_TUN_OUT,), (_TCP_OUT,)),
        "inbound": ((_TCP_IN,), (_TUN_IN,)),
        "transit": ((_TUN_BACK,), (_TCP_OUT,)),
    },
    "fec": {
        "outbound": ((_TUN_OUT,), (_TCP_OUT,)),
        "light": ((_TUN_OUT,), (_TCP_OUT,)),
        "coded": ((_TUN_OUT,), (_FEC_OUT,), (_TCP_OUT,)),
        "inbound": ((_TCP_IN,), (_TUN_IN, _FEC_IN)),
        "decoded": ((("fec", "inbound", ""),), (_TUN_BACK,)),
        "transit": ((_TUN_BACK,), (_FEC_OUT,), (_TCP_OUT,)),
    },
}
# fmt: on

LIGHT_SLOTS = 64
LIGHT_SLOT_BYTES = 3 * layout.PAGE
"""A light block is at most two packets of an ordinary MTU or many small ones: see LIGHT_FILL_BYTES in the tun
worker."""

ROWS_LEAST = 64  # connections of a tcp worker with one peer; a client opens at most 40
ROWS_PER_PEER = 10  # more for each further one: eight are usual
ROWS_MOST = 8192


def prefix(name: str) -> str:
    """What every name of an instance in /dev/shm begins with; "@" cannot occur in an instance's name."""
    return f"tunnel@{name}@"


def build(
    name: str,
    run: str,
    mode: str,
    lanes: int,
    code: tuple[int, int] | None,
    slots: int,
    slot_bytes: int,
    settings: dict,
    capacity: int = 1,
) -> Plan:
    """The plan of one run. `code`: data and parity shards of a full block, None without forward error correction;
    `settings` is what workers need to know of the configuration, as plain JSON; `capacity`: peers at a time."""
    shape = "compat" if settings["compat"] else "fec" if code else "off"
    base = "/" + prefix(name) + run
    workers: list[WorkerPlan] = []
    for kind in KINDS[shape]:
        for lane in range(lanes):
            worker = f"{kind}-{lane}"
            doorbells = {duty: f"{base}@{worker}.{duty}" for duty in layout.DUTIES}
            workers.append(WorkerPlan(worker, kind, lane, len(workers), doorbells))
    geometry = {"light": (LIGHT_SLOTS, LIGHT_SLOT_BYTES)}
    if code:
        geometry["coded"] = geometry["transit"] = (slots, _coded_slot_bytes(*code))
    rings: list[RingPlan] = []
    for kind, stages in RINGS[shape].items():
        if kind == "transit" and capacity == 1:
            continue
        for lane in range(lanes):
            members = [
                [
                    StageMember(f"{worker}-{i}", duty)
                    for worker, duty, reach in stage
                    for i in (range(lanes) if reach is EACH else (lane,))
                ]
                for stage in stages
            ]
            rings.append(
                RingPlan(
                    f"{kind}-{lane}",
                    f"{base}@{kind}-{lane}",
                    kind,
                    lane,
                    *geometry.get(kind, (slots, slot_bytes)),
                    members,
                )
            )
    peers = PeerTablePlan(f"{base}@peers", capacity, min(ROWS_MOST, ROWS_LEAST + ROWS_PER_PEER * (capacity - 1)))
    return Plan(name, run, mode, lanes, f"{base}@board", peers, workers, rings, settings)


def _coded_slot_bytes(n: int, m: int) -> int:
    """Room for the longest block frame, its padding and its parity."""
    area = (n + m) * shard.shard_bytes(shard.BLOCK_BYTES_MAX, n, m)
    return -(-(layout.SLOT_BODY_AT + area) // layout.PAGE) * layout.PAGE
