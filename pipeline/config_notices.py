"""Floor 2. Settings that are accepted and do nothing, and those that deserve a warning: a sentence each."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from pipeline.config_fields import FIELDS, Config, with_derived


class Unused(NamedTuple):
    """A setting that does nothing under a condition."""

    name: str
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
    return config.encryption == "none" and not config.tls_enabled


def _for_one_client(config: Config) -> bool:
    return _on_server(config) and not config.multi_client


UNUSED = (
    Unused("recv_queue_size", _always, "inbound there is backpressure, not a queue"),
    Unused("local_addr", _on_client, "a client listens nowhere"),
    Unused("insecure", _on_client, "only a server can be left open"),
    Unused("remote_addr", _on_server, "a server dials nobody"),
    Unused("connections", _on_server, "the client decides how many it opens"),
    Unused("light_connections", _on_server, "the client decides how many it opens"),
    Unused("reconnect_min", _on_server, "a server dials nobody"),
    Unused("reconnect_max", _on_server, "a server dials nobody"),
    Unused("fec_data", _without_fec, "fec is off"),
    Unused("fec_parity", _without_fec, "fec is off"),
    Unused("tls_cert_file", _without_tls, "TLS is off"),
    Unused("tls_key_file", _without_tls, "TLS is off"),
    Unused("tls_skip_verify", _without_tls, "TLS is off"),
    Unused("multi_client", _on_client, "the server decides whom it serves"),
    Unused("max_clients", _on_client, "the server decides whom it serves"),
    Unused("client_isolation", _on_client, "the server decides whom it serves"),
    Unused("max_clients", _for_one_client, "multi_client is false"),
    Unused("client_isolation", _for_one_client, "multi_client is false"),
)


def _is_default(config: Config, name: str) -> bool:
    reset = msgspec.structs.replace(config, **{name: FIELDS[name].default})
    return getattr(config, name) == getattr(with_derived(reset), name)


def notices(config: Config) -> list[str]:
    """A sentence for each accepted setting that does nothing or deserves a warning."""
    sentences = [
        f"{unused.name} has no effect: {unused.reason}."
        for unused in UNUSED
        if unused.when(config) and not _is_default(config, unused.name)
    ]
    return sentences + list(_warnings(config))


def _warnings(config: Config) -> Iterator[str]:
    if _on_server(config):
        endpoint = config.listen_endpoint
        if not endpoint.is_loopback:
            yield (f"insecure is true: whoever reaches {config.local_addr} is inside this tunnel, "
                   "without authentication or encryption.")
        if endpoint.port == 0:
            yield "local_addr has port 0: the kernel chooses one, and clients have to be told which."
    else:
        yield from _routes_over_the_server(config)
    if config.idle == "spin":
        yield 'idle is "spin": every duty of every worker keeps a core busy, also without traffic.'
    for name in ("send_buffer_bytes", "receive_buffer_bytes"):
        if getattr(config, name):
            yield f"{name} is {getattr(config, name)}: a fixed size ends the kernel's tuning of it."
    inside = config.tunnel_interfaces + config.route_prefixes
    if config.compat and any(value.version == 6 for value in inside):
        yield "compat is true and there is IPv6 inside: the original's server drops IPv6 packets."


def _routes_over_the_server(config: Config) -> Iterator[str]:
    address = config.remote_endpoint.address
    for prefix in config.route_prefixes:
        if prefix.prefixlen <= 1 if address is None else address in prefix:
            yield (f"routes leads {prefix} into the tunnel, and with it the way to the server "
                   f"{config.remote_addr}, unless a more specific route leads around it.")
