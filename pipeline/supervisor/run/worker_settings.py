"""The settings of workers, out of the configuration: plain values, so that workers need not import msgspec."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable
from typing import Protocol

from pipeline.config import Config
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import ConfigError
from pipeline.packet.marks import parse_dscp
from pipeline.runtime.plan import WorkerSettings
from pipeline.supervisor.run.worker_account import Account
from pipeline.system import small_file
from pipeline.transport.settings import FallbackSettings
from pipeline.version import VERSION
from pipeline.wire import auth
from pipeline.wire.approach import Proxy

LIMITS = ("max_handshakes", "max_handshakes_per_address", "connects_per_address")
"""Settings that a reload changes in running tcp workers."""

BYTES_PER_KBIT = 125
BYTES_PER_MBIT = 125_000

MACHINE_ID = "/etc/machine-id"  # machine-id(5): 32 digits and a newline
MACHINE_ID_BYTES_MAX = 4096

HANDED_DOWN = (
    *("compat", "tun_name", "mtu", "fec", "fec_data", "fec_parity"),
    *("idle", "hold", "peer_queue_bytes", "drain_timeout"),
    *("connections", "light_connections", "timeout", "keepalive", "reconnect_min", "reconnect_max"),
    *("congestion", "notsent_lowat", "send_buffer_bytes", "receive_buffer_bytes"),
    *("client_isolation", "handshake_timeout", *LIMITS),
    *("log_level", "log_format", "lanes", "noise", "padding", "class_by_dscp"),
)
"""Settings that workers get unchanged."""


class Offloads(Protocol):
    """Of the TUN device, as TUN_F_* bits."""

    @property
    def offloads(self) -> int: ...  # in force

    @property
    def accepted(self) -> int: ...  # that it accepts in packets written to it


def worker_settings(
    config: Config,
    credentials: TlsSettings,
    device: Offloads,
    session: int,
    account: Account | None,
    known_servers: Iterable[str] = (),
    way: Proxy | None = None,
) -> WorkerSettings:
    """`session`: the number of this start; `account`: what workers change to, None if they stay what we are.

    `known_servers`: addresses at which a client has found its server. `way`: what it dials in place of the server.
    """
    is_server = config.mode == "server"
    return WorkerSettings(
        **{name: getattr(config, name) for name in HANDED_DOWN},
        tls=credentials.tls,
        verifies_keys=is_server and config.encryption == "tls",
        key_id=auth.key_id(credentials.key).hex() if credentials.key and not is_server else "",
        knock_key=auth.knock_key(credentials.key).hex() if credentials.key and not is_server else "",
        fallback=_fallback(config) if is_server else None,
        proxies=config.proxy_protocol_from if is_server else (),
        client_subnets=_client_subnets(config),
        client_id=client_id(config.name),
        session=session,
        requested_addresses=[] if is_server else [str(interface.ip) for interface in config.tunnel_interfaces],
        remote_host="" if is_server else config.remote_endpoint.host,
        remote_port=0 if is_server else config.remote_endpoint.port,
        known_servers=list(known_servers),
        offloads=device.offloads,
        offloads_accepted=device.accepted,
        account=(account.uid, account.gid) if account else None,
        always_light=" ".join(config.always_light),
        always_bulk=" ".join(config.always_bulk),
        always_voice=" ".join(config.always_voice),
        bulk_rate=int(BYTES_PER_MBIT * config.bulk_rate_mbit),
        send_rate=int(BYTES_PER_MBIT * config.send_rate_mbit),
        dscp_bulk=parse_dscp(config.dscp_bulk),
        dscp_light=parse_dscp(config.dscp_light),
        multicast_rate=0 if config.compat else BYTES_PER_KBIT * config.multicast_kbit,
        program=_program_to_tell(config, credentials),
        asks_around=bool(config.wants_full_tunnel),
        proxy=way,
        uplinks=config.named_uplinks,
    )


def _program_to_tell(config: Config, credentials: TlsSettings) -> str:
    """The version that a client's HELLO has: TLS itself must have verified the server by then. "" otherwise."""
    tls = credentials.tls
    if config.mode == "server" or config.compat or tls is None or not (tls.fingerprint or tls.verify):
        return ""
    return VERSION


def _fallback(config: Config) -> FallbackSettings | None:
    if not config.fallback:
        return None
    return FallbackSettings(
        config.fallback,
        config.fallback_h2,
        config.fallback_plain or config.fallback,
        config.fallback_proxy_protocol,
        config.fallback_connections,
    )


def _client_subnets(config: Config) -> list[str]:
    """Where a hub of the original program learns the addresses of its clients; elsewhere nothing is learnt."""
    return [str(interface) for interface in config.tunnel_interfaces] if config.compat and config.multi_client else []


def new_session() -> int:
    """A number for this start, higher than that of any earlier one unless the clock was set back: the wall clock in ns.

    A server accepts a lower one that is new to it (pipeline.peers.membership)."""
    return time.time_ns()


def client_id(name: str) -> int:
    """64 bits that tell this instance on this machine from others, constant over its restarts."""
    try:
        host = small_file.read(MACHINE_ID, MACHINE_ID_BYTES_MAX)
    except ConfigError:
        host = b""
    if not host.strip():  # the file of an image that has not been started yet is empty
        host = uuid.getnode().to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(host + b"\0" + name.encode()).digest()[:8], "big")
