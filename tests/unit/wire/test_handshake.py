"""The handshake as state machines: every message in every state, any cuts of the stream, wrong proofs, both ends."""

from __future__ import annotations

import hashlib
import itertools
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LocalError
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.sealing.session import KeyShare
from pipeline.wire import auth, framing, handshake, messages
from pipeline.wire.handshake import (
    CLIENT,
    NO_CERTIFICATE,
    SERVER,
    AskProof,
    AskSupervisor,
    AskVerdict,
    Cause,
    ClientHandshake,
    CompatHandshake,
    Failed,
    Output,
    Send,
    ServerHandshake,
    State,
    TellSupervisor,
    Welcomed,
)
from pipeline.wire.messages import Challenge, Hello, Message, Proof, Refused, Welcome
from pipeline.wire.uplink import Uplink
from tests.harness.wire_document import named_example
from tests.reference.blocks import Runs
from tests.reference.client import WireClient

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
NONCE, OTHER_NONCE = b"s" * 32, b"t" * 32
CERTIFICATE = b"a certificate in DER"
CERTIFICATE_HASH = hashlib.sha256(CERTIFICATE).digest()
REST = framing.KEEPALIVE_FRAME + b"half a frame"

HELLO = Hello(
    messages.VERSION,
    offloads=0x13,
    connection_index=2,
    connections=5,
    mtu=1400,
    client_id=7,
    session=9,
    traffic_class=framing.LIGHT,
    features=messages.ACCEPTS_SHARDS,
    nonce=b"c" * 32,
    requested_addresses=(ip_address("10.0.0.2"),),
)
KEYED_HELLO = HELLO._replace(auth=messages.AUTH_KEY, key_id=auth.key_id(KEY))
WELCOME = Welcome(
    messages.VERSION,
    offloads=0x2F,
    mtu=1300,
    features=messages.ACCEPTS_SHARDS,
    addresses=(ip_interface("10.0.0.2/24"),),
    routes=(ip_network("10.1.0.0/16"),),
    key_share=KeyShare(AES_256_GCM, b"\x09" + bytes(31), bytes(32), bytes(32)).pack(),
)
REFUSED = Refused(messages.FULL, "as many peers as there may be")
MESSAGES: dict[type[Message], Message] = {
    Hello: KEYED_HELLO,
    Challenge: Challenge(OTHER_NONCE),
    Proof: Proof(b"p" * 32),
    Welcome: WELCOME,
    Refused: REFUSED,
}


# -- both ends, brought to each of their states


def server(with_keys: bool = True) -> ServerHandshake:
    side = ServerHandshake(with_keys, NONCE, CERTIFICATE_HASH)
    assert side.begin(b"") == []
    return side


def client(keyed: bool = True, pin: bytes = b"") -> ClientHandshake:
    """A client that has said its HELLO."""
    hello = KEYED_HELLO if keyed else HELLO
    side = ClientHandshake(hello, pin)
    assert side.begin(CERTIFICATE) == [Send(hello.frame())]
    return side


def challenged_client() -> ClientHandshake:
    """A client that has sent its PROOF."""
    side = client()
    (question,) = side.feed(Challenge(NONCE).frame())
    assert isinstance(question, AskProof)
    assert [type(output) for output in ClientSupervisor(KEY).answer(side, question)] == [Send]
    return side


def server_that_awaits_a_proof() -> ServerHandshake:
    side = server()
    assert side.feed(KEYED_HELLO.frame()) == [Send(Challenge(NONCE).frame())]
    return side


def transcript(nonce: bytes = NONCE) -> bytes:
    return auth.transcript(KEYED_HELLO.frame(), Challenge(nonce).frame(), CERTIFICATE_HASH)


def proved_welcome(key: bytes = KEY, nonce: bytes = NONCE) -> bytes:
    return WELCOME._replace(mac=auth.server_proof(key, transcript(nonce), WELCOME.frame())).frame()


