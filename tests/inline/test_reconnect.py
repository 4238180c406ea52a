"""Ends, workers and clients that end and come back: the cost of that, and for which of them."""

from __future__ import annotations

import time
from collections.abc import Collection

import pytest

from pipeline.runtime.worker import loop
from pipeline.transport.connection import Connection
from tests.inline.harness.ends import Make, Peer, carry, ipv4, pair, push, step_for, until
from tests.inline.harness.hub_ends import tls
from workers.tcp.link_publisher import LinkPublisher

# -- ends and beginnings


def test_who_counts_a_connection_finds_its_address(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[str]]] = []
    publish = LinkPublisher.publish

    def publish_and_look(publisher: LinkPublisher, peer: int, established: Collection[Connection]) -> None:
        publish(publisher, peer, established)
        table = publisher._peers
        addresses = [row.address for row in table.connections(0) if row.state == "established"]
        seen.append((table.established_count(0), addresses))

    monkeypatch.setattr(LinkPublisher, "publish", publish_and_look)
    server, client = pair(make, connections=3)
    client.close()
    until(lambda: not server.established(), server)
    counts = [count for count, _ in seen]
    assert max(counts) == 3 and counts[-1] == 0
    assert all(len(addresses) >= count for count, addresses in seen), seen


def test_a_server_that_vanishes_and_returns_is_found_again(make: Make) -> None:
    server, client = pair(make)
    port = server.port
    carry(client, server, [ipv4(1)])
    server.close()
    until(lambda: not client.established(), client)
    successor = make("server", port=port)
    until(lambda: client.established(), successor, client)
    carry(client, successor, [ipv4(2)])
    assert successor.packets() == [ipv4(2)]
    assert client.count("tcp.connections_lost") == 1


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_tun_worker_that_is_replaced_loses_nothing_that_was_in_a_ring(make: Make, side: str) -> None:
    server, client = pair(make)
    end, other = (server, client) if side == "server" else (client, server)
    for i in range(4):
        other.write(ipv4(i))
        until(lambda: other.count("tcp.frames_sent") == i + 1, other)
    until(lambda: end.step("tcp-0") == 0 and end.count("tcp.frames_received") >= 4)
    end.kill("tun-0")
    end.write(ipv4(100))  # waits in the kernel's queue
    end.start("tun-0")
    until(lambda: len(end.packets()) == 4 and len(other.packets()) == 1, server, client)
    assert end.packets() == [ipv4(i) for i in range(4)]
    assert other.packets() == [ipv4(100)]


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_tcp_worker_that_is_replaced_goes_on_with_what_was_not_sent(make: Make, side: str) -> None:
    server, client = pair(make)
    end, other = (server, client) if side == "server" else (client, server)
    end.kill("tcp-0")
    for i in range(3):
        end.write(ipv4(i))
        until(lambda: end.step("tun-0") == 0 and end.count("tun.packets_read"))
    end.start("tcp-0")
    until(lambda: len(other.packets()) == 3, server, client)
    assert other.packets() == [ipv4(i) for i in range(3)]
    carry(other, end, [ipv4(9)])
    assert end.packets() == [ipv4(9)]


def test_a_client_that_stops_sends_all_that_it_has_and_shuts_its_connection_down(make: Make) -> None:
    server, client = pair(make)
    packets = [ipv4(i, 1000) for i in range(300)]
    waiting = list(packets)
    until(lambda: push(client, waiting) and client.count("tun.packets_read") == len(packets), client, server)
    for name in ("tun-0", "tcp-0"):
        worker = client.workers[name]
        worker.attachment.stop.request(5.0)
        assert name == "tun-0" or not worker.duty("inbound").drained()  # no shutdown before the last packet
        for duty in worker.duties:
            loop(duty, worker.attachment.page.heartbeat(duty.name), worker.attachment.stop)
        assert worker.attachment.page.oldest_heartbeat() > 0
    until(lambda: not server.established() and len(server.packets()) == len(packets), server)
    assert server.packets() == packets


