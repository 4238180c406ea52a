"""The handshake of a tcp worker's connections: how bytes, the supervisor's decisions and errors of sockets become
outcomes, on socket pairs and without TLS."""

from __future__ import annotations

import errno
import json
import logging
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface

import pytest

from pipeline.errors import LocalError
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import Admitted, NotAdmitted, OwnProof, SupervisorChannel, Verdict
from pipeline.transport import failure_words
from pipeline.transport.connection import HANDSHAKE, Connection
from pipeline.wire import auth, framing, messages
from pipeline.wire.handshake import NO_CERTIFICATE, AskProof, AskSupervisor, AskVerdict, Cause, Failed, Welcomed
from pipeline.wire.messages import Challenge, Hello, Proof, Refused, Welcome
from tests.harness.settings import WORKER_SETTINGS
from workers.tcp.handshake import ClientHandshaker, Outcome, ServerHandshaker

KEY = bytes(range(32))
SERIAL = 7
HELLO = Hello(1, 0x13, 2, 5, 1300, 7, 9, framing.LIGHT, messages.ACCEPTS_SHARDS)
KEYED_HELLO = HELLO._replace(auth=messages.AUTH_KEY, key_id=auth.key_id(KEY), nonce=b"n" * 32)
WELCOME = Welcome(1, 0x2F, 1200, messages.ACCEPTS_SHARDS, addresses=(ip_interface("10.0.0.2/24"),))
KEYED = WORKER_SETTINGS._replace(key_id=auth.key_id(KEY).hex())
BIG = 1 << 20
SECONDS = 5.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() resets


class Ends:
    """A connection with its handshaker, the other end of its socket, and the supervisor's end of the channel."""

    def __init__(self, stack: ExitStack) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.far = stack.enter_context(socket.create_connection(listener.getsockname()))
            near, _ = listener.accept()
        stack.enter_context(near).setblocking(False)
        self.far.settimeout(SECONDS)
        self.connection = Connection(near, ("192.0.2.1", 9000), HANDSHAKE, SERIAL, 0)
        self.supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(self.supervisor).setblocking(False)
        self.channel = SupervisorChannel(worker.detach())
        stack.enter_context(self.channel.socket)

    def server(self, settings: WorkerSettings = WORKER_SETTINGS) -> ServerHandshaker:
        return ServerHandshaker(settings, self.channel, lane=3)

    def client(self, settings: WorkerSettings = WORKER_SETTINGS, index: int = 0) -> ClientHandshaker:
        self.connection.dial_index = index
        return ClientHandshaker(settings, self.channel)

    def asked(self) -> dict[str, object]:
        found = json.loads(self.supervisor.recv(BIG))
        assert isinstance(found, dict)
        return found

    def step(self, side: ServerHandshaker | ClientHandshaker, data: bytes) -> Outcome:
        """The other end sends these bytes; the step is made when they have arrived."""
        self.far.sendall(data)
        if data:
            self.wait()
        return side.step(self.connection)

    def wait(self) -> None:
        """Wait for bytes or the end of the stream."""
        assert select.select([self.connection.socket], [], [], SECONDS)[0]

    def ask(self, side: ServerHandshaker) -> None:
        """A client without a key has said its HELLO."""
        assert side.begin(self.connection) is None
        assert isinstance(self.step(side, HELLO.frame()), AskSupervisor)


def fill_the_channel(ends: Ends) -> None:
    while ends.channel.ask(
        {"serial": 1, "hello": "", "challenge": "", "hash": "", "welcome": "00" * 1000, "server": ""}
    ):
        pass


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


# -- the server's side


def test_a_server_waits_for_bytes_and_asks_the_supervisor_once(ends: Ends) -> None:
    side = ends.server()
    assert side.begin(ends.connection) is None
    assert side.step(ends.connection) is None
    assert ends.step(side, HELLO.frame()[:30]) is None
    assert isinstance(ends.step(side, HELLO.frame()[30:]), AskSupervisor)
    assert ends.asked() == {
        "lane": 3,
        "serial": SERIAL,
        "hello": HELLO.frame().hex(),
        "challenge": "",
        "proof": "",
        "certificate": "",
        "hash": NO_CERTIFICATE.hex(),
        "address": "192.0.2.1",
    }
    assert ends.step(side, b"read later") is None  # nothing is read until the supervisor has decided
    with pytest.raises(BlockingIOError):
        ends.asked()


