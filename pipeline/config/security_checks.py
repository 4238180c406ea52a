"""Rules of encryption, certificates, keys and peers: which peers may connect, and how a server tells them apart.

These checks have the form that `checks` describes; its table CHECKS lists them.
"""

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from pipeline.config.peer import PROOFS, Peer
from pipeline.config.schema import Config
from pipeline.config.values import check_host, parse_address, parse_prefix
from pipeline.config.violation import ONLY_ONCE, Violations
from pipeline.packet.address_pool import AddressPool
from pipeline.shm.layout import ROUTES_MAX

HTTP_1 = "http/1.1"  # the ALPN name (RFC 7301, 6)


# -- encryption


def plaintext(config: Config) -> Violations:
    is_tls = config.encryption == "tls"
    if config.tls_enabled and not is_tls:
        yield "tls_enabled", 'false or left out with encryption "none", or encryption "tls"', True
    elif is_tls and not config.tls_enabled:
        yield "tls_enabled", 'true, or "encryption": "none" beside it: clear text must be written out so', False


def certificate(config: Config) -> Violations:
    for has, lacks in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if getattr(config, has) and not getattr(config, lacks):
            yield lacks, f"a path, because {has} is given: a certificate needs its key, and a key its certificate", ""


def verification(config: Config) -> Violations:
    if config.mode == "client" and config.tls_skip_verify:
        for name in ("tls_ca_file", "tls_fingerprint"):
            if getattr(config, name):
                expected = f"false with {name}: tls_skip_verify accepts every certificate, {name} does not"
                yield "tls_skip_verify", expected, True
                return


def server_name(config: Config) -> Violations:
    if config.tls_server_name:
        try:
            check_host(config.tls_server_name)
        except ValueError as expected:
            yield "tls_server_name", str(expected), config.tls_server_name


def fallback(config: Config) -> Violations:
    """With a fallback, only a proof inside TLS tells a peer from a browser."""
    if config.mode == "client" or not config.fallback:
        return
    reasons = {
        'encryption "none": a browser on a port of web servers speaks TLS': config.encryption == "none",
        "compat: the original program's clients prove nothing": config.compat,
        "insecure: every client would be a peer, and none the web server's": config.insecure,
        "tls_ca_file: no web server asks every browser for a certificate. Give peers a key": bool(config.tls_ca_file),
    }
    for reason, applies in reasons.items():
        if applies:
            yield "fallback", f"none with {reason}", config.fallback
            return


def alpn(config: Config) -> Violations:
    if config.tls_alpn and config.compat:
        yield "tls_alpn", "none with compat: the original program has no ALPN name", config.tls_alpn
    elif not config.tls_alpn and not config.compat and config.encryption == "tls":
        yield "tls_alpn", 'at least one name, such as "http/1.1"', config.tls_alpn
    elif len(set(config.tls_alpn)) < len(config.tls_alpn):
        yield "tls_alpn", ONLY_ONCE, config.tls_alpn
    elif config.mode == "server" and config.fallback and HTTP_1 not in config.tls_alpn:
        yield "tls_alpn", f'"{HTTP_1}" among the names with fallback: browsers offer it', config.tls_alpn
    elif config.mode == "server" and config.fallback and "h2" in config.tls_alpn and not config.fallback_h2:
        yield "fallback_h2", "an address, because tls_alpn has h2: HTTP/2 needs a web server that speaks it", ""


def insecure(config: Config) -> Violations:
    if config.mode == "client" or config.insecure or config.listen_endpoint.is_loopback:
        return
    if config.encryption == "none":
        lacking = "authentication or encryption"
    elif config.compat:
        lacking = "authentication, which the original program does not have"
    else:
        return
    yield (
        "insecure",
        (
            f"true, because this server listens on {config.local_addr} without {lacking}: "
            'every machine that reaches this address is inside the tunnel. Write "insecure": true into the file (or '
            "give --set insecure=true) to accept that, or set local_addr to a loopback address, such as "
            "127.0.0.1:9000" + ("" if config.compat else ', or leave "encryption": "none" out')
        ),
        False,
    )


# -- peers


def multi_client(config: Config) -> Violations:
    if config.mode == "server" and config.compat and config.multi_client and not config.insecure:
        expected = (
            'false with compat, or "insecure": true beside it: the original program\'s wire format does not say who a '
            "client is, so each client may take any address that is free"
        )
        yield "multi_client", expected, True


