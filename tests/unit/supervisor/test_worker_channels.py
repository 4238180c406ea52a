"""Between tcp workers and the supervisor: questions and answers in datagrams, and what a broken worker costs."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SupervisorGone
from pipeline.runtime.supervisor_channel import SupervisorChannel
from pipeline.supervisor.worker_channels import QUESTIONS_AT_ONCE, WorkerChannels
from pipeline.wire import framing, messages
from tests.harness.hub import KEYS, Server, hello, known, request


class Office:
    """The supervisor's desks on a selector, as its loop serves them, and the workers' ends."""

    def __init__(self, answer: Callable[[dict], dict | None]) -> None:
        self.selector = selectors.DefaultSelector()
        self.desks = WorkerChannels(answer, self.selector)
        self.workers: dict[str, SupervisorChannel] = {}

    def spawn(self, name: str) -> SupervisorChannel:
        """A worker starts, or its successor."""
        self.workers[name] = SupervisorChannel(self.desks.open(name))
        return self.workers[name]

    def serve(self) -> int:
        """One turn of the loop. How many desks had something."""
        events = self.selector.select(0)
        for key, _ in events:
            if key.fd in self.selector.get_map():
                key.data()
        return len(events)

    def close(self) -> None:
        self.desks.close_all()
        for desk in self.workers.values():
            desk.socket.close()
        self.selector.close()


def echo(question: dict) -> dict | None:
    return {"to": question["from"]} if question["from"] != "nobody" else None


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office(echo)
    yield made
    made.close()


@pytest.fixture
def hub() -> Iterator[Office]:
    """The same with a hub behind it."""
    server = Server(known("ann"))
    made = Office(server.hub.answer)
    yield made
    made.close()
    server.close()


def test_who_asks_gets_the_answer(office: Office) -> None:
    first, second = office.spawn("tcp-0"), office.spawn("tcp-1")
    assert second.ask(**{"from": 2}) and first.ask(**{"from": 1})
    office.serve()
    assert first.answers() == [{"to": 1}]
    assert second.answers() == [{"to": 2}]
    assert first.answers() == []


def test_questions_are_answered_in_order_and_some_with_nothing(office: Office) -> None:
    desk = office.spawn("tcp-0")
    for name in ("a", "nobody", "b"):
        desk.ask(**{"from": name})
    office.serve()
    assert desk.answers() == [{"to": "a"}, {"to": "b"}]


def test_everybody_is_told(office: Office) -> None:
    desks = [office.spawn(f"tcp-{lane}") for lane in range(3)]
    office.desks.tell({"max_handshakes": 5})
    assert [desk.answers() for desk in desks] == [[{"max_handshakes": 5}]] * 3


@pytest.mark.parametrize("size", [1_000, 60_000, 150_000, 250_000])
def test_certificates_of_any_size_arrive_after_a_reload(office: Office, size: int) -> None:
    """250 kB: the bundle of all CAs that a system trusts."""
    desk = office.spawn("tcp-0")
    told = {"tls": {"certificate": "x", "ca": "y" * size}}
    office.desks.tell(told)
    assert desk.answers() == [told]


# -- a worker that is broken, or was broken into

NONSENSE = {
    "nothing": b"\0",
    "no JSON": b"hello",
    "no text": b"\xff\xfe\xfd",
    "cut off": b'{"from": ',
    "no object": b"[1, 2]",
    "a word": b'"from"',
    "a number": b"7",
    "null": b"null",
    "nothing in it": b"{}",
    "nested": b"[" * 100_000,
    "nested objects": b'{"from":' * 15_000,
    "a number of many digits": b'{"from": ' + b"9" * 10_000 + b"}",
    "longer than a question": b'{"from": "' + b"x" * 140_000 + b'"}',
}


def asks(office: Office, nonsense: bytes) -> None:
    """A worker asks this, then something sound; another one in between."""
    broken, sound = office.spawn("tcp-0"), office.spawn("tcp-1")
    broken.socket.send(nonsense)
    sound.ask(**{"from": "sound"})
    broken.ask(**{"from": "broken"})
    office.serve()
    assert sound.answers() == [{"to": "sound"}]
    assert broken.answers()[-1] == {"to": "broken"}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_question_that_makes_no_sense_costs_itself_alone(office: Office, nonsense: bytes) -> None:
    asks(office, nonsense)


@given(st.binary(min_size=1, max_size=50))
def test_any_bytes_cost_at_most_the_question(data: bytes) -> None:
    office = Office(echo)
    try:
        asks(office, data)
    finally:
        office.close()


OF_ANN = request(hello(KEYS["ann"]).frame(), KEYS["ann"])
OTHER_FRAMES = {
    "a WELCOME": messages.Welcome(1, 0, 1400, 0).frame(),
    "a CHALLENGE": messages.Challenge(bytes(32)).frame(),
    "a PROOF": messages.Proof(bytes(32)).frame(),
    "a REFUSED": messages.Refused(1, "").frame(),
    "a keepalive": framing.KEEPALIVE_FRAME,
    "nothing": b"",
    "half a HELLO": hello(KEYS["ann"]).frame()[:40],
}
NO_BYTES = (None, 7, [], {}, "no hexadecimal", "é")
UNPROVED = OF_ANN | {"challenge": "", "proof": ""}
WRONG = {
    **{f"{what} for HELLO": OF_ANN | {"hello": frame.hex()} for what, frame in OTHER_FRAMES.items()},
    **{
        f"{what} for HELLO, with a certificate": UNPROVED | {"hello": frame.hex(), "certificate": "ab"}
        for what, frame in OTHER_FRAMES.items()
    },
    **{
        f"{field} {value!r}": OF_ANN | {field: value}
        for field in ("hello", "challenge", "proof", "hash")
        for value in NO_BYTES
    },
    **{f"certificate {value!r}": UNPROVED | {"certificate": value} for value in NO_BYTES},
    "a short hash": OF_ANN | {"hash": "ab"},
    "an empty proof": OF_ANN | {"proof": ""},
    "no proof, no certificate": UNPROVED,
}


@pytest.mark.parametrize("question", WRONG.values(), ids=WRONG.keys())
def test_a_question_to_the_hub_with_a_wrong_field_admits_nobody_and_costs_itself_alone(
    hub: Office, question: dict
) -> None:
    broken, sound = hub.spawn("tcp-0"), hub.spawn("tcp-1")
    broken.ask(**question)
    sound.ask(**OF_ANN)
    hub.serve()
    assert "seat" in sound.answers()[0]
    assert [answer for answer in broken.answers() if "seat" in answer] == []
    broken.ask(**OF_ANN)
    hub.serve()
    assert "seat" in broken.answers()[-1]


@pytest.mark.parametrize("field", OF_ANN)
def test_a_question_to_the_hub_that_lacks_a_field_costs_itself_alone(hub: Office, field: str) -> None:
    desk = hub.spawn("tcp-0")
    desk.ask(**{name: value for name, value in OF_ANN.items() if name != field})
    desk.ask(**OF_ANN)
    hub.serve()
    assert "seat" in desk.answers()[-1]


def test_a_worker_that_does_not_read_its_answers_loses_them_and_keeps_nobody_waiting(office: Office) -> None:
    deaf, other = office.spawn("tcp-0"), office.spawn("tcp-1")
    asked = 0
    while asked < 5000 and (deaf.ask(**{"from": "x" * 1000}) or office.serve()):
        asked += 1
    other.ask(**{"from": "other"})
    while office.serve():
        pass
    assert other.answers() == [{"to": "other"}]
    answered = len(deaf.answers())
    assert 0 < answered < asked
    deaf.ask(**{"from": "again"})
    office.serve()
    assert deaf.answers() == [{"to": "again"}]


def test_a_worker_that_asks_without_an_end_leaves_the_others_their_turn(office: Office) -> None:
    greedy, other = office.spawn("tcp-0"), office.spawn("tcp-1")
    asked = 0
    while asked < 3 * QUESTIONS_AT_ONCE and greedy.ask(**{"from": asked}):
        asked += 1
    assert asked > QUESTIONS_AT_ONCE
    other.ask(**{"from": "other"})
    office.serve()
    assert other.answers() == [{"to": "other"}]
    assert len(greedy.answers()) == QUESTIONS_AT_ONCE
    while office.serve():
        pass
    assert len(greedy.answers()) == asked - QUESTIONS_AT_ONCE


def test_a_worker_is_told_when_the_supervisor_has_more_questions_than_it_takes(office: Office) -> None:
    desk = office.spawn("tcp-0")
    for _ in range(100_000):
        if not desk.ask(**{"from": "x" * 1000}):
            break
    else:
        pytest.fail("never full")
    office.serve()
    assert desk.ask(**{"from": "again"})


# -- generations


def test_a_worker_that_has_ended_is_waited_for_no_more(office: Office) -> None:
    office.spawn("tcp-0").socket.close()
    other = office.spawn("tcp-1")
    office.serve()
    assert [key.fileobj for key in office.selector.get_map().values()] == [office.desks._open["tcp-1"]]
    assert office.serve() == 0
    office.desks.tell({"to": "everybody"})
    assert other.answers() == [{"to": "everybody"}]


def test_what_a_worker_asked_before_it_ended_harms_nobody(office: Office) -> None:
    desk = office.spawn("tcp-0")
    desk.ask(**{"from": "the dead"})
    desk.socket.close()
    office.serve()
    assert office.serve() == 0
    assert len(office.selector.get_map()) == 0


def test_a_successor_has_a_desk_of_its_own(office: Office) -> None:
    first = office.spawn("tcp-0")
    second = office.spawn("tcp-0")
    second.ask(**{"from": "successor"})
    office.serve()
    assert second.answers() == [{"to": "successor"}]
    with pytest.raises(SupervisorGone, match="the supervisor has closed its end of the desk"):
        first.answers()
    first.socket.close()


def test_what_the_loop_still_has_of_a_predecessor_leaves_the_successors_desk_alone(office: Office) -> None:
    """One look at the selector may find both the end of a worker and the end of its desk, in this order."""
    office.spawn("tcp-0").socket.close()
    late = office.selector.select(0)
    second = office.spawn("tcp-0")
    for key, _ in late:
        if key.fd in office.selector.get_map():
            key.data()
    second.ask(**{"from": "successor"})
    office.serve()
    assert second.answers() == [{"to": "successor"}]


def test_the_descriptor_for_a_worker_is_one_that_no_other_process_inherits(office: Office) -> None:
    fd = office.desks.open("tcp-0")
    assert not os.get_inheritable(fd)
    with socket.socket(fileno=fd) as sock:
        assert sock.type == socket.SOCK_SEQPACKET
