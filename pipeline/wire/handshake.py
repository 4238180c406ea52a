"""The handshake on one connection, as state machines: bytes and decisions go in, values come out.

    ServerHandshake    HELLO -> [CHALLENGE, PROOF] -> the supervisor's decision -> WELCOME, or REFUSED and the end
                       with a fallback: HELLO with a knock -> the supervisor judges the knock -> CHALLENGE ...
    ClientHandshake    HELLO -> [CHALLENGE -> the supervisor's proof -> PROOF] -> WELCOME -> [its verdict], or REFUSED
    CompatHandshake    no message at all: connected is welcomed; a hub asks the supervisor first

    begin(certificate, ...)  the connection is there, TLS included; the certificate is that of the other end
    feed(data)               bytes of the other end, in pieces of any size
    judge_knock(is_right)    the supervisor's answer to AskKnock; for a server with a fallback only
    decide(admitted, ...)    the supervisor's answer to AskSupervisor; for a server only
    prove(mac)               its answer to AskProof, of a client with a key
    judge(distrust)          its answer to AskVerdict, of a client with a key
    ended(cause, reason)     the other end has ended the connection

Each call returns what it has caused, in order; an empty list says that more bytes are needed. Welcomed or Failed comes
last and once. No sockets, clock, TLS or key are in here, and random bytes are given in: one object serves one
connection.

The other end learns nothing from a failure: REFUSED is the only message about one, and the supervisor makes it. A
server that hides says nothing at all before a knock is right. Its fallback gets the bytes in `unanswered` then, so that
it answers such clients as if no tunnel were.
Bytes behind the handshake begin the stream. While the supervisor is asked, no message is read.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from typing import ClassVar, NamedTuple

from pipeline.errors import LocalError, PeerError
from pipeline.wire import auth, framing, messages
from pipeline.wire.messages import Challenge, Done, Hello, Message, Proof, Refused, Welcome
from pipeline.wire.uplink import Uplink


class State(Enum):
    """Where a handshake stands: what it waits for."""

    CONNECTING = "connecting"
    AWAIT_HELLO = "hello"
    AWAIT_KNOCK = "verdict on a knock"
    AWAIT_PROOF = "proof"
    AWAIT_DECISION = "decision"
    AWAIT_CHALLENGE = "challenge"
    AWAIT_OWN_PROOF = "proof of our own"
    AWAIT_PROVED_WELCOME = "welcome with a proof"
    AWAIT_VERDICT = "verdict"
    AWAIT_WELCOME = "welcome"
    WELCOMED = "welcomed"
    FAILED = "failed"


Table = dict[State, dict[type[Message], tuple[State, ...]]]
"""Which messages are in turn, and the states that they can lead to. A message that is not in the table, or that cannot
be decoded, leads to FAILED."""

# begin():  CONNECTING -> AWAIT_HELLO
# judge_knock(): AWAIT_KNOCK -> AWAIT_PROOF or FAILED
# decide(): AWAIT_DECISION -> WELCOMED or FAILED
SERVER: Table = {
    State.AWAIT_HELLO: {  # with a key, without one; the others where this end hides
        Hello: (State.AWAIT_PROOF, State.AWAIT_DECISION, State.AWAIT_KNOCK, State.FAILED),
    },
    State.AWAIT_PROOF: {Proof: (State.AWAIT_DECISION,)},
}
# begin():  CONNECTING -> AWAIT_CHALLENGE with a key, AWAIT_WELCOME without one, FAILED at a wrong certificate
# prove():  AWAIT_OWN_PROOF -> AWAIT_PROVED_WELCOME
# judge():  AWAIT_VERDICT -> WELCOMED or FAILED
CLIENT: Table = {
    State.AWAIT_CHALLENGE: {
        Challenge: (State.AWAIT_OWN_PROOF,),
        Welcome: (State.FAILED,),  # a server that proves nothing
        Refused: (State.FAILED,),
    },
    State.AWAIT_PROVED_WELCOME: {
        Welcome: (State.AWAIT_VERDICT,),
        Refused: (State.FAILED,),
    },
    State.AWAIT_WELCOME: {
        Welcome: (State.WELCOMED,),
        Refused: (State.FAILED,),
    },
}

FIRST_BYTES = 16384  # RFC 8446, 5.1: the most data in a record

ASKED = (State.AWAIT_KNOCK, State.AWAIT_DECISION, State.AWAIT_OWN_PROOF, State.AWAIT_VERDICT)
"""These wait for the supervisor, and for no bytes of the other end."""

HTTP = b"HTTP"  # so begins an answer of a web server, and no frame: it would be longer than any limit

NO_CERTIFICATE = bytes(auth.CERTIFICATE_HASH_BYTES)
"""The certificate hash of a connection without TLS."""


class Cause(Enum):
    """Why a handshake has failed."""

    INVALID = "invalid"  # bytes that are no message, a message that is too long or out of turn
    UNPROVED = "unproved"  # the client has not proved to be a peer
    REFUSED = "refused"  # the server does not admit the client
    DONE = "done"  # the client wanted no connection, and has got what it wanted
    DISTRUSTED = "distrusted"  # the server has not proved to be ours
    CLOSED = "closed"  # the other end has closed the connection
    BROKEN = "broken"  # the socket or TLS has failed


class Send(NamedTuple):
    """Send these bytes."""

    data: bytes


class AskSupervisor(NamedTuple):
    """Ask whether this client is admitted."""

    hello: bytes  # the frame
    challenge: bytes  # the frame; empty for a client that is not challenged
    proof: bytes  # the mac; empty for a client that is not challenged
    certificate: bytes  # that the client has shown, DER; empty for none
    certificate_hash: bytes  # of the certificate that we have shown


class AskKnock(NamedTuple):
    """Ask whether this HELLO has the knock of a key that is known."""

    hello: bytes  # the frame
    binding: bytes  # of the TLS connection


class AskProof(NamedTuple):
    """Ask for the proof that answers this challenge: our key is with the supervisor."""

    hello: bytes  # the frame
    challenge: bytes  # the frame
    certificate_hash: bytes  # of the certificate that the server has shown


class AskVerdict(NamedTuple):
    """Ask whether the server that has sent this WELCOME has our key. If so, its addresses and routes are ours."""

    hello: bytes  # the frame
    challenge: bytes  # the frame
    certificate_hash: bytes  # of the certificate that the server has shown
    welcome: bytes  # the frame


class TellSupervisor(NamedTuple):
    """Pass on a WELCOME frame: it has our addresses and routes. TLS has verified the server, or nothing does."""

    welcome: bytes


class Welcomed(NamedTuple):
    """The handshake is over, and the connection carries packets."""

    offloads: int  # TUN_F_* bits that the other end's device accepts
    mtu: int  # of the other end's device
    connections: int  # bulk connections that the client opens in all
    connection_index: int  # of this connection among those of the client
    traffic_class: int
    accepts_shards: bool  # the other end does
    rest: bytes = b""  # bytes behind the handshake: the stream begins with them
    lane: int = 0  # of the other end, that sends on this connection
    uplink: Uplink | None = None  # of the client, if it has several
    answers: bool = False  # the other end answers questions
    takes_padding: bool = False  # the other end does


class Failed(NamedTuple):
    """Close the connection. `reason` is for our log; text of the other end in it is not escaped."""

    cause: Cause
    reason: str


Question = AskSupervisor | AskKnock | AskProof | AskVerdict
"""The handshake waits for the supervisor."""

Output = Send | Question | TellSupervisor | Welcomed | Failed


class _Handshake:
    """The part of both sides: the bytes received, and what is in turn."""

    limit: ClassVar[int] = 0
    """The longest message (its length field) that is accepted."""
    _table: ClassVar[Table] = {}

    def __init__(self) -> None:
        self.state = State.CONNECTING
        self._received = bytearray()

    @property
    def read_bytes(self) -> int:
        """No more bytes need be received at once."""
        return self.limit

    @property
    def awaits_supervisor(self) -> bool:
        """Whether the supervisor has been asked, and has not answered yet."""
        return self.state in ASKED

    def feed(self, data: bytes) -> list[Output]:
        """Bytes of the other end. Messages beyond the end of the handshake are not read."""
        if self.state in (State.CONNECTING, State.WELCOMED, State.FAILED):
            raise LocalError(f"bytes for a handshake that is {self.state.value}")
        self._received += data
        return self._read()

    def _read(self) -> list[Output]:
        """Read the messages that are whole and in turn."""
        outputs: list[Output] = []
        try:
            while self.state in self._table and (frame := self._next_frame()):
                message = messages.decode(frame)
                if type(message) not in self._table[self.state]:
                    raise PeerError(f"{type(message).__name__} out of turn: {self.state.value} expected")
                outputs += self._on_message(message, frame)
        except PeerError as error:
            outputs.append(self._fail(Cause.INVALID, str(error)))
        return outputs

    def ended(self, cause: Cause, reason: str) -> Failed:
        """The other end has ended the connection before the handshake was over."""
        return self._fail(cause, reason)

    def begin(self, certificate: bytes, binding: bytes = b"") -> list[Output]:
        """The connection is there. `certificate`: the one that the other end has shown, DER; empty for none.
        `binding`: that of the TLS connection, which both ends know and nobody else; empty without TLS."""
        raise NotImplementedError

    def _on_message(self, message: Message, frame: bytes) -> list[Output]:
        raise NotImplementedError

    def _next_frame(self) -> bytes:
        """The first frame received, cut off; nothing while it is not whole."""
        received = self._received
        if received.startswith(HTTP):
            raise PeerError("a web server has answered: the server does not know us (any more), or is another one")
        if len(received) < framing.LENGTH.size:
            return b""
        (length,) = framing.LENGTH.unpack_from(received, 0)
        if length > self.limit:
            raise PeerError(f"handshake message of {length} bytes, at most {self.limit} allowed")
        end = framing.LENGTH.size + length
        if len(received) < end:
            return b""
        frame = bytes(received[:end])
        del received[:end]
        return frame

    def _pin_violation(self, pin: bytes, certificate: bytes) -> Failed | None:
        """The failure, if the server's certificate is not the pinned one; an empty pin is any certificate's."""
        found = _hash_of(certificate)
        if not pin or hmac.compare_digest(pin, found):
            return None
        reason = f"fingerprint of the server's certificate: expected {pin.hex()}, found {found.hex()}"
        return self._fail(Cause.DISTRUSTED, reason)

    def _fail(self, cause: Cause, reason: str) -> Failed:
        self.state = State.FAILED
        return Failed(cause, reason)


def _hash_of(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest() if certificate else NO_CERTIFICATE


class ServerHandshake(_Handshake):
    """`with_keys`: clients that name a key are challenged; `nonce`: random bytes for the challenge; `certificate_hash`:
    of the certificate that this connection shows, which may be set anew until begin(). `hides`: no client gets an
    answer before its knock is right. Its HELLO comes as a whole in the first bytes that are fed. `padding`: of the
    challenge."""

    limit = framing.HELLO_LENGTH_LIMIT
    _table = SERVER

    def __init__(
        self,
        with_keys: bool,
        nonce: bytes,
        certificate_hash: bytes = NO_CERTIFICATE,
        hides: bool = False,
        padding: bytes = b"",
    ) -> None:
        super().__init__()
        self.hides = hides
        self.unanswered: bytes | None = b""
        """All bytes of the client, while it has got no answer; None from the first answer on."""
        self._binding = b""
        self._with_keys = with_keys
        self._challenge_frame = Challenge(nonce, padding).frame()
        self.certificate_hash = certificate_hash
        self._certificate = b""
        self._hello: Hello | None = None
        self._hello_frame = b""

    @property
    def read_bytes(self) -> int:
        """Where this end hides, as much as a record of TLS can have: the first one is a HELLO, or the fallback's."""
        return FIRST_BYTES if self.hides else self.limit

    def begin(self, certificate: bytes, binding: bytes = b"") -> list[Output]:
        self._certificate, self._binding = certificate, binding
        self.state = State.AWAIT_HELLO
        return []

    def feed(self, data: bytes) -> list[Output]:
        if self.unanswered is not None and self.hides:
            self.unanswered += data
        outputs = super().feed(data)
        if self.hides and self.state is State.AWAIT_HELLO:
            outputs.append(self._fail(Cause.INVALID, "the first bytes are no whole HELLO"))
        return outputs

    def _on_message(self, message: Message, frame: bytes) -> list[Output]:
        match message:
            case Hello():
                self._hello, self._hello_frame = message, frame
                if self.hides:
                    return self._ask_knock(message, frame)
                if message.auth == messages.AUTH_KEY and self._with_keys:
                    self.state = State.AWAIT_PROOF
                    return [Send(self._challenge_frame)]
                return self._ask(b"", b"")
            case Proof(mac):
                return self._ask(self._challenge_frame, mac)
        return []

    def _ask_knock(self, hello: Hello, frame: bytes) -> list[Output]:
        if hello.auth != messages.AUTH_KEY or not hello.knock or not self._binding:
            return [self._fail(Cause.UNPROVED, "a HELLO without a knock")]
        self.state = State.AWAIT_KNOCK
        return [AskKnock(frame, self._binding)]

    def judge_knock(self, is_right: bool) -> list[Output]:
        """The supervisor's verdict on the knock."""
        if self.state is not State.AWAIT_KNOCK:
            raise LocalError(f"a verdict on the knock of a handshake that waits for {self.state.value}")
        if not is_right:
            return [self._fail(Cause.UNPROVED, "a HELLO with a wrong knock")]
        self.state = State.AWAIT_PROOF
        self.unanswered = None
        return [Send(self._challenge_frame), *self._read()]

    def _ask(self, challenge_frame: bytes, mac: bytes) -> list[Output]:
        self.state = State.AWAIT_DECISION
        return [AskSupervisor(self._hello_frame, challenge_frame, mac, self._certificate, self.certificate_hash)]

    def decide(self, admitted: bool, frame: bytes, reason: str = "") -> list[Output]:
        """The supervisor's decision. `frame` tells the client; it is empty for a client that has proved nothing."""
        hello = self._hello
        if self.state is not State.AWAIT_DECISION or hello is None:
            raise LocalError(f"a decision about a handshake that waits for {self.state.value}")
        if not frame:
            return [self._fail(Cause.UNPROVED, reason)]
        if not admitted:
            if isinstance(messages.decode(frame), Done):
                return [Send(frame), self._fail(Cause.DONE, reason)]
            return [Send(frame), self._fail(Cause.REFUSED, f"refused: {reason}")]
        self.state = State.WELCOMED
        welcomed = Welcomed(
            hello.offloads,
            hello.mtu,
            hello.connections,
            hello.connection_index,
            framing.LIGHT if hello.traffic_class == framing.LIGHT else framing.BULK,
            bool(hello.features & messages.ACCEPTS_SHARDS),
            bytes(self._received),
            hello.lane,
            hello.uplink,
            bool(hello.features & messages.ANSWERS),
            bool(hello.features & messages.TAKES_PADDING),
        )
        return [Send(frame), welcomed]


