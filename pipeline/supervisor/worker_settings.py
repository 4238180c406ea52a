"""What workers are told of the configuration: plain JSON, so that they need not import msgspec."""

from __future__ import annotations

import hashlib
import time
import uuid
from pathlib import Path

from pipeline.config import Config
from pipeline.runtime.privileges import Account

LIMITS = ("max_handshakes", "max_handshakes_per_address", "connects_per_address")
"""What a reload tells the tcp workers without replacing them."""

HANDED_DOWN = (
    "compat",
    "idle",
    "timeout",
    "keepalive",
    "hold",
    "reconnect_min",
    "reconnect_max",
    "congestion",
    "notsent_lowat",
    "send_buffer_bytes",
    "receive_buffer_bytes",
    "drain_timeout",
    "log_level",
    "log_format",
    "mtu",
    "connections",
    "light_connections",
    "fec",
    "fec_data",
    "fec_parity",
    "client_isolation",
    "peer_queue_bytes",
    "handshake_timeout",
    *LIMITS,
)


def worker_settings(config: Config, offloads: int, accepted: int, session: int, account: Account | None) -> dict:
    """`offloads`: TUN_F_* in force on our device; `accepted`: what it takes back in writes; `session`: of this run;
    `account`: whom workers become."""
    settings = {name: getattr(config, name) for name in HANDED_DOWN}
    settings |= {
        "offloads": offloads,
        "offloads_accepted": accepted,
        "client": client_identity(config.name),
        "session": session,
        "user": account and [account.uid, account.gid],
    }
    return settings


def new_session() -> int:
    """A number for this run, higher than that of any earlier run: the wall clock in ns."""
    return time.time_ns()


def client_identity(name: str) -> int:
    """64 bits that stay the same over restarts of one instance on one host."""
    try:
        host = Path("/etc/machine-id").read_bytes()
    except OSError:
        host = uuid.getnode().to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(host + b"\0" + name.encode()).digest()[:8], "big")
