"""Conclusions from a snapshot of `pipeline.observe.snapshot`: whether packets can pass. Pure."""

from __future__ import annotations

from typing import Any

Snapshot = dict[str, Any]


def is_client(snapshot: Snapshot) -> bool:
    return bool(snapshot["mode"] == "client")


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