def test_a_server_with_keys_challenges_a_client_that_names_one(ends: Ends) -> None:
    side = ends.server(WORKER_SETTINGS._replace(verifies_keys=True))
    side.begin(ends.connection)
    assert ends.step(side, KEYED_HELLO.frame()) is None
    challenge = ends.far.recv(BIG)
    assert isinstance(messages.decode(challenge), Challenge)
    assert isinstance(ends.step(side, Proof(b"m" * 32).frame()), AskSupervisor)
    asked = ends.asked()
    assert (asked["challenge"], asked["proof"]) == (challenge.hex(), (b"m" * 32).hex())


def test_two_connections_get_two_nonces() -> None:
    challenges = set()
    for _ in range(2):
        with ExitStack() as stack:
            ends = Ends(stack)
            side = ends.server(WORKER_SETTINGS._replace(verifies_keys=True))
            side.begin(ends.connection)
            ends.step(side, KEYED_HELLO.frame())
            challenges.add(ends.far.recv(BIG))
    assert len(challenges) == 2


def test_an_admitted_client_is_welcomed_and_the_connection_knows_what_it_has_said(ends: Ends) -> None:
    side = ends.server()
    ends.ask(side)
    outcome = side.answered(
        ends.connection, Admitted(serial=SERIAL, frame=WELCOME.frame().hex(), peer_handle=0x4003, name="ann")
    )
    assert outcome == Welcomed(0x13, 1300, 5, 2, framing.LIGHT, True)
    assert ends.far.recv(BIG) == WELCOME.frame()
    connection = ends.connection
    assert (connection.peer_handle, connection.dial_index, connection.offloads) == (0x4003, 2, 0x13)
    assert (connection.traffic_class, connection.accepts_shards) == (framing.LIGHT, True)


def test_bytes_that_came_with_the_hello_begin_the_stream(ends: Ends) -> None:
    side = ends.server()
    side.begin(ends.connection)
    ends.step(side, HELLO.frame() + framing.KEEPALIVE_FRAME)
    outcome = side.answered(
        ends.connection, Admitted(serial=SERIAL, frame=WELCOME.frame().hex(), peer_handle=1, name="ann")
    )
    assert isinstance(outcome, Welcomed) and outcome.rest == framing.KEEPALIVE_FRAME


def test_a_refused_client_is_told_why_and_nothing_is_known_of_it(ends: Ends) -> None:
    side = ends.server()
    ends.ask(side)
    frame = Refused(messages.FULL, "full").frame()
    outcome = side.answered(ends.connection, NotAdmitted(serial=SERIAL, frame=frame.hex(), reason="full", name="ann"))
    assert outcome == Failed(Cause.REFUSED, "refused: full")
    assert ends.far.recv(BIG) == frame
    assert ends.connection.peer_handle == 0


def test_a_client_that_has_proved_nothing_is_sent_nothing(ends: Ends) -> None:
    side = ends.server()
    ends.ask(side)
    outcome = side.answered(ends.connection, NotAdmitted(serial=SERIAL, frame="", reason="unknown", name="ann"))
    assert outcome == Failed(Cause.UNPROVED, "unknown")
    ends.connection.socket.close()
    assert ends.far.recv(BIG) == b""


def test_an_invalid_message_is_answered_with_nothing(ends: Ends) -> None:
    side = ends.server()
    side.begin(ends.connection)
    outcome = ends.step(side, b"GET / HTTP/1.1\r\n\r\n")
    assert outcome == Failed(Cause.INVALID, "handshake message of 1195725856 bytes, at most 512 allowed")
    ends.connection.socket.close()
    assert ends.far.recv(BIG) == b""


def test_of_a_client_that_sends_much_no_more_is_read_than_a_message_may_have(ends: Ends) -> None:
    side = ends.server()
    side.begin(ends.connection)
    ends.step(side, HELLO.frame() + bytes(50 * framing.HELLO_LENGTH_LIMIT))
    outcome = side.answered(
        ends.connection, Admitted(serial=SERIAL, frame=WELCOME.frame().hex(), peer_handle=1, name="ann")
    )
    assert isinstance(outcome, Welcomed) and len(outcome.rest) < framing.HELLO_LENGTH_LIMIT


