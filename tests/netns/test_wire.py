"""docs/wire.md is true: a client that was written from it passes packets through a real server, in every form."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns.harness.handmade_clients import Dialer, EchoResponder, connect, inviting_server
from tests.netns.harness.instance import Instance, command, server_config
from tests.reference.client import ACCEPTS_RUNS, ANSWERS, Ended, Refused, Runs, WireClient, tls
from tests.reference.packets import echo_request, is_reply, udp_payload
from tests.reference.sealed_blocks import LIGHT
from tests.support import eventually
from tools.lab.network import Lab
from tools.load import flows

INSIDE = ("10.99.0.1", "fd99::1")
VERSIONS = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2)
REPLY_SECONDS = 5.0
DATAGRAMS, DATAGRAM_BYTES = 400, 1200
COPIED = 10


@pytest.fixture(scope="module")
def dialer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialer]:
    with Lab() as lab, inviting_server(lab, tmp_path_factory.mktemp("hub"), tls_min_version="1.2", fec="on") as made:
        yield made


def pings(client: WireClient, *others: WireClient, send: str = "send") -> None:
    """The client pings the server, over IPv4 and IPv6. The replies come there or on others of its connections."""
    for number, (own, server) in enumerate(zip(client.welcome.addresses, INSIDE, strict=True)):
        request = echo_request(str(own.ip), server, number)
        getattr(client, send)(request)
        expect_reply(request, client, *others)


def expect_reply(request: bytes, *connections: WireClient) -> None:
    eventually(
        lambda: any(is_reply(packet, request) for each in connections for packet in each.receive_packets(0.05)),
        REPLY_SECONDS,
        "a reply",
    )


def is_pinged(server: Instance, responder: EchoResponder, count: int = 3) -> None:
    for address in (responder.address, responder.address6):
        assert flows.ping(server.node, address, count=count, interval=0.05, timeout=REPLY_SECONDS).lost == []


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_client_written_from_the_document_pings_and_is_pinged(dialer: Dialer, version: ssl.TLSVersion) -> None:
    client = dialer.dial("one", version)
    assert client.tls_version == {"TLSv1_3": "TLSv1.3", "TLSv1_2": "TLSv1.2"}[version.name]
    assert client.welcome.version == 2 and client.welcome.mtu == 1400
    assert [each.version for each in client.welcome.addresses] == [4, 6] and client.welcome.routes == ()
    pings(client)
    with EchoResponder(client) as responder:
        is_pinged(dialer.server, responder)
    assert responder.answered == 6 and client.unknown == 0


def test_many_packets_in_one_block_all_arrive(dialer: Dialer) -> None:
    with dialer.dial("one") as client:
        requests = [echo_request(str(client.welcome.addresses[0].ip), INSIDE[0], number) for number in range(100)]
        client.send(*requests)
        replies: list[bytes] = []
        deadline = time.monotonic() + REPLY_SECONDS
        while len(replies) < len(requests) and time.monotonic() < deadline:
            replies += client.receive_packets(0.1)
        assert all(is_reply(reply, request) for reply, request in zip(replies, requests, strict=True))


@pytest.mark.parametrize(("n", "m"), [(2, 0), (10, 3), (37, 5)])
def test_a_block_in_shards_over_two_connections_is_put_together(dialer: Dialer, n: int, m: int) -> None:
    session = dialer.new_session("one")
    with ExitStack() as stack:
        pair = [
            stack.enter_context(dialer.dial("one", session=session, connections=2, index=index, runs=Runs()))
            for index in range(2)
        ]
        request = echo_request(str(pair[0].welcome.addresses[0].ip), INSIDE[0], n, bytes(1000))
        block = session.seal_coded([request], n, m)
        cut = (n + 1) // 2
        pair[0].send_sealed(block, 0, cut)
        pair[1].send_sealed(block, cut + m, n - cut)  # m data shards, or all the last ones, are never sent
        if m:
            pair[0].send_sealed(block, n, m)
        expect_reply(request, *pair)


def test_copies_of_a_block_bring_it_once(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with ExitStack() as stack:
        pair = [
            stack.enter_context(dialer.dial("one", session=session, connections=2, index=index, runs=Runs()))
            for index in range(2)
        ]
        before = dialer.server.counter("tun.packets_written")
        request = echo_request(str(pair[0].welcome.addresses[0].ip), INSIDE[0], 1)
        for client, copy in zip(pair, session.seal_copies([request], 2), strict=True):
            client.send_sealed(copy)
        expect_reply(request, *pair)
        pings(pair[0], *pair)
        assert dialer.server.counter("tun.packets_written") <= before + 3


def test_lanes_are_told_and_copies_meet_in_that_of_their_stream(tmp_path: Path) -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        dialer = stack.enter_context(inviting_server(lab, tmp_path, lanes=2, fec="on"))
        session = dialer.new_session("one", lane=1)
        known = {"session": session, "connections": 3, "traffic_class": LIGHT}
        clients = [
            stack.enter_context(dialer.dial("one", index=index, lane=lane, runs=Runs(), **known))
            for index, lane in enumerate((0, 1, 7))
        ]
        assert [client.welcome.lane for client in clients] == [0, 1, 1]
        address = str(clients[0].welcome.addresses[0].ip)
        for number in range(COPIED):
            request = echo_request(address, INSIDE[0], number)
            for client, copy in zip(clients, session.seal_copies([request], 3), strict=True):
                client.send_sealed(copy)
            expect_reply(request, *clients)
        eventually(lambda: dialer.server.counter("tun.copies_unneeded") == 2 * COPIED, REPLY_SECONDS, "all copies")
        assert sorted(lane["received_packets"] for lane in dialer.server.running()["lanes"]) == [0, COPIED]


def test_runs_of_one_shard_and_of_more_bring_every_packet(dialer: Dialer) -> None:
    runs, session = Runs(), dialer.new_session("one")
    with ExitStack() as stack:
        clients = [
            stack.enter_context(dialer.dial("one", session=session, connections=4, index=index, runs=runs))
            for index in range(4)
        ]
        assert all(client.welcome.features & ACCEPTS_RUNS for client in clients)
        address = str(clients[0].welcome.addresses[0].ip)
        source = stack.enter_context(dialer.server.node.socket(kind=socket.SOCK_DGRAM))
        for number in range(DATAGRAMS):
            source.sendto(number.to_bytes(4, "big").ljust(DATAGRAM_BYTES, b"."), (address, 9))
        came: set[int] = set()

        def all_came() -> bool:
            payloads = [udp_payload(packet) for client in clients for packet in client.receive_packets(0.02, DATAGRAMS)]
            came.update(int.from_bytes(payload[:4], "big") for payload in payloads if payload)
            return len(came) == DATAGRAMS

        eventually(all_came, 2 * REPLY_SECONDS, "every datagram")
    assert runs.blocks[1] and runs.blocks[2], f"blocks in one shard and in more: {runs.blocks}"
    assert runs.incomplete == 0


def test_a_wish_is_granted_and_one_that_cannot_be_is_refused_with_the_reason(dialer: Dialer) -> None:
    with dialer.dial("two", requested_addresses=["10.99.0.77", "fd99::77"]) as client:
        assert [str(each) for each in client.welcome.addresses] == ["10.99.0.77/24", "fd99::77/64"]
        with pytest.raises(Refused) as refused:
            dialer.dial("three", requested_addresses=["10.99.0.77"])
        assert refused.value.reason == 5
        with pytest.raises(Refused) as refused:
            dialer.dial("three", requested_addresses=["192.0.2.1"])
        assert refused.value.reason == 6
        pings(client)


@pytest.mark.parametrize("wire_version", [1, 2])
def test_a_hello_of_an_earlier_version_or_without_a_key_share_is_refused_once_the_proof_is_there(
    dialer: Dialer, wire_version: int
) -> None:
    with dialer.dial_tls("two") as client, pytest.raises(Refused) as refused:
        client.send_hello(wire_version, extensions=b"")
        client.receive_challenge()
        client.send_proof(client.proof())
        client.receive_welcome()
    assert (refused.value.reason, refused.value.text) == (2, "this server speaks version 2")


def test_the_same_index_again_takes_the_place_of_the_connection_before(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with (
        dialer.dial("one", session=session) as first,
        dialer.dial("one", session=session, index=1) as second,
        dialer.dial("one", session=session) as third,
    ):
        with pytest.raises(Ended):
            first.receive_packets(REPLY_SECONDS)
        pings(second, third)
        pings(third, second)


def test_a_later_session_takes_the_place_of_an_earlier_one_and_not_the_other_way_round(dialer: Dialer) -> None:
    session = dialer.new_session("one")
    with dialer.dial("one", session=session) as earlier, dialer.dial("one") as later:
        with pytest.raises(Ended):
            earlier.receive_packets(REPLY_SECONDS)
        with pytest.raises(Refused) as refused:
            dialer.dial("one", session=session)
        assert refused.value.reason == 3
        pings(later)


@pytest.mark.slow
def test_keepalives_keep_a_silent_connection_and_one_without_them_is_closed(tmp_path: Path) -> None:
    with Lab() as lab, inviting_server(lab, tmp_path, keepalive=1.0, timeout=6.0) as dialer:
        with dialer.dial("one") as speaks, dialer.dial("two") as mute:

            def both_ways() -> bool:
                speaks.keepalive()
                speaks.receive_packets(0.2)
                return speaks.keepalives >= 10

            eventually(both_ways, 30.0, "ten keepalives")
            with pytest.raises(Ended):
                mute.receive_packets(REPLY_SECONDS)
            assert 2 <= mute.keepalives < 10
            pings(speaks)
        assert dialer.server.counter("tcp.connections_timed_out") == 1


def test_without_encryption_there_is_no_tls_and_no_proof(tmp_path: Path) -> None:
    with Lab() as lab, Instance(lab.nodes[0], server_config(lab.nodes[0]), tmp_path) as server:
        server.wait_until_running()
        port = int(server.config["local_addr"].rpartition(":")[2])
        sock = connect(lab.nodes[1], lab.nodes[0].address, port)
        client = WireClient(sock, requested_addresses=["10.99.0.5", "fd99::5"])
        assert [str(each) for each in client.shake_hands().addresses] == ["10.99.0.5/24", "fd99::5/64"]
        pings(client)
        pings(client, send="send_bare")
        with EchoResponder(client) as responder:
            is_pinged(server, responder)


def test_with_certificates_there_is_no_proof_but_theirs(tmp_path: Path) -> None:
    authority = tmp_path / "ca"
    for which in (["--ca", "Test CA"], ["--server", "hub", "--address", "10.77.0.1"], ["--client", "laptop"]):
        assert command("gen-cert", authority, *which).returncode == 0
    files = {name: str(authority / name) for name in ("ca.crt", "hub.crt", "hub.key", "laptop.crt", "laptop.key")}
    with Lab() as lab:
        a, b = lab
        config = {
            **server_config(a),
            "encryption": "tls",
            "insecure": False,
            "state_dir": str(tmp_path / "state"),
            "tls_cert_file": files["hub.crt"],
            "tls_key_file": files["hub.key"],
            "tls_ca_file": files["ca.crt"],
            "peers": [{"name": "laptop", "certificate_name": "laptop"}],
        }
        with Instance(a, config, tmp_path) as server:
            server.wait_until_running()
            port = int(config["local_addr"].rpartition(":")[2])
            client = WireClient(connect(b, a.address, port))
            mine = files["laptop.crt"]
            client.secure(tls(ca=files["ca.crt"], certificate=mine, key=files["laptop.key"]), a.address, own=mine)
            client.shake_hands()
            pings(client)
            with EchoResponder(client) as responder:
                is_pinged(server, responder)
            with WireClient(connect(b, a.address, port)) as nobody, pytest.raises(Ended) as ended:
                nobody.secure(tls(ca=files["ca.crt"]), a.address)  # with TLS 1.3 the refusal comes when we read
                nobody.shake_hands()
            assert ended.value.how == "alert: TLSV13_ALERT_CERTIFICATE_REQUIRED"
            eventually(lambda: server.counter("tcp.closed_hello_invalid") == 1)


def test_a_server_answers_each_question_with_a_keepalive(tmp_path: Path) -> None:
    with Lab() as lab, inviting_server(lab, tmp_path) as dialer, dialer.dial("one") as client:
        assert client.welcome.features & ANSWERS
        for _ in range(2):
            client.keepalives = 0
            client.question()
            eventually(lambda: client.receive_packets(0.05) or client.keepalives, what="an answer")
        pings(client)
        assert client.unknown == 0


@pytest.mark.alone
@pytest.mark.parametrize("moves", [True, False])
def test_a_server_that_is_to_stop_tells_clients_and_waits_for_those_that_have_another_one(
    tmp_path: Path, moves: bool
) -> None:
    with Lab() as lab, inviting_server(lab, tmp_path) as dialer, dialer.dial("one", moves=moves) as client:
        dialer.server.signal(signal.SIGTERM)
        if moves:
            eventually(lambda: client.receive_packets(0.05) or client.goaways, what="a goaway")
            pings(client)  # it goes on serving
            assert (client.goaways, client.unknown) == (1, 0) and dialer.server.process.poll() is None
            client.socket.close()
        assert dialer.server.wait(4.0) == 0
        assert ("about to stop" in dialer.server.log) is moves
