"""The words of `status` about direct paths between the clients of a hub: a line for each pair, few in all.

There are none where `direct` is "off", and of an older instance.
"""

from __future__ import annotations

from typing import Any

from pipeline.log import printable
from pipeline.observe.sentence import spoken

SHOWN = 5


def brief(snapshot: dict[str, Any], most: int = SHOWN) -> list[str]:
    rows = snapshot.get("direct") or []
    more = len(rows) - most
    return [*map(_line, rows[:most]), *([f"{more} more pairs"] if more > 0 else [])]


def _line(row: dict[str, Any]) -> str:
    who = " and ".join(map(printable, row["peers"]))
    since = spoken(row["state_seconds"])
    if row["state"] == "direct":
        where = f" at {row['endpoint']}" if row["endpoint"] else ""
        trip = f", round trip {row['rtt_ms']:.1f} ms" if row["rtt_ms"] is not None else ""
        return f"{who}: direct since {since}{where}{trip}"
    return f"{who}: relayed by the hub since {since}: {printable(row['reason'])}"
