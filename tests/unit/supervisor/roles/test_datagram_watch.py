"""Datagrams that pass, and pass no more, are events with their reasons."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from pipeline.policy.carrier import MISSED, NOT_YET, PASSES, CarrierStatus, State
from pipeline.shm import datagram_status, peer_table, segment
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.roles.datagram_watch import LOOK_NS, UNANSWERED_NS, DatagramWatch

HERE = DatagramServer.at("192.0.2.7", 443)
OPEN, DARK = (State.OPEN, PASSES), (State.DARK, MISSED)
OPENED = ("datagrams-open", "bob", "by UDP to 192.0.2.7:443")


class Watched:
    def __init__(self, datagrams: bool = True) -> None:
        name = f"/tunnel@watchtest@{secrets.token_hex(4)}@peer-table"
        self.table = peer_table.create(name, 3, 2, 4, datagrams)
        self.names = ["ann", "bob", ""]
        self.events = Events()
        self.seen: list[tuple[str, str, str]] = []
        self.events.subscribe(lambda event: self.seen.append((event.kind.name, event.subject, event.text)))
        self.watch = DatagramWatch(self.table, self.events, lambda peer: self.names[peer], "auto")
        self.now = 10**12
        self.table.write_record(4096 + 1, 0)

    def say(self, state: tuple[State, str] | None, lane: int = 0, peer: int = 1, fake_tcp: bool = False) -> None:
        status = None
        if state is not None:
            status = DatagramStatus(CarrierStatus(state[0], self.now, state[1]), HERE.host, HERE.port, 1200)
        records = self.table.datagrams_fake_tcp if fake_tcp else self.table.datagrams_in
        datagram_status.publish(records[lane], peer, status)

    def after(self, nanoseconds: int = LOOK_NS) -> list[tuple[str, str, str]]:
        self.now += nanoseconds
        self.watch.tick(self.now)
        seen, self.seen = self.seen, []
        return seen

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


def test_a_path_that_opens_is_said_once_and_one_that_goes_dark_with_its_reason(watched: Watched) -> None:
    assert watched.after() == []
    watched.say(OPEN)
    assert watched.after() == [OPENED]
    assert watched.after() == []
    watched.say(OPEN, lane=1)
    assert watched.after() == []
    watched.say(DARK)
    assert watched.after() == []  # the other lane's is open
    watched.say(DARK, lane=1)
    assert watched.after() == [("datagrams-dark", "bob", f"{MISSED}; blocks go by TCP")]
    watched.say(OPEN)
    assert watched.after() == [OPENED]


def test_a_path_of_another_kind_is_said_with_the_reason_why_the_first_is_not_used(watched: Watched) -> None:
    watched.say(OPEN)
    assert watched.after() == [OPENED]
    watched.say(DARK)
    watched.say(OPEN, fake_tcp=True)
    assert watched.after() == [("datagrams-open", "bob", f"by fake TCP to 192.0.2.7:443, since UDP: {MISSED}")]
    watched.say((State.DARK, MISSED), fake_tcp=True)
    text = f"UDP: {MISSED}; fake TCP: {MISSED}; blocks go by TCP"
    assert watched.after() == [("datagrams-dark", "bob", text)]
    watched.say(OPEN)
    assert watched.after() == [OPENED]


def test_a_replaced_worker_says_nothing_for_a_moment_and_nothing_has_changed(watched: Watched) -> None:
    watched.say(OPEN)
    watched.after()
    watched.say(None)
    assert watched.after() == []
    watched.say((State.PROBING, NOT_YET))
    watched.say(OPEN)
    assert watched.after() == []


def test_a_new_session_is_said_anew(watched: Watched) -> None:
    watched.say(OPEN)
    watched.after()
    watched.say(None)
    watched.after()
    watched.table.write_record(2 * 4096 + 1, 0)
    watched.say(OPEN)
    assert watched.after() == [OPENED]


def test_where_no_probe_is_ever_answered_that_is_said_after_a_while_and_once(watched: Watched) -> None:
    watched.say((State.PROBING, NOT_YET))
    assert watched.after() == []
    assert watched.after(UNANSWERED_NS) == [("datagrams-dark", "bob", f"{NOT_YET}; blocks go by TCP")]
    assert watched.after(UNANSWERED_NS) == []
    watched.say(OPEN)
    assert watched.after() == [OPENED]


def test_words_of_an_index_without_a_session_are_not_read(watched: Watched) -> None:
    watched.say(OPEN, peer=2)
    assert watched.after() == []


def test_without_dgram_workers_there_is_nothing_to_look_at() -> None:
    made = Watched(datagrams=False)
    try:
        assert made.after() == []
    finally:
        made.close()
