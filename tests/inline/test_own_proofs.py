"""A client with a key: its tcp workers have none, and their supervisor proves and judges for them."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from pipeline.errors import LocalError
from pipeline.runtime.supervisor_channel import Answer
from pipeline.supervisor.roles.prover import Prover
from pipeline.wire import auth
from tests.harness.hub import KEYS, known
from tests.inline.harness.ends import End, Make, step_for, until
from tests.inline.harness.hub_ends import configure, inside, packet, tls
from workers.tcp.client_connections import UNANSWERED

KEY, OTHER_KEY = KEYS["ann"], KEYS["bob"]


def keyed_pair(make: Make, key: bytes = KEY, **settings: object) -> tuple[End, End]:
    """A server that knows ann's key, and a client that has this one. Nothing has been stepped yet."""
    material, plain = tls()
    server = make("server", capacity=4, tls=material, verifies_keys=True)
    configure(server, known("ann"))
    key_id = auth.key_id(key).hex()
    client = make(
        "client", port=server.port, client_id=1, session=1, tls=plain, key_id=key_id, **{"connections": 1, **settings}
    )
    client.prover = Prover(key, client.plan.settings)
    return server, client


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_client_is_connected_through_its_supervisor_and_carries_packets(make: Make, lanes: int) -> None:
    server, client = keyed_pair(make, lanes=lanes, connections=4, light_connections=2)
    until(lambda: server.established() == client.established() == 6, server, client)
    assert server.hub.is_member("ann")
    sent = packet(inside(1, 4), inside(0, 4))
    client.write(sent)
    until(lambda: server.packets() == [sent], server, client)
    assert client.count("tcp.dials_failed") == 0


def test_a_client_with_another_key_is_not_connected(make: Make) -> None:
    server, client = keyed_pair(make, OTHER_KEY)
    until(lambda: server.count("tcp.closed_proof_wrong") >= 2, server, client)
    assert client.established() == server.established() == 0


def test_a_client_does_not_believe_a_server_with_another_key(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It has got the proof, and answers with a WELCOME that is sealed with another key than ours."""
    server, client = keyed_pair(make)
    other = Prover(KEY, client.plan.settings)
    other._key = OTHER_KEY
    sound = client._channels._answer
    client._channels._answer = lambda request: other.judge(request, 0) if "welcome" in request else sound(request)
    with caplog.at_level("DEBUG", "tunnel"):
        until(lambda: "has not proved that it has our key" in lines(caplog), server, client)
    assert client.count("tcp.connections_established") == 0


def test_a_handshake_waits_for_a_supervisor_that_stands_still_and_ends_at_its_timeout(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = keyed_pair(make, handshake_timeout=0.5)
    client.supervisor_stands_still = True
    with caplog.at_level("DEBUG", "tunnel"):
        until(lambda: client.count("tcp.dials_failed") >= 1, server, client)
    assert UNANSWERED in lines(caplog)
    assert client.count("tcp.connections_established") == 0
    client.supervisor_stands_still = False
    until(lambda: client.established() == server.established() == 1, server, client)


def test_a_supervisor_that_answers_late_finds_the_handshake_still_there(make: Make) -> None:
    server, client = keyed_pair(make)
    client.supervisor_stands_still = True
    step_for(0.5, server, client)
    assert client.established() == 0 and client.count("tcp.dials_failed") == 0
    client.supervisor_stands_still = False
    until(lambda: client.established() == 1, server, client)
    assert client.count("tcp.connections_established") == 1


def test_established_connections_go_on_while_the_supervisor_stands_still(make: Make) -> None:
    server, client = keyed_pair(make)
    until(lambda: client.established() == server.established() == 1, server, client)
    client.supervisor_stands_still = True
    sent = packet(inside(1, 4), inside(0, 4))
    client.write(sent)
    until(lambda: server.packets() == [sent], server, client)


def test_a_question_that_finds_the_queue_full_waits_for_room(make: Make) -> None:
    server, client = keyed_pair(make)
    client.supervisor_stands_still = True
    channel = client.workers["tcp-0"].duty("inbound").connections._channel
    while channel._requests.is_empty:
        assert channel.ask({"serial": 999, "hello": "", "challenge": "", "hash": "", "welcome": "", "server": ""})
    step_for(0.3, server, client)
    assert client.established() == 0 and not channel._requests.is_empty
    client.supervisor_stands_still = False
    until(lambda: client.established() == server.established() == 1, server, client)
    assert client.count("tcp.dials_failed") == 0


def test_the_successor_of_a_worker_that_waited_for_an_answer_is_connected(make: Make) -> None:
    server, client = keyed_pair(make)
    client.supervisor_stands_still = True
    step_for(0.3, server, client)
    client.kill("tcp-0")
    client.supervisor_stands_still = False
    client.start("tcp-0")
    until(lambda: client.established() == 1, server, client)


def test_an_answer_that_fails_costs_that_handshake_and_no_worker(make: Make) -> None:
    server, client = keyed_pair(make, handshake_timeout=0.3)
    sound, failures = client._channels._answer, [OSError(errno.EMFILE, ""), LocalError("")]

    def answer(request: object) -> Answer | None:
        if failures:
            raise failures.pop()
        return sound(request)

    client._channels._answer = answer
    until(lambda: client.established() == server.established() == 1, server, client)
    assert not failures


def test_a_reload_with_a_new_key_leaves_connections_and_proves_with_the_new_one(make: Make) -> None:
    server, client = keyed_pair(make)
    until(lambda: client.established() == server.established() == 1, server, client)
    configure(server, known("ann")._replace(key=OTHER_KEY))
    until(lambda: not server.established(), server, client, what="the session of the old key ends")
    settings = client.plan.settings._replace(key_id=auth.key_id(OTHER_KEY).hex())
    client.prover = Prover(OTHER_KEY, settings)
    client._channels.send_to_all({"settings": list(settings)})
    until(lambda: client.established() == server.established() == 1, server, client)


def test_with_noise_sizes_of_the_handshake_differ_and_both_ends_agree(make: Make) -> None:
    server, client = keyed_pair(make, connections=6, noise=True)
    hellos: list[int] = []
    sound = client._channels._answer

    def answer(request: Any) -> Answer | None:
        hellos.append(len(request["hello"]))
        return sound(request)

    client._channels._answer = answer
    until(lambda: server.established() == client.established() == 6, server, client)
    assert len(set(hellos)) > 1 and client.count("tcp.dials_failed") == 0


def test_with_noise_each_keepalive_comes_at_a_time_of_its_own(make: Make) -> None:
    server, client = keyed_pair(make, connections=6, noise=True, keepalive=1.0)
    until(lambda: server.established() == client.established() == 6, server, client)
    connections = list(client.workers["tcp-0"].duty("inbound").connections.established.values())
    until(lambda: client.count("tcp.keepalives_sent") >= 6, server, client)
    until(lambda: all(each.send.keepalive_after_ns for each in connections), server, client)
    times = {each.send.keepalive_after_ns for each in connections}
    assert len(times) == 6 and all(500_000_000 <= each <= 1_000_000_000 for each in times)