def peers(config: Config) -> Violations:
    """Each peer by itself."""
    for at, peer in _numbered(config):
        if len(peer.proofs) != 1:
            expected = f"exactly one of {', '.join(PROOFS[:-1])} and {PROOFS[-1]}, to prove the peer's identity"
            yield at, expected, peer.proofs
        forms: list[tuple[str, str, Callable[[str], object]]] = [
            *((f"allowed[{index}]", text, parse_prefix) for index, text in enumerate(peer.allowed)),
            *((path, text, parse_address) for path, text in peer.address_texts.items()),
        ]
        seen = set()
        for path, text, form in forms:
            try:
                value = form(text)
            except ValueError as error:
                yield f"{at}.{path}", str(error), text
                continue
            if value in seen:
                yield f"{at}.{path}", ONLY_ONCE, text
            seen.add(value)


def peer_proofs(config: Config) -> Violations:
    """The server can ask each peer for its proof."""
    if config.mode == "client" or not config.peers:
        return
    if config.compat:
        expected = "none with compat: clients of the original program cannot prove their identity"
        yield "peers", expected, len(config.peers)
    elif config.encryption == "none":
        yield "peers", 'none with encryption "none": clients cannot prove their identity', len(config.peers)
    elif not config.tls_ca_file:
        for at, peer in _numbered(config):
            if not peer.key_file:
                expected = (
                    "a key_file, or tls_ca_file with the CA of the peers' certificates: without a CA the server "
                    "cannot ask clients for a certificate"
                )
                yield at, expected, peer.proofs


def distinct_peers(config: Config) -> Violations:
    """No two peers share a name or a proof, and nothing inside the tunnel belongs to two peers."""
    if config.mode == "client":
        return
    names: dict[str, str] = {}
    proofs: dict[tuple[str, str | bytes], str] = {}
    networks = {ip_network(interface.ip): "the server itself" for interface in config.tunnel_interfaces}
    for at, peer in _numbered(config):
        if (other := names.setdefault(peer.name, at)) != at:
            yield f"{at}.name", f"a name of its own: {other} has this one", peer.name
        for proof in peer.proofs:
            value = peer.certificate_hash if proof == "fingerprint" else getattr(peer, proof)
            if (other := proofs.setdefault((proof, value), at)) != at:
                expected = f"a {proof} of its own: {other} has this one, so the server could not tell them apart"
                yield f"{at}.{proof}", expected, getattr(peer, proof)
        yield from _addresses(config, at, peer)
        for path, text, network in _networks_of(peer):
            if (other := networks.setdefault(network, at)) != at:
                yield f"{at}.{path}", f"an address or network of this peer only: it belongs to {other}", text


def _addresses(config: Config, at: str, peer: Peer) -> Violations:
    """The server can give each fixed address, and at most one of them is in each subnet."""
    pools = [AddressPool(interface) for interface in config.tunnel_interfaces]
    own = {interface.ip for interface in config.tunnel_interfaces}
    used: set[AddressPool] = set()
    for (path, text), address in zip(peer.address_texts.items(), peer.addresses, strict=True):
        fitting = [pool for pool in pools if pool.contains(address)]
        if not fitting and address not in own:  # the server's own address is reported as such elsewhere
            subnets = ", ".join(str(pool.network) for pool in pools)
            yield f"{at}.{path}", f"an address of a host in a subnet of tunnel_addr, {subnets}", text
        elif used & set(fitting):
            yield f"{at}.{path}", "at most one address in each subnet of tunnel_addr", text
        used |= set(fitting)


def routes_to_peers(config: Config) -> Violations:
    """The routes to all peers fit into the peer table."""
    if config.mode == "client" or not config.multi_client:
        return
    networks = sum(len(_networks_of(peer)) for peer in config.peers)
    subnets = len(config.tunnel_interfaces)
    # routes in each subnet: to the subnet, to the server's address, to the clients' addresses
    most = (ROUTES_MAX - networks) // subnets - 2
    if config.max_clients > most:
        expected = (
            f"at most {max(0, most)} with {subnets} subnet(s) in tunnel_addr and {networks} networks of peers: "
            f"the peer table holds {ROUTES_MAX} routes"
        )
        yield "max_clients", expected, config.max_clients


def _numbered(config: Config) -> Iterator[tuple[str, Peer]]:
    return ((f"peers[{index}]", peer) for index, peer in enumerate(config.peers))


def _networks_of(peer: Peer) -> list[tuple[str, str, IPv4Network | IPv6Network]]:
    """Path, text and network of each address and network in the tunnel that belongs to this peer."""
    fixed = [
        (path, text, ip_network(address))
        for (path, text), address in zip(peer.address_texts.items(), peer.addresses, strict=True)
    ]
    return fixed + [
        (f"allowed[{index}]", text, network)
        for index, (text, network) in enumerate(zip(peer.allowed, peer.prefixes, strict=True))
    ]