@pytest.mark.parametrize("arrived", [b"", HELLO.frame()[:3], HELLO.frame()[:-1]], ids=len)
def test_a_closed_connection_and_a_reset_one_are_told_apart(arrived: bytes) -> None:
    for reset in (False, True):
        with ExitStack() as stack:
            ends = Ends(stack)
            side = ends.server()
            side.begin(ends.connection)
            assert ends.step(side, arrived) is None
            if reset:
                ends.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            ends.far.close()
            ends.wait()
            outcome = side.step(ends.connection)
            reason = failure_words.of_errno(errno.ECONNRESET)
            expected = (Cause.BROKEN, reason) if reset else (Cause.CLOSED, "closed by the peer")
            assert outcome == Failed(*expected)


def test_a_client_that_has_gone_while_the_supervisor_decided_is_not_counted_as_refused(ends: Ends) -> None:
    side = ends.server()
    ends.ask(side)
    ends.connection.socket.shutdown(socket.SHUT_RDWR)
    outcome = side.answered(
        ends.connection, Admitted(serial=SERIAL, frame=WELCOME.frame().hex(), peer_handle=1, name="ann")
    )
    assert isinstance(outcome, Failed) and outcome.cause is Cause.CLOSED
    assert ends.connection.peer_handle == 0


def test_a_question_for_which_the_supervisor_has_no_time_ends_the_connection_at_once(ends: Ends) -> None:
    fill_the_channel(ends)
    side = ends.server()
    side.begin(ends.connection)
    outcome = ends.step(side, HELLO.frame())
    assert outcome == Failed(Cause.CLOSED, "the supervisor answers nothing: too many requests wait for it")


def test_a_client_that_resets_its_connection_does_not_wait_for_the_supervisor(ends: Ends) -> None:
    """epoll would report that for as long as the supervisor takes."""
    side = ends.server()
    ends.ask(side)
    assert side.step(ends.connection) is None
    ends.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ends.far.close()
    ends.wait()
    assert side.step(ends.connection) == Failed(Cause.CLOSED, "Connection reset by peer")


def test_a_decision_for_a_connection_that_has_not_asked_is_our_own_mistake(ends: Ends) -> None:
    decision = NotAdmitted(serial=SERIAL, frame="", reason="", name="ann")
    with pytest.raises(LocalError, match="no handshake has begun"):
        ends.server().answered(ends.connection, decision)
    side = ends.client()
    side.begin(ends.connection)
    with pytest.raises(LocalError, match="which was not asked"):
        side.answered(ends.connection, decision)


def test_an_answer_for_the_other_side_is_our_own_mistake(ends: Ends) -> None:
    answers = (OwnProof(serial=SERIAL, proof="", refusal=""), Verdict(serial=SERIAL, distrust=""))
    server = ends.server()
    ends.ask(server)
    for answer in answers:
        with pytest.raises(LocalError, match="which was not asked"):
            server.answered(ends.connection, answer)
    client = ends.client(KEYED)
    client.begin(ends.connection)
    for answer in answers:
        with pytest.raises(LocalError, match="a handshake that waits for"):
            client.answered(ends.connection, answer)


# -- the client's side


def test_a_client_speaks_first_and_says_what_its_settings_say(ends: Ends) -> None:
    settings = WORKER_SETTINGS._replace(
        connections=2, client_id=11, session=12, offloads_accepted=0x13, fec="on", requested_addresses=["10.0.0.2"]
    )
    assert ends.client(settings, index=2).begin(ends.connection) is None
    hello = messages.decode(ends.far.recv(BIG))
    assert isinstance(hello, Hello)
    features = messages.ACCEPTS_SHARDS | messages.ANSWERS | messages.TAKES_PADDING
    assert hello[:9] == (messages.VERSION, 0x13, 2, 2, 1400, 11, 12, framing.LIGHT, features)
    assert (hello.auth, hello.key_id) == (messages.AUTH_NONE, bytes(8))
    assert [str(address) for address in hello.requested_addresses] == ["10.0.0.2"]
    assert ends.connection.traffic_class == framing.LIGHT


