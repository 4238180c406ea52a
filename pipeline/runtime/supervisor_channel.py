"""A tcp worker's end of the supervisor channel. The supervisor alone knows the keys, and decides about peers.

One JSON object a datagram in each direction, over a socket pair that never blocks. The other end is
`pipeline.supervisor.processes.worker_channels`. Bytes are hexadecimal.

    AdmissionRequest   server    worker -> supervisor    may this client connect?
    KnockRequest       server    worker -> supervisor    with a fallback: does this HELLO have the knock of a peer?
    Knocked            server    supervisor -> worker    yes or no
    Admitted           server    supervisor -> worker    yes, send this WELCOME
    NotAdmitted        server    supervisor -> worker    no, send this REFUSED, or nothing
    EndReport          server    worker -> supervisor    why the last connection of a peer has ended
    AddressClaim       server    worker -> supervisor    with compat: may this peer have the source of its packet?
    ClaimDecision      server    supervisor -> worker    yes, or no and why
    Doubted            server    supervisor -> worker    with compat: is this peer still there?
    Replaced           server    supervisor -> worker    a client has dialed a slot again, perhaps at another worker
    Goaway             server    supervisor -> worker    tell the clients that this server is about to stop
    NoteReport         both      worker -> supervisor    the other end's supervisor has sent this note
    SendNote           both      supervisor -> worker    send this note to a peer, if a connection of it is here
    NewSettings        both      supervisor -> worker    a reload has changed the settings
    ProofRequest       client    worker -> supervisor    which proof answers this challenge?
    OwnProof           client    supervisor -> worker    this one, or none and why
    WelcomeReport      client    worker -> supervisor    the server has sent this WELCOME; with a key: has it our key?
    ServerFound        client    worker -> supervisor    with compat: the server was found at this address
    Verdict            client    supervisor -> worker    it has, or not and why; only with a key, or sealed blocks
    TroubleReport      client    worker -> supervisor    why not all connections of a lane, or of an uplink, stand
    VisitsReport       client    worker -> supervisor    the connections of this lane to each of several servers
    CongestionRequest  both      worker -> supervisor    set this congestion control on the socket that comes with it
"""

from __future__ import annotations

import json
import select
import socket
from contextlib import suppress
from typing import Any, NotRequired, TypedDict, final

from pipeline.errors import SupervisorGone
from pipeline.runtime.datagram_queue import DatagramQueue

DATAGRAM_BYTES = 1 << 21  # the CA certificates that a system trusts are a quarter of that
REQUESTS_WAITING = 1024  # of one worker: more than connections that a supervisor admits in a second; about 1 MB


@final
class Seal(TypedDict):
    """The secrets of the headers of a connection: pipeline.sealing.session.ConnectionSecrets, in hexadecimal."""

    suite: int
    send: str
    receive: str
    peer_handle: NotRequired[int]  # of the session, for a client


@final
class AdmissionRequest(TypedDict):
    """May this client connect? Its messages, and the certificates of its connection."""

    lane: int  # of the worker
    serial: int  # of the connection; the answer repeats it
    hello: str  # its HELLO frame; "" with compat, where nothing says who a client is
    challenge: str  # our CHALLENGE frame; "" for a client that was not challenged
    proof: str  # the mac of its PROOF; "" for a client that was not challenged
    certificate: str  # that the client has shown, DER; "" for none
    hash: str  # SHA-256 of the certificate that we have shown
    address: NotRequired[str]  # of the client, for an event about it


@final
class KnockRequest(TypedDict):
    """Has the client that sent this HELLO a key that is known?"""

    serial: int  # of the connection; the answer repeats it
    knock: str  # its HELLO frame
    binding: str  # of its TLS connection


@final
class Knocked(TypedDict):
    """Whether it has."""

    serial: int
    is_right: bool


@final
class EndReport(TypedDict):
    """The last connection of a peer at this worker has ended."""

    ended: int  # the peer handle
    reason: str


@final
class Admitted(TypedDict):
    """The client is a peer."""

    serial: int
    frame: str  # the WELCOME frame; "" with compat
    peer_handle: int
    name: str  # of the peer, for our log; "" with compat
    seal: NotRequired[Seal]  # where blocks are sealed


@final
class NotAdmitted(TypedDict):
    """The client becomes no peer, and its connection is closed."""

    serial: int
    frame: str  # the REFUSED frame; "" for a client that has proved nothing: it learns nothing
    reason: str  # for our log
    name: str  # of the peer, for our log; "" for a client that has proved nothing


@final
class AddressClaim(TypedDict):
    """With compat: a packet of this peer has a source address that no earlier packet of it had."""

    serial: int  # of the connection; the answer repeats it
    claim: str  # the address
    peer_handle: int


@final
class ClaimDecision(TypedDict):
    """Whether the peer has that address from now on."""

    serial: int
    claim: str
    refusal: str  # for our log; "" if the peer has the address


@final
class Doubted(TypedDict):
    """With compat: another connection from where this peer is claims its address. Its connection ends unless the kernel
    gets an answer."""

    doubted: int  # the peer handle


