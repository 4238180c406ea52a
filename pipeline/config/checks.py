"""What must hold beyond the type and the range of one setting.

A check takes a Config and yields (path, expected, given) for each thing that is wrong. CHECKS says which
settings each one reads: it is left out while one of those is wrong by itself, so that one mistake gives one
problem.
What concerns encryption, keys and peers is in config_trust.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pipeline.config import security_checks as trust
from pipeline.config.schema import AUTO, WORKER_KINDS, Config
from pipeline.config.security_checks import Found
from pipeline.config.values import INTERFACE_FORM, parse_endpoint, parse_interface, parse_prefix
from pipeline.wire.messages import PUSHED_ROUTES_MAX as PUSHED_MAX

COMPAT_MTU_MAX = 1495  # the original's frames count type and packet, and end at 1496
IPV6_MTU_MIN = 1280  # RFC 8200, 5


def local_addr(config: Config) -> Found:
    try:
        parse_endpoint(config.local_addr)
    except ValueError as expected:
        yield "local_addr", str(expected), config.local_addr


def remote_addr(config: Config) -> Found:
    yield from _dialled("remote_addr", config.remote_addr)


def public_addr(config: Config) -> Found:
    yield from _dialled("public_addr", config.public_addr)


def _dialled(name: str, text: str) -> Found:
    if not text:
        return
    try:
        endpoint = parse_endpoint(text)
    except ValueError as expected:
        yield name, str(expected), text
        return
    if text.startswith(":"):
        yield name, "a host before the colon", text
    elif endpoint.port == 0:
        yield name, "a port of 1 to 65535", text


def tunnel_addr(config: Config) -> Found:
    given = config.tunnel_addr
    if given == AUTO:
        return
    if isinstance(given, str):
        yield from _each_once({"tunnel_addr": given}, _tunnel_ip)
    elif given is not None:
        if not given:
            yield "tunnel_addr", "at least one address", given
        yield from _each_once({f"tunnel_addr[{i}]": text for i, text in enumerate(given)}, _tunnel_ip)


def _tunnel_ip(text: str) -> Any:
    return parse_interface(text).ip


def required(config: Config) -> Found:
    if config.mode == "client" and not config.remote_addr:
        yield "remote_addr", 'the server that this client dials, such as "192.0.2.1:9000"', ""
    if config.mode == "server" and config.tunnel_addr == AUTO:
        yield "tunnel_addr", f"{INTERFACE_FORM}: a server chooses for its clients, nobody for it", AUTO
    if config.mode == "client" and config.compat and config.tunnel_addr in (None, AUTO):
        yield "tunnel_addr", f"{INTERFACE_FORM}: the original's server, with compat, gives none", config.tunnel_addr


def routes(config: Config) -> Found:
    yield from _each_once({f"routes[{i}]": text for i, text in enumerate(config.routes)}, parse_prefix)


def push_routes(config: Config) -> Found:
    if len(config.push_routes) > PUSHED_MAX:
        yield "push_routes", f"at most {PUSHED_MAX}: a WELCOME holds no more", len(config.push_routes)
    yield from _each_once({f"push_routes[{i}]": text for i, text in enumerate(config.push_routes)}, parse_prefix)


def _each_once(texts: dict[str, str], parse: Callable[[str], Any]) -> Found:
    seen = set()
    for path, text in texts.items():
        try:
            value = parse(text)
        except ValueError as expected:
            yield path, str(expected), text
            continue
        if value in seen:
            yield path, "each of them once", text
        seen.add(value)


def affinity(config: Config) -> Found:
    if isinstance(config.affinity, str):
        return
    present = [kind for kind in WORKER_KINDS if kind != "fec" or config.fec != "off"]
    workers = {f"{kind}-{lane}" for kind in present for lane in range(config.lanes)}
    for worker, cores in config.affinity.items():
        if worker not in workers:
            kinds = ", ".join(f'"{kind}-N"' for kind in present)
            yield "affinity", f"names of workers, {kinds}, with N less than lanes ({config.lanes})", worker
        elif not cores:
            yield f"affinity.{worker}", "at least one core", cores
        elif len(set(cores)) < len(cores):
            yield f"affinity.{worker}", "each core once", cores


def keepalive(config: Config) -> Found:
    if config.keepalive >= config.timeout:
        expected = f"less than timeout ({config.timeout:g}), or every idle connection is taken for dead"
        yield "keepalive", expected, config.keepalive


def reconnect(config: Config) -> Found:
    if config.reconnect_min > config.reconnect_max:
        yield "reconnect_min", f"at most reconnect_max ({config.reconnect_max:g})", config.reconnect_min


def compat_packets(config: Config) -> Found:
    if config.compat and config.offload:
        yield "offload", "false with compat: the original knows bare packets alone", True


def compat_mtu(config: Config) -> Found:
    if config.compat and config.mtu > COMPAT_MTU_MAX:
        expected = f"at most {COMPAT_MTU_MAX} with compat: the original ends a connection at a longer frame"
        yield "mtu", expected, config.mtu


def compat_connections(config: Config) -> Found:
    if config.compat and config.light_connections:
        yield "light_connections", "0 with compat: the original knows one connection", config.light_connections
    if config.compat and config.connections > 1:
        yield "connections", "1 with compat: the original takes each for another client", config.connections


def ipv6_mtu(config: Config) -> Found:
    if config.mtu < IPV6_MTU_MIN and config.has_ipv6_inside:
        expected = f"at least {IPV6_MTU_MIN} with IPv6 in addresses or routes: Linux has no IPv6 below"
        yield "mtu", expected, config.mtu


def fec(config: Config) -> Found:
    if config.fec != "off" and config.compat:
        yield "fec", '"off" with compat: the original has no forward error correction on the wire', config.fec
    if config.fec != "off" and config.fec_parity == 0:
        yield "fec_parity", 'at least 1, or fec "off"', 0


def state_dir(config: Config) -> Found:
    if not config.state_dir.startswith("/"):
        expected = "a path from / on: the next start, from wherever, has to find the same directory"
        yield "state_dir", expected, config.state_dir


class Check(NamedTuple):
    find: Callable[[Config], Found]
    reads: tuple[str, ...]


# Those of one setting come before those that read it.
CHECKS = (
    Check(local_addr, ("local_addr",)),
    Check(remote_addr, ("remote_addr",)),
    Check(tunnel_addr, ("tunnel_addr",)),
    Check(public_addr, ("public_addr",)),
    Check(routes, ("routes",)),
    Check(push_routes, ("push_routes",)),
    Check(state_dir, ("state_dir",)),
    Check(trust.peers, ("peers",)),
    Check(trust.server_name, ("tls_server_name",)),
    Check(required, ("mode", "compat", "remote_addr", "tunnel_addr")),
    Check(affinity, ("affinity", "lanes", "fec")),
    Check(keepalive, ("keepalive", "timeout")),
    Check(reconnect, ("reconnect_min", "reconnect_max")),
    Check(compat_packets, ("compat", "offload")),
    Check(compat_mtu, ("compat", "mtu")),
    Check(compat_connections, ("compat", "connections", "light_connections")),
    Check(ipv6_mtu, ("mtu", "tunnel_addr", "routes", "push_routes", "peers")),
    Check(fec, ("fec", "fec_parity", "compat")),
    Check(trust.plaintext, ("encryption", "tls_enabled", "compat")),
    Check(trust.certificate, ("tls_cert_file", "tls_key_file")),
    Check(trust.verification, ("mode", "tls_skip_verify", "tls_ca_file", "tls_fingerprint")),
    Check(trust.insecure, ("mode", "local_addr", "insecure", "encryption", "tls_enabled", "compat")),
    Check(trust.multi_client, ("mode", "compat", "multi_client")),
    Check(trust.provable_peers, ("mode", "peers", "encryption", "tls_enabled", "compat", "tls_ca_file")),
    Check(trust.peers_apart, ("mode", "peers", "tunnel_addr")),
    Check(trust.routes_to_peers, ("mode", "peers", "tunnel_addr", "max_clients", "multi_client")),
)


def setting_of(path: str) -> str:
    """The setting that a path such as routes[2] or affinity.tun-0 leads into."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def wrong(config: Config, already_wrong: Iterable[str]) -> Found:
    """Everything that does not hold between the settings that are right by themselves."""
    bad = set(already_wrong)
    for check in CHECKS:
        if bad.isdisjoint(check.reads):
            for path, expected, given in check.find(config):
                bad.add(setting_of(path))
                yield path, expected, given
