"""Admission: addresses, routes, changed configurations, and the list of peers."""

from __future__ import annotations

import functools
import hashlib
import logging
import ssl
import time

import pytest

from pipeline.credentials import certificates
from pipeline.packet.route_table import NO_PEER
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.registry import KnownPeer
from pipeline.shm import layout
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import ROUTES_MAX
from pipeline.wire import messages
from tests.harness.config_problems import problems
from tests.harness.hub import ANN, BOB, CYD, KEYS, SILENCE, Answer, HubServer, MakeHub, hello, known, request

# -- addresses and routes


def test_a_peer_keeps_its_address_over_restarts_of_the_server(make_server: MakeHub) -> None:
    first = make_server(ANN, BOB)
    addresses = {name: first.ask(name).addresses for name in ("bob", "ann")}
    second = make_server(ANN, BOB, remembered=first.saved[-1])
    assert {name: second.ask(name).addresses for name in ("ann", "bob")} == addresses
    assert addresses["bob"][0] == "10.0.0.2/24"


def test_addresses_are_saved_only_when_they_have_changed(server: HubServer) -> None:
    server.ask("ann")
    assert server.saved == [{"ann": ["10.0.0.2", "fd00::2"]}]
    server.ask("ann")
    server.ask("ann", 2)
    assert len(server.saved) == 1
    server.ask("bob")
    assert server.saved[1:] == [{"ann": ["10.0.0.2", "fd00::2"], "bob": ["10.0.0.3", "fd00::3"]}]


def test_a_fixed_address_and_allowed_networks_lead_to_their_peer(make_server: MakeHub) -> None:
    server = make_server(known("ann", "10.1.0.0/16", fixed=["10.0.0.50"]), known("bob", "10.1.2.0/24"))
    assert server.handle_at("10.1.0.1") == server.handle_at("10.0.0.50") == NO_PEER
    ann = server.ask("ann")
    assert ann.addresses == ["10.0.0.50/24", "fd00::2/64"]
    assert server.handle_at("10.1.0.1") == server.handle_at("10.0.0.50") == ann.peer_handle
    assert server.handle_at("10.1.2.1") == NO_PEER
    bob = server.ask("bob")
    assert server.handle_at("10.1.2.1") == bob.peer_handle
    assert server.handle_at("10.0.0.1") == server.handle_at("192.0.2.1") == NO_PEER


def test_more_routes_than_the_peer_table_holds_leave_the_old_ones_in_use(
    make_server: MakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    many = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(1, ROUTES_MAX + 2)]
    server = make_server(ANN, known("bob", *many))
    ann = server.connect("ann", 1, "10.0.0.9")
    with caplog.at_level(logging.ERROR, "tunnel"):
        server.ask("bob", 1, "10.0.0.10")
    assert "routes to peers: at most 8192 are possible" in caplog.messages[0]
    assert server.handle_at("10.0.0.9") == ann.peer_handle
    assert server.is_current(ann)


def test_a_peer_that_lost_its_address_while_away_has_a_route_again_when_it_returns(
    make_server: MakeHub,
) -> None:
    """The only address of a small subnet goes from one to the other and back."""
    server = make_server(tunnel_addr="10.0.0.1/30", insecure=True)
    ann = server.ask_unauthenticated(1, 5)
    server.disconnect(ann.peer)
    bob = server.ask_unauthenticated(2, 5)
    assert bob.addresses == ann.addresses
    server.disconnect(bob.peer)
    again = server.ask_unauthenticated(1, 5)
    assert again.addresses == ann.addresses
    assert server.handle_at("10.0.0.2") == again.peer_handle
    assert server.is_current(again)


def test_a_peer_that_returns_with_another_request_has_a_route_to_its_new_address(server: HubServer) -> None:
    """A client may request another address in one session."""
    before = server.connect("ann", 5, "10.0.0.9")
    server.disconnect(before.peer)
    after = server.ask("ann", 5, "10.0.0.10")
    assert after.addresses == ["10.0.0.10/24"]
    assert server.handle_at("10.0.0.10") == after.peer_handle
    assert server.handle_at("10.0.0.9") == NO_PEER
    assert server.saved[-1] == {"ann": ["10.0.0.10"]}


