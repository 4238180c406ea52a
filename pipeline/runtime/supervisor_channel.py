"""A tcp worker's end of the supervisor channel. The supervisor alone knows the keys, and decides about peers.

One JSON object a datagram in each direction, over a socket pair that never blocks. The other end is
`pipeline.supervisor.worker_channels`. Bytes are hexadecimal.

    AdmissionRequest   server    worker -> supervisor    may this client connect?
    Admitted           server    supervisor -> worker    yes, send this WELCOME
    NotAdmitted        server    supervisor -> worker    no, send this REFUSED, or nothing
    AddressClaim       server    worker -> supervisor    with compat: may this peer have the source of its packet?
    ClaimDecision      server    supervisor -> worker    yes, or no and why
    NewSettings        both      supervisor -> worker    a reload has changed the settings
    WelcomeReport      client    worker -> supervisor    the server has sent this WELCOME
"""

from __future__ import annotations

import json
import socket
from typing import Any, TypedDict, final

from pipeline.errors import SupervisorGone

DATAGRAM_BYTES = 1 << 21  # the CA certificates that a system trusts are a quarter of that


@final
class AdmissionRequest(TypedDict):
    """May this client connect? Its messages, and the certificates of its connection."""

    serial: int  # of the connection; the answer repeats it
    hello: str  # its HELLO frame; "" with compat, where nothing says who a client is
    challenge: str  # our CHALLENGE frame; "" for a client that was not challenged
    proof: str  # the mac of its PROOF; "" for a client that was not challenged
    certificate: str  # that the client has shown, DER; "" for none
    hash: str  # SHA-256 of the certificate that we have shown


@final
class Admitted(TypedDict):
    """The client is a peer."""

    serial: int
    frame: str  # the WELCOME frame; "" with compat
    peer_handle: int


@final
class NotAdmitted(TypedDict):
    """The client becomes no peer, and its connection is closed."""

    serial: int
    frame: str  # the REFUSED frame; "" for a client that has proved nothing: it learns nothing
    reason: str  # for our log


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
class NewSettings(TypedDict):
    """Settings for connections that begin from now on."""

    settings: list[Any]  # WorkerSettings as json.dumps writes it


@final
class WelcomeReport(TypedDict):
    """The server has admitted us, and has proved to be ours."""

    welcome: str  # the WELCOME frame
    server: str  # its address


Request = AdmissionRequest | AddressClaim | WelcomeReport
Decision = Admitted | NotAdmitted
Answer = Admitted | NotAdmitted | ClaimDecision | NewSettings


class SupervisorChannel:
    """`fd` is this end of a SOCK_SEQPACKET pair."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)

    def ask(self, request: Request) -> bool:
        """Send a request. False if the supervisor's queue is full: the request is lost."""
        try:
            self.socket.send(json.dumps(request).encode())
        except BlockingIOError:
            return False
        return True

    def answers(self) -> list[Answer]:
        """The answers that have arrived. SupervisorGone if none will ever come again."""
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
