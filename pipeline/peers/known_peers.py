"""The peers that a running server knows, and what becomes of them: loaded, read again, added, excluded.

    a broken file    costs its peer and no other. At a start the peer is left out; at a reload it keeps what it had
    excluded         gone from memory at once, whatever can be written, and whatever the files say until the next
                     start. Only another key or certificate, or a new invitation, makes it a peer again

Not here: which files there are (registry, peer_file), and the sessions of the peers (admission).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.log import LOG
from pipeline.peers import registry
from pipeline.peers.peer_file import BrokenPeer
from pipeline.peers.registry import KnownPeer, Loaded


class _Exclusion(NamedTuple):
    """An excluded peer. `known`: the proof of its identity, None if it was not known: then any proof is excluded.

    `is_named_by_client`: no file names it, and a client gets the name by a certificate, or chooses it.
    """

    known: KnownPeer | None
    is_named_by_client: bool

    def covers(self, known: KnownPeer) -> bool:
        return self.known is None or self.known.has_proof_of(known)


class PeerChanges(NamedTuple):
    """The names of peers that are other ones than before, each row in order."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def compare(before: Iterable[KnownPeer], now: Iterable[KnownPeer]) -> PeerChanges:
    """`changed`: in what their own files or settings say, or in their keys."""
    old, new = ({each.policy.name: each for each in peers} for peers in (before, now))
    return PeerChanges(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(name for name in new.keys() & old.keys() if not new[name].says_the_same(old[name]))),
        tuple(sorted(old.keys() - new.keys())),
    )


class KnownPeers:
    """`known`: the peers that may connect. `broken`: those whose file or settings cannot be used."""

    def __init__(self) -> None:
        self.known: list[KnownPeer] = []
        self.broken: list[BrokenPeer] = []
        self._excluded: dict[str, _Exclusion] = {}
        self._gone: set[str] = set()  # names of peers that were excluded and are in no file any more

    @property
    def barred(self) -> set[str]:
        """Names that no client gets without a proof that is known."""
        return set(self._excluded)

    def read(self, config: Config, *, first: bool = False) -> Loaded:
        """The peers as their files are now; nothing changes. ConfigError if a change costs a peer that is known.

        `first`: at a start, where what clashes is left out.
        """
        loaded = registry.load(config, self.known)
        lost = loaded.clashing & {each.policy.name for each in self.known}
        if lost and not first:
            raise ConfigError([problem for name, problem in loaded.broken if name in lost])
        return loaded

    def take(self, loaded: Loaded) -> PeerChanges:
        """Use what was read. New problems are logged, each once."""
        before = self.known
        for broken in loaded.broken:
            if broken not in self.broken:
                LOG.error("peer %s cannot connect with what its file has now: %s", broken.name, broken.problem)
        self.broken = [each for each in loaded.broken if each.name not in self._excluded]
        self._excluded = {
            name: exclusion
            for name, exclusion in self._excluded.items()
            if exclusion.known is None or any(name == each.policy.name for each in loaded.known)
        }
        self.known = [each for each in loaded.known if not self._is_excluded(each)]
        return compare(before, self.known)

    def add(self, peer: KnownPeer) -> None:
        """Know one more peer, which may have been excluded before."""
        self._excluded.pop(peer.policy.name, None)
        self.broken = _without(self.broken, peer.policy.name)
        self.known.append(peer)

    def replace(self, peer: KnownPeer) -> None:
        """Know a peer anew, or one more."""
        name = peer.policy.name
        if self.find(name) is None:
            self.add(peer)
        else:
            self.known = [peer if each.policy.name == name else each for each in self.known]

    def exclude(self, name: str, *, is_named_by_client: bool) -> None:
        """Know this peer no more, from now on and until forget() or add()."""
        known = self.find(name)
        if known is not None or name not in self._excluded:
            self._excluded[name] = _Exclusion(known, is_named_by_client)
        self.known = [each for each in self.known if each.policy.name != name]
        self.broken = _without(self.broken, name)

    def forget(self, name: str) -> None:
        """End an exclusion: no file names this peer any more."""
        self._excluded.pop(name, None)
        self._gone.add(name)

    def has(self, name: str) -> bool:
        """Whether the peer is known, broken or excluded, or was so in this run."""
        return name in self._excluded or name in self._gone or name in self.names()

    def find(self, name: str) -> KnownPeer | None:
        return next((each for each in self.known if each.policy.name == name), None)

    def is_excluded(self, name: str) -> bool:
        return name in self._excluded

    def is_named_by_client(self, name: str) -> bool:
        """Whether an excluded peer is in no file."""
        return name in self._excluded and self._excluded[name].is_named_by_client

    def names(self) -> list[str]:
        """Of all that can be revoked, those included whose file is broken."""
        return sorted({each.policy.name for each in self.known} | {each.name for each in self.broken})

    def _is_excluded(self, known: KnownPeer) -> bool:
        exclusion = self._excluded.get(known.policy.name)
        return exclusion is not None and exclusion.covers(known)


def _without(broken: Iterable[BrokenPeer], name: str) -> list[BrokenPeer]:
    return [each for each in broken if each.name != name]
