"""New certificates of a reload, and what workers cannot use of them; new connections in place of old ones that have
used up their keys, or that pace for ever."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from pipeline.credentials import certificates
from pipeline.policy.congestion import PathLoss
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import CLOSED, Connection
from pipeline.transport.settings import TlsMaterial
from tests.harness.no_descriptors import no_descriptor_left
from tests.inline.harness.ends import End, Make, step_for, until
from tests.inline.harness.hub_ends import between, connected_hub, tls
from workers.tcp.connection_checks import BYTES_UNDER_ONE_KEY_MAX, REKEY_AFTER_BYTES


def reload(end: End, settings: WorkerSettings) -> None:
    end._channels.send_to_all({"settings": list(settings)})


UNUSABLE: dict[str, Callable[[TlsMaterial], TlsMaterial]] = {
    "broken": lambda good: good._replace(certificate_pem=good.certificate_pem + good.certificate_pem[:300]),
    "other key": lambda good: good._replace(key_pem=certificates.make_self_signed("other").key.decode()),
    "no ca": lambda good: good._replace(ca_pem="é"),
    "fingerprint": lambda good: good._replace(fingerprint="no hex"),
}


@pytest.mark.parametrize("mode", ["server", "client"])
@pytest.mark.parametrize("unusable", UNUSABLE)
def test_settings_that_a_worker_cannot_use_leave_it_and_its_connections_as_they_are(
    make: Make, mode: str, unusable: str
) -> None:
    material, plain = tls()
    server, client = connected_hub(make, count=1, tls=material, clients={"tls": plain})
    end = server if mode == "server" else client
    other = certificates.make_self_signed("other")
    own = (
        material
        if mode == "server"
        else plain._replace(certificate_pem=other.certificate.decode(), key_pem=other.key.decode())
    )
    if mode == "client" and unusable == "other key":
        own = own._replace(key_pem="")
    reload(end, end.plan.settings._replace(tls=UNUSABLE[unusable](own)))
    until(lambda: end.count("tcp.settings_refused") == 1, server, client)
    assert client.established() == server.established() == 1
    client.kill("tcp-0")
    client.start("tcp-0")
    until(lambda: client.count("tcp.connections_established") == 2, server, client, what="a new connection")


def test_a_reload_without_a_free_descriptor_leaves_the_worker_as_it_is(make: Make) -> None:
    material, plain = tls()
    server, client = connected_hub(make, count=1, tls=material, clients={"tls": plain})
    reload(server, server.plan.settings)
    with no_descriptor_left():
        until(lambda: server.count("tcp.settings_refused") == 1, server)
    assert client.established() == server.established() == 1


def test_a_client_names_its_new_key_after_a_reload(make: Make) -> None:
    material, plain = tls()
    _, client = connected_hub(make, count=1, tls=material, clients={"tls": plain})
    reload(client, client.plan.settings._replace(key_id="ab" * 8))
    handshaker = client.workers["tcp-0"].duty("inbound").connections._handshaker
    until(lambda: handshaker._key_id == b"\xab" * 8, client)


# -- keys that have been used for much


def only_connection(end: End) -> Connection:
    (connection,) = end.workers["tcp-0"].duty("inbound").connections.established.values()
    return connection


def test_a_connection_with_new_keys_is_there_before_the_old_one_ends(make: Make) -> None:
    material, plain = tls()
    server, client = connected_hub(make, count=1, tls=material, clients={"tls": plain})
    old = only_connection(client)
    old.send.byte_count = REKEY_AFTER_BYTES + 1

    def is_replaced() -> bool:
        assert client.established() and server.established()
        return old.state == CLOSED

    until(is_replaced, server, client)
    client.write(between(1, 0, range(1))[0])
    until(server.packets, server, client)
    assert only_connection(client).send.byte_count < REKEY_AFTER_BYTES
    assert client.count("tcp.connections_established") == 2 and client.count("tcp.connections_lost") == 1
    step_for(0.5, server, client)
    assert client.count("tcp.connections_established") == 2


def test_a_connection_that_cannot_be_replaced_goes_on_until_its_keys_are_worn_out(make: Make) -> None:
    material, plain = tls()
    server, client = connected_hub(make, count=1, tls=material, clients={"tls": plain})
    old = only_connection(client)
    old.send.byte_count = REKEY_AFTER_BYTES + 1
    server._listener.shutdown(socket.SHUT_RDWR)  # for every descriptor of it
    until(lambda: client.count("tcp.dials_failed") >= 3, server, client)
    client.write(between(1, 0, range(1))[0])
    until(server.packets, server, client)
    assert only_connection(client) is old
    old.send.byte_count = BYTES_UNDER_ONE_KEY_MAX + 1
    until(lambda: not client.established(), server, client)


def test_with_compat_the_old_connection_ends_first_since_a_second_one_would_be_another_client(make: Make) -> None:
    material, plain = tls()
    server = make("server", compat=True, tls=material)
    client = make("client", port=server.port, compat=True, tls=plain)
    until(lambda: client.established() == server.established() == 1, server, client)
    old = only_connection(client)
    old.receive.byte_count = REKEY_AFTER_BYTES + 1
    until(lambda: old.state == CLOSED, server, client)
    assert client.established() == 0
    until(lambda: client.established() == server.established() == 1, server, client)


# -- connections that have had BBR


@pytest.fixture
def fast_again(monkeypatch: pytest.MonkeyPatch) -> Callable[[End], list[Connection]]:
    """The path was lossy, and is clean and fast now: all connections of a client that stand have had BBR."""

    def let(client: End) -> list[Connection]:
        connections = client.workers["tcp-0"].duty("inbound").connections
        old = list(connections.established.values())
        congestion = connections.peers[0]._congestions[0]
        congestion._pacing.update(dict.fromkeys(old))
        monkeypatch.setattr(PathLoss, "is_fast", True)
        return old

    return let


def test_a_connection_that_paces_for_ever_is_dialed_anew_on_a_fast_path_one_after_the_other(
    make: Make, fast_again: Callable[[End], list[Connection]]
) -> None:
    server, client = connected_hub(make, count=1, clients={"connections": 3, "congestion": "auto"})
    old = fast_again(client)
    assert len(old) == 3

    def are_replaced() -> bool:
        assert client.established() >= 2
        return all(each.state == CLOSED for each in old)

    until(are_replaced, server, client)
    step_for(0.5, server, client)
    assert client.count("tcp.connections_established") == 6
    client.write(between(1, 0, range(1))[0])
    until(server.packets, server, client)


def test_with_compat_a_connection_that_paces_goes_on(make: Make, fast_again: Callable[[End], list[Connection]]) -> None:
    server = make("server", compat=True)
    client = make("client", port=server.port, compat=True, congestion="auto")
    until(lambda: client.established() == server.established() == 1, server, client)
    (old,) = fast_again(client)
    step_for(0.5, server, client)
    assert only_connection(client) is old
    assert client.count("tcp.connections_established") == 1