@final
class Replaced(TypedDict):
    """A client has been admitted that has dialed a slot again: its earlier connections of that slot end."""

    replaced: int  # the dial index
    peer_handle: int
    lane: int  # the worker of the new connection, which stays
    serial: int  # and its number there


@final
class Goaway(TypedDict):
    """This server is about to stop: clients that have another one go there."""

    goaway: bool


@final
class NoteReport(TypedDict):
    """A note has come, sealed (pipeline.sealing.note_seal)."""

    heard: str
    peer_handle: int  # of the connection


@final
class SendNote(TypedDict):
    """A note goes out, sealed."""

    note: str
    peer_handle: int


@final
class NewSettings(TypedDict):
    """Settings for connections that begin from now on."""

    settings: list[Any]  # WorkerSettings as json.dumps writes it


@final
class ProofRequest(TypedDict):
    """The server has sent a CHALLENGE."""

    serial: int  # of the connection; the answer repeats it
    hello: str  # our HELLO frame
    challenge: str  # the CHALLENGE frame
    hash: str  # SHA-256 of the certificate that the server has shown


@final
class OwnProof(TypedDict):
    """The client's proof."""

    serial: int
    proof: str  # the mac
    refusal: str  # why there is none, for our log; "" if there is one


@final
class WelcomeReport(TypedDict):
    """The server has admitted us. With a key, the supervisor finds out whether it is ours; else TLS has."""

    serial: int  # of the connection; the answer repeats it
    hello: str  # our HELLO frame; "" without a key
    challenge: str  # the CHALLENGE frame; "" without a key
    hash: str  # SHA-256 of the certificate that the server has shown; "" without a key
    welcome: str  # the WELCOME frame
    server: str  # its address


@final
class ServerFound(TypedDict):
    """With compat, where nobody sends a WELCOME: a connection to the server is established."""

    found: str  # the address of the server


@final
class Verdict(TypedDict):
    """Whether the server that has sent a WELCOME has our key."""

    serial: int
    distrust: str  # why it is not to be trusted, for our log; "" if it is
    seal: NotRequired[Seal]  # where blocks are sealed, if it is


@final
class TroubleReport(TypedDict):
    """The trouble of a lane with its connections, or with those of one uplink, is another now. See
    pipeline.policy.server_news.PresentTrouble."""

    lane: int
    uplink: int  # its number; 0 of a client without
    trouble: str  # the reason; "" if nothing is wrong any more
    failures: int
    since_ns: int  # CLOCK_MONOTONIC


@final
class VisitsReport(TypedDict):
    """The connections of a lane to the servers that it dials are others now."""

    lane: int
    visits: list[list[Any]]  # session number, and the fields of pipeline.policy.server_choice.VisitReport


@final
class CongestionRequest(TypedDict):
    """The kernel does not let the worker choose this algorithm. The descriptor of one socket comes with the request."""

    congestion: str


Request = (
    AdmissionRequest
    | KnockRequest
    | EndReport
    | AddressClaim
    | ProofRequest
    | WelcomeReport
    | ServerFound
    | TroubleReport
    | VisitsReport
    | NoteReport
)
Decision = Admitted | NotAdmitted
HandshakeAnswer = Admitted | NotAdmitted | Knocked | OwnProof | Verdict
Answer = (
    Admitted
    | NotAdmitted
    | Knocked
    | OwnProof
    | Verdict
    | ClaimDecision
    | Doubted
    | Replaced
    | Goaway
    | SendNote
    | NewSettings
)


class SupervisorChannel:
    """`fd` is this end of a SOCK_SEQPACKET pair. `epoll`, if there is one, tells when to call answers()."""

    def __init__(self, fd: int, epoll: select.epoll | None = None) -> None:
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self._requests = DatagramQueue(self.socket, REQUESTS_WAITING)
        self._epoll = epoll
        self._waits_for_room = False
        if epoll is not None:
            epoll.register(fd, select.EPOLLIN)

    def ask(self, request: Request) -> bool:
        """Send a request, as soon as the supervisor's queue has room. False if too many wait for that: it is lost."""
        asked = self._requests.send(json.dumps(request).encode())
        self._watch()
        return asked

    def hand_over(self, request: CongestionRequest, sock: socket.socket) -> bool:
        """Send a request with a socket, which stays ours as well. False if there is no room now: nothing waits."""
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], [sock.fileno()])
        except OSError:
            return False
        return True

    def _watch(self) -> None:
        """Let epoll tell when there is room, if requests wait for it."""
        if self._requests.is_empty is self._waits_for_room:
            self._waits_for_room = not self._waits_for_room
            if self._epoll is not None:
                room = select.EPOLLOUT if self._waits_for_room else 0
                self._epoll.modify(self.socket.fileno(), select.EPOLLIN | room)

    def answers(self) -> list[Answer]:
        """The answers that have arrived. Requests that wait are sent first. SupervisorGone if no answer will ever come
        again."""
        with suppress(OSError):  # the supervisor is gone, as the end of the stream will tell
            self._requests.flush()
        self._watch()
        found: list[Answer] = []
        while True:
            try:
                data = self.socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                data = b""
            if not data:
                raise SupervisorGone("the supervisor has closed its end of the supervisor channel")
            found.append(json.loads(data))