class ClientHandshake(_Handshake):
    """`hello`: complete, with the nonce of this connection, and the id of our key if we have one; `pin`: the hash of
    the certificate that the server must show, b"" for any. `knock_key`: b"" without a key. `padding`: of the proof."""

    limit = framing.WELCOME_LENGTH_LIMIT
    _table = CLIENT

    def __init__(self, hello: Hello, pin: bytes = b"", knock_key: bytes = b"", padding: bytes = b"") -> None:
        super().__init__()
        self._padding = padding
        self._hello = hello
        self._knock_key = knock_key
        self._hello_frame = b""
        self._pin = pin
        self._certificate_hash = NO_CERTIFICATE
        self._challenge_frame = b""
        self._welcomed: Welcomed | None = None

    def begin(self, certificate: bytes, binding: bytes = b"") -> list[Output]:
        if failed := self._pin_violation(self._pin, certificate):
            return [failed]
        if self._knock_key and binding:
            knock = auth.knock(self._knock_key, self._hello.nonce, binding)
            self._hello = self._hello._replace(knock=knock)
        self._hello_frame = self._hello.frame()
        self._certificate_hash = _hash_of(certificate)
        self.state = State.AWAIT_CHALLENGE if self._hello.auth == messages.AUTH_KEY else State.AWAIT_WELCOME
        return [Send(self._hello_frame)]

    def ended(self, cause: Cause, reason: str) -> Failed:
        if self.state in (State.AWAIT_WELCOME, State.AWAIT_PROVED_WELCOME):
            reason += ": the server does not say why: it does not know us (any more), or it is stopping"
        return self._fail(cause, reason)

    def _on_message(self, message: Message, frame: bytes) -> list[Output]:
        match message:
            case Challenge():
                self._challenge_frame = frame
                self.state = State.AWAIT_OWN_PROOF
                return [AskProof(self._hello_frame, frame, self._certificate_hash)]
            case Welcome():
                return self._on_welcome(message, frame)
            case Refused():
                return [self._fail(Cause.REFUSED, f"refused by the server: {message.text}")]
        return []

    def prove(self, mac: bytes) -> list[Output]:
        """The supervisor's proof: send it, and read on."""
        if self.state is not State.AWAIT_OWN_PROOF:
            raise LocalError(f"a proof for a handshake that waits for {self.state.value}")
        self.state = State.AWAIT_PROVED_WELCOME
        return [Send(Proof(mac, self._padding).frame()), *self._read()]

    def _on_welcome(self, welcome: Welcome, frame: bytes) -> list[Output]:
        if self.state is State.AWAIT_CHALLENGE:
            return [self._fail(Cause.DISTRUSTED, "the server welcomes every client and proves nothing: it has no keys")]
        hello = self._hello
        welcomed = Welcomed(
            welcome.offloads,
            welcome.mtu,
            hello.connections,
            hello.connection_index,
            hello.traffic_class,
            bool(welcome.features & messages.ACCEPTS_SHARDS),
            lane=welcome.lane,
            uplink=hello.uplink,
            answers=bool(welcome.features & messages.ANSWERS),
            takes_padding=bool(welcome.features & messages.TAKES_PADDING),
        )
        if self.state is State.AWAIT_PROVED_WELCOME or hello.key_share:
            self._welcomed = welcomed
            self.state = State.AWAIT_VERDICT
            return [AskVerdict(self._hello_frame, self._challenge_frame, self._certificate_hash, frame)]
        return [TellSupervisor(frame), self._end(welcomed)]

    def judge(self, distrust: str) -> list[Output]:
        """The supervisor's verdict: the server has our key, or the reason not to trust it."""
        if self.state is not State.AWAIT_VERDICT or self._welcomed is None:
            raise LocalError(f"a verdict on a handshake that waits for {self.state.value}")
        return [self._fail(Cause.DISTRUSTED, distrust) if distrust else self._end(self._welcomed)]

    def _end(self, welcomed: Welcomed) -> Welcomed:
        self.state = State.WELCOMED
        return welcomed._replace(rest=bytes(self._received))


