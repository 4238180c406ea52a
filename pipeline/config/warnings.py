"""Warnings: a sentence for each accepted setting that has no effect, and for each risky or contradictory one."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.config.derive import derive, wanted_connections
from pipeline.config.schema import SETTINGS, Config, PartialConfig
from pipeline.config.types import CONNECTIONS_MAX
from pipeline.config.values import Endpoint
from pipeline.packet.address_pool import LINK_ADDRESSES, is_part_of
from pipeline.wire.approach import Proxy

_PLAIN_CLIENT = derive(PartialConfig(mode="client"))
DEFAULT_CLIENT_CONNECTIONS = _PLAIN_CLIENT.connections + _PLAIN_CLIENT.light_connections


class Unused(NamedTuple):
    """Settings that have no effect under a condition."""

    names: tuple[str, ...]
    when: Callable[[Config], bool]
    reason: str


def _always(config: Config) -> bool:
    return True


def _on_client(config: Config) -> bool:
    return config.mode == "client"


def _on_server(config: Config) -> bool:
    return config.mode == "server"


def _without_fec(config: Config) -> bool:
    return config.fec == "off"


def _without_tls(config: Config) -> bool:
    return config.encryption == "none"


def _with_compat(config: Config) -> bool:
    return config.compat


def _without_proxy(config: Config) -> bool:
    return not config.proxy


def _without_tls_to_a_proxy(config: Config) -> bool:
    return config.proxy_command != () or not config.needs_bridge or config.websocket.startswith("ws:")


def _without_metrics(config: Config) -> bool:
    return config.metrics_endpoint is None


def _for_one_client(config: Config) -> bool:
    return _on_server(config) and not config.multi_client


UNUSED = (
    Unused(("recv_queue_size",), _always, "inbound packets are held back by backpressure, not in a queue"),
    Unused(("local_addr",), _on_client, "a client does not listen"),
    Unused(("insecure",), _on_client, "it concerns servers only"),
    Unused(
        (
            *("remote_addr", "reconnect_min", "reconnect_max"),
            *("proxy", "proxy_login_file", "proxy_ca_file", "proxy_command", "websocket"),
        ),
        _on_server,
        "a server does not dial",
    ),
    Unused(("accept_routes",), _on_server, "nobody sends routes to a server"),
    Unused(("connections", "light_connections"), _on_server, "the client decides how many connections it opens"),
    Unused(("fec_data", "fec_parity"), _without_fec, "fec is off"),
    Unused(("proxy_login_file",), _without_proxy, "proxy names none"),
    Unused(("proxy_ca_file",), _without_tls_to_a_proxy, "there is neither an https:// proxy nor a wss:// WebSocket"),
    Unused(("metrics_token_file", "metrics_peers"), _without_metrics, "metrics_addr is empty"),
    Unused(
        (
            "peers",
            "multi_client",
            "max_clients",
            "client_isolation",
            "push_routes",
            "rate_mbit",
            "quota_gb",
            "quota_action",
            "quota_rate_mbit",
            "quota_day",
            "public_addr",
            "max_handshakes",
            "max_handshakes_per_address",
            "connects_per_address",
            "max_connections_per_client",
            "peer_queue_bytes",
        ),
        _on_client,
        "the server decides which clients it serves, and how",
    ),
    Unused(("max_clients", "client_isolation"), _for_one_client, "multi_client is false"),
    Unused(
        (
            "key_file",
            "tls_cert_file",
            "tls_key_file",
            "tls_ca_file",
            "tls_server_name",
            "tls_fingerprint",
            "tls_skip_verify",
            "tls_min_version",
        ),
        _without_tls,
        'encryption is "none"',
    ),
    Unused(("public_addr",), _without_tls, "invite needs TLS"),
    Unused(
        ("key_file", "push_routes", "accept_routes", "public_addr", "max_connections_per_client", "quota_gb"),
        _with_compat,
        "the original program has no such feature",
    ),
    Unused(("key_file",), _on_server, "the keys of a server are those of its peers"),
    Unused(("tls_server_name", "tls_fingerprint", "tls_skip_verify"), _on_server, "a server does not dial"),
)
"""Of the rows that name a setting, the first one that applies gives the reason."""


def _is_default(config: Config, name: str) -> bool:
    others = {other: getattr(config, other) for other in SETTINGS if other != name}
    return bool(getattr(config, name) == getattr(derive(PartialConfig(**others)), name))


def find_warnings(config: Config, invited: bool = False) -> list[str]:
    """All warnings. `invited`: this client has got its key with --join."""
    reasons: dict[str, str] = {}
    for unused in UNUSED:
        if unused.when(config):
            for name in unused.names:
                reasons.setdefault(name, unused.reason)
    sentences = [
        f"{name} has no effect: {reason}." for name, reason in reasons.items() if not _is_default(config, name)
    ]
    return sentences + list(_warnings(config, invited))


def _warnings(config: Config, invited: bool) -> Iterator[str]:
    yield from _of_a_server(config) if _on_server(config) else _of_a_client(config, invited)
    if config.idle == "spin":
        yield 'idle is "spin": every duty of every worker keeps a core busy, even without traffic.'
    for name in ("send_buffer_bytes", "receive_buffer_bytes"):
        if getattr(config, name):
            yield f"{name} is {getattr(config, name)}: a fixed size switches off the kernel's tuning of this buffer."
    metrics = config.metrics_endpoint
    if metrics is not None and not metrics.is_loopback:
        yield (
            f"metrics_addr is {config.metrics_addr}: page and token travel there without encryption; let it be an "
            "address inside the tunnel, or put a proxy with TLS before a loopback address."
        )
    if config.compat and config.has_ipv6_inside:
        yield "compat is true and there is IPv6 inside: the original program's server drops IPv6 packets."


def _of_a_server(config: Config) -> Iterator[str]:
    endpoint = config.listen_endpoint
    if config.encryption == "tls" and not config.compat:
        if config.insecure:
            yield (
                f"insecure is true: every client that reaches {config.local_addr} and speaks TLS is inside this "
                "tunnel, without proof of its identity."
            )
    elif not endpoint.is_loopback:
        lacking = "authentication" if config.encryption == "tls" else "authentication or encryption"
        yield f"insecure is true: every client that reaches {config.local_addr} is in this tunnel, without {lacking}."
    if endpoint.port == 0:
        yield "local_addr has port 0: the kernel chooses the port, and clients must be told which one it is."
    if config.encryption == "tls" and config.tls_ca_file and all(peer.key_file for peer in config.peers):
        yield (
            "tls_ca_file is given and no peer has a fingerprint or certificate_name: every holder of a certificate "
            "from this CA is admitted under the name in the certificate."
        )
    yield from _limits(config)
    yield from _unrouted(config)


def _limits(config: Config) -> Iterator[str]:
    if config.max_handshakes <= config.max_handshakes_per_address:
        yield (
            f"max_handshakes is {config.max_handshakes} and max_handshakes_per_address "
            f"{config.max_handshakes_per_address}: one address can occupy all handshakes and keep all others out."
        )
    if config.max_connections_per_client < DEFAULT_CLIENT_CONNECTIONS and not config.compat:
        yield (
            f"max_connections_per_client is {config.max_connections_per_client}: a client opens "
            f"{DEFAULT_CLIENT_CONNECTIONS} with default settings, and those beyond the limit are refused."
        )
    if not config.multi_client:
        return
    for interface in config.tunnel_interfaces:
        hosts = interface.network.num_addresses
        if hosts > LINK_ADDRESSES:
            hosts -= 2 if interface.version == 4 else 1  # as pipeline.packet.address_pool says
        if hosts - 1 < config.max_clients:
            yield (
                f"tunnel_addr {interface} has addresses for {hosts - 1} clients, and max_clients is "
                f"{config.max_clients}."
            )


def _unrouted(config: Config) -> Iterator[str]:
    """Networks behind peers that this machine's kernel does not route into the tunnel."""
    routed = [*config.route_prefixes, *(interface.network for interface in config.tunnel_interfaces)]
    missing = [
        str(prefix)
        for peer in config.peers
        for prefix in peer.prefixes
        if not any(is_part_of(prefix, route) for route in routed)
    ]
    if missing:
        yield (
            f"routes has no route to {', '.join(missing)}, which are allowed to peers: other peers reach these "
            "networks, but this machine and the packets that it forwards do not."
        )


