"""Conclusions from a snapshot of `pipeline.observe.snapshot`: whether packets can pass, and a few sums. Pure."""

from __future__ import annotations

import math
import statistics
from typing import Any

Snapshot = dict[str, Any]


def is_client(snapshot: Snapshot) -> bool:
    return bool(snapshot["mode"] == "client")


def established(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The connections that carry packets."""
    return [each for each in snapshot["connections"] if each["state"] == "established"]


def hindrance(snapshot: Snapshot) -> str:
    """Why no packet can pass, "" if one can. A hub without clients is ready for them."""
    if snapshot["state"] != "running":
        return f"the instance is {snapshot['state']}"
    down = [each["name"] for each in snapshot["workers"] if each["state"] != "running"]
    if down:
        return f"not running: {', '.join(down)}"
    if is_client(snapshot) and not snapshot["peers_connected"]:
        trouble = (snapshot["server"] or {}).get("trouble") or ["dialing"]
        return f"not connected to the server: {'; '.join(trouble)}"
    return ""


def round_trips(snapshot: Snapshot) -> tuple[float, float]:
    """The median and the longest of the established connections, in seconds; NaN without one."""
    found = [each["rtt_ms"] / 1000 for each in established(snapshot) if each["rtt_ms"]]
    return (statistics.median(found), max(found)) if found else (math.nan, math.nan)


def resent_segments(snapshot: Snapshot) -> int:
    """Segments that the kernel has sent again, of all connections that stand. It falls when a connection ends."""
    return sum(each["resent_segments"] for each in snapshot["connections"])
