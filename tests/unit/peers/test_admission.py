"""Admission: which clients are admitted, and what that changes for existing sessions."""

from __future__ import annotations

import hashlib
import time
from ipaddress import ip_interface, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pipeline.credentials import certificates
from pipeline.packet.route_table import NO_PEER
from pipeline.peers import admission
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.admission import SESSION_INTERVAL_NS, SESSIONS_AT_ONCE
from pipeline.peers.peer_sessions import CONNECTING_NS
from pipeline.peers.registry import KnownPeer
from pipeline.policy.quota import UNLIMITED, QuotaTerms
from pipeline.version import VERSION
from pipeline.wire import auth, messages
from pipeline.wire.messages import QUOTA_USED, Challenge, Refused, Welcome
from tests.harness.hub import (
    ANN,
    BOB,
    CERTIFICATE_HASH,
    CYD,
    KEYS,
    OFFLOADS,
    SILENCE,
    Answer,
    HubServer,
    MakeHub,
    hello,
    known,
    refusal_reason,
    request,
)

# -- admitted by key


def test_a_peer_that_proves_its_identity_gets_a_welcome(make_server: MakeHub) -> None:
    server = make_server(ANN, mtu=1380, push_routes=["10.9.0.0/16", "fd09::/64"])
    hello_frame = hello(KEYS["ann"]).frame()
    answer = Answer(server.admission.handle_hello(request(hello_frame, KEYS["ann"], serial=41)))
    assert answer.reply["serial"] == 41
    assert answer.message == Welcome(
        messages.VERSION,
        OFFLOADS,
        1380,
        messages.ACCEPTS_SHARDS | messages.ANSWERS | messages.TAKES_PADDING,
        answer.message.mac,
        (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")),
        (ip_network("10.9.0.0/16"), ip_network("fd09::/64")),
        VERSION,
        answer.message.clock,
    )
    assert abs(answer.message.clock - time.time()) < 60


def test_a_client_that_has_proved_nothing_is_not_told_the_version_of_the_program(make_server: MakeHub) -> None:
    for settings in ({"encryption": "none"}, {}):
        welcome = Answer(
            make_server(insecure=True, **settings).admission.handle_hello(request(hello(None).frame()))
        ).message
        assert isinstance(welcome, Welcome) and (welcome.program, welcome.clock) == ("", 0)


def test_the_version_that_a_peer_tells_is_shown_while_it_is_connected(make_server: MakeHub) -> None:
    server = make_server(ANN)
    told = hello(KEYS["ann"])._replace(program="0.0.9", features=messages.ACCEPTS_SHARDS, mtu=1380)
    peer = Answer(server.admission.handle_hello(request(told.frame(), KEYS["ann"]))).peer
    (away,) = server.admission.list_peers(0)
    assert (away["version"], away["mtu"], away["fec"]) == ("", 0, None)
    server.set_connections(peer, 1)
    (shown,) = server.admission.list_peers(0)
    assert (shown["version"], shown["mtu"], shown["fec"]) == ("0.0.9", 1380, True)


@pytest.mark.parametrize(
    ("fec", "shards"), [("off", 0), ("on", messages.ACCEPTS_SHARDS), ("auto", messages.ACCEPTS_SHARDS)]
)
def test_a_server_takes_shards_unless_forward_error_correction_is_off(
    make_server: MakeHub, fec: str, shards: int
) -> None:
    assert make_server(ANN, fec=fec).ask("ann").message.features == shards | messages.ANSWERS | messages.TAKES_PADDING


def test_a_client_that_asks_whether_it_is_known_gets_a_proved_answer_and_no_session(server: HubServer) -> None:
    asks = hello(KEYS["ann"])._replace(version=messages.ASKS, leaves=True)
    asked = request(asks.frame(), KEYS["ann"])
    answer = Answer(server.admission.handle_hello(asked))
    transcript = auth.transcript(asks.frame(), bytes.fromhex(asked["challenge"]), CERTIFICATE_HASH)
    assert isinstance(answer.message, messages.Done) and auth.done_proved(
        KEYS["ann"], transcript, answer.message.frame()
    )
    assert not server.admission.is_member("ann")
    unknown = request(asks.frame(), bytes(range(32, 64)))
    assert not Answer(server.admission.handle_hello(unknown)).message


def test_the_server_proves_its_identity_to_a_client_with_a_key(server: HubServer) -> None:
    hello_frame = hello(KEYS["ann"]).frame()
    asked = request(hello_frame, KEYS["ann"])
    answer = Answer(server.admission.handle_hello(asked))
    transcript = auth.transcript(hello_frame, bytes.fromhex(asked["challenge"]), CERTIFICATE_HASH)
    assert auth.server_proved(KEYS["ann"], transcript, answer.frame)
    assert not auth.server_proved(KEYS["bob"], transcript, answer.frame)


def test_an_admitted_peer_has_a_handle_and_a_rate_before_the_answer_is_sent(make_server: MakeHub) -> None:
    server = make_server(known("ann", rate=1000), BOB)
    ann, bob = server.ask("ann"), server.ask("bob")
    assert server.is_current(ann) and server.is_current(bob)
    assert (ann.peer, bob.peer) == (0, 1)
    assert (server.table.rate(0), server.table.rate(1)) == (1000, 0)
    assert server.handle_at("10.0.0.2") == server.handle_at("fd00::2") == ann.peer_handle
    assert server.handle_at("10.0.0.3") == bob.peer_handle


HELLO_FRAME = hello(KEYS["ann"]).frame()
HONEST = request(HELLO_FRAME, KEYS["ann"])
OTHER_CHALLENGE = Challenge(b"o" * 32).frame()


def as_server(asked: dict) -> str:
    """A server's proof over this handshake, sent back to the server."""
    transcript = auth.transcript(bytes.fromhex(asked["hello"]), bytes.fromhex(asked["challenge"]), CERTIFICATE_HASH)
    return auth.server_proof(KEYS["ann"], transcript, Welcome(1, 0, 1400, 0).frame()).hex()


IMPOSTORS = {
    "a wrong key": request(HELLO_FRAME, KEYS["bob"]),
    "an unknown key": request(hello(KEYS["eve"]).frame(), KEYS["eve"]),
    "a proof to another challenge": HONEST | {"challenge": OTHER_CHALLENGE.hex()},
    "a proof over another HELLO": HONEST | {"hello": hello(KEYS["ann"], 2).frame().hex()},
    "a proof to a man in the middle": HONEST | {"hash": (b"m" * 32).hex()},
    "a server's proof": HONEST | {"proof": as_server(HONEST)},
    "a proof cut off": HONEST | {"proof": HONEST["proof"][:32]},
    "no proof": HONEST | {"proof": ""},
    "a key named and no challenge": HONEST | {"challenge": ""},
    "nothing": request(hello(None).frame()),
    "a certificate that is none": request(HELLO_FRAME, certificate=b"\x30\x03abc"),
    "an unknown key and a wrong version": request(hello(KEYS["eve"], version=9).frame(), KEYS["eve"]),
}


@pytest.mark.parametrize("asked", IMPOSTORS.values(), ids=IMPOSTORS.keys())
def test_a_client_that_proves_nothing_gets_no_message_and_changes_nothing(server: HubServer, asked: dict) -> None:
    before = server.state()
    answer = Answer(server.admission.handle_hello(asked))
    assert (answer.frame, answer.reason) == (b"", SILENCE)
    assert answer.reply["reason"] == "has not proved to be a peer"
    assert server.state() == before
    assert Answer(server.admission.handle_hello(HONEST)).peer == 0


# -- refused with a reason, after a proof


def test_another_version_is_refused(server: HubServer) -> None:
    hello_frame = hello(KEYS["ann"], version=messages.VERSION + 1).frame()
    assert (
        refusal_reason(server, lambda: Answer(server.admission.handle_hello(request(hello_frame, KEYS["ann"]))))
        == messages.WRONG_VERSION
    )


def test_an_earlier_session_is_refused_while_a_later_one_is_connected(server: HubServer) -> None:
    server.connect("ann", 4)
    ann = server.connect("ann", 5)
    assert refusal_reason(server, lambda: server.ask("ann", 4)) == messages.SUPERSEDED
    server.disconnect(ann.peer)
    assert server.ask("ann", 4).peer == ann.peer


def test_a_peer_beyond_max_clients_is_refused(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB, CYD, capacity=2)
    ann = server.connect("ann")
    server.connect("bob")
    assert refusal_reason(server, lambda: server.ask("cyd")) == messages.FULL
    server.disconnect(ann.peer)
    assert server.ask("cyd").peer == ann.peer


def test_another_peers_address_is_refused(server: HubServer) -> None:
    server.connect("ann", 1, "10.0.0.9")
    assert refusal_reason(server, lambda: server.ask("bob", 1, "10.0.0.9")) == messages.ADDRESS_TAKEN
    assert refusal_reason(server, lambda: server.ask("bob", 1, "10.0.0.1")) == messages.ADDRESS_TAKEN


@pytest.mark.parametrize(
    "requested",
    [
        "10.0.1.1",
        "127.0.0.1",
        "10.0.0.255",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "ff02::1",
        "fe80::1",
        "2001:db8::1",
    ],
)
def test_an_address_outside_is_refused(server: HubServer, requested: str) -> None:
    assert refusal_reason(server, lambda: server.ask("ann", 1, requested)) == messages.ADDRESS_OUTSIDE


def test_a_peer_for_which_no_address_is_free_is_refused(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB, tunnel_addr="10.0.0.1/30")
    server.connect("ann")
    assert refusal_reason(server, lambda: server.ask("bob")) == messages.NO_ADDRESS


def test_a_connection_beyond_max_connections_per_client_is_refused(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB, max_connections_per_client=3)
    ann = server.connect("ann", 5)
    for number in (1, 2):
        server.ask("ann", 5, index=number, serial=number, lane=1)
    server.set_connections(ann.peer, 2, lane=1)
    assert refusal_reason(server, lambda: server.ask("ann", 5, index=3, serial=8)) == messages.TOO_MANY_CONNECTIONS
    assert server.ask("bob", serial=9).peer != ann.peer


def test_a_connection_of_a_slot_that_is_taken_replaces_it_and_other_workers_are_told(make_server: MakeHub) -> None:
    server = make_server(ANN, max_connections_per_client=2)
    ann = server.connect("ann", 5)
    server.ask("ann", 5, index=1, serial=1, lane=1)
    server.set_connections(ann.peer, 1, lane=1)
    assert server.ask("ann", 5, index=0, serial=8, lane=0).peer_handle == ann.peer_handle
    assert server.told == []  # the worker of both sees for itself
    assert server.ask("ann", 5, index=1, serial=9, lane=0).peer_handle == ann.peer_handle
    assert server.told == [{"replaced": 1, "peer_handle": ann.peer_handle, "lane": 0, "serial": 9}]


def test_a_new_session_has_slots_of_its_own(make_server: MakeHub) -> None:
    server = make_server(ANN, max_connections_per_client=1)
    server.connect("ann", 5)
    newer = server.ask("ann", 6, index=1, serial=8, lane=1)
    assert server.is_current(newer) and server.told == []


@pytest.mark.parametrize("wrong", [{"lane": 2}, {"lane": -1}, {"lane": True}, {"serial": [1]}, {"serial": "1"}])
def test_a_request_that_names_no_worker_or_no_connection_is_invalid_and_changes_nothing(
    server: HubServer, wrong: dict[str, object]
) -> None:
    before = server.state()
    with pytest.raises(ValueError, match="two numbers"):
        server.admission.handle_hello(HONEST | wrong)
    assert server.state() == before


def test_a_peer_that_begins_sessions_without_end_is_refused_and_costs_nobody_else_anything(
    make_server: MakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "time", clock := Clock())
    server = make_server(ANN, BOB)
    for number in range(SESSIONS_AT_ONCE):
        latest = server.connect("ann", number)
    assert refusal_reason(server, lambda: server.ask("ann", 99)) == messages.TOO_MANY_SESSIONS
    assert server.ask("ann", SESSIONS_AT_ONCE - 1).peer_handle == latest.peer_handle
    assert server.ask("bob").peer != latest.peer
    clock.now += SESSION_INTERVAL_NS
    assert server.ask("ann", 100).peer_handle != latest.peer_handle
    assert refusal_reason(server, lambda: server.ask("ann", 101)) == messages.TOO_MANY_SESSIONS


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = time.monotonic_ns()

    def monotonic_ns(self) -> int:
        return self.now

    def time(self) -> float:
        return self.now / 1e9


def test_a_new_session_of_a_peer_with_all_its_connections_is_admitted(make_server: MakeHub) -> None:
    """Its machine has lost power, and the old connections have not timed out."""
    server = make_server(ANN, max_connections_per_client=3)
    ann = server.connect("ann", 5)
    server.set_connections(ann.peer, 3)
    assert server.ask("ann", 6).peer_handle != ann.peer_handle


def test_every_refusal_has_a_frame_with_the_reason(server: HubServer) -> None:
    server.connect("ann", 1, "10.0.0.9")
    answer = server.ask("bob", 1, "10.0.0.9")
    assert answer.message == Refused(messages.ADDRESS_TAKEN, answer.reply["reason"])
    assert "10.0.0.9 belongs to another peer" in answer.reply["reason"]


# -- sessions


def test_a_second_session_replaces_the_first_under_its_index(server: HubServer) -> None:
    first = server.connect("ann", 5)
    bob = server.connect("bob")
    second = server.ask("ann", 6)
    assert second.peer == first.peer
    assert not server.is_current(first)
    assert server.is_current(second) and server.is_current(bob)
    assert server.handle_at("10.0.0.2") == second.peer_handle
    assert second.addresses == first.addresses


def test_further_connections_of_a_session_have_its_peer_handle(server: HubServer) -> None:
    first = server.connect("ann", 5)
    assert server.ask("ann", 5).peer_handle == first.peer_handle
    server.set_connections(first.peer, 2)
    assert server.ask("ann", 5).peer_handle == first.peer_handle
    assert server.is_current(first)


def test_a_session_that_returns_after_all_its_connections_had_ended_keeps_its_addresses(server: HubServer) -> None:
    first = server.connect("ann", 5)
    server.disconnect(first.peer)
    again = server.ask("ann", 5)
    assert again.addresses == first.addresses
    assert server.is_current(again)
    assert server.handle_at("10.0.0.2") == again.peer_handle


def test_a_peer_counts_as_connected_for_a_moment_after_its_admission(server: HubServer) -> None:
    server.ask("ann", 4)
    ann = server.ask("ann", 5)
    assert server.table.established_count(ann.peer) == 0
    assert refusal_reason(server, lambda: server.ask("ann", 4)) == messages.SUPERSEDED
    server.admission._sessions._admitted_at[ann.peer] -= CONNECTING_NS
    assert server.ask("ann", 4).peer_handle != ann.peer_handle


def test_an_index_is_not_given_away_while_its_peer_is_connecting(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB, capacity=1)
    ann = server.ask("ann")
    assert refusal_reason(server, lambda: server.ask("bob")) == messages.FULL
    server.disconnect(ann.peer)
    bob = server.ask("bob")
    assert bob.peer == ann.peer
    assert not server.is_current(ann)
    assert server.handle_at("10.0.0.2") == NO_PEER
    assert server.handle_at("10.0.0.3") == bob.peer_handle


def test_no_peer_handle_is_ever_used_twice(server: HubServer) -> None:
    peer_handles = [server.ask(name, number).peer_handle for number in range(9) for name in ("ann", "bob")]
    assert len(set(peer_handles)) == len(peer_handles)


# -- by certificate, without any proof, and for one client


@pytest.fixture(scope="module")
def certificate() -> bytes:
    pem = certificates.issue(certificates.make_ca("authority"), "ann.test", server=False).certificate
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize("by", ["hash", "name"])
def test_a_peer_with_a_certificate_is_admitted_and_needs_no_proof_of_the_server(
    make_server: MakeHub, certificate: bytes, by: str
) -> None:
    proved_by = {
        "hash": {"certificate_sha256": hashlib.sha256(certificate).digest()},
        "name": {"certificate_name": "ann.test"},
    }[by]
    server = make_server(KnownPeer(PeerPolicy("ann", (ip_network("10.1.0.0/16"),), rate=7), **proved_by))
    answer = Answer(server.admission.handle_hello(request(hello(None).frame(), certificate=certificate)))
    assert answer.message.mac == bytes(32)
    assert server.handle_at("10.1.2.3") == answer.peer_handle
    assert server.table.rate(answer.peer) == 7


def test_a_key_identifies_a_peer_even_beside_a_certificate(make_server: MakeHub, certificate: bytes) -> None:
    server = make_server(ANN, KnownPeer(PeerPolicy("bob"), certificate_name="ann.test"))
    asked = request(hello(KEYS["ann"]).frame(), KEYS["ann"])
    Answer(server.admission.handle_hello(asked | {"certificate": certificate.hex()}))
    assert [peer["name"] for peer in server.admission.list_peers(0) if peer["addresses"]] == ["ann"]
    wrong = request(hello(KEYS["ann"]).frame(), KEYS["eve"])
    assert Answer(server.admission.handle_hello(wrong | {"certificate": certificate.hex()})).reason == SILENCE


@pytest.mark.parametrize("settings", [{}, {"encryption": "none", "multi_client": True}], ids=str)
def test_on_an_open_server_each_client_is_a_peer_of_its_own(make_server: MakeHub, settings: dict) -> None:
    server = make_server(insecure=True, **settings)
    first, second = server.ask_unauthenticated(1, 5), server.ask_unauthenticated(2, 5)
    assert (first.addresses[0], second.addresses[0]) == ("10.0.0.2/24", "10.0.0.3/24")
    assert server.handle_at("10.0.0.2") == first.peer_handle
    assert server.ask_unauthenticated(1, 6).peer == first.peer


def test_an_open_server_for_one_client_routes_everything_to_it_and_later_to_the_next(
    make_server: MakeHub,
) -> None:
    server = make_server(capacity=1, encryption="none", insecure=True, multi_client=False)
    first = server.ask_unauthenticated(1, 5, "192.168.7.7")
    assert server.handle_at("192.0.2.1") == server.handle_at("2001:db8::1") == first.peer_handle
    server.set_connections(0, 1)
    assert refusal_reason(server, lambda: server.ask_unauthenticated(2, 6)) == messages.BUSY
    server.disconnect(0)
    second = server.ask_unauthenticated(2, 1)
    assert server.handle_at("192.0.2.1") == second.peer_handle
    assert not server.is_current(first)


# -- quotas


def test_a_peer_with_a_used_up_quota_loses_its_session_and_is_refused_with_the_reason(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB)
    ann, bob = server.ask("ann"), server.ask("bob")
    server.quotas.configure({"ann": QuotaTerms(1000, "stop")}, UNLIMITED)
    server.quotas.add({"ann": 1000, "bob": 1000})
    server.admission.follow_quotas({"ann"})
    assert not server.is_current(ann) and server.is_current(bob)
    refused = server.ask("ann", 2)
    assert refused.reason == QUOTA_USED and "quota" in refused.message.text
    row = next(row for row in server.admission.list_peers(time.monotonic_ns()) if row["name"] == "ann")
    assert (row["quota_bytes"], row["quota_used_bytes"], row["quota_state"]) == (1000, 1000, "stopped")
    server.quotas.configure({}, UNLIMITED)
    assert server.ask("ann", 3).addresses == ann.addresses


def test_a_slowed_peer_has_another_rate_at_once_and_in_its_next_session(make_server: MakeHub) -> None:
    server = make_server(known("ann", rate=5000), BOB)
    server.ask("ann")
    server.quotas.configure({"ann": QuotaTerms(1000, "slow", 100)}, UNLIMITED)
    server.quotas.add({"ann": 1000})
    server.admission.follow_quotas({"ann"})
    assert server.table.rate(0) == 100
    server.ask("ann", 2)
    assert server.table.rate(0) == 100
    server.quotas.configure({}, UNLIMITED)
    server.admission.follow_quotas({"ann"})
    assert server.table.rate(0) == 5000


def test_a_session_is_announced_before_its_handle_is_current(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB)
    answers = [server.ask("ann"), server.ask("bob"), server.ask("ann", 2)]
    assert server.began == [(answers[0].peer, "ann"), (answers[1].peer, "bob"), (answers[2].peer, "ann")]
