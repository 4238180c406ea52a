"""Admission where blocks may travel in datagrams: which sessions have secrets for that, and which clients are told."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.peers.admission import LEAVES_DATAGRAMS
from pipeline.peers.peer_datagrams import HAS_RATE, TAKES_NO_DATAGRAMS
from pipeline.policy.quota import UNLIMITED, QuotaTerms
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.sealing.session import KeyShare, Offer
from pipeline.shm.datagram_secrets import NO_HOST
from pipeline.wire import messages
from pipeline.wire.messages import Welcome
from tests.harness.hub import ANN, BOB, KEYS, Answer, HubServer, MakeHub, hello, known, request

TAKES = messages.TAKES_DATAGRAMS


class Client:
    """A start of a client, with one key share."""

    def __init__(self, server: HubServer, name: str = "ann", features: int = TAKES, number: int = 1) -> None:
        self.server, self.name, self.features, self.number = server, name, features, number
        self.offer = Offer(AES_256_GCM)

    def connect(self, index: int = 0) -> Answer:
        key, share = KEYS[self.name], self.offer.key_share.pack()
        asked = hello(key, self.number, index=index, key_share=share, features=self.features)
        answer = Answer(self.server.admission.handle_hello(request(asked.frame(), key, serial=7 + index)))
        self.server.set_connections(answer.peer, 1)
        return answer


def port_told(answer: Answer) -> int | None:
    assert isinstance(answer.message, Welcome)
    return answer.message.datagram_port


def fake_tcp_port_told(answer: Answer) -> int:
    assert isinstance(answer.message, Welcome)
    return answer.message.fake_tcp_port


def uses_datagrams(server: HubServer, answer: Answer) -> bool:
    return server.secrets.read(answer.peer_handle) is not None


@pytest.fixture
def server(make_server: MakeHub) -> HubServer:
    return make_server(ANN, BOB, seals=True, datagrams=True)


def test_a_client_that_takes_datagrams_has_secrets_of_its_session_and_is_told_so(server: HubServer) -> None:
    client = Client(server)
    answer = client.connect()
    assert port_told(answer) == 0 and fake_tcp_port_told(answer) == 444
    share = KeyShare.of_server(answer.message.key_share)
    theirs = client.offer.take_answer(share, KEYS["ann"], 1, 1).datagram_secrets()
    found = server.secrets.read(answer.peer_handle)
    assert (found.suite, found.send, found.receive) == (theirs.suite, theirs.receive, theirs.send)
    assert (found.host, found.port, found.scope) == (NO_HOST, 0, 0)


def test_each_connection_of_the_session_is_told_and_the_secrets_are_written_once(server: HubServer) -> None:
    client = Client(server)
    first = client.connect()
    version = server.secrets.version(first.peer_handle)
    second = client.connect(index=1)
    assert second.peer_handle == first.peer_handle and port_told(second) == 0
    assert server.secrets.version(first.peer_handle) == version


def test_a_client_that_takes_none_has_none_and_is_told_nothing(server: HubServer) -> None:
    answer = Client(server, features=0xFF & ~TAKES).connect()
    assert port_told(answer) is None and fake_tcp_port_told(answer) == 0 and not uses_datagrams(server, answer)


@pytest.mark.parametrize("seals", [True, False])
def test_a_server_without_datagrams_tells_nobody(make_server: MakeHub, seals: bool) -> None:
    server = make_server(ANN, seals=seals)
    answer = Client(server).connect()
    assert port_told(answer) is None and not uses_datagrams(server, answer)


def test_secrets_end_with_their_session_and_another_session_has_others(server: HubServer) -> None:
    ann, bob = Client(server).connect(), Client(server, "bob").connect()
    before = server.secrets.read(ann.peer_handle)
    server.disconnect(ann.peer)
    again = Client(server, number=2).connect()
    assert again.peer == ann.peer and not uses_datagrams(server, ann)
    assert server.secrets.read(again.peer_handle).send != before.send
    server.configure(BOB)
    assert server.secrets.read_index(again.peer) is None and uses_datagrams(server, bob)


def test_a_later_session_without_datagrams_has_no_secrets_of_the_one_before(server: HubServer) -> None:
    before = Client(server).connect()
    server.disconnect(before.peer)
    again = Client(server, features=0, number=2).connect()
    assert again.peer == before.peer and server.secrets.read_index(again.peer) is None


# -- rates


@pytest.mark.parametrize(
    ("peer", "settings", "allowed"),
    [
        (known("ann"), {}, True),
        (known("ann", rate=1000), {}, False),
        (known("ann", bulk_rate=1000), {}, False),
        (known("ann"), {"bulk_rate_mbit": 5}, False),
        (known("ann", bulk_rate=0), {"bulk_rate_mbit": 5}, True),
        (known("ann"), {"send_rate_mbit": 5}, False),
        (known("ann"), {"total_rate_mbit": 5}, False),
    ],
)
def test_a_peer_with_a_rate_has_no_datagrams(
    make_server: MakeHub, peer: Any, settings: dict[str, Any], allowed: bool
) -> None:
    server = make_server(peer, seals=True, datagrams=True, **settings)
    answer = Client(server).connect()
    assert uses_datagrams(server, answer) == allowed and port_told(answer) == (0 if allowed else None)


def test_a_session_with_datagrams_ends_when_its_peer_gets_a_rate_and_the_next_one_has_none(server: HubServer) -> None:
    ann, bob = Client(server).connect(), Client(server, "bob").connect()
    server.configure(known("ann", rate=1000), BOB)
    assert not server.is_current(ann) and not uses_datagrams(server, ann)
    assert server.is_current(bob) and uses_datagrams(server, bob)
    server.disconnect(ann.peer)
    again = Client(server).connect()
    assert port_told(again) is None and not uses_datagrams(server, again) and server.table.rate(again.peer) == 1000


def test_a_session_without_datagrams_goes_on_when_its_peer_gets_a_rate(server: HubServer) -> None:
    ann = Client(server, features=0).connect()
    server.configure(known("ann", rate=1000), BOB)
    assert server.is_current(ann)


def test_a_peer_that_loses_its_rate_has_datagrams_as_soon_as_it_is_told(make_server: MakeHub) -> None:
    server = make_server(known("ann", rate=1000), seals=True, datagrams=True)
    client = Client(server)
    first = client.connect()
    server.configure(ANN)
    assert server.is_current(first) and uses_datagrams(server, first)
    assert port_told(client.connect(index=1)) == 0


def test_a_session_with_datagrams_ends_when_its_quota_slows_it_down_and_it_is_said_why(
    server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    ann = Client(server).connect()
    server.quotas.configure({"ann": QuotaTerms(1000, "slow", 100)}, UNLIMITED)
    server.quotas.add({"ann": 1000})
    server.admission.follow_quotas({"ann"})
    assert not server.is_current(ann) and f"peer ann: session ended: {LEAVES_DATAGRAMS}" in caplog.text


def test_observers_learn_why_a_peer_has_no_datagrams(make_server: MakeHub) -> None:
    server = make_server(ANN, BOB, seals=True, datagrams=True, carrier="auto", dgram_workers=True)

    def why(name: str) -> tuple[str, str]:
        (row,) = (each for each in server.admission.peer_rows() if each.name == name)
        return row.carrier, row.no_datagrams

    assert why("ann") == ("tcp", "")  # without a session
    Client(server).connect()
    Client(server, "bob", features=0).connect()
    assert why("ann") == ("auto", "")
    assert why("bob") == ("auto", TAKES_NO_DATAGRAMS)
    server.configure(known("ann", rate=1_000_000), BOB)
    Client(server, number=2).connect()
    assert why("ann") == ("auto", HAS_RATE)


def test_where_there_are_no_dgram_workers_nothing_is_said_of_datagrams(make_server: MakeHub) -> None:
    server = make_server(ANN, seals=True)
    Client(server).connect()
    (row,) = server.admission.peer_rows()
    assert (row.carrier, row.no_datagrams, row.datagrams) == ("tcp", "", ())