class CompatHandshake(_Handshake):
    """The wire format of the original program has no handshake: an end learns nothing of the other.

    `mtu`: ours; `pin`: the hash of the certificate that the server must show, b"" for any; `asks`: the supervisor has
    to give this connection the index of a peer, because there can be several.
    """

    def __init__(self, connection_index: int, mtu: int, pin: bytes = b"", asks: bool = False) -> None:
        super().__init__()
        self._welcomed = Welcomed(0, mtu, 1, connection_index, framing.BULK, False)
        self._pin = pin
        self._asks = asks

    def begin(self, certificate: bytes, binding: bytes = b"") -> list[Output]:
        if failed := self._pin_violation(self._pin, certificate):
            return [failed]
        if self._asks:
            self.state = State.AWAIT_DECISION
            return [AskSupervisor(b"", b"", b"", b"", NO_CERTIFICATE)]
        self.state = State.WELCOMED
        return [self._welcomed]

    def decide(self, admitted: bool, frame: bytes, reason: str = "") -> list[Output]:
        """The supervisor's decision. There is no message about it."""
        if self.state is not State.AWAIT_DECISION:
            raise LocalError(f"a decision about a handshake that waits for {self.state.value}")
        if not admitted:
            return [self._fail(Cause.REFUSED, f"refused: {reason}")]
        self.state = State.WELCOMED
        return [self._welcomed]


Handshake = ServerHandshake | ClientHandshake | CompatHandshake
