"""Admission where blocks are sealed: which key shares begin a session, which go on with it, and which are refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pipeline.observe.sentence import describe
from pipeline.policy.epochs import EPOCH_NS, EPOCH_NS_MIN
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305, SUITES
from pipeline.sealing.session import NO_HASH, KeyShare, Offer, SealedSession, hash_of
from pipeline.shm.layout import RECORD_WORDS, TRANSIT_EPOCH_ACKNOWLEDGED, TRANSIT_EPOCH_OPENED
from pipeline.wire import auth, messages
from pipeline.wire.handshake import Cause, ClientHandshake, Failed
from pipeline.wire.messages import Refused, Welcome
from tests.harness.hub import (
    ANN,
    BOB,
    CERTIFICATE_HASH,
    KEYS,
    SILENCE,
    Answer,
    HubServer,
    MakeHub,
    hello,
    refusal_reason,
    request,
)
from tests.harness.snapshots import snapshot
from tests.unit.sealing.test_session import LOW_ORDER

SECOND = 1_000_000_000


@pytest.fixture
def server(make_server: MakeHub) -> HubServer:
    return make_server(ANN, BOB, seals=True)


class Sender:
    """A start of a client that seals."""

    def __init__(self, server: HubServer, name: str = "ann", number: int = 1, suite: int = AES_256_GCM) -> None:
        self.server, self.name, self.number = server, name, number
        self.offer = Offer(suite)
        self.session: SealedSession | None = None

    def ask(self, key_share: bytes | None = None, index: int = 0, **fields: Any) -> Answer:
        share = self.offer.key_share.pack() if key_share is None else key_share
        key = KEYS[self.name]
        frame = hello(key, self.number, index=index, key_share=share, **fields).frame()
        self.request = request(frame, key, serial=7 + index)
        return Answer(self.server.admission.handle_hello(self.request))

    def connect(self, index: int = 0) -> Answer:
        """A connection is admitted: both ends have its secrets and the keys of the session."""
        answer = self.ask(index=index)
        share = KeyShare.of_server(answer.message.key_share)
        assert share is not None
        session = self.offer.take_answer(share, KEYS[self.name], 1, self.number)
        hello_frame, challenge = (bytes.fromhex(self.request[each]) for each in ("hello", "challenge"))
        ours = session.connection_secrets(hello_frame, challenge, answer.frame, CERTIFICATE_HASH)
        seal = answer.reply["seal"]
        assert (seal["suite"], seal["send"], seal["receive"]) == (ours.suite, ours.receive.hex(), ours.send.hex())
        keys = self.server.keys.read(answer.peer_handle)
        assert keys is not None and keys.suite == session.context.suite
        self.session, self.share = session, share
        self.server.set_connections(answer.peer, 1)
        return answer

    def keys_fit(self, answer: Answer) -> bool:
        keys = self.server.keys.read(answer.peer_handle)
        assert keys is not None and self.session is not None
        return (keys.send, keys.open_now) == (self.session.keys().open_now, self.session.keys().send)


# -- sessions


@pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305, 0, 99])
def test_a_client_is_admitted_with_a_key_share_and_a_suite_that_nobody_knows_means_the_second(
    server: HubServer, suite: int
) -> None:
    ann = Sender(server, suite=suite)
    assert ann.keys_fit(ann.connect())
    assert ann.share.suite == (AES_256_GCM if suite == AES_256_GCM else CHACHA20_POLY1305)


def test_the_connections_of_a_session_have_one_key_share_and_a_nonce_of_their_own(server: HubServer) -> None:
    ann = Sender(server)
    first = ann.connect()
    version, share = server.keys.version(first.peer_handle), ann.share
    second = ann.connect(index=1)
    assert second.peer_handle == first.peer_handle and server.keys.version(first.peer_handle) == version
    assert ann.share.public == share.public and ann.share.nonce != share.nonce
    assert first.reply["seal"]["send"] != second.reply["seal"]["send"]


@pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305])
def test_while_the_client_is_there_any_key_share_adds_a_connection_to_its_session(
    server: HubServer, suite: int
) -> None:
    ann = Sender(server)
    first = ann.connect()
    version = server.keys.version(first.peer_handle)
    second = ann.ask(Offer(suite).key_share.pack(), index=1)
    assert second.peer_handle == first.peer_handle and server.keys.version(first.peer_handle) == version
    assert KeyShare.of_server(second.message.key_share)[:2] == ann.share[:2]
    hello_frame, challenge = (bytes.fromhex(ann.request[each]) for each in ("hello", "challenge"))
    ours = ann.session.connection_secrets(hello_frame, challenge, second.frame, CERTIFICATE_HASH)
    assert second.reply["seal"]["send"] == ours.receive.hex()


@pytest.mark.parametrize("gone", [False, True], ids=["it has not come", "it has gone"])
@pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305])
def test_another_key_share_of_a_client_that_is_not_there_begins_another_session(
    server: HubServer, suite: int, gone: bool
) -> None:
    ann = Sender(server)
    first = ann.connect() if gone else ann.ask()
    server.set_connections(first.peer, 0)
    again = Sender(server, suite=suite)
    second = again.connect()
    assert second.peer == first.peer and second.peer_handle != first.peer_handle
    assert not server.is_current(first) and server.keys.read(first.peer_handle) is None and again.keys_fit(second)


def test_another_suite_with_the_same_key_share_is_another_session_with_other_keys(server: HubServer) -> None:
    ann = Sender(server)
    first = ann.ask()
    changed = ann.offer.key_share._replace(suite=CHACHA20_POLY1305).pack()
    second = ann.ask(changed)
    assert second.peer_handle != first.peer_handle and server.keys.read(first.peer_handle) is None
    assert KeyShare.of_server(second.message.key_share).suite == CHACHA20_POLY1305


def test_each_peer_has_keys_of_its_own_and_they_leave_with_its_session(server: HubServer) -> None:
    ann, bob = (Sender(server, name) for name in ("ann", "bob"))
    answers = [each.connect() for each in (ann, bob)]
    assert ann.keys_fit(answers[0]) and bob.keys_fit(answers[1])
    server.configure(BOB)
    assert server.keys.read(answers[0].peer_handle) is None and bob.keys_fit(answers[1])


# -- what is no key share


NO_SHARES = {
    "none": b"",
    "too short": b"\1" + bytes(31),
    "too long": b"\1" + bytes(33),
    "that of a server": KeyShare(AES_256_GCM, b"p" * 32, b"n" * 32, NO_HASH).pack(),
}


@pytest.mark.parametrize("share", NO_SHARES.values(), ids=NO_SHARES.keys())
def test_a_client_without_a_key_share_is_refused_and_told_the_version(server: HubServer, share: bytes) -> None:
    assert refusal_reason(server, lambda: Sender(server).ask(share)) == messages.WRONG_VERSION
    ann = Sender(server).connect()
    assert refusal_reason(server, lambda: Sender(server).ask(share)) == messages.WRONG_VERSION
    assert server.is_current(ann)


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305, 0])
def test_a_share_of_low_order_is_answered_with_silence_and_changes_nothing(
    server: HubServer, point: bytes, suite: int
) -> None:
    ann = Sender(server).connect()
    server.set_connections(ann.peer, 0)
    before, keys = server.state(), server.keys.version(ann.peer_handle)
    answer = Sender(server).ask(KeyShare(suite, point).pack())
    assert answer.frame == b"" and answer.reason == SILENCE
    assert "low order" in answer.reply["reason"] and answer.reply["name"] == "ann"
    assert server.state() == before and server.keys.version(ann.peer_handle) == keys and server.is_current(ann)


def test_where_nothing_is_sealed_a_key_share_is_of_no_use_and_does_no_harm(make_server: MakeHub) -> None:
    server = make_server(ANN)
    answer = Sender(server).ask()
    assert isinstance(answer.message, Welcome) and not answer.message.key_share and "seal" not in answer.reply
    assert server.keys.read(answer.peer_handle) is None


# -- the certificate that the server was shown


def test_a_welcome_has_the_hash_of_the_certificate_that_the_server_was_shown_and_zeros_for_none(
    server: HubServer,
) -> None:
    ann = Sender(server)
    for certificate, expected in ((b"", NO_HASH), (b"a certificate", hash_of(b"a certificate"))):
        ann.ask()
        answer = Answer(server.admission.handle_hello(ann.request | {"certificate": certificate.hex()}))
        assert KeyShare.of_server(answer.message.key_share).client_hash == expected


def test_the_proof_of_the_server_covers_that_hash(server: HubServer) -> None:
    ann = Sender(server)
    answer = ann.ask()
    assert isinstance(answer.message, Welcome)
    transcript = auth.transcript(*(bytes.fromhex(ann.request[each]) for each in ("hello", "challenge", "hash")))
    assert answer.message.mac == auth.server_proof(KEYS["ann"], transcript, answer.frame)
    share = KeyShare.of_server(answer.message.key_share)
    for changed in (share._replace(client_hash=b"x" * 32), share._replace(public=b"x" * 32)):
        other = answer.message._replace(key_share=changed.pack()).frame()
        assert answer.message.mac != auth.server_proof(KEYS["ann"], transcript, other)


# -- versions


def refused(frame: bytes, key: bytes) -> str:
    """What a client logs about an answer to its HELLO."""
    handshake = ClientHandshake(hello(key), b"")
    handshake.begin(b"certificate")
    failed = handshake.feed(frame)[-1]
    assert isinstance(failed, Failed) and failed.cause is Cause.REFUSED
    return failed.reason


def test_ends_of_different_versions_tell_both_users_to_upgrade_the_older_one(server: HubServer) -> None:
    ours = Sender(server).ask(b"", version=1)  # as a client of version 1 has it
    assert ours.reply["reason"] == "this server speaks version 2" and ours.reply["name"] == "ann"
    theirs = Refused(messages.WRONG_VERSION, "this server speaks version 1").frame()  # as a server of version 1 has it
    for frame, version in ((ours.frame, 2), (theirs, 1)):
        said = refused(frame, KEYS["ann"])
        assert said == f"refused by the server: this server speaks version {version}"
        trouble = {
            "host": "vpn.example.org",
            "port": 443,
            "connections": 0,
            "connections_wanted": 8,
            "trouble": [said],
            "failed_attempts": 3,
            "trouble_seconds": 9.0,
        }
        health = describe(snapshot(server=trouble, connections=[]))
        assert not health.works and said.partition(": ")[2] in health.sentence
        assert health.advice == "Upgrade the older one of the two ends."


# -- as observers see it


def test_the_status_of_a_peer_has_its_suite_and_its_epochs(server: HubServer) -> None:
    def row() -> dict[str, Any]:
        now = time.monotonic_ns()
        return dict(next(each for each in server.admission.list_peers(now) if each["name"] == "ann"))

    assert row()["encryption"] == ""
    ann = Sender(server, suite=CHACHA20_POLY1305)
    answer = ann.connect()
    assert (row()["encryption"], row()["sent_epoch"], row()["received_epoch"]) == (SUITES[CHACHA20_POLY1305], 0, 0)
    words, at = server.table.transit_numbers[0], answer.peer * RECORD_WORDS
    words[at + TRANSIT_EPOCH_OPENED] = answer.peer_handle << 16 | 1
    before, now = server.admission.changes, time.monotonic_ns()
    server.admission.tick(now)
    assert row()["received_epoch"] == 1 and server.admission.changes == before + 1
    server.admission.tick(now + EPOCH_NS)
    server.admission.tick(now + EPOCH_NS + EPOCH_NS_MIN)
    assert row()["sent_epoch"] == 1
    words[at + TRANSIT_EPOCH_ACKNOWLEDGED] = answer.peer_handle << 16 | 1
    before = server.admission.changes
    for later in range(3):
        server.admission.tick(now + EPOCH_NS + (20 + later) * SECOND)
    assert server.admission.changes == before
    server.disconnect(answer.peer)
    assert (row()["encryption"], row()["sent_epoch"]) == ("", 0)


def test_without_sealing_the_status_says_none(make_server: MakeHub) -> None:
    server = make_server(ANN)
    server.connect("ann")
    (row,) = server.admission.list_peers(time.monotonic_ns())
    assert (row["encryption"], row["sent_epoch"], row["received_epoch"]) == ("none", 0, 0)
