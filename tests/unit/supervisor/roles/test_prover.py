"""The client's proofs: which handshakes the supervisor proves, and what a tcp worker that was taken over gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PeerError
from pipeline.runtime.client_hello import client_hello
from pipeline.runtime.supervisor_channel import OwnProof, ProofRequest, WelcomeReport
from pipeline.supervisor.roles.prover import (
    FOREIGN,
    FOREIGN_CERTIFICATE,
    OLD_KEY,
    PROOFS_AT_ONCE,
    PROOFS_PER_S,
    QUIET_NS,
    TOO_MANY,
    UNPROVED,
    Prover,
)
from pipeline.transport.settings import TlsMaterial
from pipeline.wire import auth, framing
from pipeline.wire.messages import AUTH_NONE, WELCOME_MAC_AT, Challenge, Hello, Proof, Refused, Welcome
from pipeline.wire.uplink import Uplink
from tests.harness.settings import WORKER_SETTINGS

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
PIN = b"p" * 32
SECOND = 1_000_000_000
NOW = 1000 * SECOND
SETTINGS = WORKER_SETTINGS._replace(
    tls=TlsMaterial("", "", "", "1.3", PIN.hex()),
    key_id=auth.key_id(KEY).hex(),
    connections=2,
    light_connections=1,
    client_id=11,
    session=12,
    offloads_accepted=0x13,
    requested_addresses=["10.0.0.2"],
)
HELLO = client_hello(SETTINGS, auth.key_id(KEY), 1, b"n" * 32)
CHALLENGE = Challenge(b"c" * 32).frame()
WELCOME = Welcome(1, 0x2F, 1200, 0).frame()
TRANSCRIPT = auth.transcript(HELLO.frame(), CHALLENGE, PIN)


def prover(**changed: Any) -> Prover:
    return Prover(KEY, SETTINGS._replace(**changed))


def asked(hello: bytes = HELLO.frame(), challenge: bytes = CHALLENGE, found: bytes = PIN) -> ProofRequest:
    return {"serial": 7, "hello": hello.hex(), "challenge": challenge.hex(), "hash": found.hex()}


def reported(welcome: bytes, **changed: bytes) -> WelcomeReport:
    return {**asked(**changed), "welcome": welcome.hex(), "server": "192.0.2.1"}


def sealed(welcome: bytes, mac: bytes) -> bytes:
    return welcome[:WELCOME_MAC_AT] + mac + welcome[WELCOME_MAC_AT + len(mac) :]


def refusal(answer: OwnProof) -> str:
    assert (answer["proof"] == "") == bool(answer["refusal"])
    return answer["refusal"]


# -- an honest worker


def test_a_challenge_is_answered_with_the_proof_of_the_document() -> None:
    assert prover().prove(asked(), NOW) == {
        "serial": 7,
        "proof": auth.client_proof(KEY, TRANSCRIPT).hex(),
        "refusal": "",
    }


def test_each_connection_of_the_client_gets_its_proof() -> None:
    proofs = {
        prover().prove(asked(client_hello(SETTINGS, auth.key_id(KEY), index, b"n" * 32).frame()), NOW)["proof"]
        for index in range(3)
    }
    assert len(proofs) == 3 and "" not in proofs


def test_a_hello_names_the_uplink_of_its_slot_and_no_other_one_is_proved() -> None:
    uplinks = (Uplink(0, "eth0", False), Uplink(1, "wwan0", True))
    settings = SETTINGS._replace(uplinks=uplinks)
    hello = client_hello(settings, auth.key_id(KEY), 1, b"n" * 32)
    assert hello.uplink == uplinks[1]
    assert refusal(prover(uplinks=uplinks).prove(asked(hello.frame()), NOW)) == ""
    for other in (None, uplinks[0]):
        assert refusal(prover(uplinks=uplinks).prove(asked(hello._replace(uplink=other).frame()), NOW)) == FOREIGN


def test_a_challenge_with_bytes_of_a_later_version_is_answered() -> None:
    later = framing.frame(framing.CHALLENGE, b"c" * 32 + b"later")
    proof = auth.client_proof(KEY, auth.transcript(HELLO.frame(), later, PIN))
    assert prover().prove(asked(challenge=later), NOW)["proof"] == proof.hex()


def test_without_a_pin_any_certificate_may_be_shown() -> None:
    free = prover(tls=SETTINGS.tls._replace(fingerprint=""))
    assert refusal(free.prove(asked(found=b"q" * 32), NOW)) == ""


def test_a_server_that_has_the_key_is_trusted() -> None:
    true = sealed(WELCOME, auth.server_proof(KEY, TRANSCRIPT, WELCOME))
    assert prover().judge(reported(true), NOW) == {"serial": 7, "distrust": ""}


# -- a server that has not our key


@pytest.mark.parametrize(
    "welcome",
    [
        WELCOME,
        sealed(WELCOME, auth.server_proof(OTHER_KEY, TRANSCRIPT, WELCOME)),
        sealed(WELCOME, auth.client_proof(KEY, TRANSCRIPT)),
        sealed(Welcome(1, 0x2F, 1300, 0).frame(), auth.server_proof(KEY, TRANSCRIPT, WELCOME)),
        b"",
        Refused(1, "no").frame(),
    ],
    ids=["no proof", "another key", "our own proof", "another welcome", "nothing", "a refusal"],
)
def test_a_server_without_the_key_is_not_trusted(welcome: bytes) -> None:
    assert prover().judge(reported(welcome), NOW)["distrust"] == UNPROVED


# -- a worker that was taken over

FOREIGN_HELLOS: dict[str, Callable[[Hello], Hello]] = {
    "a session that shuts out the next ones": lambda hello: hello._replace(session=(1 << 64) - 2),
    "another client": lambda hello: hello._replace(client_id=1),
    "other addresses": lambda hello: hello._replace(requested_addresses=(ip_address("10.0.0.9"),)),
    "other offloads": lambda hello: hello._replace(offloads=0),
    "another count of connections": lambda hello: hello._replace(connections=40),
    "a connection that there is none": lambda hello: hello._replace(connection_index=3),
    "another traffic class": lambda hello: hello._replace(traffic_class=framing.LIGHT),
    "another version": lambda hello: hello._replace(version=3),
    "no key": lambda hello: hello._replace(auth=AUTH_NONE),
}


@pytest.mark.parametrize("change", FOREIGN_HELLOS.values(), ids=FOREIGN_HELLOS.keys())
def test_no_handshake_of_another_kind_is_proved_or_judged(change: Callable[[Hello], Hello]) -> None:
    foreign = change(HELLO).frame()
    assert refusal(prover().prove(asked(foreign), NOW)) == FOREIGN
    true = sealed(WELCOME, auth.server_proof(KEY, auth.transcript(foreign, CHALLENGE, PIN), WELCOME))
    assert prover().judge(reported(true, hello=foreign), NOW)["distrust"] == FOREIGN


def test_a_hello_with_more_bytes_than_ours_is_not_proved() -> None:
    assert refusal(prover().prove(asked(framing.frame(framing.HELLO, HELLO.frame()[5:] + b"more")), NOW)) == FOREIGN


def test_no_handshake_with_another_certificate_than_the_pinned_one_is_proved() -> None:
    for found in (b"q" * 32, bytes(32), b""):
        assert refusal(prover().prove(asked(found=found), NOW)) == FOREIGN_CERTIFICATE


def test_a_key_that_a_reload_has_replaced_proves_nothing_more() -> None:
    replaced = Prover(OTHER_KEY, SETTINGS._replace(key_id=auth.key_id(OTHER_KEY).hex()))
    assert refusal(replaced.prove(asked(), NOW)) == OLD_KEY
    true = sealed(WELCOME, auth.server_proof(KEY, TRANSCRIPT, WELCOME))
    assert replaced.judge(reported(true), NOW)["distrust"] == OLD_KEY


@pytest.mark.parametrize("what", [WELCOME, CHALLENGE, Proof(bytes(32)).frame(), framing.KEEPALIVE_FRAME, b"", b"text"])
def test_nothing_but_a_hello_and_a_challenge_is_hashed(what: bytes) -> None:
    for request in (asked(hello=what), *([asked(challenge=what)] if what != CHALLENGE else [])):
        with pytest.raises(PeerError):
            prover().prove(request, NOW)


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=40))
def test_whatever_a_worker_sends_it_never_gets_the_proof_of_a_server(
    hello: bytes, challenge: bytes, found: bytes
) -> None:
    """No input of the client's proof is one of the server's: the labels differ, in length the inputs too."""
    made = prover(tls=SETTINGS.tls._replace(fingerprint=""))
    try:
        answer = made.prove(asked(hello, challenge, found), NOW)
    except Exception as error:
        assert isinstance(error, PeerError), error
    else:
        assert answer["refusal"]


def test_a_worker_gets_a_yes_or_a_no_about_a_welcome_and_no_mac() -> None:
    answers = [prover().judge(reported(sealed(WELCOME, bytes([guess]) * 32)), NOW) for guess in range(4)]
    assert answers == [{"serial": 7, "distrust": UNPROVED}] * 4


def test_proofs_are_made_at_a_rate_that_no_client_reaches() -> None:
    one = prover()
    made = [refusal(one.prove(asked(), NOW)) for _ in range(PROOFS_AT_ONCE + 50)]
    assert made.count("") in (PROOFS_AT_ONCE, PROOFS_AT_ONCE + 1) and set(made) == {"", TOO_MANY}
    later = [refusal(one.prove(asked(), NOW + SECOND)) for _ in range(PROOFS_AT_ONCE)]
    assert PROOFS_PER_S - 1 <= later.count("") <= PROOFS_PER_S + 1
    assert one.judge(reported(WELCOME), NOW)["distrust"] == UNPROVED, "verdicts are not limited"


def test_a_worker_that_asks_for_what_it_must_not_have_is_in_the_log_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = prover()
    with caplog.at_level(logging.DEBUG, "tunnel"):
        for at in (NOW, NOW + 1, NOW + QUIET_NS - 1, NOW + QUIET_NS):
            one.prove(asked(found=b"q" * 32), at)
        one.prove(asked(), NOW)
    assert [record.getMessage() for record in caplog.records] == [
        f"a tcp worker has asked for a proof and gets none: {FOREIGN_CERTIFICATE}"
    ] * 2
    assert KEY.hex() not in caplog.text
