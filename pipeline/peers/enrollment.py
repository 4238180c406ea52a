"""How machines become peers with an invitation, exchange its key for one of their own, and leave. Times: UNIX.

    answer(known, key, hello, now)    what a client gets that has proved to have this key: it is a peer, or it is
                                      answered in another way, or refused
    tick(now)                         invitations expire

    invited     the peer's file has `invitation`; for one machine, its key is the peer's key for the time being
    joined      `join` has exchanged that key: the peer has a key that no line holds. The line is used
    kept        `start --join`, or an older client, came without an exchange: the line's key is the peer's for good, and
                an exchange is still possible
    expired     nobody has come in time. This is recorded when it is noticed: a clock that is set back revives nothing

    ended       the invitation is in no file any more: its peer was revoked or has left, or another one has taken its
                place. Its line is answered with the reason (ended_invitations)

An invitation for N machines makes the peers NAME, NAME-2, NAME-3, ... (invitation_life). One file is written for each
use, as a whole. The first peer's file has the invitation: it stays when that machine leaves, until the last use.

**An exchange that is cut off loses nothing.** Its instants:

    1  the client writes its private value and the line to its disk, and only then connects
    2  it proves the line's key; its public value C is in the proved HELLO
    3  the server writes the new key, C and its own public value S into the peer's file, flushed
    4  the server answers with S, in a proved DONE, and forgets its private value
    5  the client computes the new key, writes it, flushed, and only then removes what it wrote in 1

    An end that dies      the line's key works for          the new key works    what the client does
    before 1              anybody                           no                   it joins as if for the first time
    from 1, before 3      anybody                           no                   it repeats 2, with the same C
    in 3                  anybody or the client with C      no, or yes           it repeats 2: see the next line
    from 3, before 5      the client with C: it gets S      yes                  it repeats 2, and gets the same S
    in 5                  the client with C                 yes                  it has the new key, or repeats 2
    after 5               nobody                            yes                  it connects

The server's file is replaced as a whole, so in 3 either the old one is there or the new one. If it is not known which
(the disk hangs, or the flush fails), the very same content is written first, whichever client comes next with this
line. An answer that is repeated tells no secret: S is of no use without the client's private value. Another machine
with the same line has another C, and is refused: the invitation has been used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from pipeline.credentials import key_exchange
from pipeline.errors import LocalError, TunnelError
from pipeline.log import LOG
from pipeline.peers import invitation_life
from pipeline.peers.address_assignment import Refusal
from pipeline.peers.ended_invitations import EndedInvitations
from pipeline.peers.invitation_life import KEPT, OPEN, USED, is_expired
from pipeline.peers.known_peers import KnownPeers
from pipeline.peers.peer_file import Agreed, InvitedPeer, Issued
from pipeline.peers.registry import KnownPeer
from pipeline.peers.shut_out import ended_text
from pipeline.wire import auth, messages
from pipeline.wire.messages import Done, Hello

REPEAT_SECONDS = 10  # before a write that has failed is tried again

RECORDED = (
    messages.INVITATION_USED,
    messages.INVITATION_EXPIRED,
    messages.INVITATION_REVOKED,
    messages.NEEDS_JOIN,
    messages.NOT_RECORDED,
)
"""The refusals that this file gives, each of which is an event of its own."""


class Answered(NamedTuple):
    """The client is answered, and is not connected. The text is for our log."""

    done: Done
    text: str


class OpenInvitation(NamedTuple):
    """An invitation for several machines. `name`: of the peer whose file has it."""

    name: str
    uses_left: int


class PeerStore(Protocol):
    """The peers of a server in memory and in their files. TunnelError: it has not been written, or perhaps has."""

    def is_taken(self, name: str) -> bool:
        """Whether there is a peer of this name, or was one in this run, or there is its file."""

    def save(self, peer: InvitedPeer) -> None:
        """Write a peer's file, and know the peer so from now on."""

    def admit_as_known(self) -> None:
        """Let the peers connect as they are known now. Sessions with another key end."""

    def forget(self, name: str) -> None:
        """Revoke a peer."""


