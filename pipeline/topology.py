"""Floor 2, pure. The topology table: which workers there are, and which rings they visit in which order.

    forward error correction off              on
    outbound i   tun_i -> { tcp_j }           tun_i -> fec_i -> { tcp_j }
    inbound j    tcp_j -> { tun_i }           tcp_j -> { fec_i }
    decoded i                                 fec_i -> tun_i

One outbound and one decoded ring per lane, one inbound ring per tcp worker. `{ }` is a group: each member sees
every slot and acts on those stamped with its position. Workers start in the order of KINDS: those that take
from a ring before those that fill it from TUN.
"""

from __future__ import annotations

from pipeline import layout
from pipeline.plan import Member, Plan, RingPlan, WorkerPlan

EACH = "*"  # a group: one member per lane

KINDS = {False: ("tcp", "tun"), True: ("tcp", "fec", "tun")}

# forward error correction -> ring kind -> stages of (worker kind, duty, EACH or "" for the ring's own lane)
RINGS = {
    False: {
        "outbound": (("tun", "outbound", ""), ("tcp", "outbound", EACH)),
        "inbound": (("tcp", "inbound", ""), ("tun", "inbound", EACH)),
    },
    True: {
        "outbound": (("tun", "outbound", ""), ("fec", "outbound", ""), ("tcp", "outbound", EACH)),
        "inbound": (("tcp", "inbound", ""), ("fec", "inbound", EACH)),
        "decoded": (("fec", "inbound", ""), ("tun", "inbound", "")),
    },
}


def prefix(name: str) -> str:
    """What every name of an instance in /dev/shm begins with; "@" cannot occur in an instance's name."""
    return f"tunnel@{name}@"


def build(name: str, run: str, mode: str, lanes: int, fec: bool, slots: int, slot_bytes: int,
          settings: dict) -> Plan:
    """The plan of one run. `settings` is what workers need to know of the configuration, as plain JSON."""
    base = "/" + prefix(name) + run
    workers: list[WorkerPlan] = []
    for kind in KINDS[fec]:
        for lane in range(lanes):
            worker = f"{kind}-{lane}"
            doorbells = {duty: f"{base}@{worker}.{duty}" for duty in layout.DUTIES}
            workers.append(WorkerPlan(worker, kind, lane, len(workers), doorbells))
    rings: list[RingPlan] = []
    for kind, stages in RINGS[fec].items():
        for lane in range(lanes):
            members = [
                [Member(f"{worker}-{i}", duty) for i in (range(lanes) if reach is EACH else (lane,))]
                for worker, duty, reach in stages
            ]
            rings.append(RingPlan(f"{kind}-{lane}", f"{base}@{kind}-{lane}", kind, lane, members))
    return Plan(name, run, mode, f"{base}@board", slots, slot_bytes, workers, rings, settings)