def test_a_route_to_a_network_behind_a_peer_is_pushed_to_the_other_peers_only(make_server: MakeHub) -> None:
    server = make_server(
        known("ann", "10.1.0.0/16", "fd01::/16"),
        known("bob", "10.1.2.0/24"),
        push_routes=["10.1.0.0/16", "10.1.2.0/24", "10.9.0.0/16", "fd01:1::/48"],
    )

    def pushed(name: str) -> list[str]:
        return [str(route) for route in server.ask(name).message.routes]

    assert pushed("ann") == ["10.9.0.0/16"]
    assert pushed("bob") == ["10.1.0.0/16", "10.9.0.0/16", "fd01:1::/48"]


def test_push_routes_may_have_as_many_routes_as_a_welcome_holds(make_server: MakeHub) -> None:
    many = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(1, messages.PUSHED_ROUTES_MAX + 2)]
    server = make_server(ANN, push_routes=many[:-1])
    assert len(server.ask("ann").message.routes) == messages.PUSHED_ROUTES_MAX
    assert [problem.path for problem in problems({"mode": "server", "push_routes": many})] == ["push_routes"]


# -- a changed configuration


def test_a_revoked_peer_loses_its_connections_and_routes_and_is_not_admitted_again(server: HubServer) -> None:
    bob, ann = server.connect("bob"), server.connect("ann")
    server.configure(BOB)
    assert not server.is_current(ann)
    assert server.is_current(bob)
    assert server.handle_at("10.0.0.2") == bob.peer_handle
    assert server.handle_at("10.0.0.3") == NO_PEER
    assert server.ask("ann").reason == SILENCE


def test_a_peer_that_was_revoked_and_invited_again_has_another_peer_handle(server: HubServer) -> None:
    ann = server.connect("ann")
    server.configure(BOB)
    server.configure(ANN, BOB)
    server.set_connections(ann.peer, 0)
    again = server.ask("ann", 1)
    assert again.peer_handle != ann.peer_handle
    assert server.is_current(again) and not server.is_current(ann)
    assert server.handle_at("10.0.0.2") == again.peer_handle


def test_a_peer_with_a_changed_key_loses_its_session_at_once_and_comes_with_the_new_one(server: HubServer) -> None:
    """The old key may have been stolen; its thief is not this peer any more."""
    ann, bob = server.connect("ann", 5), server.connect("bob", 5)
    server.configure(KnownPeer(ANN.policy, KEYS["eve"]), BOB)
    assert not server.is_current(ann) and server.is_current(bob)
    assert server.ask("ann", 5).reason == SILENCE
    server.disconnect(ann.peer)
    asked = request(hello(KEYS["eve"], 5).frame(), KEYS["eve"])
    assert Answer(server.admission.handle_hello(asked)).peer_handle != ann.peer_handle


def test_two_peers_that_swap_their_keys_both_lose_their_sessions(server: HubServer) -> None:
    ann, bob = server.connect("ann"), server.connect("bob")
    server.configure(ANN._replace(key=BOB.key), BOB._replace(key=ANN.key))
    assert not server.is_current(ann) and not server.is_current(bob)


def certified(server: HubServer, name: str, *hosts: str) -> Answer:
    """A client with a certificate of that name opens a connection, which is established."""
    shown = ssl.PEM_cert_to_DER_cert(issue_for(name, *hosts))
    answer = Answer(server.admission.handle_hello(request(hello(None).frame(), certificate=shown)))
    server.set_connections(answer.peer, 1)
    return answer


@functools.cache
def issue_for(name: str, *hosts: str) -> str:
    ca = certificates.make_ca("authority")
    return certificates.issue(ca, name, server=False, hosts=hosts).certificate.decode()


