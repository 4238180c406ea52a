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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Config, Peer
from pipeline.credentials import certificates, keys
from pipeline.errors import ConfigError, Problem
from pipeline.peers import peer_file
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.peer_file import BrokenPeer, InvitedPeer
from pipeline.policy.quota import BYTES_PER_GB, UNLIMITED, QuotaTerms
from pipeline.wire import auth
from pipeline.wire.messages import AUTH_KEY, Hello

BYTES_PER_MBIT = 125_000

ANYBODY = "client:"
"""The names of clients that prove nothing begin so. A peer's own name has no colon (pipeline.config.types)."""


class KnownPeer(NamedTuple):
    """A peer, and its proof of identity: a key, a certificate or a certificate's name.

    `invited`: the content of its file, of a peer that `invite` has added. `configured`: the settings of any other.
    """

    policy: PeerPolicy
    key: bytes = b""
    certificate_sha256: bytes = b""
    certificate_name: str = ""
    invited: InvitedPeer | None = None
    configured: Peer | None = None

    def says_the_same(self, other: KnownPeer) -> bool:
        """Whether its own file or settings say the same of both, whatever the server says of all peers."""
        return (self.invited, self.configured, self[1:4]) == (other.invited, other.configured, other[1:4])

    def has_proof_of(self, other: KnownPeer) -> bool:
        """Whether both are proved by the same."""
        return self[1:4] == other[1:4] and self.invitation_key == other.invitation_key

    def is_meant_by(self, key: bytes) -> bool:
        """Whether a client that has proved this key is this very peer, or becomes it: no other, and none at all."""
        if key == self.key:
            return True
        has_joined = self.invited and self.invited.agreed and self.invited.agreed.invitation == auth.key_id(key).hex()
        return key == self.invitation_key and not has_joined

    @property
    def invitation_key(self) -> bytes:
        """Of the invitation with which machines become this peer; b"" for none."""
        return self.invited.invitation.key if self.invited and self.invited.invitation else b""


class Loaded(NamedTuple):
    """The peers that can be used, those that cannot, and the names of those that clash with a peer before them."""

    known: list[KnownPeer]
    broken: list[BrokenPeer]
    clashing: set[str]


def load(config: Config, previous: Iterable[KnownPeer] = ()) -> Loaded:
    """All peers: those of the configuration, then those that were invited.

    A peer whose file cannot be used keeps the key that it had in `previous`; without one it is left out. ConfigError if
    no file of an invited peer can be read at all.
    """
    before = {each.policy.name: each for each in previous}
    found, broken = [], []
    for index, peer in enumerate(config.peers):
        policy = PeerPolicy(
            *(peer.name, peer.prefixes, peer.addresses, _rate(peer.rate_mbit, config), quota_terms(config, peer)),
            *(peer.groups, peer.may_reach, _bulk_rate(peer)),
        )
        key = b""
        if peer.key_file:
            try:
                key = keys.read_key(peer.key_file, f"peers[{index}].key_file")
            except ConfigError as error:
                broken.append(BrokenPeer(peer.name, error.problems[0]))
                key = before[peer.name].key if peer.name in before else b""
                if not key:
                    continue
        found.append(KnownPeer(policy, key, peer.certificate_hash, peer.certificate_name, configured=peer))
    if config.encryption == "tls":
        invited, unreadable = peer_file.read_all(Path(config.state_dir))
        found += [known_peer_of(peer, config) for peer in invited]
        found += [before[name] for name, _ in unreadable if name in before]
        broken += unreadable
    known, clashing = _without_clashes(found)
    return Loaded(known, broken + clashing, {each.name for each in clashing})


def check_distinct(known: Iterable[KnownPeer]) -> None:
    """ConfigError if two of these peers share a name, a key, a network or an address."""
    problems = [each.problem for each in _without_clashes(known)[1]]
    if problems:
        raise ConfigError(problems)


def known_peer_of(peer: InvitedPeer, config: Config) -> KnownPeer:
    policy = PeerPolicy(
        *(peer.name, peer.allowed, peer.address, _rate(peer.rate_mbit, config), quota_terms(config, peer)),
        *(peer.groups, peer.may_reach, _bulk_rate(peer)),
    )
    return KnownPeer(policy, peer.key, invited=peer)


def _rate(mbit: float | None, config: Config) -> int:
    """Bytes a second; None: the limit of all clients."""
    return int((config.rate_mbit if mbit is None else mbit) * BYTES_PER_MBIT)


def _bulk_rate(peer: Peer | InvitedPeer) -> int | None:
    return None if peer.bulk_rate_mbit is None else int(peer.bulk_rate_mbit * BYTES_PER_MBIT)


def quota_terms(config: Config, peer: Peer | InvitedPeer | None = None) -> QuotaTerms:
    """The quota of a peer; without one, that of all clients that prove who they are."""
    own = (peer.quota_gb, peer.quota_action, peer.quota_rate_mbit) if peer is not None else (None, None, None)
    size = config.quota_gb if own[0] is None else own[0]
    if not size:
        return UNLIMITED
    rate = config.quota_rate_mbit if own[2] is None else own[2]
    return QuotaTerms(int(size * BYTES_PER_GB), own[1] or config.quota_action, int(rate * BYTES_PER_MBIT))