class ClientSupervisor:
    """Has the client's key, as pipeline.supervisor.roles.prover has."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def answer(self, side: ClientHandshake, question: AskProof | AskVerdict) -> list[Output]:
        seen = auth.transcript(question.hello, question.challenge, question.certificate_hash)
        if isinstance(question, AskProof):
            return side.prove(auth.client_proof(self._key, seen))
        proved = auth.server_proved(self._key, seen, question.welcome)
        return side.judge("" if proved else DISTRUST)


DISTRUST = "the server has not our key"


def answered(outputs: list[Output], side: ClientHandshake) -> list[Output]:
    """The outputs, with those that the answers of the supervisor cause in place of the questions."""
    found: list[Output] = []
    for output in outputs:
        if isinstance(output, AskProof | AskVerdict):
            found += answered(ClientSupervisor(KEY).answer(side, output), side)
        else:
            found.append(output)
    return found


SERVERS: dict[State, Callable[[], ServerHandshake]] = {
    State.AWAIT_HELLO: server,
    State.AWAIT_PROOF: server_that_awaits_a_proof,
}
CLIENTS: dict[State, Callable[[], ClientHandshake]] = {
    State.AWAIT_CHALLENGE: client,
    State.AWAIT_PROVED_WELCOME: challenged_client,
    State.AWAIT_WELCOME: lambda: client(keyed=False),
}
SIDES = {**SERVERS, **CLIENTS}
TABLE = {**SERVER, **CLIENT}


def failure(outputs: Sequence[Output]) -> Failed:
    assert isinstance(outputs[-1], Failed)
    assert not any(isinstance(output, Welcomed | Failed) for output in outputs[:-1])
    return outputs[-1]


# -- every state and every message


def test_each_state_of_the_table_is_tried() -> None:
    assert set(SIDES) == set(TABLE)
    for state, make in SIDES.items():
        assert make().state is state


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", SIDES, ids=lambda state: state.name)
def test_each_message_in_each_state_does_what_the_table_says(state: State, kind: type[Message]) -> None:
    side = SIDES[state]()
    outputs = side.feed(MESSAGES[kind].frame())
    if kind in TABLE[state]:
        assert side.state in TABLE[state][kind]
        assert all(output.cause is not Cause.INVALID for output in outputs if isinstance(output, Failed))
    else:
        assert side.state is State.FAILED
        assert failure(outputs) == Failed(Cause.INVALID, f"{kind.__name__} out of turn: {state.value} expected")
        assert len(outputs) == 1


@pytest.mark.parametrize("state", SIDES, ids=lambda state: state.name)
@pytest.mark.parametrize(
    "data",
    [
        bytes(4),
        framing.KEEPALIVE_FRAME,
        framing.frame(framing.DATA, b"E" * 40),
        framing.frame(framing.HELLO),
        framing.frame(framing.WELCOME, b"\x01"),
        framing.frame(0xFF, bytes(68)),
        KEYED_HELLO.frame().replace(b"tnl", b"TNL"),
    ],
    ids=["no type", "keepalive", "packet", "empty HELLO", "short WELCOME", "unknown type", "another magic"],
)
def test_a_frame_that_is_no_message_fails_in_each_state(state: State, data: bytes) -> None:
    side = SIDES[state]()
    (failed,) = side.feed(data)
    assert isinstance(failed, Failed) and failed.cause is Cause.INVALID
    assert side.state is State.FAILED


# -- lengths


@pytest.mark.parametrize("state", SIDES, ids=lambda state: state.name)
def test_a_length_above_the_limit_fails_with_its_first_four_bytes_and_no_earlier(state: State) -> None:
    limit = framing.HELLO_LENGTH_LIMIT if state in SERVERS else framing.WELCOME_LENGTH_LIMIT
    for length in (limit + 1, 1 << 31, (1 << 32) - 1):
        side = SIDES[state]()
        assert side.limit == limit
        head = struct.pack(">I", length)
        assert side.feed(head[:3]) == []
        expected = f"handshake message of {length} bytes, at most {limit} allowed"
        assert side.feed(head[3:]) == [Failed(Cause.INVALID, expected)]


@pytest.mark.parametrize("state", SIDES, ids=lambda state: state.name)
def test_a_length_at_the_limit_is_waited_for(state: State) -> None:
    side = SIDES[state]()
    frame = framing.frame(0xFF, bytes(side.limit - 1))
    assert side.feed(frame[:-1]) == []
    assert failure(side.feed(frame[-1:])).reason == "frame of type 0xff, expected a handshake message"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_another_protocol_is_recognised_by_its_first_four_bytes(data: bytes) -> None:
    side = server()
    assert side.feed(data[:3]) == []
    assert failure(side.feed(data[3:4])).cause is Cause.INVALID


# -- the server's side


def test_a_client_without_a_key_is_asked_about_with_its_certificate() -> None:
    side = ServerHandshake(True, NONCE, CERTIFICATE_HASH)
    side.begin(b"the client's certificate")
    assert side.feed(HELLO.frame()) == [
        AskSupervisor(HELLO.frame(), b"", b"", b"the client's certificate", CERTIFICATE_HASH)
    ]
    assert side.state is State.AWAIT_DECISION


def test_a_client_with_a_key_is_challenged_and_asked_about_with_its_proof() -> None:
    side = server_that_awaits_a_proof()
    assert side.feed(Proof(b"m" * 32).frame()) == [
        AskSupervisor(KEYED_HELLO.frame(), Challenge(NONCE).frame(), b"m" * 32, b"", CERTIFICATE_HASH)
    ]


def test_a_server_without_keys_challenges_nobody() -> None:
    side = server(with_keys=False)
    assert side.feed(KEYED_HELLO.frame()) == [AskSupervisor(KEYED_HELLO.frame(), b"", b"", b"", CERTIFICATE_HASH)]


def test_the_frame_of_a_hello_is_passed_on_with_bytes_that_only_a_later_version_knows() -> None:
    later = framing.frame(framing.HELLO, HELLO.frame()[5:] + b"later")
    (asked,) = server().feed(later)
    assert isinstance(asked, AskSupervisor) and asked.hello == later


def test_an_admitted_client_is_sent_its_welcome_and_the_stream_begins_behind_its_messages() -> None:
    side = server_that_awaits_a_proof()
    side.feed(Proof(bytes(32)).frame() + REST[:3])
    assert side.feed(REST[3:]) == []
    assert side.decide(True, proved_welcome()) == [
        Send(proved_welcome()),
        Welcomed(0x13, 1400, 5, 2, framing.LIGHT, True, REST),
    ]
    assert side.state is State.WELCOMED


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_learns_whether_its_client_answers_questions(answers: bool) -> None:
    side = server()
    side.feed(HELLO._replace(features=messages.ANSWERS if answers else 0).frame())
    _, welcomed = side.decide(True, WELCOME.frame())
    assert isinstance(welcomed, Welcomed) and welcomed.answers is answers


@pytest.mark.parametrize("takes", [False, True])
def test_each_end_learns_whether_the_other_takes_padding(takes: bool) -> None:
    features = messages.TAKES_PADDING if takes else 0xFF & ~messages.TAKES_PADDING
    side = server()
    side.feed(HELLO._replace(features=features).frame())
    _, of_server = side.decide(True, WELCOME.frame())
    asks = client(keyed=False)
    _, of_client = asks.feed(WELCOME._replace(features=features, key_share=b"").frame())
    assert isinstance(of_server, Welcomed) and isinstance(of_client, Welcomed)
    assert of_server.takes_padding is of_client.takes_padding is takes


@pytest.mark.parametrize(("given", "expected"), [(0, framing.BULK), (1, framing.LIGHT), (2, framing.BULK), (255, 0)])
def test_an_unknown_traffic_class_is_bulk(given: int, expected: int) -> None:
    side = server()
    side.feed(HELLO._replace(traffic_class=given).frame())
    *_, welcomed = side.decide(True, WELCOME.frame())
    assert isinstance(welcomed, Welcomed) and welcomed.traffic_class == expected


def test_a_refused_client_is_told_the_reason() -> None:
    side = server()
    side.feed(HELLO.frame())
    assert side.decide(False, REFUSED.frame(), "full") == [
        Send(REFUSED.frame()),
        Failed(Cause.REFUSED, "refused: full"),
    ]


def test_a_client_that_has_proved_nothing_is_told_nothing() -> None:
    side = server()
    side.feed(HELLO.frame())
    assert side.decide(False, b"", "has not proved to be a peer") == [
        Failed(Cause.UNPROVED, "has not proved to be a peer")
    ]


def test_a_second_hello_behind_the_first_waits_with_the_rest_of_the_stream() -> None:
    side = server()
    (asked,) = side.feed(HELLO.frame() * 2)
    assert isinstance(asked, AskSupervisor)
    *_, welcomed = side.decide(True, WELCOME.frame())
    assert isinstance(welcomed, Welcomed) and welcomed.rest == HELLO.frame()


def test_a_proof_that_comes_with_the_hello_is_read_behind_the_challenge() -> None:
    outputs = server().feed(KEYED_HELLO.frame() + Proof(bytes(32)).frame())
    assert [type(output) for output in outputs] == [Send, AskSupervisor]


# -- the client's side


def test_a_challenged_client_sends_its_proof_and_is_welcomed() -> None:
    side = client()
    handshake = KEYED_HELLO.frame(), Challenge(NONCE).frame(), CERTIFICATE_HASH
    assert side.feed(Challenge(NONCE).frame()) == [AskProof(*handshake)]
    proof = auth.client_proof(KEY, transcript())
    assert side.prove(proof) == [Send(Proof(proof).frame())]
    assert side.feed(proved_welcome() + REST[:3]) == [AskVerdict(*handshake, proved_welcome())]
    assert side.feed(REST[3:]) == []
    assert side.judge("") == [Welcomed(0x2F, 1300, 5, 2, framing.LIGHT, True, REST)]
    assert side.state is State.WELCOMED


def test_while_a_client_waits_for_its_supervisor_no_message_is_read() -> None:
    side = client()
    (question,) = side.feed(Challenge(NONCE).frame() + REFUSED.frame())
    assert isinstance(question, AskProof) and side.awaits_supervisor
    assert side.feed(b"") == []
    assert [type(output) for output in side.prove(bytes(32))] == [Send, Failed]
    judged = challenged_client()
    (question,) = judged.feed(proved_welcome() + REFUSED.frame())
    assert isinstance(question, AskVerdict) and judged.awaits_supervisor
    (welcomed,) = judged.judge("")
    assert isinstance(welcomed, Welcomed) and welcomed.rest == REFUSED.frame()
    assert not judged.awaits_supervisor


def test_an_answer_that_nobody_has_asked_for_is_our_own_mistake() -> None:
    for make in CLIENTS.values():
        with pytest.raises(LocalError, match="a proof for a handshake that waits for "):
            make().prove(bytes(32))
        with pytest.raises(LocalError, match="a verdict on a handshake that waits for "):
            make().judge("")


def test_a_client_that_waits_for_its_supervisor_guesses_nothing_about_the_server() -> None:
    side = client()
    side.feed(Challenge(NONCE).frame())
    assert side.ended(Cause.CLOSED, "closed") == Failed(Cause.CLOSED, "closed")


def test_a_client_without_a_key_is_welcomed_without_a_proof() -> None:
    assert client(keyed=False).feed(WELCOME.frame() + REST) == [
        TellSupervisor(WELCOME.frame()),
        Welcomed(0x2F, 1300, 5, 2, framing.LIGHT, True, REST),
    ]


def test_without_tls_the_transcript_has_a_certificate_hash_of_zeros() -> None:
    side = ClientHandshake(KEYED_HELLO)
    side.begin(b"")
    assert side.feed(Challenge(NONCE).frame()) == [
        AskProof(KEYED_HELLO.frame(), Challenge(NONCE).frame(), NO_CERTIFICATE)
    ]


def test_a_client_sends_nothing_to_a_server_with_another_certificate() -> None:
    side = ClientHandshake(KEYED_HELLO, CERTIFICATE_HASH)
    (failed,) = side.begin(b"another one")
    assert isinstance(failed, Failed) and failed.cause is Cause.DISTRUSTED
    assert failed.reason.startswith(f"fingerprint of the server's certificate: expected {CERTIFICATE_HASH.hex()}")
    assert client(pin=CERTIFICATE_HASH).state is State.AWAIT_CHALLENGE


@pytest.mark.parametrize(
    "welcome",
    [
        WELCOME.frame(),
        proved_welcome(OTHER_KEY),
        proved_welcome(nonce=OTHER_NONCE),
        WELCOME._replace(mac=auth.client_proof(KEY, transcript())).frame(),
        framing.frame(framing.WELCOME, proved_welcome()[5:] + b"more"),
    ],
    ids=["no proof", "another key", "a replay", "our own proof", "bytes added"],
)
def test_a_client_with_a_key_trusts_no_welcome_without_the_servers_proof(welcome: bytes) -> None:
    side = challenged_client()
    assert answered(side.feed(welcome), side) == [Failed(Cause.DISTRUSTED, DISTRUST)]


def test_no_changed_byte_of_a_proved_welcome_is_trusted() -> None:
    frame = proved_welcome()
    for at in range(framing.LENGTH.size, len(frame)):
        changed = frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]
        side = challenged_client()
        failed = failure(answered(side.feed(changed), side))
        assert failed.cause in (Cause.DISTRUSTED, Cause.INVALID)


def test_a_client_with_a_key_trusts_no_welcome_without_a_challenge() -> None:
    reason = "the server welcomes every client and proves nothing: it has no keys"
    assert client().feed(WELCOME.frame()) == [Failed(Cause.DISTRUSTED, reason)]
    assert client().feed(proved_welcome()) == [Failed(Cause.DISTRUSTED, reason)]


def test_a_replayed_challenge_is_out_of_turn() -> None:
    assert failure(challenged_client().feed(Challenge(NONCE).frame())).cause is Cause.INVALID
    side = client()
    outputs = answered(side.feed(Challenge(NONCE).frame() * 2), side)
    assert [type(output) for output in outputs] == [Send, Failed]


@pytest.mark.parametrize("state", CLIENTS, ids=lambda state: state.name)
def test_a_refusal_ends_the_handshake_in_each_state(state: State) -> None:
    side = CLIENTS[state]()
    assert side.feed(REFUSED.frame()) == [Failed(Cause.REFUSED, f"refused by the server: {REFUSED.text}")]


# -- the end of the connection


def test_a_client_that_waits_for_its_welcome_says_what_a_closed_connection_may_mean() -> None:
    for state, make in CLIENTS.items():
        failed = make().ended(Cause.CLOSED, "closed by the peer")
        assert failed.cause is Cause.CLOSED and failed.reason.startswith("closed by the peer")
        assert ("does not know us" in failed.reason) == (state is not State.AWAIT_CHALLENGE)
    for make_server in SERVERS.values():
        assert make_server().ended(Cause.CLOSED, "closed by the peer") == Failed(Cause.CLOSED, "closed by the peer")


# -- compat


def test_compat_is_a_handshake_without_a_message() -> None:
    assert CompatHandshake(3, 1400).begin(b"") == [Welcomed(0, 1400, 1, 3, framing.BULK, False)]


def test_a_hub_of_the_original_program_asks_the_supervisor_for_an_index() -> None:
    admitted, refused = CompatHandshake(-1, 1400, asks=True), CompatHandshake(-1, 1400, asks=True)
    for side in (admitted, refused):
        assert side.begin(b"") == [AskSupervisor(b"", b"", b"", b"", NO_CERTIFICATE)]
        assert side.state is State.AWAIT_DECISION
    assert admitted.decide(True, b"") == [Welcomed(0, 1400, 1, -1, framing.BULK, False)]
    assert refused.decide(False, b"", "full") == [Failed(Cause.REFUSED, "refused: full")]
    with pytest.raises(LocalError):
        refused.decide(True, b"")


def test_with_compat_a_client_compares_the_certificate_with_its_pin() -> None:
    pin = hashlib.sha256(b"right").digest()
    assert CompatHandshake(0, 1400, pin).begin(b"right") == [Welcomed(0, 1400, 1, 0, framing.BULK, False)]
    for certificate in (b"wrong", b""):
        (failed,) = CompatHandshake(0, 1400, pin).begin(certificate)
        assert failed.cause is Cause.DISTRUSTED and "fingerprint of the server's certificate" in failed.reason


# -- calls out of turn are our own mistake


@pytest.mark.parametrize(
    "side",
    [
        ServerHandshake(True, NONCE),
        ClientHandshake(HELLO),
        CompatHandshake(0, 1400),
    ],
    ids=lambda side: type(side).__name__,
)
def test_bytes_before_the_beginning_are_our_own_mistake(
    side: ServerHandshake | ClientHandshake | CompatHandshake,
) -> None:
    with pytest.raises(LocalError, match="bytes for a handshake that is connecting"):
        side.feed(b"x")


def test_bytes_behind_the_end_are_our_own_mistake() -> None:
    welcomed, failed = client(keyed=False), client(keyed=False)
    welcomed.feed(WELCOME.frame())
    failed.feed(REFUSED.frame())
    for side, state in ((welcomed, "welcomed"), (failed, "failed")):
        with pytest.raises(LocalError, match=f"bytes for a handshake that is {state}"):
            side.feed(b"x")


def test_a_decision_that_nobody_has_asked_for_is_our_own_mistake() -> None:
    for make in SERVERS.values():
        with pytest.raises(LocalError, match="a decision about a handshake that waits for "):
            make().decide(True, WELCOME.frame())


# -- any pieces of the stream

STREAMS: dict[str, tuple[Callable[[], ServerHandshake | ClientHandshake], bytes]] = {
    "server, keyed": (server, KEYED_HELLO.frame() + Proof(b"m" * 32).frame() + REST),
    "server, no key": (server, HELLO.frame() + REST),
    "server, hello twice": (server, KEYED_HELLO.frame() * 2),
    "server, truncated magic": (server, KEYED_HELLO.frame()[:40]),
    "server, too long": (server, KEYED_HELLO.frame() + b"\xff" * 9),
    "client, keyed": (client, Challenge(NONCE).frame() + proved_welcome() + REST),
    "client, no key": (lambda: client(keyed=False), WELCOME.frame() + REST),
    "client, wrong proof": (client, Challenge(NONCE).frame() + proved_welcome(OTHER_KEY) + REST),
    "client, refused": (client, Challenge(NONCE).frame() + REFUSED.frame() + REST),
    "client, challenged twice": (client, Challenge(NONCE).frame() * 2),
}


def fed(side: ServerHandshake | ClientHandshake, pieces: Sequence[bytes]) -> tuple[list[Output], bytes, State]:
    """All outputs; the bytes behind the handshake; and the state. Pieces behind the end are not fed."""
    outputs: list[Output] = []
    rest = b""
    for piece in pieces:
        if side.state in (State.WELCOMED, State.FAILED):
            rest += piece
        else:
            found = side.feed(piece)
            outputs += answered(found, side) if isinstance(side, ClientHandshake) else found
    if side.state is State.AWAIT_DECISION:
        assert isinstance(side, ServerHandshake)
        outputs += side.decide(True, WELCOME.frame())
    if outputs and isinstance(outputs[-1], Welcomed):
        rest = outputs[-1].rest + rest
        outputs[-1] = outputs[-1]._replace(rest=b"")
    elif side.state is State.FAILED:
        rest = b""  # nothing is read behind a failure
    return outputs, rest, side.state


@pytest.mark.parametrize("name", STREAMS)
def test_bytes_one_by_one_cause_what_they_cause_at_once(name: str) -> None:
    make, stream = STREAMS[name]
    assert fed(make(), [bytes([byte]) for byte in stream]) == fed(make(), [stream])


@pytest.mark.parametrize("name", STREAMS)
def test_each_cut_in_two_causes_what_the_whole_stream_causes(name: str) -> None:
    make, stream = STREAMS[name]
    whole = fed(make(), [stream])
    for cut in range(len(stream) + 1):
        assert fed(make(), [stream[:cut], stream[cut:]]) == whole


@given(st.sampled_from(sorted(STREAMS)), st.data())
def test_any_pieces_cause_what_the_whole_stream_causes(name: str, data: st.DataObject) -> None:
    make, stream = STREAMS[name]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(stream)])]
    assert fed(make(), pieces) == fed(make(), [stream])


@pytest.mark.parametrize("name", [name for name in STREAMS if name.endswith(("key", "keyed"))])
def test_a_truncated_handshake_waits_without_a_failure(name: str) -> None:
    make, stream = STREAMS[name]
    for length in range(len(stream) - len(REST)):
        side = make()
        outputs = side.feed(stream[:length])
        if isinstance(side, ClientHandshake):
            outputs = answered(outputs, side)
        assert not any(isinstance(output, Welcomed | Failed | AskSupervisor) for output in outputs)
        assert side.state in SIDES


@given(st.sampled_from(sorted(SIDES, key=lambda state: state.name)), st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_wait_or_fail_and_little_is_kept(state: State, pieces: list[bytes]) -> None:
    side = SIDES[state]()
    for piece in pieces:
        outputs = side.feed(piece)
        if side.state is not state:
            assert failure(outputs).cause is Cause.INVALID
            return
        assert outputs == []


@given(
    st.sampled_from(sorted(SIDES, key=lambda state: state.name)),
    st.sampled_from(sorted(MESSAGES.values(), key=lambda message: type(message).__name__)),
    st.data(),
)
def test_a_message_with_changed_bytes_follows_the_table_or_fails(
    state: State, message: Message, data: st.DataObject
) -> None:
    frame = bytearray(message.frame())
    for at in data.draw(st.lists(st.integers(4, len(frame) - 1), max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    side = SIDES[state]()
    outputs = side.feed(bytes(frame))
    if isinstance(side, ClientHandshake) and state is State.AWAIT_PROVED_WELCOME:
        outputs = answered(outputs, side)
    reachable = {next_state for row in TABLE[state].values() for next_state in row} - {State.AWAIT_VERDICT}
    assert side.state in reachable | {State.FAILED}
    if state in (State.AWAIT_CHALLENGE, State.AWAIT_PROVED_WELCOME):
        assert side.state is not State.WELCOMED  # nothing here has the server's proof
    if side.state is State.FAILED:
        failure(outputs)


# -- both ends against each other


class Supervisor:
    """Decides by the key of one peer, as pipeline.peers does."""

    def __init__(self, key: bytes, refusal: Refused | None = None) -> None:
        self._key = key
        self._refusal = refusal

    def decide(self, side: ServerHandshake, question: AskSupervisor) -> list[Output]:
        if not question.challenge:
            return side.decide(True, WELCOME.frame())
        seen = auth.transcript(question.hello, question.challenge, question.certificate_hash)
        if not auth.client_proved(self._key, seen, question.proof):
            return side.decide(False, b"", "has not proved to be a peer")
        if self._refusal is not None:
            return side.decide(False, self._refusal.frame(), self._refusal.text)
        mac = auth.server_proof(self._key, seen, WELCOME.frame())
        return side.decide(True, WELCOME._replace(mac=mac).frame())


def shake_hands(
    left: ClientHandshake,
    right: ServerHandshake,
    supervisor: Supervisor,
    shown: bytes = CERTIFICATE,
    key: bytes = KEY,
) -> tuple[Output, Output]:
    """The last output of either side. `shown`: the server's certificate as the client sees it; `key`: the client's."""
    last: dict[handshake.Handshake, Output] = {}
    right.begin(b"")
    waiting: list[tuple[ClientHandshake | ServerHandshake, Output]] = [(left, output) for output in left.begin(shown)]
    while waiting:
        side, output = waiting.pop(0)
        last[side] = output
        other = right if side is left else left
        if isinstance(output, Send):
            waiting += [(other, each) for each in other.feed(output.data)]
        elif isinstance(output, AskSupervisor):
            waiting += [(right, each) for each in supervisor.decide(right, output)]
        elif isinstance(output, AskProof | AskVerdict):
            waiting += [(left, each) for each in ClientSupervisor(key).answer(left, output)]
    return last[left], last[right]


def test_two_ends_with_one_key_welcome_each_other() -> None:
    ends = shake_hands(ClientHandshake(KEYED_HELLO), ServerHandshake(True, NONCE, CERTIFICATE_HASH), Supervisor(KEY))
    assert ends == (
        Welcomed(0x2F, 1300, 5, 2, framing.LIGHT, True),
        Welcomed(0x13, 1400, 5, 2, framing.LIGHT, True),
    )


def test_two_ends_without_keys_welcome_each_other() -> None:
    ends = shake_hands(ClientHandshake(HELLO), ServerHandshake(True, NONCE, CERTIFICATE_HASH), Supervisor(KEY))
    assert [type(end) for end in ends] == [Welcomed, Welcomed]


def test_a_client_with_another_key_is_not_admitted_and_hears_nothing() -> None:
    left = ClientHandshake(KEYED_HELLO)
    last, failed = shake_hands(left, ServerHandshake(True, NONCE, CERTIFICATE_HASH), Supervisor(KEY), key=OTHER_KEY)
    assert isinstance(failed, Failed) and failed.cause is Cause.UNPROVED
    assert isinstance(last, Send) and left.state is State.AWAIT_PROVED_WELCOME


def test_a_man_in_the_middle_with_a_certificate_of_its_own_is_noticed_by_the_server() -> None:
    right = ServerHandshake(True, NONCE, CERTIFICATE_HASH)
    _, failed = shake_hands(ClientHandshake(KEYED_HELLO), right, Supervisor(KEY), b"another certificate")
    assert isinstance(failed, Failed) and failed.cause is Cause.UNPROVED


def test_a_refusal_reaches_a_client_that_has_proved_its_key() -> None:
    right = ServerHandshake(True, NONCE, CERTIFICATE_HASH)
    ends = shake_hands(ClientHandshake(KEYED_HELLO), right, Supervisor(KEY, REFUSED))
    assert ends == (
        Failed(Cause.REFUSED, f"refused by the server: {REFUSED.text}"),
        Failed(Cause.REFUSED, f"refused: {REFUSED.text}"),
    )


def test_a_server_without_keys_is_not_trusted_by_a_client_with_one() -> None:
    right = ServerHandshake(False, NONCE, CERTIFICATE_HASH)
    failed, welcomed = shake_hands(ClientHandshake(KEYED_HELLO), right, Supervisor(KEY))
    assert isinstance(failed, Failed) and failed.cause is Cause.DISTRUSTED
    assert isinstance(welcomed, Welcomed)


# -- against the reference, which is written from docs/wire.md


def test_the_reference_client_is_welcomed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    side = server()
    with (
        theirs,
        WireClient(
            ours,
            key=KEY,
            index=1,
            connections=3,
            requested_addresses=["10.0.0.2"],
            runs=Runs(),
            uplink=(1, True, "wwan0"),
        ) as reference,
    ):
        reference.certificate_hash = CERTIFICATE_HASH
        reference.send_hello()
        (challenge,) = side.feed(theirs.recv(4096))
        assert isinstance(challenge, Send)
        theirs.sendall(challenge.data)
        reference.receive_challenge()
        reference.send_proof(reference.proof())
        (question,) = side.feed(theirs.recv(4096))
        assert isinstance(question, AskSupervisor)
        welcome, welcomed = Supervisor(KEY).decide(side, question)
        assert isinstance(welcome, Send)
        assert welcomed == Welcomed(0, 1400, 3, 1, framing.BULK, True, uplink=Uplink(1, "wwan0", True))
        theirs.sendall(welcome.data)
        assert reference.receive_welcome().addresses == WELCOME.addresses


def test_a_client_sends_the_bytes_of_the_document_and_trusts_its_welcome() -> None:
    example = named_example()
    hello = messages.decode(example["hello"])
    assert isinstance(hello, Hello)
    side = ClientHandshake(hello)
    side._hello_frame, side._certificate_hash = example["hello"], example["certificate hash"]  # of no certificate
    side.state = State.AWAIT_CHALLENGE
    supervisor = ClientSupervisor(example["key"])
    (question,) = side.feed(example["challenge"])
    assert isinstance(question, AskProof)
    assert supervisor.answer(side, question) == [Send(example["proof"])]
    (question,) = side.feed(example["welcome"] + REST)
    assert isinstance(question, AskVerdict)
    (welcomed,) = supervisor.answer(side, question)
    assert isinstance(welcomed, Welcomed) and welcomed.rest == REST


def test_a_server_asks_about_the_proof_of_the_document() -> None:
    example = named_example()
    side = ServerHandshake(True, example["server's nonce"], example["certificate hash"])
    side.begin(b"")
    assert side.feed(example["hello"]) == [Send(example["challenge"])]
    (question,) = side.feed(example["proof"])
    assert isinstance(question, AskSupervisor) and question.hello == example["hello"]
    seen = auth.transcript(question.hello, question.challenge, question.certificate_hash)
    assert seen == example["transcript"] and auth.client_proved(example["key"], seen, question.proof)


# -- a server that hides

BINDING = b"f" * 48


def hiding() -> ServerHandshake:
    side = ServerHandshake(True, NONCE, CERTIFICATE_HASH, hides=True)
    assert side.begin(b"", BINDING) == []
    return side


def knocking_hello() -> Hello:
    keyed = HELLO._replace(auth=messages.AUTH_KEY, key_id=auth.key_id(KEY))
    return keyed._replace(knock=auth.knock(auth.knock_key(KEY), keyed.nonce, BINDING))


def test_a_hello_with_a_knock_is_asked_about_before_it_gets_an_answer() -> None:
    side, frame = hiding(), knocking_hello().frame()
    assert side.feed(frame) == [handshake.AskKnock(frame, BINDING)]
    assert side.awaits_supervisor and side.unanswered == frame
    assert side.judge_knock(True) == [Send(Challenge(NONCE).frame())]
    assert side.unanswered is None and side.state is State.AWAIT_PROOF


def test_a_wrong_knock_fails_and_leaves_all_bytes_to_the_fallback() -> None:
    side, data = hiding(), knocking_hello().frame() + b"and more"
    side.feed(data)
    assert failure(side.judge_knock(False)).cause is Cause.UNPROVED
    assert side.unanswered == data


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0",
        b"\0\0\0\x82",
        HELLO.frame(),
        HELLO._replace(auth=messages.AUTH_KEY).frame(),
        knocking_hello().frame()[:-1],
        knocking_hello()._replace(auth=messages.AUTH_NONE).frame(),
        Proof(bytes(32)).frame(),
        framing.KEEPALIVE_FRAME,
        bytes(4),
    ],
)
def test_any_other_first_bytes_fail_at_once_and_are_the_fallbacks(data: bytes) -> None:
    side = hiding()
    assert failure(side.feed(data)).cause in (Cause.INVALID, Cause.UNPROVED)
    assert side.unanswered == data


def test_without_a_binding_no_knock_is_right() -> None:
    side = ServerHandshake(True, NONCE, hides=True)
    side.begin(b"")
    assert failure(side.feed(knocking_hello().frame())).cause is Cause.UNPROVED


def test_a_client_with_a_key_knocks_on_each_connection_in_tls() -> None:
    made = HELLO._replace(auth=messages.AUTH_KEY, key_id=auth.key_id(KEY))
    for binding, knock in ((BINDING, knocking_hello().knock), (b"", b"")):
        (sent,) = ClientHandshake(made, knock_key=auth.knock_key(KEY)).begin(CERTIFICATE, binding)
        assert isinstance(sent, Send)
        assert messages.decode(sent.data) == made._replace(knock=knock)


def test_a_client_that_a_web_server_answers_says_so() -> None:
    side = client()
    side.begin(CERTIFICATE)
    assert "a web server has answered" in failure(side.feed(b"HTTP/1.1 400 Bad Request\r\n")).reason


def test_a_verdict_on_a_knock_that_nobody_has_asked_for_is_our_own_mistake() -> None:
    with pytest.raises(LocalError):
        hiding().judge_knock(True)
