"""What must hold of encryption, certificates, keys and peers: who may come in, and who is who.

Checks like those of config_checks, which has them in its table.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from pipeline.config.peer import PROOFS, Peer
from pipeline.config.schema import Config
from pipeline.config.values import check_host, parse_address, parse_prefix
from pipeline.packet.address_pool import AddressPool
from pipeline.shm.layout import ROUTES_MAX

Found = Iterator[tuple[str, str, Any]]
"""Path, expected, given."""


# -- encryption


def plaintext(config: Config) -> Found:
    is_tls = config.encryption == "tls"
    if config.tls_enabled and not is_tls:
        yield "tls_enabled", 'false or nothing with encryption "none", or encryption "tls"', True
    elif is_tls and not config.tls_enabled:
        yield (
            "tls_enabled",
            (
                'true, or "encryption": "none" beside it: that everything travels in clear text has to '
                "be written out in these words"
            ),
            False,
        )


def certificate(config: Config) -> Found:
    for has, lacks in (("tls_cert_file", "tls_key_file"), ("tls_key_file", "tls_cert_file")):
        if getattr(config, has) and not getattr(config, lacks):
            yield lacks, f"a path, because {has} is given: a certificate and its key go together", ""


def verification(config: Config) -> Found:
    if config.mode == "client" and config.tls_skip_verify:
        for name in ("tls_ca_file", "tls_fingerprint"):
            if getattr(config, name):
                yield "tls_skip_verify", f"false with {name}: one accepts any certificate, the other does not", True
                return


def server_name(config: Config) -> Found:
    if config.tls_server_name:
        try:
            check_host(config.tls_server_name)
        except ValueError as expected:
            yield "tls_server_name", str(expected), config.tls_server_name


def insecure(config: Config) -> Found:
    if config.mode == "client" or config.insecure or config.listen_endpoint.is_loopback:
        return
    if config.encryption == "none":
        lacking = "authentication or encryption"
    elif config.compat:
        lacking = "authentication, for which the original has no means"
    else:
        return
    yield (
        "insecure",
        (
            f"true, because this server listens on {config.local_addr} without {lacking}, "
            'and whoever reaches that address is inside the tunnel. Write "insecure": true into the file (or '
            "give --set insecure=true) to accept that, or set local_addr to a loopback address, such as "
            "127.0.0.1:9000" + ("" if config.compat else ', or leave "encryption": "none" out')
        ),
        False,
    )


# -- peers


def multi_client(config: Config) -> Found:
    if config.mode == "server" and config.compat and config.multi_client:
        yield (
            "multi_client",
            (
                "false with compat: on the original's wire nothing says which client a connection is "
                "of, so whoever takes another one's address has it"
            ),
            True,
        )


def peers(config: Config) -> Found:
    """Each peer by itself."""
    for at, peer in _numbered(config):
        if len(peer.proofs) != 1:
            yield at, f"exactly one of {', '.join(PROOFS[:-1])} and {PROOFS[-1]}: how it proves itself", peer.proofs
        forms = [(f"allowed[{index}]", text, parse_prefix) for index, text in enumerate(peer.allowed)]
        forms += [(path, text, parse_address) for path, text in peer.address_texts.items()]
        seen = set()
        for path, text, form in forms:
            try:
                value = form(text)
            except ValueError as expected:
                yield f"{at}.{path}", str(expected), text
                continue
            if value in seen:
                yield f"{at}.{path}", "each of them once", text
            seen.add(value)


def provable_peers(config: Config) -> Found:
    """That what peers would prove themselves with can be asked for."""
    if config.mode == "client" or not config.peers:
        return
    if config.compat:
        yield "peers", "none with compat: the original's clients have no way to prove who they are", len(config.peers)
    elif config.encryption == "none":
        yield "peers", 'none with encryption "none": nothing proves who they are', len(config.peers)
    elif not config.tls_ca_file:
        for at, peer in _numbered(config):
            if not peer.key_file:
                yield (
                    at,
                    (
                        "a key_file, or else tls_ca_file with the CA of the peers' certificates: without a CA no "
                        "client can be asked for one"
                    ),
                    peer.proofs,
                )


def peers_apart(config: Config) -> Found:
    """That no two peers are one, and that nothing inside the tunnel belongs to two."""
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
                yield (
                    f"{at}.{proof}",
                    f"one of its own: {other} has this one, and so they are one peer",
                    getattr(peer, proof),
                )
        yield from _addresses(config, at, peer)
        for path, text, network in _inside(peer):
            if (other := networks.setdefault(network, at)) != at:
                yield f"{at}.{path}", f"what nobody else has: it belongs to {other}", text


def _addresses(config: Config, at: str, peer: Peer) -> Found:
    """That each fixed address is one that the server can give, and at most one in each subnet."""
    pools = [AddressPool(interface) for interface in config.tunnel_interfaces]
    own = {interface.ip for interface in config.tunnel_interfaces}
    used: set[AddressPool] = set()
    for (path, text), address in zip(peer.address_texts.items(), peer.addresses, strict=True):
        fitting = [pool for pool in pools if pool.contains(address)]
        if not fitting and address not in own:  # that one is reported as the server's
            subnets = ", ".join(str(pool.network) for pool in pools)
            yield f"{at}.{path}", f"an address of a host in a subnet of tunnel_addr, {subnets}", text
        elif used & set(fitting):
            yield f"{at}.{path}", "one address in each subnet of tunnel_addr", text
        used |= set(fitting)


def routes_to_peers(config: Config) -> Found:
    if config.mode == "client" or not config.multi_client:
        return
    networks = sum(len(_inside(peer)) for peer in config.peers)
    subnets = len(config.tunnel_interfaces)
    most = (ROUTES_MAX - networks) // subnets - 2  # in each subnet: itself, the server's address, the clients'
    if config.max_clients > most:
        expected = (
            f"at most {max(0, most)} with {subnets} subnet(s) in tunnel_addr and {networks} networks of peers: "
            f"workers hold {ROUTES_MAX} routes to peers and no more"
        )
        yield "max_clients", expected, config.max_clients


def _numbered(config: Config) -> Iterator[tuple[str, Peer]]:
    return ((f"peers[{index}]", peer) for index, peer in enumerate(config.peers))


def _inside(peer: Peer) -> list[tuple[str, str, Any]]:
    """Path, text and network of everything in the tunnel that is this peer's."""
    fixed = [
        (path, text, ip_network(address))
        for (path, text), address in zip(peer.address_texts.items(), peer.addresses, strict=True)
    ]
    return fixed + [
        (f"allowed[{index}]", text, network)
        for index, (text, network) in enumerate(zip(peer.allowed, peer.prefixes, strict=True))
    ]
