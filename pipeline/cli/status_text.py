"""The answer to `status` as text for people."""

from __future__ import annotations

from typing import Any

NOTES_MAX = 5
REASONS_MAX = 2  # each lane of a client may have one

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def render(snapshot: dict[str, Any]) -> str:
    """The instance, its workers, rings and connections, and the counters that are not zero."""
    lines = [
        (
            f"{snapshot['name']}  {snapshot['mode']}  {snapshot['state']}  up {duration(snapshot['uptime_seconds'])}  "
            f"device {snapshot['tun_name']}  pid {snapshot['pid']}"
        ),
        *_failures(snapshot.get("supervisor_failures", 0)),
        *_server(snapshot.get("server")),
        *_notes(snapshot.get("notes", [])),
        "",
        *_table(
            ["worker", "state", "pid", "restarts", "heartbeat", "cpu", "memory", "cores"],
            [
                [
                    w["name"],
                    w["state"],
                    str(w["pid"] or "-"),
                    str(w["restarts"]),
                    "-" if w["heartbeat_age_ms"] is None else f"{w['heartbeat_age_ms']:.0f} ms ago",
                    f"{w['cpu_percent']:.0f} %",
                    amount(w["rss_bytes"]),
                    ",".join(map(str, w["cores"])) or "any",
                ]
                for w in snapshot["workers"]
            ],
        ),
        *_spares(snapshot),
        "",
        *_table(
            ["ring", "capacity", "waiting"],
            [
                [
                    r["name"],
                    str(r["capacity"]),
                    "  ".join(
                        f"{worker} {depth}" for stage in r["stages"][1:] for worker, depth in stage["depth"].items()
                    ),
                ]
                for r in snapshot["rings"]
            ],
        ),
        "",
    ]
    lines += _fec(snapshot["fec"])
    if snapshot["connections"]:
        lines += _table(
            ["connection", "worker", "class", "state", "sent", "received", "rtt", "last received"],
            [
                [
                    c["address"],
                    c["worker"],
                    c["traffic_class"],
                    c["state"],
                    amount(c["sent_bytes"]),
                    amount(c["received_bytes"]),
                    f"{c['rtt_ms']:.2f} ms",
                    f"{c['last_received_ms_ago'] / 1000:.1f} s ago",
                ]
                for c in snapshot["connections"]
            ],
        )
    else:
        lines.append("no connection")
    counted = [[name, str(value)] for name, value in snapshot["counters"].items() if value]
    if counted:
        lines += ["", *_table(["counter", "value"], counted)]
    return "\n".join(lines)


def _spares(snapshot: dict[str, Any]) -> list[str]:
    spares = [f"{s['kind']} {s['state']}, {amount(s['rss_bytes'])}" for s in snapshot["spares"]]
    left = snapshot["rolling"]["left"]
    return [
        f"spares: {'; '.join(spares) or 'none'}",
        *([f"rolling restart: still to be replaced: {', '.join(left)}"] if left else []),
    ]


def _failures(count: int) -> list[str]:
    return (
        [f"the supervisor has survived {count} failure(s) of its own: the log has a traceback of each"] if count else []
    )


def _server(server: dict[str, Any] | None) -> list[str]:
    """One line, unless all is well: how many of a client's connections stand, and why not all."""
    if server is None:
        return []
    there, wanted, reasons = server["connections"], server["connections_wanted"], server["trouble"]
    if there >= wanted and not reasons:
        return []
    why = _listed(reasons, "; ") or "dialing"
    count = server["failed_attempts"]
    tried = f" ({count} failed attempt{'s' * (count > 1)} in {duration(server['trouble_seconds'])})" if count else ""
    what = "connections stand, but cannot be replaced" if there >= wanted else "connections"
    return [f"{there} of {wanted} {what}, server {server['host']} port {server['port']}: {why}{tried}"]


def _notes(notes: list[str]) -> list[str]:
    """All that is wrong or in doubt, a line each; of many the first ones."""
    more = len(notes) - NOTES_MAX
    return [
        *(f"note: {note}" for note in notes[:NOTES_MAX]),
        *([f"note: {more} more: status --json has them all"] if more > 0 else []),
    ]


def _listed(texts: list[str], separator: str) -> str:
    """The first few, and how many there are besides."""
    more = len(texts) - REASONS_MAX
    return separator.join([*texts[:REASONS_MAX], *([f"and {more} more"] if more > 0 else [])])


def _fec(fec: dict[str, Any]) -> list[str]:
    if fec["mode"] == "off":
        return []
    now = f"{fec['data']} + {fec['parity']} shards a block" if fec["parity"] else "no parity"
    why = "" if fec["peer_accepts_shards"] else ": the other end accepts no shards, or is not connected"
    return [f"fec {fec['mode']}, now {now} (at most {fec['data']} + {fec['parity_max']}){why}", ""]


def amount(size: float) -> str:
    """Bytes with a decimal unit."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def duration(seconds: float) -> str:
    """Seconds as 12s, 3m04s, 5h06m or 7d08h."""
    whole = int(seconds)
    for big, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= big:
            return f"{whole // big}{names[0]}{whole % big // small:02d}{names[1]}"
    return f"{whole}s"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
