"""The peers that a server knows, from its configuration and from `invite`, and how each proves its identity.

    a key            its id in HELLO, and the proof over the handshake (pipeline.wire.auth)
    a certificate    from the CA: its SHA-256, or one of its names. If no peer is identified by certificate, a client
                     with a certificate is the peer that the certificate names, unless that peer has a key
    nothing          each client is a peer of its own, where `insecure` or no encryption admits every client. Its name
                     begins with ANYBODY: no peer that proves its identity has such a name

TLS has verified a certificate before it is looked up here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Config
from pipeline.credentials import certificates, keys
from pipeline.errors import ConfigError, Problem
from pipeline.peers import peer_file
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.peer_file import InvitedPeer
from pipeline.wire import auth
from pipeline.wire.messages import AUTH_KEY, Hello

BYTES_PER_MBIT = 125_000

ANYBODY = "client:"
"""The names of clients that prove nothing begin so. A peer's own name has no colon (pipeline.config.types)."""


class KnownPeer(NamedTuple):
    """A peer, and its proof of identity: a key, a certificate or a certificate's name."""

    policy: PeerPolicy
    key: bytes = b""
    certificate_sha256: bytes = b""
    certificate_name: str = ""


def load(config: Config) -> list[KnownPeer]:
    """All peers. ConfigError has every problem in any of their files."""
    found, problems = [], []
    for index, peer in enumerate(config.peers):
        policy = PeerPolicy(peer.name, peer.prefixes, peer.addresses, _rate(peer.rate_mbit, config))
        try:
            key = keys.read_key(peer.key_file, f"peers[{index}].key_file") if peer.key_file else b""
        except ConfigError as error:
            problems += error.problems
            continue
        found.append(KnownPeer(policy, key, peer.certificate_hash, peer.certificate_name))
    invited: list[InvitedPeer] = []
    try:
        invited = peer_file.read_all(Path(config.state_dir)) if config.encryption == "tls" else []
    except ConfigError as error:
        problems += error.problems
    found += [known_peer_of(peer, config) for peer in invited]
    problems += _clashes(found)
    if problems:
        raise ConfigError(problems)
    return found


def check_distinct(known: Iterable[KnownPeer]) -> None:
    """ConfigError if two of these peers share a name, a key, a network or an address."""
    problems = _clashes(known)
    if problems:
        raise ConfigError(problems)


def known_peer_of(peer: InvitedPeer, config: Config) -> KnownPeer:
    return KnownPeer(PeerPolicy(peer.name, peer.allowed, peer.address, _rate(peer.rate_mbit, config)), peer.key)


def _rate(mbit: float | None, config: Config) -> int:
    """Bytes a second; None: the limit of all clients."""
    return int((config.rate_mbit if mbit is None else mbit) * BYTES_PER_MBIT)


def _clashes(peers: Iterable[KnownPeer]) -> list[Problem]:
    problems = []
    names: set[str] = set()
    ids: dict[bytes, str] = {}
    networks: dict[object, str] = {}  # and addresses
    for known in peers:
        name = known.policy.name
        if name in names:
            problems.append(
                Problem("peers", f'two peers have the name "{name}", one of them invited: revoke or rename one of them')
            )
        names.add(name)
        for network in (*known.policy.allowed, *known.policy.fixed):
            other = networks.setdefault(network, name)
            if other != name:
                problems.append(Problem("allowed", f'{network} belongs to "{other}" already, "{name}" cannot have it'))
        if known.key:
            other = ids.setdefault(auth.key_id(known.key), name)
            if other != name:
                problems.append(Problem("peers", f'"{other}" and "{name}" have one key, but each peer needs its own'))
    return problems


class PeerRegistry:
    """`admits_unauthenticated`: whether each client that proves nothing is a peer of its own."""

    def __init__(self, admits_unauthenticated: bool) -> None:
        self._admits_unauthenticated = admits_unauthenticated
        self._decoy_key = secrets.token_bytes(auth.KEY_BYTES)
        self.replace(())

    def replace(self, known: Iterable[KnownPeer]) -> None:
        """Replace all known peers."""
        self.known = list(known)
        self._keys = {auth.key_id(each.key): each for each in self.known if each.key}
        self._certificates = {each.certificate_sha256: each for each in self.known if each.certificate_sha256}
        self._names = {each.certificate_name: each for each in self.known if each.certificate_name}

    def by_key(self, hello: Hello, transcript: bytes, mac: bytes) -> KnownPeer | None:
        """The peer that has proved to have the key named in its HELLO. An unknown key takes as long as a known one."""
        known = self._keys.get(hello.key_id) if hello.auth == AUTH_KEY else None
        proved = auth.client_proved(known.key if known else self._decoy_key, transcript, mac)
        return known if proved else None

    def by_certificate(self, der: bytes) -> KnownPeer | None:
        """The peer of a certificate that TLS has verified."""
        known = self._certificates.get(hashlib.sha256(der).digest())
        if known is None and (self._names or not self._certificates):
            names = [name for name in certificates.names(der) if not name.startswith(ANYBODY)]
            known = next((self._names[name] for name in names if name in self._names), None)
            name = next((name for name in names if name.isascii() and name.isprintable()), "")
            if known is None and not self._names and name and all(name != each.policy.name for each in self.known):
                known = KnownPeer(PeerPolicy(name))
        return known

    def unauthenticated(self, hello: Hello) -> KnownPeer | None:
        """A peer for a client that proves nothing, if such clients are admitted."""
        return KnownPeer(PeerPolicy(f"{ANYBODY}{hello.client_id:016x}")) if self._admits_unauthenticated else None
