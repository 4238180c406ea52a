"""The proofs of a client, for its tcp workers, which have no key, since they parse the bytes of anybody.

    prove(request, now)    the client's proof for a CHALLENGE
    judge(report, now)     whether the WELCOME of a server has the server's proof

A request is hostile input: its worker may have been taken over. The key serves handshakes of this run and nothing else:

    a message of another kind, another client or session   the HELLO must be the one that the settings determine, and
                                                           the CHALLENGE must be one; both are hashed behind a label
    another certificate than the one that is pinned        refused: it is no handshake with our server
    a proof of the server's                                is never made here, only compared: no worker can pose as the
                                                           server, and make up addresses and routes
    proofs in stock                                        PROOFS_PER_S, and each is for one nonce of the server

A worker can have proofs for as long as it runs: it can connect as this client, and let another machine do so.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from pipeline.errors import PeerError
from pipeline.log import LOG
from pipeline.policy.token_bucket import TokenBucket
from pipeline.runtime.client_hello import client_hello
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import OwnProof, ProofRequest, Verdict, WelcomeReport
from pipeline.wire import auth, messages

PROOFS_PER_S = 20
PROOFS_AT_ONCE = 200
"""A client has at most 40 connections. It dials three at a time, and waits after a failure: it needs a fraction."""

QUIET_NS = 10_000_000_000  # between two lines of the log

OLD_KEY = "a reload has replaced the key meanwhile"
FOREIGN = "the handshake is none of this run"
FOREIGN_CERTIFICATE = "the server's certificate is not the one that is pinned"
TOO_MANY = f"more handshakes than {PROOFS_PER_S} a second"
UNPROVED = "the server has not proved that it has our key"


IsOffered = Callable[[bytes], bool]


class Prover:
    """`settings`: those that the tcp workers have now. `is_offered`: whether another key share than theirs may be ours,
    in a HELLO that is under way."""

    def __init__(self, key: bytes, settings: WorkerSettings, is_offered: IsOffered | None = None) -> None:
        self._key = key
        self._key_id = auth.key_id(key)
        self._settings = settings
        self._is_offered = is_offered
        self._pin = bytes.fromhex(settings.tls.fingerprint) if settings.tls is not None else b""
        self._bucket = TokenBucket(PROOFS_PER_S, PROOFS_AT_ONCE)
        self._quiet_until = 0

    def prove(self, request: ProofRequest, now: int) -> OwnProof:
        transcript, refusal = self._transcript(request, now)
        if not refusal and not self._bucket.in_credit(now):
            refusal = self._refuse(TOO_MANY, now)
        if refusal:
            return OwnProof(serial=request["serial"], proof="", refusal=refusal)
        self._bucket.spend(1, now)
        return OwnProof(serial=request["serial"], proof=auth.client_proof(self._key, transcript).hex(), refusal="")

    def judge(self, report: WelcomeReport, now: int) -> Verdict:
        transcript, distrust = self._transcript(report, now)
        if not distrust and not auth.server_proved(self._key, transcript, bytes.fromhex(report["welcome"])):
            distrust = UNPROVED
        return Verdict(serial=report["serial"], distrust=distrust)

    def _transcript(self, request: ProofRequest | WelcomeReport, now: int) -> tuple[bytes, str]:
        """Of the handshake that a request is about; and "", or why we have no part in that handshake."""
        frame, challenge, found = (bytes.fromhex(request[name]) for name in ("hello", "challenge", "hash"))
        hello = messages.decode(frame)
        if not isinstance(hello, messages.Hello) or not isinstance(messages.decode(challenge), messages.Challenge):
            raise PeerError("a handshake without HELLO and CHALLENGE")
        if not hmac.compare_digest(hello.key_id, self._key_id):
            return b"", OLD_KEY
        if frame != self._own_hello(hello):
            return b"", self._refuse(FOREIGN, now)
        if self._pin and not hmac.compare_digest(found, self._pin):
            return b"", self._refuse(FOREIGN_CERTIFICATE, now)
        return auth.transcript(frame, challenge, found), ""

    def _own_hello(self, hello: messages.Hello) -> bytes:
        """The HELLO that a worker sends on this connection."""
        settings, index = self._settings, hello.connection_index
        if self._is_offered is not None and self._is_offered(hello.key_share):
            settings = settings._replace(key_share=hello.key_share.hex())
        if index >= settings.connections + settings.light_connections:
            return b""
        if settings.reserve is not None and hello.session == settings.reserve.session:
            settings = settings._replace(session=hello.session)
        own = client_hello(settings, self._key_id, index, hello.nonce)
        return own._replace(knock=hello.knock, padding=hello.padding).frame()

    def _refuse(self, reason: str, now: int) -> str:
        """The reason, which is in our log from time to time. A worker that a reload is about to end may give cause for
        it, and else one that has been taken over."""
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_NS
            LOG.warning("a tcp worker has asked for a proof and gets none: %s", reason)
        return reason
