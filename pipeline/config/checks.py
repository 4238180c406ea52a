"""Rules between settings, beyond the type and the range of each.

A check takes a Config and yields a violation (path, expected, given) for each broken rule. CHECKS says which settings
each check reads. A check is skipped while one of these is invalid by itself, so that one mistake gives one problem.
The rules of addresses and ports are in address_checks, those of encryption, keys and peers in security_checks, those of
uplinks in uplink_checks.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pipeline.config import address_checks, security_checks, uplink_checks
from pipeline.config.schema import AUTO, WORKER_KINDS, Config
from pipeline.config.values import (
    INTERFACE_FORM,
    parse_address,
    parse_interface,
    parse_prefix,
)
from pipeline.config.violation import ONLY_ONCE, Violations, each_once
from pipeline.packet.flow_rules import RULE_FORM, FlowRules
from pipeline.packet.marks import parse_dscp
from pipeline.policy.targets import ANY, GROUP, parse_target
from pipeline.wire.messages import DNS_SERVERS_MAX, PUSHED_ROUTES_MAX

COMPAT_MTU_MAX = 1495  # the original program's frame length counts type and packet, and is at most 1496
IPV6_MTU_MIN = 1280  # RFC 8200, 5
RESERVED_DOMAINS = {
    "local": "for multicast DNS, so that resolvers ask no server for it (RFC 6762, 3)",
    "localhost": "each machine itself (RFC 6761, 6.3)",
    "invalid": "known to have no names (RFC 6761, 6.4)",
    "onion": "for Tor, so that resolvers ask no server for it (RFC 7686)",
}


def tunnel_addr(config: Config) -> Violations:
    given = config.tunnel_addr
    if given == AUTO:
        return
    if isinstance(given, str):
        yield from each_once({"tunnel_addr": given}, _tunnel_ip)
    elif given is not None:
        if not given:
            yield "tunnel_addr", "at least one address", given
        yield from each_once({f"tunnel_addr[{i}]": text for i, text in enumerate(given)}, _tunnel_ip)


def _tunnel_ip(text: str) -> Any:
    return parse_interface(text).ip


def required(config: Config) -> Violations:
    if config.mode == "client" and not config.remote_addr:
        yield "remote_addr", 'the server that this client dials, such as "192.0.2.1:9000"', ""
    if config.mode == "server" and config.tunnel_addr == AUTO:
        yield "tunnel_addr", f"{INTERFACE_FORM}: a server gives addresses to clients and needs one of its own", AUTO
    if config.mode == "client" and config.compat and config.tunnel_addr in (None, AUTO):
        expected = f"{INTERFACE_FORM}: with compat, the original program's server gives no addresses to clients"
        yield "tunnel_addr", expected, config.tunnel_addr


def routes(config: Config) -> Violations:
    yield from each_once({f"routes[{i}]": text for i, text in enumerate(config.routes)}, parse_prefix)


def accept_routes(config: Config) -> Violations:
    given = config.accept_routes
    if not isinstance(given, bool):
        yield from each_once({f"accept_routes[{i}]": text for i, text in enumerate(given)}, parse_prefix)


def push_routes(config: Config) -> Violations:
    if len(config.push_routes) > PUSHED_ROUTES_MAX:
        yield "push_routes", f"at most {PUSHED_ROUTES_MAX}: a WELCOME holds no more", len(config.push_routes)
    yield from each_once({f"push_routes[{i}]": text for i, text in enumerate(config.push_routes)}, parse_prefix)


def names(config: Config) -> Violations:
    if use := RESERVED_DOMAINS.get(config.names.rpartition(".")[2]):
        yield "names", f'another domain, such as "tunnel": this one is {use}', config.names


def reach(config: Config) -> Violations:
    """Each target by itself, and the groups that they name. A group without a description would shut out in silence."""
    written = {"may_reach": config.may_reach}
    written |= {f"groups.{name}": targets for name, targets in config.groups.items()}
    for index, peer in enumerate(config.peers):
        written[f"peers[{index}].may_reach"] = peer.may_reach or ()
        for group in peer.groups:
            if group not in config.groups:
                expected = f'a group of the setting groups, such as "groups": {{"{group}": []}}'
                yield f"peers[{index}].groups", expected, group
        if len(set(peer.groups)) < len(peer.groups):
            yield f"peers[{index}].groups", ONLY_ONCE, list(peer.groups)
    for path, targets in written.items():
        yield from each_once({f"{path}[{i}]": text for i, text in enumerate(targets)}, parse_target)
        for i, text in enumerate(targets):
            try:
                target = parse_target(text)
            except ValueError:  # it has been said
                continue
            if target.kind == GROUP and target.name not in config.groups:
                yield f"{path}[{i}]", f'a group of the setting groups, such as "groups": {{"{target.name}": []}}', text


def compat_reach(config: Config) -> Violations:
    if config.compat and config.may_reach != (ANY,):
        expected = f'["{ANY}"] with compat: the original program\'s wire format does not say who a client is'
        yield "may_reach", expected, list(config.may_reach)


def dns(config: Config) -> Violations:
    for name, given in (("dns", () if config.dns == AUTO else config.dns), ("push_dns", config.push_dns)):
        yield from each_once({f"{name}[{i}]": text for i, text in enumerate(given)}, parse_address)
        if len(given) > DNS_SERVERS_MAX:
            yield name, f"at most {DNS_SERVERS_MAX}", len(given)


def full_tunnel(config: Config) -> Violations:
    if config.full_tunnel and config.mode == "client" and config.user == "root":
        expected = (
            "a system user of the workers' own, or nothing, with full_tunnel: their connections go around the tunnel"
        )
        yield "user", expected, config.user


def affinity(config: Config) -> Violations:
    if isinstance(config.affinity, str):
        return
    absent = {"fec": config.fec == "off", "dgram": config.carrier == "tcp"}
    present = [kind for kind in WORKER_KINDS if not absent.get(kind)]
    workers = {f"{kind}-{lane}" for kind in present for lane in range(config.lanes)}
    workers |= {
        f"{kind}-{half}-{lane}"
        for kind in config.split_workers
        for half in ("in", "out")
        for lane in range(config.lanes)
        if kind in present
    }
    for worker, cores in config.affinity.items():
        if worker not in workers:
            kinds = ", ".join(f'"{kind}-N"' for kind in present)
            yield "affinity", f"names of workers, {kinds}, with N less than lanes ({config.lanes})", worker
        elif not cores:
            yield f"affinity.{worker}", "at least one core", cores
        elif len(set(cores)) < len(cores):
            yield f"affinity.{worker}", "each core only once", cores


def keepalive(config: Config) -> Violations:
    if config.keepalive >= config.timeout:
        expected = f"less than timeout ({config.timeout:g}): otherwise every idle connection is considered dead"
        yield "keepalive", expected, config.keepalive


def reconnect(config: Config) -> Violations:
    if config.reconnect_min > config.reconnect_max:
        yield "reconnect_min", f"at most reconnect_max ({config.reconnect_max:g})", config.reconnect_min


def compat_packets(config: Config) -> Violations:
    if config.compat and config.offload:
        yield "offload", "false with compat: the original program sends bare packets only", True


def compat_mtu(config: Config) -> Violations:
    if config.compat and config.mtu > COMPAT_MTU_MAX:
        expected = f"at most {COMPAT_MTU_MAX} with compat: the original program closes a connection at a longer frame"
        yield "mtu", expected, config.mtu


def compat_connections(config: Config) -> Violations:
    if config.compat and config.light_connections:
        expected = "0 with compat: the original program has one connection only"
        yield "light_connections", expected, config.light_connections
    if config.compat and config.connections > 1:
        expected = "1 with compat: the original program takes every connection for another client"
        yield "connections", expected, config.connections


def ipv6_mtu(config: Config) -> Violations:
    if config.mtu < IPV6_MTU_MIN and config.has_ipv6_inside:
        expected = f"at least {IPV6_MTU_MIN} with IPv6 in addresses or routes: Linux has no IPv6 below that MTU"
        yield "mtu", expected, config.mtu


def dscp(config: Config) -> Violations:
    for name in ("dscp_light", "dscp_bulk"):
        try:
            parse_dscp(getattr(config, name))
        except ValueError as expected:
            yield name, str(expected), getattr(config, name)


FLOW_RULES = ("always_voice", "always_light", "always_bulk")


def flow_rules(config: Config) -> Violations:
    seen = set()
    for name in FLOW_RULES:
        for index, rule in enumerate(getattr(config, name)):
            path = f"{name}[{index}]"
            try:
                FlowRules([rule])
            except ValueError:
                yield path, RULE_FORM, rule
            if rule.lower() in seen:
                yield path, ONLY_ONCE, rule
            seen.add(rule.lower())


def fec(config: Config) -> Violations:
    if config.fec != "off" and config.compat:
        expected = '"off" with compat: the original program has no forward error correction on the wire'
        yield "fec", expected, config.fec
    if config.fec != "off" and config.fec_parity == 0:
        yield "fec_parity", 'at least 1, or fec "off"', 0


WAYS = ("remote_addr", "uplinks", "proxy", "proxy_command", "websocket")


def carrier(config: Config) -> Violations:
    if config.carrier == "tcp":
        return
    is_client = config.mode == "client"
    reasons = {
        "compat: the original program knows no datagrams": config.compat,
        'encryption "none": blocks in datagrams are sealed': config.encryption == "none",
        "uplinks: datagrams know one way": bool(config.named_uplinks),
        "proxy: it passes no datagrams": config.named_proxy is not None,
        "proxy_command: it passes no datagrams": is_client and bool(config.proxy_command),
        "websocket: a web server passes no datagrams": config.named_websocket is not None,
    }
    for reason, applies in reasons.items():
        if applies:
            yield "carrier", f'"tcp" with {reason}', config.carrier
            return


def direct(config: Config) -> Violations:
    if config.direct == "auto" and config.carrier == "tcp":
        yield "direct", '"off" with carrier "tcp": direct paths are of datagrams', config.direct


def state_dir(config: Config) -> Violations:
    if not config.state_dir.startswith("/"):
        expected = "a path beginning with /: every later start, from any directory, must find this directory again"
        yield "state_dir", expected, config.state_dir


def quota(config: Config) -> Violations:
    if config.mode == "server" and not config.accounting:
        quotas = {f"peers[{index}].quota_gb": peer.quota_gb for index, peer in enumerate(config.peers)}
        for path, given in ({"quota_gb": config.quota_gb} | quotas).items():
            if given:
                yield path, "0, or accounting true: a quota needs the account of what was used", given
                return


def commands(config: Config) -> Violations:
    """Hooks, and the command in place of a proxy."""
    given: dict[str, tuple[str, ...]] = {f"on.{event}": argv for event, argv in config.on.items()}
    if config.proxy_command:
        given["proxy_command"] = config.proxy_command
    for path, argv in given.items():
        if not argv or not argv[0].startswith("/"):
            yield path, "a path beginning with /, then arguments: no shell looks for the program", list(argv)
        elif not all(word.isprintable() for word in argv):
            yield path, "words without control characters", list(argv)


class Check(NamedTuple):
    find: Callable[[Config], Violations]
    reads: tuple[str, ...]


CHECKS = (
    Check(address_checks.local_addr, ("local_addr",)),
    Check(address_checks.remote_addr, ("remote_addr",)),
    Check(address_checks.fake_tcp_port, ("mode", "local_addr", "fake_tcp_port")),
    Check(tunnel_addr, ("tunnel_addr",)),
    Check(address_checks.public_addr, ("public_addr",)),
    Check(address_checks.proxy_protocol_from, ("proxy_protocol_from",)),
    Check(address_checks.websocket_addr, ("websocket_addr", "websocket_path", "local_addr")),
    Check(address_checks.websocket_proxies, ("websocket_proxies",)),
    Check(address_checks.fallback, ("fallback", "fallback_h2", "fallback_plain")),
    Check(routes, ("routes",)),
    Check(accept_routes, ("accept_routes",)),
    Check(push_routes, ("push_routes",)),
    Check(names, ("names",)),
    Check(reach, ("may_reach", "groups", "peers")),
    Check(compat_reach, ("may_reach", "compat")),
    Check(dns, ("dns", "push_dns")),
    Check(full_tunnel, ("full_tunnel", "mode", "user")),
    Check(state_dir, ("state_dir",)),
    Check(commands, ("on", "proxy_command")),
    Check(quota, ("mode", "accounting", "quota_gb", "peers")),
    Check(address_checks.metrics_addr, ("metrics_addr", "metrics_token_file")),
    Check(security_checks.peers, ("peers",)),
    Check(security_checks.server_name, ("tls_server_name",)),
    Check(address_checks.proxy, ("proxy", "proxy_command", "remote_addr")),
    Check(address_checks.websocket, ("websocket", "proxy", "proxy_command", "remote_addr")),
    Check(required, ("mode", "compat", "remote_addr", "tunnel_addr")),
    Check(uplink_checks.interfaces, ("uplinks", "tun_name")),
    Check(uplink_checks.others, ("uplinks", "mode", "compat", "fec", "proxy", "proxy_command", "websocket")),
    Check(uplink_checks.connections, ("uplinks", "mode", "compat", "fec", "connections", "light_connections")),
    Check(carrier, ("carrier", "mode", "compat", "encryption", *WAYS)),
    Check(direct, ("direct", "carrier")),
    Check(dscp, ("dscp_light", "dscp_bulk")),
    Check(flow_rules, FLOW_RULES),
    Check(affinity, ("affinity", "lanes", "fec", "carrier", "split_workers")),
    Check(keepalive, ("keepalive", "timeout")),
    Check(reconnect, ("reconnect_min", "reconnect_max")),
    Check(compat_packets, ("compat", "offload")),
    Check(compat_mtu, ("compat", "mtu")),
    Check(compat_connections, ("compat", "connections", "light_connections")),
    Check(ipv6_mtu, ("mtu", "tunnel_addr", "routes", "push_routes", "peers")),
    Check(fec, ("fec", "fec_parity", "compat")),
    Check(security_checks.plaintext, ("encryption", "tls_enabled", "compat")),
    Check(security_checks.certificate, ("tls_cert_file", "tls_key_file")),
    Check(security_checks.verification, ("mode", "tls_skip_verify", "tls_ca_file", "tls_fingerprint")),
    Check(security_checks.fallback, ("mode", "fallback", "encryption", "compat", "insecure", "tls_ca_file")),
    Check(security_checks.alpn, ("mode", "tls_alpn", "compat", "encryption", "fallback", "fallback_h2")),
    Check(security_checks.insecure, ("mode", "local_addr", "insecure", "encryption", "tls_enabled", "compat")),
    Check(security_checks.multi_client, ("mode", "compat", "multi_client", "insecure")),
    Check(security_checks.peer_proofs, ("mode", "peers", "encryption", "tls_enabled", "compat", "tls_ca_file")),
    Check(security_checks.distinct_peers, ("mode", "peers", "tunnel_addr")),
    Check(security_checks.routes_to_peers, ("mode", "peers", "tunnel_addr", "max_clients", "multi_client")),
)
"""In an order in which checks of a single setting come before the checks that read that setting as well."""


def setting_of(path: str) -> str:
    """The setting to which a path such as routes[2] or affinity.tun-0 belongs."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def find_problems(config: Config, already_invalid: Iterable[str]) -> Violations:
    """Every broken rule between settings that are valid by themselves."""
    invalid = set(already_invalid)
    for check in CHECKS:
        if invalid.isdisjoint(check.reads):
            for path, expected, given in check.find(config):
                invalid.add(setting_of(path))
                yield path, expected, given