def test_with_tls_a_shutdown_sends_close_notify(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Without it a peer could not tell an end from a truncation (RFC 8446, 6.1)."""
    serving, dialling = tls()
    server = make("server", tls=serving)
    client = make("client", port=server.port, client_id=1, session=1, tls=dialling)
    until(lambda: server.established() and client.established(), server, client)
    with caplog.at_level("DEBUG"):
        client.workers["tcp-0"].duty("inbound").connections.shutdown_all()
        until(lambda: not server.established(), server)
    ends = [record.getMessage() for record in caplog.records if " ended: " in record.getMessage()]
    assert [line.endswith("ended: closed by the peer") for line in ends] == [True]


def test_with_tls_a_connection_is_replaced_before_its_keys_have_served_too_long(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tcp.connection_checks.REKEY_AFTER_BYTES", 100_000)
    serving, dialling = tls()
    server = make("server", tls=serving)
    client = make("client", port=server.port, client_id=1, session=1, tls=dialling)
    until(lambda: server.established() and client.established(), server, client)
    for end, other, rounds in ((client, server, 1), (server, client, 2)):
        carry(end, other, [ipv4(number, 1000) for number in range(90)])
        step_for(0.15, server, client)  # a tick of the clock, in which nothing happens yet
        assert client.count("tcp.connections_lost") == rounds - 1
        waiting = [ipv4(number, 1000) for number in range(90, 120)]  # what is on the way at the end may be lost
        until(lambda: push(end, waiting), server, client)
        until(lambda: client.count("tcp.connections_established") == rounds + 1, server, client)
    carry(client, server, [ipv4(number) for number in range(200, 210)])
    assert server.packets()[-1] == ipv4(209)
    assert server.established() == client.established() == 1


def test_a_worker_that_cannot_drain_ends_at_its_deadline_all_the_same(make: Make) -> None:
    _server, client = pair(make, send_buffer_bytes=30_000, receive_buffer_bytes=30_000)
    for i in range(50):
        client.write(ipv4(i, 60_000))
    until(lambda: client.count("tcp.socket_full_waits") > 3, client)  # the server does not read
    worker = client.workers["tcp-0"]
    stop = worker.attachment.stop
    asked = time.monotonic()
    stop.request(0.2)
    loop(worker.duty("outbound"), worker.attachment.page.heartbeat("outbound"), stop)
    assert 0.2 <= time.monotonic() - asked < worker.attachment.settings.drain_timeout
    assert not worker.duty("outbound").ended


def test_the_status_of_a_connection_is_in_the_peer_table(make: Make) -> None:
    server, client = pair(make)
    carry(client, server, [ipv4(1, 1000)])
    peers = client.memory.peer_table
    row = until(lambda: next((r for r in peers.connections(0) if r.sent_bytes), None), server, client)
    assert (row.state, row.address, row.lane) == ("established", f"127.0.0.1:{server.port}", 0)
    assert row.sent_bytes == client.count("tcp.bytes_sent")
    client.kill("tcp-0")
    client.start("tcp-0")
    assert peers.connections(0) == []  # a successor clears the rows of its predecessor


# -- two clients


def test_a_second_client_is_refused_and_the_first_one_notices_nothing(make: Make) -> None:
    server = make("server")
    first = make("client", port=server.port, client_id=1, session=5)
    until(lambda: first.established(), server, first)
    second = make("client", port=server.port, client_id=2, session=9)
    until(lambda: second.count("tcp.dials_failed") >= 2, server, first, second)
    carry(first, server, [ipv4(i) for i in range(10)])
    carry(server, first, [ipv4(i) for i in range(10)])
    step_for(0.2, server, first, second)
    assert server.packets() == first.packets() == [ipv4(i) for i in range(10)]
    assert second.established() == 0 == second.count("tcp.connections_established")
    assert server.count("tcp.connections_refused") >= 2
    assert first.count("tcp.connections_lost") == server.count("tcp.connections_lost") == 0


def test_a_second_client_is_admitted_once_the_first_one_has_left(make: Make) -> None:
    server = make("server")
    first = make("client", port=server.port, client_id=1, session=5)
    until(lambda: first.established(), server, first)
    second = make("client", port=server.port, client_id=2, session=1)
    until(lambda: second.count("tcp.dials_failed"), server, first, second)
    first.close()
    until(lambda: second.established(), server, second)
    carry(second, server, [ipv4(1)])
    assert server.packets() == [ipv4(1)]


@pytest.mark.parametrize("worker", ["tcp-0", "tcp-1"], ids=["the-same-worker", "another-worker"])
def test_a_newer_session_of_the_same_client_replaces_the_older_one(make: Make, worker: str) -> None:
    server = make("server", lanes=2)
    older = make("client", port=server.port, client_id=1, session=5)
    until(lambda: (server.step("tcp-0") and False) or older.established(), older)
    newer = make("client", port=server.port, client_id=1, session=6)
    until(lambda: (server.step(worker) and False) or newer.established(), newer)
    until(lambda: server.established() == 1 and not older.established(), server, older, newer)
    carry(newer, server, [ipv4(1)])
    assert server.packets() == [ipv4(1)]
    refused = older.count("tcp.dials_failed")
    until(lambda: older.count("tcp.dials_failed") > refused, server, older, newer)
    assert newer.count("tcp.connections_lost") == 0


def test_with_compat_a_second_connection_is_closed_and_the_first_one_notices_nothing(make: Make) -> None:
    server = make("server", compat=True)
    first = make("client", port=server.port, compat=True)
    until(lambda: first.established() and server.established(), server, first)
    second = Peer.dial(server.port)
    try:
        until(lambda: second.read_frames().ended, server, first)
        assert second.frames == []
        carry(first, server, [ipv4(1)])
        assert server.packets() == [ipv4(1)]
        assert server.count("tcp.connections_refused") == 1
        assert first.count("tcp.connections_lost") == 0
    finally:
        second.close()