def test_the_hello_has_the_key_share_of_the_latest_settings(ends: Ends) -> None:
    """The supervisor forgets the private value of the one before after a minute, and no connection could be made."""
    side = ends.client(WORKER_SETTINGS._replace(key_share="01" * 33))
    side.renew(WORKER_SETTINGS._replace(key_share="02" * 33))
    side.begin(ends.connection)
    hello = messages.decode(ends.far.recv(BIG))
    assert isinstance(hello, Hello) and hello.key_share == b"\2" * 33


def test_a_visit_to_another_server_has_a_session_number_of_its_own(ends: Ends) -> None:
    ends.client().begin(ends.connection, 77, "b")
    hello = messages.decode(ends.far.recv(BIG))
    assert isinstance(hello, Hello) and hello.session == 77


@pytest.mark.parametrize(("index", "expected"), [(0, framing.BULK), (1, framing.BULK), (2, framing.LIGHT)])
def test_the_connections_behind_the_bulk_ones_are_light(ends: Ends, index: int, expected: int) -> None:
    ends.client(WORKER_SETTINGS._replace(connections=2), index).begin(ends.connection)
    hello = messages.decode(ends.far.recv(BIG))
    assert isinstance(hello, Hello) and hello.traffic_class == expected


def test_a_welcome_is_passed_on_to_the_supervisor(ends: Ends) -> None:
    side = ends.client(index=3)
    side.begin(ends.connection)
    outcome = ends.step(side, WELCOME.frame() + framing.KEEPALIVE_FRAME)
    assert outcome == Welcomed(0x2F, 1200, 1, 3, framing.LIGHT, True, framing.KEEPALIVE_FRAME)
    assert ends.asked() == {
        "serial": SERIAL,
        "hello": "",
        "challenge": "",
        "hash": "",
        "welcome": WELCOME.frame().hex(),
        "server": "192.0.2.1",
    }
    assert (ends.connection.offloads, ends.connection.accepts_shards) == (0x2F, True)


def challenged(ends: Ends) -> tuple[ClientHandshaker, dict[str, object]]:
    """A client with a key that has got a CHALLENGE, and what the supervisor was asked."""
    side = ends.client(KEYED)
    side.begin(ends.connection)
    hello, challenge = ends.far.recv(BIG), Challenge(b"c" * 32).frame()
    assert isinstance(ends.step(side, challenge), AskProof)
    asked = ends.asked()
    assert asked == {
        "serial": SERIAL,
        "hello": hello.hex(),
        "challenge": challenge.hex(),
        "hash": NO_CERTIFICATE.hex(),
    }
    return side, asked


def proved(ends: Ends) -> tuple[ClientHandshaker, dict[str, object]]:
    """A client whose PROOF is sent."""
    side, asked = challenged(ends)
    assert side.answered(ends.connection, OwnProof(serial=SERIAL, proof="ab" * 32, refusal="")) is None
    assert ends.far.recv(BIG) == Proof(b"\xab" * 32).frame()
    return side, asked


def test_a_client_with_a_key_asks_the_supervisor_for_its_proof_and_for_a_verdict(ends: Ends) -> None:
    side, handshake = proved(ends)
    assert isinstance(ends.step(side, WELCOME.frame() + framing.KEEPALIVE_FRAME), AskVerdict)
    assert ends.asked() == {**handshake, "welcome": WELCOME.frame().hex(), "server": "192.0.2.1"}
    outcome = side.answered(ends.connection, Verdict(serial=SERIAL, distrust=""))
    assert outcome == Welcomed(0x2F, 1200, 1, 0, framing.BULK, True, framing.KEEPALIVE_FRAME)
    assert (ends.connection.offloads, ends.connection.accepts_shards) == (0x2F, True)


def test_a_client_trusts_no_server_that_its_supervisor_distrusts(ends: Ends) -> None:
    side, _ = proved(ends)
    ends.step(side, WELCOME.frame())
    outcome = side.answered(ends.connection, Verdict(serial=SERIAL, distrust="another's"))
    assert outcome == Failed(Cause.DISTRUSTED, "another's")