def _without_clashes(peers: Iterable[KnownPeer]) -> tuple[list[KnownPeer], list[BrokenPeer]]:
    """The peers that share nothing with one before them, and all that the others share."""
    known, clashing = [], []
    names: set[str] = set()
    ids: dict[bytes, str] = {}
    networks: dict[object, str] = {}  # and addresses
    for each in peers:
        name = each.policy.name
        problems = []
        if name in names:
            problems.append(
                Problem("peers", f'two peers have the name "{name}", one of them invited: revoke or rename one of them')
            )
        claims = (*each.policy.allowed, *each.policy.fixed)
        problems += [
            Problem("allowed", f'{network} belongs to "{networks[network]}" already, "{name}" cannot have it')
            for network in claims
            if networks.get(network, name) != name
        ]
        key_ids = [auth.key_id(key) for key in (each.key, each.invitation_key) if key]
        problems += [
            Problem("peers", f'"{ids[key_id]}" and "{name}" have one key, but each peer needs its own')
            for key_id in dict.fromkeys(key_ids)
            if ids.get(key_id, name) != name
        ]
        if problems:
            clashing += [BrokenPeer(name, problem) for problem in problems]
            continue
        known.append(each)
        names.add(name)
        networks |= dict.fromkeys(claims, name)
        ids |= dict.fromkeys(key_ids, name)
    return known, clashing


class PeerRegistry:
    """`admits_unauthenticated`: whether each client that proves nothing is a peer of its own."""

    def __init__(self, admits_unauthenticated: bool) -> None:
        self._admits_unauthenticated = admits_unauthenticated
        self._decoy_key = secrets.token_bytes(auth.KEY_BYTES)
        self.replace(())

    def replace(
        self,
        known: Iterable[KnownPeer],
        barred: Iterable[str] = (),
        shut_out: Mapping[str, str] | None = None,
        ended: Mapping[bytes, str] | None = None,
    ) -> None:
        """Replace all known peers. `barred`: names that no certificate gives, and no client without proof.

        `shut_out`: names of peers that may not connect for a while, and why. `ended`: keys of invitations that have
        ended, and the name in each; such a client is found as a peer of that name without a key.
        """
        self.known = list(known)
        self.shut_out = dict(shut_out or {})
        self._barred = set(barred)
        self._keys = {auth.key_id(each.key): (each, each.key) for each in self.known if each.key}
        for each in self.known:
            if each.invitation_key:
                self._keys.setdefault(auth.key_id(each.invitation_key), (each, each.invitation_key))
        for key, name in (ended or {}).items():
            self._keys.setdefault(auth.key_id(key), (KnownPeer(PeerPolicy(name)), key))
        self._certificates = {each.certificate_sha256: each for each in self.known if each.certificate_sha256}
        self._names = {each.certificate_name: each for each in self.known if each.certificate_name}

    def by_key(self, hello: Hello, transcript: bytes, mac: bytes) -> tuple[KnownPeer, bytes] | None:
        """The peer whose key, or whose invitation's key, the client has proved to have; and that key.

        An unknown key takes as long as a known one.
        """
        found = self._keys.get(hello.key_id) if hello.auth == AUTH_KEY else None
        proved = auth.client_proved(found[1] if found else self._decoy_key, transcript, mac)
        return found if proved else None

    def knows(self, hello: Hello, binding: bytes) -> bool:
        """Whether the knock in a HELLO is that of a key that is known. An unknown key takes as long as a known one."""
        found = self._keys.get(hello.key_id) if hello.auth == AUTH_KEY else None
        right = auth.knocked(found[1] if found else self._decoy_key, hello.nonce, binding, hello.knock)
        return right and found is not None

    def by_certificate(self, der: bytes) -> KnownPeer | None:
        """The peer of a certificate that TLS has verified."""
        known = self._certificates.get(hashlib.sha256(der).digest())
        if known is None and (self._names or not self._certificates):
            names = [name for name in certificates.names(der) if not name.startswith(ANYBODY)]
            known = next((self._names[name] for name in names if name in self._names), None)
            name = next((name for name in names if name.isascii() and name.isprintable()), "")
            taken = name in self._barred or any(name == each.policy.name for each in self.known)
            if known is None and not self._names and name and not taken:
                known = KnownPeer(PeerPolicy(name))
        return known

    def unauthenticated(self, hello: Hello) -> KnownPeer | None:
        """A peer for a client that proves nothing, if such clients are admitted."""
        name = f"{ANYBODY}{hello.client_id:016x}"
        return KnownPeer(PeerPolicy(name)) if self._admits_unauthenticated and name not in self._barred else None

    def recognizes(self, name: str, key: bytes, certificate: bytes) -> bool:
        """Whether what a peer has proved, by its key or its certificate (DER), still makes it the peer of this name."""
        if name in self.shut_out:
            return False
        if key:
            known, _ = self._keys.get(auth.key_id(key), (None, b""))
            return known is not None and known.policy.name == name and known.key == key
        if certificate:
            known = self.by_certificate(certificate)
            return known is not None and known.policy.name == name
        return self._admits_unauthenticated and name not in self._barred
