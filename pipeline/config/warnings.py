"""Warnings: a sentence for each accepted setting that has no effect, and for each risky or contradictory one."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.config.derive import derive, wanted_connections
from pipeline.config.schema import SETTINGS, Config, PartialConfig
from pipeline.config.types import CONNECTIONS_MAX
from pipeline.config.values import Endpoint, parse_endpoint, parse_prefix
from pipeline.packet.address_pool import LINK_ADDRESSES, is_part_of
from pipeline.policy.carrier_order import KINDS, Kind
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


def _without_full_tunnel(config: Config) -> bool:
    return config.full_tunnel is False


def _with_compat(config: Config) -> bool:
    return config.compat


def _without_proxy(config: Config) -> bool:
    return not config.proxy


def _without_tls_to_a_proxy(config: Config) -> bool:
    return config.proxy_command != () or not config.needs_bridge or config.websocket.startswith("ws:")


def _without_metrics(config: Config) -> bool:
    return config.metrics_endpoint is None


def _with_a_rate_of_connections(config: Config) -> bool:
    return config.has_rate_of_connections


def _with_one_server(config: Config) -> bool:
    return not config.has_several_servers


def _stays(config: Config) -> bool:
    return config.prefer == "current"


def _without_sealing(config: Config) -> bool:
    return config.compat or config.encryption == "none"


def _without_fallback(config: Config) -> bool:
    return not config.fallback


def _with_fallback(config: Config) -> bool:
    return _on_server(config) and bool(config.fallback)


def _without_bulk_class(config: Config) -> bool:
    return not (config.always_bulk or config.class_by_dscp)


def _without_fake_tcp(config: Config) -> bool:
    return _on_server(config) and Kind.FAKE_TCP not in KINDS[config.carrier]


def _for_one_client(config: Config) -> bool:
    return _on_server(config) and not config.multi_client


def _without_websockets(config: Config) -> bool:
    return _on_server(config) and config.websocket_endpoint is None


UNUSED = (
    Unused(("recv_queue_size",), _always, "inbound packets are held back by backpressure, not in a queue"),
    Unused(("local_addr", "fake_tcp_port"), _on_client, "a client does not listen"),
    Unused(("insecure",), _on_client, "it concerns servers only"),
    Unused(
        (
            *("remote_addr", "prefer", "home_after", "standby", "reconnect_min", "reconnect_max"),
            *("proxy", "proxy_login_file", "proxy_ca_file", "proxy_command", "websocket", "uplinks"),
        ),
        _on_server,
        "a server does not dial",
    ),
    Unused(("prefer", "home_after", "standby"), _with_one_server, "remote_addr names one server"),
    Unused(("home_after",), _stays, 'prefer is "current"'),
    Unused(("standby",), _without_sealing, "only where packets are sealed can two servers be connected at once"),
    Unused(("padding",), _without_sealing, "only records of sealed connections are padded"),
    Unused(("fake_tcp_port",), _without_fake_tcp, "carrier is neither faketcp nor auto"),
    Unused(("carrier",), _with_a_rate_of_connections, "only connections keep the rate that this end has"),
    Unused(("direct",), _with_a_rate_of_connections, "direct paths would not keep the rate that this end has"),
    Unused(("direct",), _for_one_client, "there are no two clients"),
    Unused(("accept_routes",), _on_server, "nobody sends routes to a server"),
    Unused(("full_tunnel", "kill_switch", "dns"), _on_server, "a server has the Internet by itself"),
    Unused(("kill_switch", "dns"), _without_full_tunnel, "full_tunnel is false"),
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
            "multicast_kbit",
            "may_reach",
            "groups",
            "push_routes",
            "names",
            "push_dns",
            "nat",
            "rate_mbit",
            "total_rate_mbit",
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
            "move_timeout",
            "proxy_protocol_from",
            "fallback",
            "fallback_h2",
            "fallback_plain",
            "fallback_proxy_protocol",
            "fallback_connections",
            "websocket_addr",
            "websocket_path",
            "websocket_proxies",
            "websocket_client_field",
        ),
        _on_client,
        "the server decides which clients it serves, and how",
    ),
    Unused(("max_clients", "client_isolation"), _for_one_client, "multi_client is false"),
    Unused(("multicast_kbit",), _for_one_client, "multi_client is false, so multicast passes both ways anyway"),
    Unused(
        ("fallback_h2", "fallback_plain", "fallback_proxy_protocol", "fallback_connections"),
        _without_fallback,
        "fallback is empty",
    ),
    Unused(
        ("websocket_path", "websocket_proxies", "websocket_client_field"),
        _without_websockets,
        "websocket_addr is empty",
    ),
    Unused(
        ("max_handshakes", "max_handshakes_per_address", "connects_per_address"),
        _with_fallback,
        "with fallback, fallback_connections limits the clients that have not proved to be a peer",
    ),
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
            "tls_alpn",
        ),
        _without_tls,
        'encryption is "none"',
    ),
    Unused(("public_addr",), _without_tls, "invite needs TLS"),
    Unused(
        (
            *("key_file", "push_routes", "names", "push_dns", "accept_routes", "public_addr"),
            *("max_connections_per_client", "groups", "quota_gb", "multicast_kbit", "total_rate_mbit"),
        ),
        _with_compat,
        "the original program has no such feature",
    ),
    Unused(
        ("always_voice", "always_light", "always_bulk", "class_by_dscp", "bulk_rate_mbit"),
        _with_compat,
        "the original program has no classes of traffic",
    ),
    Unused(("bulk_rate_mbit",), _without_bulk_class, "neither always_bulk nor class_by_dscp makes packets bulk"),
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
    for name in ("fallback", "fallback_h2"):
        address = getattr(config, name)
        if address and not parse_endpoint(address).is_loopback:
            yield f"{name} is {address}: what visitors of the web site say and get travels there without encryption."
    if any(parse_prefix(text).prefixlen == 0 for text in config.proxy_protocol_from):
        yield (
            "proxy_protocol_from has every address: each client can say that it is at any other address, and so pass "
            "the limits for each address."
        )
    web = config.websocket_endpoint
    if web is not None and any(parse_prefix(text).prefixlen == 0 for text in config.websocket_proxies):
        yield (
            "websocket_proxies has every address: each client can say that it is at any other address, and so pass the "
            "limits for each address."
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
    if config.has_several_servers and config.tls_fingerprint:
        yield (
            "remote_addr names several servers, and tls_fingerprint one certificate: a server that has another "
            "certificate is refused. With a key_file the pin is not needed."
        )
    if config.full_tunnel and config.user:
        yield f"user is {config.user}: whatever else runs as that user goes around the tunnel, like the workers."
    if config.full_tunnel and config.kill_switch and not config.remote_endpoints:
        yield (
            "remote_addr has SRV records alone, and the kill switch keeps their lookup in while there is no tunnel: "
            "name a server itself as well."
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
    leads_all = config.full_tunnel or any(prefix.prefixlen <= 1 for prefix in config.route_prefixes)
    if proxy is not None and leads_all and Endpoint(proxy.host, proxy.port).is_loopback:
        yield (
            f"the proxy {proxy} is a program of this machine, and what it sends goes into the tunnel as well: let it "
            "run as a system user of its own, and name that user in `user`."
        )


def _routes_over_the_server(config: Config) -> Iterator[str]:
    """They need workers with a user of their own."""
    through = config.named_proxy or config.named_websocket
    for remote in config.dialed if config.user == "root" else ():
        address = remote.address if isinstance(remote, Endpoint) else None
        for prefix in config.route_prefixes:
            if prefix.prefixlen <= 1 if address is None else address in prefix:
                yield (
                    f"routes leads {prefix} into the tunnel, and with it the connections to "
                    f"{through or f'the server {remote}'}, as the user of the workers is root: it is left out until a "
                    "more specific route leads them around the tunnel."
                )