def test_a_client_that_gets_no_proof_from_its_supervisor_sends_none(ends: Ends) -> None:
    side, _ = challenged(ends)
    outcome = side.answered(ends.connection, OwnProof(serial=SERIAL, proof="", refusal="too many"))
    assert outcome == Failed(Cause.CLOSED, "too many")
    ends.connection.socket.close()
    assert ends.far.recv(BIG) == b""


def test_a_client_reads_nothing_while_it_waits_for_its_supervisor_and_all_of_it_afterwards(ends: Ends) -> None:
    side, _ = challenged(ends)
    assert ends.step(side, Refused(messages.FULL, "full").frame()) is None
    with pytest.raises(BlockingIOError):
        ends.asked()
    outcome = side.answered(ends.connection, OwnProof(serial=SERIAL, proof="ab" * 32, refusal=""))
    assert outcome == Failed(Cause.REFUSED, "refused by the server: full")


def test_a_server_that_goes_while_the_supervisor_is_asked_ends_the_connection(ends: Ends) -> None:
    side, _ = challenged(ends)
    ends.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ends.far.close()
    ends.wait()
    assert side.step(ends.connection) == Failed(Cause.CLOSED, "Connection reset by peer")


def test_a_proof_that_the_server_does_not_wait_for_is_no_exception(ends: Ends) -> None:
    side, _ = challenged(ends)
    ends.far.close()
    ends.wait()
    outcome = side.answered(ends.connection, OwnProof(serial=SERIAL, proof="ab" * 32, refusal=""))
    assert isinstance(outcome, Failed) and outcome.cause in (Cause.CLOSED, Cause.BROKEN)


def test_a_challenge_for_which_the_supervisor_has_no_time_ends_the_connection_at_once(ends: Ends) -> None:
    fill_the_channel(ends)
    side = ends.client(KEYED)
    side.begin(ends.connection)
    outcome = ends.step(side, Challenge(b"c" * 32).frame())
    assert outcome == Failed(Cause.CLOSED, "the supervisor answers nothing: too many requests wait for it")


def test_a_reload_gives_the_next_connection_the_id_of_the_new_key(ends: Ends) -> None:
    side = ends.client(KEYED)
    other = bytes(range(1, 33))
    side.renew(KEYED._replace(key_id=auth.key_id(other).hex()))
    side.begin(ends.connection)
    hello = messages.decode(ends.far.recv(BIG))
    assert isinstance(hello, Hello) and hello.key_id == auth.key_id(other)


def test_a_welcome_that_the_supervisor_has_no_room_for_is_logged(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    side = ends.client()
    side.begin(ends.connection)
    fill_the_channel(ends)
    with caplog.at_level(logging.WARNING):
        assert isinstance(ends.step(side, WELCOME.frame()), Welcomed)
    assert "addresses and routes from the server were not applied" in caplog.text


def test_a_server_that_closes_instead_of_a_welcome_is_guessed_about(ends: Ends) -> None:
    side = ends.client()
    side.begin(ends.connection)
    ends.far.close()  # it has not read the HELLO: that is a reset
    ends.wait()
    outcome = side.step(ends.connection)
    assert isinstance(outcome, Failed) and outcome.cause is Cause.BROKEN
    assert outcome.reason.startswith(failure_words.of_errno(errno.ECONNRESET) + ": the server does not say why")


def test_the_text_of_a_refusal_is_escaped_for_the_log(ends: Ends) -> None:
    side = ends.client()
    side.begin(ends.connection)
    outcome = ends.step(side, Refused(messages.FULL, "full\x1b[2J").frame())
    assert outcome == Failed(Cause.REFUSED, "refused by the server: full\\x1b[2J")


# -- compat


def test_with_compat_both_ends_are_welcomed_at_once_and_nothing_is_sent(ends: Ends) -> None:
    settings = WORKER_SETTINGS._replace(compat=True)
    assert ends.server(settings).begin(ends.connection) == Welcomed(0, 1400, 1, -1, framing.BULK, False)
    assert ends.client(settings, 0).begin(ends.connection) == Welcomed(0, 1400, 1, 0, framing.BULK, False)
    ends.connection.socket.close()
    assert ends.far.recv(BIG) == b""
