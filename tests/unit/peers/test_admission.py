"""The hub: who is admitted and who is not, and what that does to the sessions that there are."""

from __future__ import annotations

import hashlib
from ipaddress import ip_interface, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pipeline.credentials import certificates
from pipeline.packet.route_table import NOBODY
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.admission import ON_THE_WAY_NS
from pipeline.peers.registry import KnownPeer
from pipeline.wire import auth, messages
from pipeline.wire.messages import Challenge, Refused, Welcome
from tests.harness.hub import (
    CERTIFICATE_HASH,
    KEYS,
    OFFLOADS,
    Answer,
    MakeServer,
    Server,
    hello,
    known,
    refused,
    request,
)

ANN, BOB, CYD = known("ann"), known("bob"), known("cyd")
SILENCE = 0


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    return make_server(ANN, BOB)


# -- who has proved himself


def test_who_proves_to_be_a_peer_is_welcomed_with_what_he_needs_to_know(make_server: MakeServer) -> None:
    server = make_server(ANN, mtu=1380, push_routes=["10.9.0.0/16", "fd09::/64"])
    greeting = hello(KEYS["ann"]).frame()
    answer = Answer(server.hub.answer(request(greeting, KEYS["ann"], serial=41)))
    assert answer.reply["serial"] == 41
    assert answer.greeting == Welcome(
        messages.VERSION,
        OFFLOADS,
        1380,
        messages.ACCEPTS_SHARDS,
        answer.greeting.mac,
        (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")),
        (ip_network("10.9.0.0/16"), ip_network("fd09::/64")),
    )


@pytest.mark.parametrize(
    ("fec", "features"), [("off", 0), ("on", messages.ACCEPTS_SHARDS), ("auto", messages.ACCEPTS_SHARDS)]
)
def test_a_server_takes_shards_unless_forward_error_correction_is_off(
    make_server: MakeServer, fec: str, features: int
) -> None:
    assert make_server(ANN, fec=fec).ask("ann").greeting.features == features


def test_the_server_proves_itself_to_a_client_with_a_key(server: Server) -> None:
    greeting = hello(KEYS["ann"]).frame()
    asked = request(greeting, KEYS["ann"])
    answer = Answer(server.hub.answer(asked))
    transcript = auth.transcript(greeting, bytes.fromhex(asked["challenge"]), CERTIFICATE_HASH)
    assert auth.server_proved(KEYS["ann"], transcript, answer.frame)
    assert not auth.server_proved(KEYS["bob"], transcript, answer.frame)


def test_who_is_admitted_has_a_seat_and_a_rate_before_the_answer_is_there(make_server: MakeServer) -> None:
    server = make_server(known("ann", rate=1000), BOB)
    ann, bob = server.ask("ann"), server.ask("bob")
    assert server.is_current(ann) and server.is_current(bob)
    assert (ann.peer, bob.peer) == (0, 1)
    assert (server.table.rate(0), server.table.rate(1)) == (1000, 0)
    assert server.whose("10.0.0.2") == server.whose("fd00::2") == ann.peer_handle
    assert server.whose("10.0.0.3") == bob.peer_handle


GREETING = hello(KEYS["ann"]).frame()
HONEST = request(GREETING, KEYS["ann"])
OTHER_CHALLENGE = Challenge(b"o" * 32).frame()


def as_server(asked: dict) -> str:
    """A server's proof over the same greeting, sent back to it."""
    transcript = auth.transcript(bytes.fromhex(asked["hello"]), bytes.fromhex(asked["challenge"]), CERTIFICATE_HASH)
    return auth.server_proof(KEYS["ann"], transcript, Welcome(1, 0, 1400, 0).frame()).hex()


IMPOSTORS = {
    "a wrong key": request(GREETING, KEYS["bob"]),
    "an unknown key": request(hello(KEYS["eve"]).frame(), KEYS["eve"]),
    "a proof to another challenge": HONEST | {"challenge": OTHER_CHALLENGE.hex()},
    "a proof over another HELLO": HONEST | {"hello": hello(KEYS["ann"], 2).frame().hex()},
    "a proof to a man in the middle": HONEST | {"hash": (b"m" * 32).hex()},
    "a server's proof": HONEST | {"proof": as_server(HONEST)},
    "a proof cut off": HONEST | {"proof": HONEST["proof"][:32]},
    "no proof": HONEST | {"proof": ""},
    "a key named and no challenge": HONEST | {"challenge": ""},
    "nothing": request(hello(None).frame()),
    "a certificate that is none": request(GREETING, certificate=b"\x30\x03abc"),
    "an unknown key and a wrong version": request(hello(KEYS["eve"], version=9).frame(), KEYS["eve"]),
}


@pytest.mark.parametrize("asked", IMPOSTORS.values(), ids=IMPOSTORS.keys())
def test_who_proves_nothing_is_answered_by_silence_and_changes_nothing(server: Server, asked: dict) -> None:
    before = server.state()
    answer = Answer(server.hub.answer(asked))
    assert (answer.frame, answer.reason) == (b"", SILENCE)
    assert answer.reply["why"] == "has not proved to be a peer"
    assert server.state() == before
    assert Answer(server.hub.answer(HONEST)).peer == 0


# -- refused, with a reason to who has proved himself


def test_another_version_is_refused(server: Server) -> None:
    greeting = hello(KEYS["ann"], version=messages.VERSION + 1).frame()
    assert refused(server, lambda: Answer(server.hub.answer(request(greeting, KEYS["ann"])))) == messages.WRONG_VERSION


def test_an_earlier_session_is_refused_while_a_later_one_is_connected(server: Server) -> None:
    ann = server.comes("ann", 5)
    assert refused(server, lambda: server.ask("ann", 4)) == messages.SUPERSEDED
    server.goes(ann.peer)
    assert server.ask("ann", 4).peer == ann.peer


def test_one_more_than_there_is_room_for_is_refused(make_server: MakeServer) -> None:
    server = make_server(ANN, BOB, CYD, capacity=2)
    ann = server.comes("ann")
    server.comes("bob")
    assert refused(server, lambda: server.ask("cyd")) == messages.FULL
    server.goes(ann.peer)
    assert server.ask("cyd").peer == ann.peer


def test_another_peers_address_is_refused(server: Server) -> None:
    server.comes("ann", 1, "10.0.0.9")
    assert refused(server, lambda: server.ask("bob", 1, "10.0.0.9")) == messages.ADDRESS_TAKEN
    assert refused(server, lambda: server.ask("bob", 1, "10.0.0.1")) == messages.ADDRESS_TAKEN


@pytest.mark.parametrize(
    "wish",
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
def test_an_address_outside_is_refused(server: Server, wish: str) -> None:
    assert refused(server, lambda: server.ask("ann", 1, wish)) == messages.ADDRESS_OUTSIDE


def test_who_finds_no_free_address_is_refused(make_server: MakeServer) -> None:
    server = make_server(ANN, BOB, tunnel_addr="10.0.0.1/30")
    server.comes("ann")
    assert refused(server, lambda: server.ask("bob")) == messages.NO_ADDRESS


def test_as_many_connections_as_a_peer_may_have_and_no_more(make_server: MakeServer) -> None:
    server = make_server(ANN, BOB, max_connections_per_client=3)
    ann = server.comes("ann", 5)
    server.has_connections(ann.peer, 2, lane=1)
    assert refused(server, lambda: server.ask("ann", 5)) == messages.TOO_MANY_CONNECTIONS
    server.has_connections(ann.peer, 1, lane=1)
    assert server.ask("ann", 5).peer_handle == ann.peer_handle
    assert server.ask("bob").peer != ann.peer


def test_a_new_session_of_a_peer_with_all_its_connections_is_admitted(make_server: MakeServer) -> None:
    """Its machine has lost power, and the old connections have not timed out."""
    server = make_server(ANN, max_connections_per_client=3)
    ann = server.comes("ann", 5)
    server.has_connections(ann.peer, 3)
    assert server.ask("ann", 6).peer_handle != ann.peer_handle


def test_every_refusal_has_a_frame_that_says_why(server: Server) -> None:
    server.comes("ann", 1, "10.0.0.9")
    answer = server.ask("bob", 1, "10.0.0.9")
    assert answer.greeting == Refused(messages.ADDRESS_TAKEN, answer.reply["why"])
    assert "10.0.0.9 is another peer's" in answer.reply["why"]


# -- sessions


def test_a_second_session_takes_the_seat_of_the_first(server: Server) -> None:
    first = server.comes("ann", 5)
    bob = server.comes("bob")
    second = server.ask("ann", 6)
    assert second.peer == first.peer
    assert not server.is_current(first)
    assert server.is_current(second) and server.is_current(bob)
    assert server.whose("10.0.0.2") == second.peer_handle
    assert second.addresses == first.addresses


def test_further_connections_of_a_session_have_its_seat(server: Server) -> None:
    first = server.comes("ann", 5)
    assert server.ask("ann", 5).peer_handle == first.peer_handle
    server.has_connections(first.peer, 2)
    assert server.ask("ann", 5).peer_handle == first.peer_handle
    assert server.is_current(first)


def test_a_session_that_comes_back_after_all_its_connections_had_ended_has_its_addresses_still(server: Server) -> None:
    first = server.comes("ann", 5)
    server.goes(first.peer)
    again = server.ask("ann", 5)
    assert again.addresses == first.addresses
    assert server.is_current(again)
    assert server.whose("10.0.0.2") == again.peer_handle


def test_a_peer_counts_as_connected_for_a_moment_after_its_admission(server: Server) -> None:
    ann = server.ask("ann", 5)
    assert server.table.count(ann.peer) == 0
    assert refused(server, lambda: server.ask("ann", 4)) == messages.SUPERSEDED
    server.hub._admitted_at[ann.peer] -= ON_THE_WAY_NS
    assert server.ask("ann", 4).peer_handle != ann.peer_handle


def test_an_index_is_not_given_away_while_its_peer_is_on_the_way(make_server: MakeServer) -> None:
    server = make_server(ANN, BOB, capacity=1)
    ann = server.ask("ann")
    assert refused(server, lambda: server.ask("bob")) == messages.FULL
    server.goes(ann.peer)
    bob = server.ask("bob")
    assert bob.peer == ann.peer
    assert not server.is_current(ann)
    assert server.whose("10.0.0.2") == NOBODY
    assert server.whose("10.0.0.3") == bob.peer_handle


def test_no_seat_is_ever_taken_twice(server: Server) -> None:
    peer_handles = [server.ask(name, number).peer_handle for number in range(1, 20) for name in ("ann", "bob")]
    assert len(set(peer_handles)) == len(peer_handles)


# -- by certificate, by nothing, and only one


@pytest.fixture(scope="module")
def certificate() -> bytes:
    pem = certificates.issue(certificates.make_ca("authority"), "ann.test", server=False).certificate
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize("by", ["hash", "name"])
def test_a_peer_with_a_certificate_is_admitted_and_needs_no_proof_of_the_server(
    make_server: MakeServer, certificate: bytes, by: str
) -> None:
    proved_by = {
        "hash": {"certificate_sha256": hashlib.sha256(certificate).digest()},
        "name": {"certificate_name": "ann.test"},
    }[by]
    server = make_server(KnownPeer(PeerPolicy("ann", (ip_network("10.1.0.0/16"),), rate=7), **proved_by))
    answer = Answer(server.hub.answer(request(hello(None).frame(), certificate=certificate)))
    assert answer.greeting.mac == bytes(32)
    assert server.whose("10.1.2.3") == answer.peer_handle
    assert server.table.rate(answer.peer) == 7


def test_of_a_connection_with_key_and_certificate_the_key_says_who_it_is(
    make_server: MakeServer, certificate: bytes
) -> None:
    server = make_server(ANN, KnownPeer(PeerPolicy("bob"), certificate_name="ann.test"))
    asked = request(hello(KEYS["ann"]).frame(), KEYS["ann"])
    Answer(server.hub.answer(asked | {"certificate": certificate.hex()}))
    assert [peer["name"] for peer in server.hub.peers(0) if peer["addresses"]] == ["ann"]
    wrong = request(hello(KEYS["ann"]).frame(), KEYS["eve"])
    assert Answer(server.hub.answer(wrong | {"certificate": certificate.hex()})).reason == SILENCE


@pytest.mark.parametrize("settings", [{}, {"encryption": "none", "multi_client": True}], ids=str)
def test_where_everybody_is_let_in_each_client_is_a_peer_of_its_own(make_server: MakeServer, settings: dict) -> None:
    server = make_server(insecure=True, **settings)
    first, second = server.ask_unproved(1, 5), server.ask_unproved(2, 5)
    assert (first.addresses[0], second.addresses[0]) == ("10.0.0.2/24", "10.0.0.3/24")
    assert server.whose("10.0.0.2") == first.peer_handle
    assert server.ask_unproved(1, 6).peer == first.peer


def test_an_open_server_of_one_client_sends_it_everything_and_takes_another_one_after_it(
    make_server: MakeServer,
) -> None:
    server = make_server(capacity=1, encryption="none", insecure=True, multi_client=False)
    first = server.ask_unproved(1, 5, "192.168.7.7")
    assert server.whose("192.0.2.1") == server.whose("2001:db8::1") == first.peer_handle
    server.has_connections(0, 1)
    assert refused(server, lambda: server.ask_unproved(2, 6)) == messages.BUSY
    server.goes(0)
    second = server.ask_unproved(2, 1)
    assert server.whose("192.0.2.1") == second.peer_handle
    assert not server.is_current(first)
