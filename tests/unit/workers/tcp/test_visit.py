"""The servers that a client's tcp worker visits, by its settings, and the supervisor's news of them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from pipeline.policy.server_choice import VisitReport
from pipeline.runtime.plan import Reserve, WorkerSettings
from pipeline.runtime.supervisor_channel import SupervisorChannel
from pipeline.wire.uplink import Uplink
from tests.harness.settings import WORKER_SETTINGS
from workers.tcp.visit import LINGER_NS, Target, Visit, targets
from workers.tcp.visits_reporter import INTERVAL_NS, VisitsReporter

SETTINGS = WORKER_SETTINGS._replace(
    remote_host="a", remote_port=9000, session=7, connections=5, light_connections=3, has_others=True
)
NOW = 10**12


def reserve(is_complete: bool) -> WorkerSettings:
    return SETTINGS._replace(reserve=Reserve("b", 9001, 8, ["192.0.2.2"], is_complete))


def test_a_client_with_one_server_has_one_target_with_all_slots_of_the_lane() -> None:
    assert targets(SETTINGS, 0, 1) == [Target(7, "a", 9000, [], tuple(range(8)))]
    assert targets(SETTINGS, 1, 3)[0].indexes == (1, 4, 7)


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_one_connection_of_one_lane_stands_by(lanes: int) -> None:
    found = [targets(reserve(False), lane, lanes)[1] for lane in range(lanes)]
    assert [each.indexes for each in found] == [(0,), *[()] * (lanes - 1)]
    assert {each.key for each in found} == {(8, "b", 9001)} and found[0].known_servers == ["192.0.2.2"]


def test_a_complete_reserve_has_all_slots() -> None:
    assert sorted(index for lane in range(3) for index in targets(reserve(True), lane, 3)[1].indexes) == [*range(8)]


def test_a_visit_that_is_left_dials_no_more_and_lingers_for_a_moment() -> None:
    visit = Visit(targets(SETTINGS, 0, 1)[0], 0, 1, SETTINGS, [lambda address: ""])
    assert visit.report(NOW) == VisitReport(0, 8) and not visit.has_lingered(NOW + 10 * LINGER_NS)
    visit.leave(NOW)
    assert not visit.has_lingered(NOW + LINGER_NS - 1) and visit.has_lingered(NOW + LINGER_NS)


# -- the news


@pytest.fixture
def supervisor() -> Iterator[tuple[socket.socket, SupervisorChannel]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)
        channel = SupervisorChannel(theirs.detach())
        with channel.socket:
            yield ours, channel


def test_each_change_is_told_once_and_a_worker_that_was_just_started_tells_what_there_is(
    supervisor: tuple[socket.socket, SupervisorChannel],
) -> None:
    ours, channel = supervisor
    reporter = VisitsReporter(3, channel)

    def told() -> object:
        try:
            return json.loads(ours.recv(1 << 16))
        except BlockingIOError:
            return None

    first, second = {7: VisitReport(0, 8)}, {7: VisitReport(8, 8), 8: VisitReport(1, 1, why="x")}
    reporter.tick(first, NOW)
    assert told() == {"lane": 3, "visits": [[7, 0, 8, False, False, 0, ""]]}
    reporter.tick(first, NOW + 10 * INTERVAL_NS)
    assert told() is None
    reporter.tick(second, NOW + 10 * INTERVAL_NS)
    assert told() == {"lane": 3, "visits": [[7, 8, 8, False, False, 0, ""], [8, 1, 1, False, False, 0, "x"]]}
    reporter.tick(first, NOW + 11 * INTERVAL_NS - 1)
    assert told() is None
    reporter.tick(first, NOW + 11 * INTERVAL_NS)
    assert told() is not None


# -- several uplinks

TWO = SETTINGS._replace(uplinks=(Uplink(0, "eth0", False), Uplink(1, "wwan0", True)))
FREE = [lambda address: ""] * 2


@pytest.fixture
def visit() -> Iterator[Visit]:
    made = Visit(targets(TWO, 0, 1)[0], 0, 1, TWO, FREE)
    yield made
    made.leave(NOW)


def test_each_uplink_has_a_dialer_with_its_own_slots(visit: Visit) -> None:
    first, second = visit.dialers
    assert [index for index in range(8) if visit.dialer_of(index) is first] == [0, 2, 4, 5, 7]
    assert [index for index in range(8) if second.keeps(index)] == [1, 3, 6]


def test_a_server_fails_as_often_as_on_the_uplink_on_which_it_fails_least(visit: Visit) -> None:
    visit.dialers[1].failures = 3
    assert visit.take_failures() == 3 and visit.report(NOW).failures == 0
    visit.dialers[0].failures = 1
    assert visit.take_failures() == 1 and visit.report(NOW).failures == 1


def test_a_connection_of_each_uplink_stands_by() -> None:
    waiting = TWO._replace(reserve=Reserve("b", 9001, 8, [], False))
    assert [each.indexes for each in targets(waiting, 0, 1)] == [tuple(range(8)), (0, 1)]
    assert targets(waiting, 1, 2)[1].indexes == ()


def test_slots_that_are_not_wanted_any_more_leave_their_own_dialer(visit: Visit) -> None:
    assert visit.want((0, 1), NOW) == []
    assert [dialer.keeps(index) for dialer in visit.dialers for index in (0, 1, 3)] == [
        True,
        False,
        False,
        False,
        True,
        False,
    ]
