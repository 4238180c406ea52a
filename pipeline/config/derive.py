"""What settings are that nobody has written out and that depend on others: a value for each None."""

import msgspec

from pipeline.config.peer import Peer
from pipeline.config.schema import AUTO, DEFAULT_SERVER_ADDRESS, DEFAULT_TUN_NAME, STATE_DIRECTORY, Config
from pipeline.config.values import parse_endpoint

TUN_NAME_MAX = 15  # IFNAMSIZ - 1, linux/if.h
CONNECTIONS_MAX = 32
LIGHT_CONNECTIONS = 3  # two copies beyond the first


def with_derived(config: Config) -> Config:
    """The same configuration with everything filled in that depends on other settings. Asks for no sense in them."""
    is_server = config.mode == "server"
    short = config.name is not None and len(config.name) <= TUN_NAME_MAX
    tun_name = config.tun_name or (config.name if short else DEFAULT_TUN_NAME)
    name = config.name or tun_name
    fec = config.fec or ("off" if config.compat else "auto")
    connections = config.connections or (1 if config.compat else config.lanes)
    if fec != "off" and config.connections is None and not config.compat:
        connections = max(connections, -(-(config.fec_data + config.fec_parity) // max(1, config.fec_parity)))
    light = 0 if fec == "off" or connections == 1 else LIGHT_CONNECTIONS
    encryption = config.encryption or ("none" if config.compat and not config.tls_enabled else "tls")
    is_hub = is_server and encryption == "tls" and not config.compat
    return msgspec.structs.replace(
        config,
        fec=fec,
        tun_name=tun_name,
        name=name,
        state_dir=f"{STATE_DIRECTORY}/{name}" if config.state_dir is None else config.state_dir,
        tunnel_addr=_tunnel_addr(config) if config.tunnel_addr is None else config.tunnel_addr,
        offload=not config.compat if config.offload is None else config.offload,
        connections=min(connections, CONNECTIONS_MAX),
        light_connections=light if config.light_connections is None else config.light_connections,
        encryption=encryption,
        tls_enabled=encryption == "tls" if config.tls_enabled is None else config.tls_enabled,
        tls_server_name=_server_name(config) if config.tls_server_name is None else config.tls_server_name,
        multi_client=is_hub if config.multi_client is None else config.multi_client,
        peers=tuple(_peer(peer, config) for peer in config.peers),
        user=config.user or "",
    )


def _tunnel_addr(config: Config) -> str | None:
    if config.mode == "server":
        return DEFAULT_SERVER_ADDRESS
    return None if config.compat else AUTO


def _server_name(config: Config) -> str:
    """The host that a client dials, as certificates name it: without a zone and without a closing dot."""
    if config.mode == "server":
        return ""
    try:
        host = parse_endpoint(config.remote_addr).host
    except ValueError:  # which is reported for remote_addr
        return ""
    return host.partition("%")[0].removesuffix(".")


def _peer(peer: Peer, config: Config) -> Peer:
    return peer if peer.rate_mbit is not None else msgspec.structs.replace(peer, rate_mbit=config.rate_mbit)
