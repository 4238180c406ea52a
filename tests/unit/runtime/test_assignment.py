"""The assignment: a process says what it understands, waits, and gets a name with descriptors of its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from pipeline.runtime import assignment
from pipeline.runtime.assignment import FORMAT, READY, Assignment, await_assignment, message_of, report_ready
from pipeline.runtime.plan import WorkerFds


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, int]]:
    """The supervisor's end, and the descriptor of the process's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        yield ours, theirs.detach()


def close(fd: int) -> None:
    os.close(fd)


def test_a_process_gets_its_name_and_descriptors_of_its_own(ends: tuple[socket.socket, int]) -> None:
    ours, fd = ends
    plan, tun = os.memfd_create("plan"), os.memfd_create("tun")
    data, descriptors = message_of("tun-3", 7, {"plan": plan, "tun": tun})
    socket.send_fds(ours, [data], descriptors)
    found = await_assignment(fd)
    assert ours.recv(100) == FORMAT
    assert found == Assignment("tun-3", 7, found.plan_fd, WorkerFds(tun=found.fds.tun))
    for given, got in ((plan, found.plan_fd), (tun, found.fds.tun)):
        assert got != given and os.path.samestat(os.fstat(got), os.fstat(given))
        assert not os.get_inheritable(got)
        os.close(given)
        os.close(got)
    report_ready(fd)
    assert ours.recv(100) == READY
    assert ours.recv(100) == b""


def test_a_process_waits_until_it_is_needed(ends: tuple[socket.socket, int]) -> None:
    ours, fd = ends
    found: list[Assignment | None] = []
    thread = threading.Thread(target=lambda: found.append(await_assignment(fd)), daemon=True)
    thread.start()
    assert ours.recv(100) == FORMAT
    assert thread.is_alive()
    ours.shutdown(socket.SHUT_WR)
    thread.join(10)
    assert found == [None]
    close(fd)


def test_a_process_whose_supervisor_has_gone_is_not_needed(ends: tuple[socket.socket, int]) -> None:
    ours, fd = ends
    ours.close()
    assert await_assignment(fd) is None
    close(fd)


def test_the_format_changes_with_the_plan_with_the_layout_and_with_the_counters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formats = {FORMAT, assignment._own_format()}
    assert len(formats) == 1
    for name, value in (("LAYOUT_VERSION", 99), ("COUNTERS", assignment.COUNTERS[1:]), ("_DESCRIBED", (WorkerFds,))):
        with monkeypatch.context() as changed:
            changed.setattr(assignment, name, value)
            formats.add(assignment._own_format())
    assert len(formats) == 4
    assert max(map(len, formats)) < assignment.MESSAGE_BYTES
