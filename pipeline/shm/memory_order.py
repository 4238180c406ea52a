"""The machines on which the rings work: those that keep total store order (pipeline.shm.ring, "Ordering")."""

from __future__ import annotations

import platform

ORDERED_MACHINES = ("x86_64", "AMD64")
"""Names of the one architecture that keeps it."""


def find_refusal() -> str:
    """Why the rings do not work on this machine, for people; "" if they do."""
    machine = platform.machine() or "of an unknown kind"
    if machine in ORDERED_MACHINES:
        return ""
    return (
        f"this machine is {machine}: tunnel-supervisor needs x86-64, because its processes share memory without "
        "barriers, and rely on total store order. Run it on an x86-64 machine"
    )
