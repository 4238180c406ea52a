"""Complete a configuration: a value for each setting that was left out and depends on others."""

from typing import Literal

import msgspec

from pipeline.config import lanes
from pipeline.config.peer import Peer
from pipeline.config.schema import (
    AUTO,
    DEFAULT_SERVER_ADDRESS,
    DEFAULT_TUN_NAME,
    STATE_DIRECTORY,
    Config,
    PartialConfig,
)
from pipeline.config.types import CONNECTIONS_MAX
from pipeline.config.values import Endpoint, parse_remote
from pipeline.policy.machine import Machine
from pipeline.policy.server_choice import Server
from pipeline.wire.framing import ALPN

TUN_NAME_MAX = 15  # IFNAMSIZ - 1, linux/if.h
LIGHT_CONNECTIONS = 3  # two copies beyond the first
INHERITED = ("rate_mbit", "quota_gb", "quota_action", "quota_rate_mbit")  # a peer without one has that of all clients


def derive(given: PartialConfig, machine: Machine | None = None) -> Config:
    """The complete configuration. Nothing is checked here: the result may still contradict itself.

    `machine`: on which it would run; None for this one.
    """
    is_server = given.mode == "server"
    name_fits = given.name is not None and len(given.name) <= TUN_NAME_MAX
    tun_name = given.tun_name or (given.name if given.name and name_fits else DEFAULT_TUN_NAME)
    name = given.name or tun_name
    fec = given.fec or ("off" if given.compat else "auto")
    choice = lanes.choose(given, fec, machine or lanes.this_machine())
    connections = given.connections or min(wanted_connections(given, fec, choice.lanes), CONNECTIONS_MAX)
    light = 0 if fec == "off" or connections == 1 else max(LIGHT_CONNECTIONS, len(given.uplinks))
    encryption = given.encryption or ("none" if given.compat and not given.tls_enabled else "tls")
    is_hub = is_server and (given.insecure if given.compat else encryption == "tls")
    derived = {
        "fec": fec,
        "tun_name": tun_name,
        "name": name,
        "state_dir": f"{STATE_DIRECTORY}/{name}" if given.state_dir is None else given.state_dir,
        "tunnel_addr": _tunnel_addr(given) if given.tunnel_addr is None else given.tunnel_addr,
        "offload": not given.compat if given.offload is None else given.offload,
        "connections": connections,
        "light_connections": light if given.light_connections is None else given.light_connections,
        "encryption": encryption,
        "tls_enabled": encryption == "tls" if given.tls_enabled is None else given.tls_enabled,
        "tls_server_name": _server_name(given) if given.tls_server_name is None else given.tls_server_name,
        "tls_alpn": _tls_alpn(given) if given.tls_alpn is None else given.tls_alpn,
        "lanes": choice.lanes,
        "split_workers": choice.split,
        "multi_client": is_hub if given.multi_client is None else given.multi_client,
        "peers": tuple(_peer(peer, given) for peer in given.peers),
        "user": given.user or "",
    }
    return Config(**msgspec.structs.asdict(given) | derived)


def wanted_connections(given: PartialConfig, fec: Literal["off", "on", "auto"], lane_count: int) -> int:
    """The connections for bulk with which each lane has one, and the loss of any one costs nothing."""
    if given.compat:
        return 1
    if fec == "off":
        return lane_count
    return max(lane_count, len(given.uplinks), -(-(given.fec_data + given.fec_parity) // max(1, given.fec_parity)))


def _tunnel_addr(given: PartialConfig) -> str | None:
    if given.mode == "server":
        return DEFAULT_SERVER_ADDRESS
    return None if given.compat else AUTO


def _server_name(given: PartialConfig) -> str:
    """The host that a client dials, as certificates name it. "" for several servers: each is called by its own host."""
    if given.mode == "server" or not isinstance(given.remote_addr, str):
        return ""
    try:
        remote = parse_remote(given.remote_addr)
    except ValueError:  # which is reported for remote_addr
        return ""
    return Server(*remote).certificate_name if isinstance(remote, Endpoint) else ""


def _tls_alpn(given: PartialConfig) -> tuple[str, ...]:
    if given.compat:
        return ()
    if given.mode == "server" and given.fallback:
        return ("h2", "http/1.1") if given.fallback_h2 else ("http/1.1",)
    return (ALPN,)


def _peer(peer: Peer, given: PartialConfig) -> Peer:
    left_out = {name: getattr(given, name) for name in INHERITED if getattr(peer, name) is None}
    return msgspec.structs.replace(peer, **left_out)
