"""Settings that are accepted and do nothing, and those that deserve a warning: a sentence each."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from pipeline.config.derive import with_derived
from pipeline.config.schema import FIELDS, Config
from pipeline.packet.address_pool import LINK_ADDRESSES

_PLAIN_CLIENT = with_derived(Config(mode="client"))
CLIENTS_CONNECTIONS = _PLAIN_CLIENT.connections + _PLAIN_CLIENT.light_connections


class Unused(NamedTuple):
    """Settings that do nothing under a condition."""

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


def _for_one_client(config: Config) -> bool:
    return _on_server(config) and not config.multi_client


UNUSED = (
    Unused(("recv_queue_size",), _always, "inbound there is backpressure, not a queue"),
    Unused(("local_addr",), _on_client, "a client listens nowhere"),
    Unused(("insecure",), _on_client, "only a server can be left open"),
    Unused(("remote_addr", "reconnect_min", "reconnect_max"), _on_server, "a server dials nobody"),
    Unused(("connections", "light_connections"), _on_server, "the client decides how many it opens"),
    Unused(("fec_data", "fec_parity"), _without_fec, "fec is off"),
    Unused(
        (
            "peers",
            "multi_client",
            "max_clients",
            "client_isolation",
            "push_routes",
            "rate_mbit",
            "public_addr",
            "max_handshakes",
            "max_handshakes_per_address",
            "connects_per_address",
            "max_connections_per_client",
            "peer_queue_bytes",
        ),
        _on_client,
        "the server decides whom it serves, and how",
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
    Unused(("key_file", "push_routes", "public_addr"), _with_compat, "the original knows nothing of the kind"),
    Unused(("key_file",), _on_server, "each of its peers has one"),
    Unused(("tls_server_name", "tls_fingerprint", "tls_skip_verify"), _on_server, "a server dials nobody"),
)
"""The first row that fits a setting counts."""


def _is_default(config: Config, name: str) -> bool:
    reset = msgspec.structs.replace(config, **{name: FIELDS[name].default})
    return getattr(config, name) == getattr(with_derived(reset), name)


def notices(config: Config, invited: bool = False) -> list[str]:
    """A sentence for each accepted setting that does nothing or deserves a warning. `invited`: a key came by --join."""
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
        yield 'idle is "spin": every duty of every worker keeps a core busy, also without traffic.'
    for name in ("send_buffer_bytes", "receive_buffer_bytes"):
        if getattr(config, name):
            yield f"{name} is {getattr(config, name)}: a fixed size ends the kernel's tuning of it."
    if config.compat and config.has_ipv6_inside:
        yield "compat is true and there is IPv6 inside: the original's server drops IPv6 packets."


def _of_a_server(config: Config) -> Iterator[str]:
    endpoint = config.listen_endpoint
    if config.encryption == "tls" and not config.compat:
        if config.insecure:
            yield (
                f"insecure is true: whoever reaches {config.local_addr} and speaks TLS is inside this tunnel, "
                "without a proof of who it is."
            )
    elif not endpoint.is_loopback:
        lacking = "authentication" if config.encryption == "tls" else "authentication or encryption"
        yield f"insecure is true: whoever reaches {config.local_addr} is inside this tunnel, without {lacking}."
    if endpoint.port == 0:
        yield "local_addr has port 0: the kernel chooses one, and clients have to be told which."
    if config.encryption == "tls" and config.tls_ca_file and all(peer.key_file for peer in config.peers):
        yield (
            "tls_ca_file is given and no peer has a fingerprint or certificate_name: whoever has a certificate of "
            "this CA is let in, under the name in it."
        )
    yield from _limits(config)
    yield from _unrouted(config)


def _limits(config: Config) -> Iterator[str]:
    if config.max_handshakes <= config.max_handshakes_per_address:
        yield (
            f"max_handshakes is {config.max_handshakes} and max_handshakes_per_address "
            f"{config.max_handshakes_per_address}: one address can keep everybody else out."
        )
    if config.max_connections_per_client < CLIENTS_CONNECTIONS and not config.compat:
        yield (
            f"max_connections_per_client is {config.max_connections_per_client}: a client opens "
            f"{CLIENTS_CONNECTIONS} unless it is told otherwise, and those beyond are refused."
        )
    if not config.multi_client:
        return
    for interface in config.tunnel_interfaces:
        hosts = interface.network.num_addresses
        if hosts > LINK_ADDRESSES:
            hosts -= 2 if interface.version == 4 else 1  # see pool
        if hosts - 1 < config.max_clients:
            yield (
                f"tunnel_addr {interface} leaves addresses for {hosts - 1} clients, and max_clients is "
                f"{config.max_clients}."
            )


def _unrouted(config: Config) -> Iterator[str]:
    """What is behind peers and this machine's kernel does not send into the tunnel."""
    routed = [*config.route_prefixes, *(interface.network for interface in config.tunnel_interfaces)]
    missing = [
        str(prefix)
        for peer in config.peers
        for prefix in peer.prefixes
        if not any(prefix.version == route.version and prefix.subnet_of(route) for route in routed)
    ]
    if missing:
        yield (
            f"routes leads nothing to {', '.join(missing)}, allowed to peers: other peers get there, this machine "
            "and what it forwards do not."
        )


def _of_a_client(config: Config, invited: bool) -> Iterator[str]:
    if config.encryption == "tls" and not config.compat and not (config.key_file or config.tls_cert_file or invited):
        yield (
            "there is neither a key_file nor a tls_cert_file: unless this client is started with --join, which "
            "brings a key, only a server that is insecure lets it in."
        )
    if config.encryption == "tls" and config.tls_skip_verify and (config.compat or not (config.key_file or invited)):
        yield (
            "tls_skip_verify is true and no key proves the server: whoever is on the way can be the server, and "
            "read and change everything."
        )
    yield from _routes_over_the_server(config)


def _routes_over_the_server(config: Config) -> Iterator[str]:
    address = config.remote_endpoint.address
    for prefix in config.route_prefixes:
        if prefix.prefixlen <= 1 if address is None else address in prefix:
            yield (
                f"routes leads {prefix} into the tunnel, and with it the way to the server "
                f"{config.remote_addr}, unless a more specific route leads around it."
            )
