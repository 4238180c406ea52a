"""The supervisor channels: requests and answers in datagrams, and what a broken worker costs."""

from __future__ import annotations

import errno
import json
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SupervisorGone
from pipeline.runtime.supervisor_channel import REQUESTS_WAITING, SupervisorChannel
from pipeline.supervisor.processes.worker_channels import MESSAGES_WAITING, REQUESTS_PER_TURN, WorkerChannels
from pipeline.supervisor.run.failures import Failures
from pipeline.wire import framing, messages
from tests.harness.hub import KEYS, HubServer, hello, known, request


class Loop:
    """The supervisor's ends on a selector, as its loop serves them, and the workers' ends."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.selector = selectors.DefaultSelector()
        self.failures = Failures()
        self.sockets: list[tuple[Any, int]] = []  # the algorithm and the device and inode of each that came
        self.channels = WorkerChannels(answer, self.selector, self.failures, self._take)
        self.workers: dict[str, SupervisorChannel] = {}

    def _take(self, name: Any, fd: int) -> None:
        if name == "refused":
            raise ValueError("no such algorithm")
        self.sockets.append((name, os.fstat(fd).st_ino))

    def spawn(self, name: str) -> SupervisorChannel:
        """Start a worker, or the next generation of one."""
        self.workers[name] = SupervisorChannel(self.channels.open_channel(name))
        return self.workers[name]

    def serve(self) -> int:
        """One turn of the loop. How many channels had something."""
        events = self.selector.select(0)
        for key, _ in events:
            if key.fd in self.selector.get_map():
                key.data()
        return len(events)

    def close(self) -> None:
        self.channels.close_all()
        for worker in self.workers.values():
            worker.socket.close()
        self.selector.close()


def ask(worker: SupervisorChannel, request: Any) -> bool:
    """Send any JSON, as a broken worker may."""
    return worker.ask(request)


def answers(worker: SupervisorChannel) -> list[Any]:
    return list(worker.answers())


def echo(request: Any) -> Any:
    return {"to": request["from"]} if request["from"] != "unanswered" else None


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(echo)
    yield made
    made.close()


@pytest.fixture
def admitting() -> Iterator[Loop]:
    """A loop that admits peers."""
    server = HubServer(known("ann"))
    made = Loop(server.admission.handle_hello)
    yield made
    made.close()
    server.close()


def test_each_worker_gets_the_answers_to_its_own_requests(loop: Loop) -> None:
    first, second = loop.spawn("tcp-0"), loop.spawn("tcp-1")
    assert ask(second, {"from": 2}) and ask(first, {"from": 1})
    loop.serve()
    assert answers(first) == [{"to": 1}]
    assert answers(second) == [{"to": 2}]
    assert answers(first) == []


def test_requests_are_answered_in_order_and_some_without_an_answer(loop: Loop) -> None:
    worker = loop.spawn("tcp-0")
    for name in ("a", "unanswered", "b"):
        ask(worker, {"from": name})
    loop.serve()
    assert answers(worker) == [{"to": "a"}, {"to": "b"}]


def test_a_message_to_all_reaches_every_worker(loop: Loop) -> None:
    workers = [loop.spawn(f"tcp-{lane}") for lane in range(3)]
    loop.channels.send_to_all({"max_handshakes": 5})
    assert [answers(worker) for worker in workers] == [[{"max_handshakes": 5}]] * 3


@pytest.mark.parametrize("size", [1_000, 60_000, 150_000, 250_000])
def test_certificates_of_any_size_arrive_after_a_reload(loop: Loop, size: int) -> None:
    """250 kB: the bundle of all CAs that a system trusts."""
    worker = loop.spawn("tcp-0")
    message = {"tls": {"certificate": "x", "ca": "y" * size}}
    loop.channels.send_to_all(message)
    assert answers(worker) == [message]


# -- sockets that workers hand over


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_socket_comes_with_its_algorithm_between_other_requests(loop: Loop, sock: socket.socket) -> None:
    worker = loop.spawn("tcp-0")
    before = open_descriptors()
    ask(worker, {"from": 1})
    assert worker.hand_over({"congestion": "bbr"}, sock)
    ask(worker, {"from": 2})
    loop.serve()
    assert loop.sockets == [("bbr", os.fstat(sock.fileno()).st_ino)]
    assert answers(worker) == [{"to": 1}, {"to": 2}]
    assert open_descriptors() == before


@pytest.mark.parametrize("request_", [{"from": 1}, {"congestion": "refused"}, [], 7, {"congestion": "bbr", "from": 1}])
def test_whatever_descriptors_come_with_a_request_are_closed(loop: Loop, sock: socket.socket, request_: Any) -> None:
    worker = loop.spawn("tcp-0")
    before = open_descriptors()
    for count in (1, 5):
        socket.send_fds(worker.socket, [json.dumps(request_).encode()], [sock.fileno()] * count)
        loop.serve()
        assert open_descriptors() == before
    ask(worker, {"from": 3})
    loop.serve()
    assert answers(worker)[-1] == {"to": 3}


def test_an_algorithm_without_a_socket_is_an_invalid_request(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    worker = loop.spawn("tcp-0")
    ask(worker, {"congestion": "bbr"})
    loop.serve()
    assert loop.sockets == []
    assert "tcp-0 sent an invalid request" in caplog.text


def test_a_socket_for_which_there_is_no_room_stays(loop: Loop, sock: socket.socket) -> None:
    worker = loop.spawn("tcp-0")
    handed = 0
    while worker.hand_over({"congestion": "bbr"}, sock):
        handed += 1
    assert handed > 0
    while len(loop.sockets) < handed:
        loop.serve()
    assert worker.hand_over({"congestion": "bbr"}, sock)


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
    "longer than a request": b'{"from": "' + b"x" * 140_000 + b'"}',
}


def send_invalid_request(loop: Loop, nonsense: bytes) -> None:
    """A worker sends this, then a valid request; another worker sends one in between."""
    broken, sound = loop.spawn("tcp-0"), loop.spawn("tcp-1")
    broken.socket.send(nonsense)
    ask(sound, {"from": "sound"})
    ask(broken, {"from": "broken"})
    loop.serve()
    assert answers(sound) == [{"to": "sound"}]
    assert answers(broken)[-1] == {"to": "broken"}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_an_invalid_request_is_lost_and_nothing_else_happens(loop: Loop, nonsense: bytes) -> None:
    send_invalid_request(loop, nonsense)


def test_a_flood_of_invalid_requests_is_a_few_lines_of_the_log(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    broken = loop.spawn("tcp-0")
    for _ in range(100):
        broken.socket.send(b"nonsense")
        loop.serve()
    lines = [record.getMessage() for record in caplog.records]
    assert [int(line.split(", ")[1].split()[0]) for line in lines] == [1, 2, 4, 8, 16, 32, 64]
    assert all(line.startswith("tcp-0 sent an invalid request, ") for line in lines)


@given(st.binary(min_size=1, max_size=50))
def test_any_bytes_cost_at_most_the_request(data: bytes) -> None:
    loop = Loop(echo)
    try:
        send_invalid_request(loop, data)
    finally:
        loop.close()


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


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_request_with_a_wrong_field_admits_no_peer_and_nothing_else_happens(
    admitting: Loop, wrong: dict[str, Any]
) -> None:
    broken, sound = admitting.spawn("tcp-0"), admitting.spawn("tcp-1")
    ask(broken, wrong)
    ask(sound, OF_ANN)
    admitting.serve()
    assert "peer_handle" in answers(sound)[0]
    assert [answer for answer in answers(broken) if "peer_handle" in answer] == []
    ask(broken, OF_ANN)
    admitting.serve()
    assert "peer_handle" in answers(broken)[-1]


@pytest.mark.parametrize("field", OF_ANN)
def test_a_request_that_lacks_a_field_is_lost_and_nothing_else_happens(admitting: Loop, field: str) -> None:
    worker = admitting.spawn("tcp-0")
    ask(worker, {name: value for name, value in OF_ANN.items() if name != field})
    ask(worker, OF_ANN)
    admitting.serve()
    assert "peer_handle" in answers(worker)[-1]


def test_a_worker_that_does_not_read_gets_its_answers_later_and_delays_no_other_worker(loop: Loop) -> None:
    deaf, other = loop.spawn("tcp-0"), loop.spawn("tcp-1")
    asked = 0
    while ask(deaf, {"from": asked}):
        asked += 1
        loop.serve()
    assert asked > REQUESTS_WAITING
    ask(other, {"from": "other"})
    for _ in range(10):
        loop.serve()
    assert answers(other) == [{"to": "other"}]
    assert loop.serve() == 0, "nothing to do while the deaf worker does not read"
    heard: list[Any] = []
    while found := answers(deaf):
        heard += found
        while loop.serve():
            pass
    assert heard == [{"to": number} for number in range(asked)]


def test_a_burst_of_requests_beyond_the_queue_of_the_kernel_is_answered_without_another_call(loop: Loop) -> None:
    """As when all clients of a hub come back. epoll tells the worker when there is room."""
    worker = loop.spawn("tcp-0")
    epoll = select.epoll()
    try:
        worker = loop.workers["tcp-0"] = SupervisorChannel(worker.socket.detach(), epoll)
        for number in range(500):
            assert ask(worker, {"from": number})
        heard: list[Any] = []
        while loop.serve() or epoll.poll(0):
            heard += answers(worker) if epoll.poll(0) else []
        assert heard == [{"to": number} for number in range(500)]
        assert epoll.poll(0) == []
    finally:
        epoll.close()


def test_messages_that_wait_for_a_worker_that_reads_nothing_are_few(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    worker = loop.spawn("tcp-0")
    padding = "x" * 200_000
    for number in range(100):
        loop.channels.send_to_all({"settings": number, "padding": padding})
    assert "tcp-0 lost a message: it reads nothing" in caplog.text
    heard: list[Any] = []
    while found := answers(worker):
        heard += found
        loop.serve()
    assert MESSAGES_WAITING <= len(heard) < 100
    assert [message["settings"] for message in heard] == list(range(len(heard)))


def test_a_worker_that_ends_while_a_message_waits_for_it_leaves_nothing(loop: Loop) -> None:
    worker = loop.spawn("tcp-0")
    for number in range(30):
        loop.channels.send_to_all({"settings": number, "padding": "x" * 200_000})
    assert loop.channels._channels["tcp-0"].messages.is_empty is False
    worker.socket.close()
    while loop.serve():
        pass
    assert len(loop.selector.get_map()) == 0


def test_a_worker_that_sends_requests_without_end_leaves_other_workers_their_turn(loop: Loop) -> None:
    greedy, other = loop.spawn("tcp-0"), loop.spawn("tcp-1")
    asked = 0
    while asked < 3 * REQUESTS_PER_TURN and ask(greedy, {"from": asked}):
        asked += 1
    assert asked > REQUESTS_PER_TURN
    ask(other, {"from": "other"})
    loop.serve()
    assert answers(other) == [{"to": "other"}]
    assert len(answers(greedy)) == REQUESTS_PER_TURN
    while loop.serve():
        pass
    assert len(answers(greedy)) == asked - REQUESTS_PER_TURN


def test_a_worker_learns_that_too_many_requests_wait_for_the_supervisor(loop: Loop) -> None:
    worker = loop.spawn("tcp-0")
    for _ in range(2 * REQUESTS_WAITING):
        if not ask(worker, {"from": "x" * 1000}):
            break
    else:
        pytest.fail("never full")
    while loop.serve():
        answers(worker)
    assert ask(worker, {"from": "again"})


# -- generations


def test_the_channel_of_a_worker_that_has_ended_is_closed(loop: Loop) -> None:
    loop.spawn("tcp-0").socket.close()
    other = loop.spawn("tcp-1")
    loop.serve()
    assert [key.fileobj for key in loop.selector.get_map().values()] == [loop.channels._channels["tcp-1"].socket]
    assert loop.serve() == 0
    loop.channels.send_to_all({"to": "all"})
    assert answers(other) == [{"to": "all"}]


def test_a_request_of_a_worker_that_has_ended_since_does_no_harm(loop: Loop) -> None:
    worker = loop.spawn("tcp-0")
    ask(worker, {"from": "the dead"})
    worker.socket.close()
    loop.serve()
    assert loop.serve() == 0
    assert len(loop.selector.get_map()) == 0


def test_each_generation_has_a_channel_of_its_own(loop: Loop) -> None:
    first = loop.spawn("tcp-0")
    second = loop.spawn("tcp-0")
    ask(second, {"from": "successor"})
    loop.serve()
    assert answers(second) == [{"to": "successor"}]
    with pytest.raises(SupervisorGone, match="the supervisor has closed its end of the supervisor channel"):
        answers(first)
    first.socket.close()


def test_a_late_event_of_an_earlier_generation_leaves_the_next_ones_channel_alone(loop: Loop) -> None:
    """One call of select may report the end of a worker and the end of its channel, in this order."""
    loop.spawn("tcp-0").socket.close()
    late = loop.selector.select(0)
    second = loop.spawn("tcp-0")
    for key, _ in late:
        if key.fd in loop.selector.get_map():
            key.data()
    ask(second, {"from": "successor"})
    loop.serve()
    assert answers(second) == [{"to": "successor"}]


def test_the_descriptor_for_a_worker_is_not_inherited_by_other_processes(loop: Loop) -> None:
    fd = loop.channels.open_channel("tcp-0")
    assert not os.get_inheritable(fd)
    with socket.socket(fileno=fd) as sock:
        assert sock.type == socket.SOCK_SEQPACKET


# -- what fails, and what is not taken


def test_an_answer_that_fails_unexpectedly_is_recorded_and_costs_that_answer(loop: Loop) -> None:
    worker = loop.spawn("tcp-0")

    def fail(_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    loop.channels._answer = fail
    ask(worker, {"from": "one"})
    loop.serve()
    assert loop.failures.count == 1 and answers(worker) == []
    loop.channels._answer = echo
    ask(worker, {"from": "two"})
    loop.serve()
    assert answers(worker) == [{"to": "two"}] and loop.failures.count == 1


def test_the_workers_that_do_not_take_a_message_are_named_and_dead_ones_are_not(loop: Loop) -> None:
    stopped, dead = loop.spawn("tcp-0"), loop.spawn("tcp-1")
    reading = loop.spawn("tcp-2")
    dead.socket.close()
    message = {"settings": ["x" * 100_000]}
    lost: list[str] = []
    while not lost:
        lost = loop.channels.send_to_all(message)
        assert answers(reading) == [message]
    assert lost == ["tcp-0"]
    assert answers(stopped)