class Enrollment:
    """`record(kind, subject, text)`: an event (pipeline.events)."""

    def __init__(
        self,
        peers: KnownPeers,
        store: PeerStore,
        ended: EndedInvitations,
        record: Callable[[str, str, str], object] = lambda *event: None,
    ) -> None:
        self._record_event = record
        self._ended = ended
        self._peers = peers
        self._store = store
        self._unwritten: dict[bytes, InvitedPeer] = {}  # by the key of the invitation: it may be in its file, or not
        self._kept: set[str] = set()  # peers whose invitation is kept since this start
        self._unrecorded: list[str] = []  # of these, the ones whose file does not say so yet
        self._record_at = 0.0  # CLOCK_MONOTONIC s; not before

    def answer(self, known: KnownPeer, key: bytes, hello: Hello, now: float) -> KnownPeer | Answered | Refusal:
        outcome = self._outcome(known, key, hello, now)
        if isinstance(outcome, Refusal) and (outcome.reason in RECORDED or not outcome.reason):
            self._record_event("invitation-refused", known.policy.name, outcome.text)
        return outcome

    def _outcome(self, known: KnownPeer, key: bytes, hello: Hello, now: float) -> KnownPeer | Answered | Refusal:
        if key not in (known.key, known.invitation_key):
            return self._after_the_end(key, hello.exchange)
        known = self._peers.find(known.policy.name) or known
        if hello.leaves:
            return self._leave(known, key)
        if known.invited is None:
            return known
        exchanged = self._exchange(known.invited, key, hello.exchange, now) if hello.exchange else None
        return exchanged or self._as_before(known, known.invited, key, now)

    def _after_the_end(self, key: bytes, client: bytes) -> Answered | Refusal:
        """The invitation of this key is in no file. A machine that has joined with it may not know so yet."""
        if again := self._answered_again(key, client):
            return again
        ended = self._ended.find(key)
        return _refusal(ended.reason if ended else messages.INVITATION_REVOKED)

    def _answered_again(self, key: bytes, client: bytes) -> Answered | None:
        """The answer to a machine that has joined with this public value; None if none has."""
        for peer in invitation_life.joined_with(key, self._invited()):
            if client and peer.agreed and peer.agreed.client == client.hex():
                return _answered(peer)
        return None

    def _invited(self) -> list[InvitedPeer]:
        return [each.invited for each in self._peers.known if each.invited]

    # -- a client that wants to be connected

    def _as_before(self, known: KnownPeer, invited: InvitedPeer, key: bytes, now: float) -> KnownPeer | Refusal:
        """Without an exchange of keys."""
        issued = invited.invitation
        if issued is None or key != issued.key or (key == invited.key and self._is_kept(invited)):
            return known
        if refusal := self._objection(issued, now):
            return refusal
        if issued.uses > 1:
            return _refusal(messages.NEEDS_JOIN)
        if key == invited.key:
            self._kept.add(invited.name)
            self._unrecorded.append(invited.name)
            return known
        if not self._saved(invited._replace(key=key, agreed=None, invitation=issued._replace(kept=True)), key):
            return _refusal(messages.NOT_RECORDED)
        return self._peers.find(invited.name) or known

    def _is_kept(self, invited: InvitedPeer) -> bool:
        return invited.name in self._kept or (invited.invitation is not None and invited.invitation.kept)

    def _objection(self, issued: Issued, now: float) -> Refusal | None:
        """Why nobody joins with this invitation any more."""
        if self.uses_left(issued) <= 0:
            return _refusal(messages.INVITATION_USED)
        return _refusal(messages.INVITATION_EXPIRED) if is_expired(issued, now) else None

    def uses_left(self, issued: Issued) -> int:
        """How many machines may still join with this invitation."""
        return invitation_life.uses_left(issued, self._invited())

    def state_of(self, invited: InvitedPeer, now: float) -> str:
        """Of the invitation in a peer's file: "" for none; open, expired, used, or kept."""
        issued = invited.invitation
        if issued is not None and invited.name in self._kept and invited.key == issued.key:
            return KEPT  # which its file does not say yet
        return invitation_life.state_of(invited, self._invited(), now)

    def has_joined(self, invited: InvitedPeer) -> bool:
        """Whether a machine has become this peer."""
        issued = invited.invitation
        return bool(invited.key) and (issued is None or invited.key != issued.key or self._is_kept(invited))

    # -- a client that wants a key of its own

    def _exchange(self, owner: InvitedPeer, key: bytes, client: bytes, now: float) -> Answered | Refusal | None:
        """None if this key is not one to exchange."""
        issued = owner.invitation
        if issued is None:  # invited by an older version
            issued = Issued(key)
        if key != issued.key:
            return None
        if key in self._unwritten and not self._saved(self._unwritten[key], key):
            return _refusal(messages.NOT_RECORDED)
        if again := self._answered_again(key, client):
            return again
        if 0 < owner.until <= now:
            return Refusal(messages.SHUT_OUT, ended_text(owner.until))
        if not (key == owner.key and self._is_kept(owner)) and (refusal := self._objection(issued, now)):
            return refusal
        new = self._agree(owner, issued, client)
        if new is None:
            return Refusal(0, "a public value with which no key can be agreed on")
        if not self._saved(new, key):
            return _refusal(messages.NOT_RECORDED)
        self._record_event("invitation-used", new.name, "a machine has joined, and has a key of its own")
        self._forget_if_spent(owner.name, now)
        return _answered(new)

    def _forget_if_spent(self, name: str, now: float) -> None:
        """The first machine of an invitation has left: once the last use is gone, its file has no purpose."""
        known = self._peers.find(name)
        if known is None or known.invited is None or known.key or self.state_of(known.invited, now) != USED:
            return
        try:
            self._store.forget(name)
        except TunnelError as error:
            LOG.warning("peer %s: the file of its invitation stays: %s", name, error)

    def _agree(self, owner: InvitedPeer, issued: Issued, client: bytes) -> InvitedPeer | None:
        """The peer that this client becomes; None if no key can be agreed on."""
        private = key_exchange.new_private()
        server = key_exchange.public_of(private)
        try:
            new_key = key_exchange.new_key(issued.key, private, client_public=client, server_public=server)
        except ValueError:
            return None
        agreed = Agreed(auth.key_id(issued.key).hex(), client.hex(), server.hex())
        if owner.agreed is None or owner.agreed.invitation != agreed.invitation:
            return owner._replace(key=new_key, agreed=agreed, invitation=issued)
        name = self._next_name(owner.name)
        return owner._replace(name=name, key=new_key, allowed=(), address=(), invitation=None, agreed=agreed)

    def _next_name(self, name: str) -> str:
        number = 2
        while self._store.is_taken(f"{name}-{number}"):
            number += 1
        return f"{name}-{number}"

    def _saved(self, peer: InvitedPeer, key: bytes) -> bool:
        """Whether the file has been written. If not, it may be written in a while, so nothing else is tried before."""
        self._unwritten[key] = peer
        try:
            self._store.save(peer)
        except TunnelError as error:
            LOG.error("peer %s cannot join: %s", peer.name, error)
            return False
        del self._unwritten[key]
        self._kept.discard(peer.name)
        self._store.admit_as_known()
        return True

    # -- a client that leaves

    def _leave(self, known: KnownPeer, key: bytes) -> Answered | Refusal:
        name, invited = known.policy.name, known.invited
        if key != known.key:
            return _refusal(messages.INVITATION_USED)
        if invited is None:
            self._record_event("peer-forgotten", name, "it is in the configuration, and stays a peer")
            return Answered(Done(name=name), "it has left")
        try:
            if invited.invitation and self.uses_left(invited.invitation) > 0:  # others may still come with it
                self._store.save(invited._replace(key=b""))
                self._store.admit_as_known()
            else:
                self._store.forget(name)
        except TunnelError as error:
            LOG.error("peer %s wants to leave: %s", name, error)
            return _refusal(messages.NOT_RECORDED)
        self._record_event("peer-forgotten", name, "its key is good for nothing any more")
        return Answered(Done(name=name), "it has left")

    def open_beside(self, name: str, now: float) -> OpenInvitation | None:
        """The invitation for several machines that this peer has, or has joined with, if others may still join."""
        known = self._peers.find(name)
        own = known.invited if known else None
        owner, _ = self.use_of(name) or (own, None)
        if owner is None or owner.invitation is None or self.state_of(owner, now) != OPEN:
            return None
        if owner.name == name and owner.invitation.uses == 1:
            return None
        return OpenInvitation(owner.name, self.uses_left(owner.invitation))

    def use_of(self, name: str) -> tuple[InvitedPeer, Issued] | None:
        """The other peer with whose invitation this one has joined, and that invitation; None if there is none."""
        known = self._peers.find(name)
        agreed = known.invited.agreed if known and known.invited else None
        for each in self._peers.known:
            if agreed is None or each.invited is None or each.policy.name == name or not each.invitation_key:
                continue
            if auth.key_id(each.invitation_key).hex() == agreed.invitation and each.invited.invitation:
                return each.invited, each.invited.invitation
        return None

    def settle(self, name: str) -> None:
        """Write first what may be in the file of this peer already. LocalError if that is impossible now."""
        known = self._peers.find(name)
        key = known.invitation_key if known else b""
        if key in self._unwritten and not self._saved(self._unwritten[key], key):
            raise LocalError(f'peer "{name}" is about to join, and its file cannot be written: see the log')

    def end_use(self, owner: InvitedPeer, issued: Issued) -> None:
        """A peer has been revoked: its use of an invitation stays used. TunnelError if that cannot be written."""
        self.settle(owner.name)
        owner = self._current(owner)
        self._store.save(owner._replace(invitation=issued._replace(uses=issued.uses - 1)))

    def _current(self, invited: InvitedPeer) -> InvitedPeer:
        known = self._peers.find(invited.name)
        return known.invited if known and known.invited else invited

    # -- the clock

    def tick(self, now: float, monotonic: float) -> None:
        """Call often: record one invitation that is kept, or one that has expired."""
        if monotonic < self._record_at:
            return
        if self._unrecorded:
            name = self._unrecorded.pop(0)
            known = self._peers.find(name)
            invited = known.invited if known else None
            issued = invited.invitation if invited else None
            if invited and issued and not self._record(invited, issued._replace(kept=True), monotonic):
                self._unrecorded.append(name)
            return
        for each in self._peers.known:
            invited = each.invited
            issued = invited.invitation if invited else None
            if invited and issued and self._has_newly_expired(invited, issued, now):
                if self._record(invited, issued._replace(expired=True), monotonic):
                    self._record_event("invitation-expired", invited.name, "nobody has joined with it in time")
                return

    def _has_newly_expired(self, invited: InvitedPeer, issued: Issued, now: float) -> bool:
        if issued.expired or not is_expired(issued, now) or self._is_kept(invited):
            return False
        return issued.key not in self._unwritten and self.uses_left(issued) > 0

    def _record(self, invited: InvitedPeer, issued: Issued, monotonic: float) -> bool:
        if issued.key in self._unwritten:
            self._record_at = monotonic + REPEAT_SECONDS
            return False
        try:
            self._store.save(invited._replace(invitation=issued))
        except TunnelError as error:
            self._record_at = monotonic + REPEAT_SECONDS
            LOG.error("peer %s: what becomes of its invitation cannot be recorded yet: %s", invited.name, error)
            return False
        return True


def _refusal(reason: int) -> Refusal:
    return Refusal(reason, messages.REASONS[reason])


def _answered(peer: InvitedPeer) -> Answered:
    assert peer.agreed is not None, "only the answer of an exchange is repeated"
    done = Done(exchange=bytes.fromhex(peer.agreed.server), name=peer.name)
    return Answered(done, "it has joined, and connects with its new key")