def _of_a_client(config: Config, invited: bool) -> Iterator[str]:
    if config.encryption == "tls" and not config.compat and not (config.key_file or config.tls_cert_file or invited):
        yield (
            "there is neither a key_file nor a tls_cert_file: unless this client is started with --join, which "
            "brings a key, only a server with insecure admits it."
        )
    if config.encryption == "tls" and config.tls_skip_verify and (config.compat or not (config.key_file or invited)):
        yield (
            "tls_skip_verify is true and no key proves the server's identity: anybody on the path can pose as the "
            "server, and read and change everything."
        )
    wanted = wanted_connections(config, config.fec, config.lanes)
    if config.connections == CONNECTIONS_MAX < wanted:
        yield (
            f"connections is {CONNECTIONS_MAX}, the most that is possible, and {wanted} are needed: raise fec_parity, "
            "or lower fec_data or lanes."
        )
    yield from _proxied(config)
    yield from _routes_over_the_server(config)


def _is_private(proxy: Proxy) -> bool:
    """Whether nobody on the way to the proxy can read a login."""
    return proxy.scheme == "https" or Endpoint(proxy.host, proxy.port).is_loopback


def _proxied(config: Config) -> Iterator[str]:
    proxy = config.named_proxy
    if config.proxy and proxy is None:
        yield (
            "proxy is environment, and the environment of this command names no proxy for the server: without "
            "https_proxy or all_proxy the server is dialed itself."
        )
    elif proxy is not None and config.proxy_login_file and not _is_private(proxy):
        yield f"proxy_login_file: user and password travel to {proxy} in clear text: others on that way can read them."


def _routes_over_the_server(config: Config) -> Iterator[str]:
    address = config.dialed_endpoint.address
    far_end = config.named_proxy or config.named_websocket or f"the server {config.remote_addr}"
    for prefix in config.route_prefixes:
        if prefix.prefixlen <= 1 if address is None else address in prefix:
            yield (
                f"routes leads {prefix} into the tunnel, and with it the connections to {far_end}: it is left out "
                "until a more specific route leads them around the tunnel."
            )