def by_certificate(name: str, *, certificate_name: str = "", sha256: bytes = b"") -> KnownPeer:
    return KnownPeer(PeerPolicy(name), b"", sha256, certificate_name)


def test_a_peer_with_another_fingerprint_or_certificate_name_loses_its_session_at_once(server: HubServer) -> None:
    sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(issue_for("dan.test"))).digest()
    dan, eve = by_certificate("dan", sha256=sha256), by_certificate("eve", certificate_name="eve.test")
    server.configure(dan, eve)
    of_dan, of_eve = certified(server, "dan.test"), certified(server, "eve.test", "laptop.test")
    server.configure(dan, eve)
    assert server.is_current(of_dan) and server.is_current(of_eve)
    server.configure(dan, by_certificate("eve", certificate_name="laptop.test"))
    assert server.is_current(of_dan) and server.is_current(of_eve)  # the certificate has both names
    server.configure(by_certificate("dan", sha256=bytes(32)), by_certificate("eve", certificate_name="other.test"))
    assert not server.is_current(of_dan) and not server.is_current(of_eve)


def test_a_peer_named_by_its_certificate_alone_loses_its_session_once_others_are_named(server: HubServer) -> None:
    server.configure()
    dan = certified(server, "dan.test")
    server.configure(ANN)
    assert server.is_current(dan)
    server.configure(by_certificate("eve", certificate_name="eve.test"))
    assert not server.is_current(dan)


def test_a_barred_name_is_given_by_no_certificate(server: HubServer) -> None:
    server.configure()
    dan = certified(server, "dan.test")
    server.admission.configure(server.config, [], {"dan.test"})
    assert not server.is_current(dan)
    shown = ssl.PEM_cert_to_DER_cert(issue_for("dan.test"))
    assert Answer(server.admission.handle_hello(request(hello(None).frame(), certificate=shown))).reason == SILENCE
    assert certified(server, "fay.test").peer_handle


def test_a_ca_that_vouches_no_more_ends_the_sessions_of_certificates_alone(server: HubServer) -> None:
    server.configure(ANN)
    ann, dan = server.connect("ann"), certified(server, "dan.test")
    server.admission.end_certified()
    assert server.is_current(ann) and not server.is_current(dan)


def test_networks_that_are_allowed_or_not_any_more_lead_to_their_peer_or_not_at_once(server: HubServer) -> None:
    ann = server.connect("ann")
    server.configure(known("ann", "10.1.0.0/16", "10.2.0.0/16"), BOB)
    assert server.is_current(ann)
    assert server.handle_at("10.1.0.1") == server.handle_at("10.2.0.1") == ann.peer_handle
    server.configure(known("ann", "10.2.0.0/16"), known("bob", "10.1.0.0/16"))
    assert server.handle_at("10.1.0.1") == NO_PEER and server.handle_at("10.2.0.1") == ann.peer_handle


def test_an_unchanged_configuration_changes_nothing(server: HubServer) -> None:
    server.connect("ann")
    before = server.state()
    server.configure(ANN, BOB)
    assert server.state() == before


def test_changed_rates_apply_without_ending_a_session(server: HubServer) -> None:
    ann, bob = server.connect("ann"), server.connect("bob")
    server.configure(known("ann", rate=5000), BOB)
    assert server.is_current(ann) and server.is_current(bob)
    assert [server.table.rate(peer) for peer in range(3)] == [5000, 0, 0]
    server.configure(ANN, BOB)
    assert server.table.rate(ann.peer) == 0


def test_changed_networks_lead_to_their_peer_at_once(server: HubServer) -> None:
    ann = server.connect("ann")
    server.configure(known("ann", "10.1.0.0/16"), BOB)
    assert server.handle_at("10.1.2.3") == ann.peer_handle
    server.configure(ANN, BOB)
    assert server.handle_at("10.1.2.3") == NO_PEER
    assert server.is_current(ann)


