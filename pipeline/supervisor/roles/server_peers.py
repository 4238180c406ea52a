"""The peers of a running server: which are known, which of them are shut out, and what follows for their sessions.

    admit_as_known()        the admission, the quotas and the device follow what is known now
    save(peer)              write a peer's file, and know the peer so from now on
    revoke(name, why)       no more a peer, whatever happens to its file
    named(name)             the name of a peer that can be revoked or disabled, or an error

A peer is changed in memory and in the peer table first, which nothing can refuse, and then in its file. Enrollment
does the same things with peers (pipeline.peers.enrollment.PeerStore).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pipeline.config import Config
from pipeline.config.peer import check_peer_name
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import ConfigError, LocalError, TunnelError
from pipeline.log import LOG
from pipeline.peers import peer_file, registry
from pipeline.peers.admission import Admission
from pipeline.peers.ended_invitations import EndedInvitations
from pipeline.peers.enrollment import Enrollment
from pipeline.peers.known_peers import KnownPeers, PeerChanges
from pipeline.peers.peer_file import InvitedPeer, Issued
from pipeline.peers.registry import Loaded
from pipeline.peers.shut_out import ShutOut
from pipeline.supervisor.accounting.accountant import Accountant
from pipeline.supervisor.control.events import Events

TellNetworks = Callable[[Iterable[IPv4Network | IPv6Network]], object]
"""Tells the device which networks are behind peers."""


class ServerPeers:
    """`state`: None where nothing is remembered. With compat there are no peers: each method finds none.

    `reasons`: why peers are shut out now, by name.
    """

    def __init__(self, config: Config, state: StateDir | None, accountant: Accountant, events: Events) -> None:
        self.config = config
        self.known = KnownPeers()
        if not config.compat:
            self.known.take(self.known.read(config, first=True))
        directory = state.path if state and not config.compat else None
        self._ended = EndedInvitations(directory)
        self.enrollment = Enrollment(self.known, self, self._ended, events.record)
        self.shut_out = ShutOut(directory)
        self.reasons: dict[str, str] = {}
        self._accountant = accountant
        self._events = events
        self._admission: Admission | None = None
        self._tell_networks: TellNetworks

    def start(self, admission: Admission, tell_networks: TellNetworks) -> None:
        """Let this admission admit them from now on."""
        self._admission, self._tell_networks = admission, tell_networks
        self.admit_as_known()

    def reload(self, config: Config, loaded: Loaded) -> PeerChanges:
        self.config = config
        changes = self.known.take(loaded)
        self.admit_as_known()
        return changes

    def tick(self, now: int) -> None:
        """Invitations expire, and the time of peers begins and ends. `now`: CLOCK_MONOTONIC ns."""
        wall = time.time()
        self._ended.tick(now)
        self.enrollment.tick(wall, now / 1e9)
        if self.shut_out.reasons(self.known.known, wall) != self.reasons:
            self.admit_as_known()

    def configure_quotas(self) -> None:
        own = {each.policy.name: each.policy.quota for each in self.known.known}
        self._accountant.configure(self.config.quota_day, own, registry.quota_terms(self.config))

    def set_used(self, name: str, size: int) -> int:
        """So many bytes of this peer's quota count as used. Returns the quota. LocalError if there is none."""
        before = self._accountant.quotas.used(name)
        terms = self._accountant.set_used(name, size)
        if self._admission is not None:
            self._admission.follow_quotas({name})
        self._events.record("quota-corrected", name, f"{size} bytes count as used, in place of {before}")
        return terms.limit

    def admit_as_known(self) -> None:
        """Sessions end whose proof is good no longer, or whose peer is shut out."""
        self.configure_quotas()
        if self._admission is None:
            return
        before, known = self.reasons, self.known.known
        self.reasons = self.shut_out.reasons(known, time.time())
        self._ended.follow(known, time.time())
        self._admission.configure(self.config, known, self.known.barred, self.reasons, self._ended.names())
        self._ended.tick(time.monotonic_ns())
        self._tell_networks([network for peer in known for network in peer.policy.allowed])
        for name, reason in self.reasons.items() - before.items():
            self._events.record("peer-disabled", name, reason)
        names = {peer.policy.name for peer in known}  # and not one that is revoked
        for name in (before.keys() - self.reasons.keys()) & names:
            self._events.record("peer-enabled", name)

    # -- one peer

    @property
    def directory(self) -> Path:
        """Where the files of invited peers are."""
        return Path(self.config.state_dir)

    def named(self, name: object) -> str:
        """The name in a request. LocalError if there is no such peer."""
        text = str(name)
        check_peer_name(text)
        if text in self.known.names() or self._is_member(text):
            return text
        raise self._unknown(text)

    def invited(self, name: str) -> InvitedPeer | None:
        """The contents of the file of this peer; None without a file."""
        known = self.known.find(name)
        return known.invited if known is not None else None

    def is_taken(self, name: str) -> bool:
        return self.known.has(name) or peer_file.exists(self.directory, name)

    def save(self, peer: InvitedPeer) -> None:
        name = peer.name
        if self.known.find(name) is None:
            peer_file.write(self.directory, peer)
        else:
            peer_file.update(self.directory, peer, lambda: self.known.find(name) is not None)
        self.known.replace(registry.known_peer_of(peer, self.config))

    def forget(self, name: str) -> None:
        self.revoke(name, "it has left")

    def revoke(self, name: str, why: str) -> None:
        """Memory and connections first, which nothing can refuse; then the file. LocalError for all that is wrong."""
        check_peer_name(name)
        is_member, was_known = self._is_member(name), self.known.has(name)
        use, unknown = self.enrollment.use_of(name), self._unknown(name)
        self.known.exclude(name, is_named_by_client=is_member and self.known.find(name) is None)
        self.admit_as_known()
        if is_member or was_known:
            self._events.record("revoked", name, why)
        unreleased = self._release(name, use)
        try:
            was_there = peer_file.remove(self.directory, name)
        except TunnelError as error:
            raise comes_back(name, f"its file is removed: {error}") from None
        if any(peer.name == name for peer in self.config.peers):
            raise comes_back(name, "you remove it from the configuration too")
        if self.known.is_named_by_client(name) and not was_there:
            raise comes_back(name, self._cure_for_names())
        self.known.forget(name)
        if unreleased:
            raise LocalError(unreleased)
        if not (is_member or was_known or was_there):
            raise unknown

    def find_problems(self) -> list[str]:
        """The peers whose files are wrong now, which a reload would tell."""
        try:
            return [str(problem) for _, problem in self.known.read(self.config).broken]
        except ConfigError as error:
            return [str(error)]

    def _is_member(self, name: str) -> bool:
        return self._admission is not None and self._admission.is_member(name)

    def _unknown(self, name: str) -> LocalError:
        return LocalError(f'no peer "{name}"; known peers: {", ".join(self.known.names()) or "none"}')

    def _release(self, name: str, use: tuple[InvitedPeer, Issued] | None) -> str:
        """Let nobody use again what a revoked peer has used. Returns the problem, "" for none."""
        try:
            if use is not None:
                self.enrollment.end_use(*use)
            self.shut_out.enable(name)
        except TunnelError as error:
            text = f'peer "{name}" is revoked, but its invitation may be used once more, or its name stays disabled'
            LOG.warning("%s: %s", text, error)
            return f"{text}: {error}"
        return ""

    def _cure_for_names(self) -> str:
        """How to keep out a client that neither the configuration nor an invitation names."""
        if self.config.insecure or self.config.encryption == "none":
            return "this server is closed to clients without proof (insecure): each of them chooses its name itself"
        return (
            "each of `peers` has a fingerprint or a certificate_name: as it is, every certificate from tls_ca_file is "
            "admitted under its name"
        )


def comes_back(name: str, unless: str) -> LocalError:
    """The error that a peer is out for now alone, since something could not be written. It is in the log already."""
    text = f'peer "{name}" ends now, but comes back after a restart unless {unless}'
    LOG.warning("%s", text)
    return LocalError(text)
