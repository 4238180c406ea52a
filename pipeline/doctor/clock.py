"""The clock of this machine: not before this program was written, and near to that of the server."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject

WRITTEN = 1_795_000_000  # 2026-11-18: no clock that is right is before it
AHEAD_NOTE, AHEAD_PROBLEM = 30, 3600  # seconds; certificates are valid from an hour before they are made
CURE = "Set the clock: timedatectl set-ntp true."


def clock(subject: Subject) -> list[Finding]:
    server = (subject.snapshot or {}).get("server") or {}
    return judge_clock(time.time(), server.get("clock_ahead_seconds"))


def judge_clock(now: float, server_ahead: int | None) -> list[Finding]:
    """`server_ahead`: seconds by which the server's clock is before ours; None if it is not known."""
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    if now < WRITTEN:
        return [
            problem(f"the clock says {shown}, which is past: certificates are not valid yet for this machine", CURE)
        ]
    if server_ahead is not None and abs(server_ahead) >= AHEAD_NOTE:
        way = "ahead of" if server_ahead > 0 else "behind"
        text = f"the server's clock was {abs(server_ahead)} s {way} this machine's at the last connection"
        cure = f"{CURE} Do so on the end that is wrong."
        return [(problem if abs(server_ahead) >= AHEAD_PROBLEM else note)(text, cure)]
    near = "" if server_ahead is None else ", as the server's does"
    return [ok(f"the clock says {shown}{near}")]