def test_an_address_that_becomes_fixed_for_another_peer_ends_its_holders_session(server: HubServer) -> None:
    ann = server.connect("ann")
    server.configure(ANN, known("bob", fixed=["10.0.0.2"]))
    assert not server.is_current(ann)
    assert server.handle_at("10.0.0.2") == NO_PEER
    server.disconnect(ann.peer)
    bob = server.ask("bob")
    assert bob.addresses[0] == "10.0.0.2/24"
    assert set(server.ask("ann", 1).addresses) == {"10.0.0.3/24", "fd00::2/64"}


# -- for people


def row(peer: int, address: str, state: str = "established") -> ConnectionStatus:
    return ConnectionStatus(state, address, 0, 1, 0, 0, 0, 0, 0, 0, peer)


def test_a_changed_rate_of_bulk_applies_without_ending_a_session(server: HubServer) -> None:
    ann = server.connect("ann")
    assert server.table.bulk_rate(ann.peer) is None
    for rate in (250_000, 0):
        server.configure(known("ann", bulk_rate=rate), BOB)
        assert server.is_current(ann) and server.table.bulk_rate(ann.peer) == rate
        shown, _ = server.admission.list_peers(time.monotonic_ns())
        assert shown["bulk_rate_mbit"] == rate / 125_000
    server.configure(ANN, BOB)
    assert server.table.bulk_rate(ann.peer) is None


def test_every_peer_is_listed_by_name_connected_or_not(make_server: MakeHub) -> None:
    server = make_server(known("bob", "10.1.0.0/16", rate=250_000), known("ann", fixed=["10.0.0.9"]), CYD)
    bob = server.connect("bob")
    server.set_connections(bob.peer, 2, lane=1)
    for lane, address in enumerate(("192.0.2.7:40000", "192.0.2.7:40001")):
        server.table.write_status_row(lane, lane, row(bob.peer, address))
    server.table.write_status_row(1, 5, row(bob.peer, "[2001:db8::1]:4000"))
    server.table.write_status_row(1, 6, row(bob.peer, "192.0.2.99:1", state="handshake"))
    ann, shown, cyd = server.admission.list_peers(time.monotonic_ns() + 90_000_000_000)
    assert (ann["name"], ann["state"], ann["addresses"], ann["endpoint"]) == ("ann", "away", ["10.0.0.9"], "")
    assert (ann["connections"], ann["session_seconds"]) == (0, None)
    assert (shown["name"], shown["state"], shown["connections"]) == ("bob", "connected", 3)
    assert (shown["addresses"], shown["allowed"]) == (["10.0.0.2", "fd00::2"], ["10.1.0.0/16"])
    assert (shown["endpoint"], shown["rate_mbit"]) == ("192.0.2.7, [2001:db8::1]", 2.0)
    assert 90 <= shown["session_seconds"] < 100
    assert (cyd["name"], cyd["addresses"]) == ("cyd", [])


def test_amounts_are_counted_from_the_start_of_the_session(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB, capacity=1)

    def carry(amount: int) -> None:
        for lane in range(2):
            server.table.sent[lane][layout.SENT_BYTES] += amount
            server.table.sent[lane][layout.SENT_DROPPED] += amount + 1
            server.table.links[lane][layout.LINK_RECEIVED_BYTES] += amount + 2

    def amounts(name: str) -> tuple[int, int, int]:
        found = next(peer for peer in server.admission.list_peers(0) if peer["name"] == name)
        return found["sent_bytes"], found["dropped"], found["received_bytes"]

    carry(1000)
    ann = server.connect("ann")
    assert amounts("ann") == (0, 0, 0)
    carry(10)
    assert amounts("ann") == (20, 22, 24)
    server.disconnect(ann.peer)
    server.connect("bob")
    assert amounts("bob") == amounts("ann") == (0, 0, 0)
    carry(1)
    assert amounts("bob") == (2, 4, 6)
