"""Whether a device joins segments in a way that fake TCP cannot take apart again: LRO, which some old drivers have.

GRO says how long the segments were that it has joined. LRO may be wrong about the last one.
"""

from __future__ import annotations

import socket

from pipeline.doctor.finding import Finding, note, ok
from pipeline.doctor.machine import ethtool_value
from pipeline.doctor.subject import Subject
from pipeline.policy.carrier_order import KINDS, Kind

ETHTOOL_GFLAGS, ETH_FLAG_LRO = 0x25, 1 << 15  # linux/ethtool.h


def receive_offload(subject: Subject) -> list[Finding]:
    if subject.config is None or Kind.FAKE_TCP not in KINDS[subject.config.carrier]:
        return []
    return judge([name for _, name in socket.if_nameindex() if _has_lro(name)])


def judge(devices: list[str]) -> list[Finding]:
    """`devices`: those with LRO."""
    if not devices:
        return [ok("no device joins segments by LRO")]
    cure = "Switch it off if fake TCP comes there: " + "; ".join(f"ethtool -K {name} lro off" for name in devices) + "."
    return [note(f"{', '.join(devices)}: LRO may hide the length of segments from fake TCP", cure)]


def _has_lro(device: str) -> bool:
    return bool((ethtool_value(device, ETHTOOL_GFLAGS) or 0) & ETH_FLAG_LRO)
