"""Who can prove to be which peer: the peers of the configuration and those that `invite` has added.

    a key                     its id in HELLO, and the proof over the greeting (pipeline.wire.auth)
    a certificate of the CA   its SHA-256, or one of its names; if no peer is known by a certificate, whoever has one is
                              the peer that the certificate names, unless that is one with a key
    nothing                   a peer of its own for each client, where `insecure` or no encryption lets everybody in

TLS has verified a certificate before anybody asks here.
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

MBIT = 125_000  # bytes


class KnownPeer(NamedTuple):
    """A peer, and what it proves itself with: one of the three."""

    identity: PeerPolicy
    key: bytes = b""
    certificate_sha256: bytes = b""
    certificate_name: str = ""


def load(config: Config) -> list[KnownPeer]:
    """All peers. ConfigError with everything that is wrong in any of their files."""
    found, problems = [], []
    for index, peer in enumerate(config.peers):
        identity = PeerPolicy(peer.name, peer.prefixes, peer.addresses, _rate(peer.rate_mbit))
        try:
            key = keys.read_key(peer.key_file, f"peers[{index}].key_file") if peer.key_file else b""
        except ConfigError as error:
            problems += error.problems
            continue
        found.append(KnownPeer(identity, key, peer.certificate_hash, peer.certificate_name))
    invited = []
    try:
        invited = peer_file.read_all(Path(config.state_dir)) if config.encryption == "tls" else []
    except ConfigError as error:
        problems += error.problems
    found += [of_invited(peer, config) for peer in invited]
    problems += _clashes(found)
    if problems:
        raise ConfigError(problems)
    return found


def check(known: Iterable[KnownPeer]) -> None:
    """ConfigError if these cannot be peers beside each other."""
    problems = _clashes(known)
    if problems:
        raise ConfigError(problems)


def of_invited(peer: InvitedPeer, config: Config) -> KnownPeer:
    rate = config.rate_mbit if peer.rate_mbit is None else peer.rate_mbit
    return KnownPeer(PeerPolicy(peer.name, peer.allowed, peer.address, _rate(rate)), peer.key)


def _rate(mbit: float) -> int:
    return int(mbit * MBIT)


def _clashes(found: Iterable[KnownPeer]) -> list[Problem]:
    problems = []
    names: set[str] = set()
    ids: dict[bytes, str] = {}
    networks: dict[object, str] = {}  # and addresses
    for known in found:
        name = known.identity.name
        if name in names:
            problems.append(
                Problem("peers", f'two peers are called "{name}", one of them invited: revoke it, or rename')
            )
        names.add(name)
        for network in (*known.identity.allowed, *known.identity.fixed):
            other = networks.setdefault(network, name)
            if other != name:
                problems.append(Problem("allowed", f'{network} belongs to "{other}", and "{name}" shall have it, too'))
        if known.key:
            other = ids.setdefault(auth.key_id(known.key), name)
            if other != name:
                problems.append(Problem("peers", f'"{other}" and "{name}" have the same key: who has it, is one peer'))
    return problems


class PeerRegistry:
    """`strangers`: whether somebody who proves nothing is let in, as a peer of his own."""

    def __init__(self, strangers: bool) -> None:
        self._strangers = strangers
        self._nobodys_key = secrets.token_bytes(auth.KEY_BYTES)
        self.replace(())

    def replace(self, known: Iterable[KnownPeer]) -> None:
        """Know these from now on."""
        known = list(known)
        self.known = known
        self._keys = {auth.key_id(each.key): each for each in known if each.key}
        self._certificates = {each.certificate_sha256: each for each in known if each.certificate_sha256}
        self._names = {each.certificate_name: each for each in known if each.certificate_name}

    def by_key(self, hello: Hello, transcript: bytes, mac: bytes) -> KnownPeer | None:
        """The peer that has proved to have the key which its HELLO names. An unknown one takes as long."""
        known = self._keys.get(hello.key_id) if hello.auth == AUTH_KEY else None
        proved = auth.client_proved(known.key if known else self._nobodys_key, transcript, mac)
        return known if proved else None

    def by_certificate(self, der: bytes) -> KnownPeer | None:
        """The peer to whom TLS has found this certificate to belong."""
        known = self._certificates.get(hashlib.sha256(der).digest())
        if known is None and (self._names or not self._certificates):
            names = certificates.names(der)
            known = next((self._names[name] for name in names if name in self._names), None)
            name = next((name for name in names if name.isascii() and name.isprintable()), "")
            if known is None and not self._names and name and all(name != each.identity.name for each in self.known):
                known = KnownPeer(PeerPolicy(name))
        return known

    def stranger(self, hello: Hello) -> KnownPeer | None:
        """Whoever it is, if strangers are let in."""
        return KnownPeer(PeerPolicy(f"client-{hello.client:016x}")) if self._strangers else None
