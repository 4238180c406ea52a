"""Which of its servers a client is at, in simulated time: servers that come, go, fall silent and say that they stop."""

from __future__ import annotations

import itertools

import pytest

from pipeline.policy.server_choice import (
    DROPPED,
    FIRST,
    GRACE_NS,
    HOME,
    LEAVING,
    LEAVING_NS,
    PATIENCE_NS,
    READY_NS,
    SECOND,
    SILENT,
    STAY_MAX_NS,
    Server,
    ServerChoice,
    Terms,
    VisitReport,
)

A, B, C = (Server(host, 9000) for host in ("a", "b", "c"))
STEP = 50_000_000
HOME_NS = 60 * SECOND
ALL = 8
TERMS = Terms(prefers_first=True, home_ns=HOME_NS, stands_by=True, has_reserve=True)


class World:
    """Servers that can be up, silent or about to stop; a client's workers, which reach those that are up in `slowness`
    steps. `moves`: the time of each move, the server and the reason."""

    def __init__(self, *servers: Server, terms: Terms = TERMS, slowness: int = 2) -> None:
        numbers = itertools.count(1)
        self.now = 1000 * SECOND
        self.choice = ServerChoice(servers, terms, lambda: next(numbers), self.now)
        self.up = set(servers)
        self.silent: set[Server] = set()
        self.stopping: set[Server] = set()
        self.refusing: set[Server] = set()
        self.moves: list[tuple[int, Server, str]] = []
        self._slowness = slowness
        self._ages: dict[int, int] = {}
        self._failures: dict[int, int] = {}

    def reports(self) -> dict[int, VisitReport]:
        found = {}
        visits = [(self.choice.current, ALL)]
        if self.choice.reserve is not None:
            visits.append((self.choice.reserve, ALL if self.choice.is_complete else 1))
        for (server, number), wanted in visits:
            reached = server in self.up - self.silent or (server in self.silent and self._ages.get(number, 0) > 0)
            if server in self.refusing:
                self._failures[number] = self._failures.get(number, 0) + 1
            age = self._ages[number] = self._ages.get(number, 0) + 1 if reached else 0
            there = wanted if age >= self._slowness else 0
            found[number] = VisitReport(
                there, wanted, bool(there) and server in self.silent, server in self.stopping and bool(there),
                self._failures.get(number, 0), "no answer",
            )  # fmt: skip
        return found

    def run(self, seconds: float) -> World:
        for _ in range(int(seconds * SECOND / STEP)):
            self.now += STEP
            before = self.choice.current
            self.choice.step(self.reports(), self.now)
            if self.choice.current != before:
                self.moves.append((self.now, self.choice.current.server, self.choice.why))
        return self

    def lose(self, server: Server, *, refuses: bool = True) -> int:
        """The server is gone, with all connections; when."""
        self.up.discard(server)
        if refuses:
            self.refusing.add(server)
        return self.now

    def bring(self, server: Server) -> None:
        self.up.add(server)
        self.refusing.discard(server)

    @property
    def reasons(self) -> list[tuple[Server, str]]:
        return [(server, why) for _, server, why in self.moves]


@pytest.fixture
def world() -> World:
    return World(A, B).run(5)


def test_a_client_is_at_the_first_server_and_the_next_one_stands_by_with_one_connection(world: World) -> None:
    assert world.moves == [] and world.choice.current.server == A and world.choice.why == FIRST
    assert world.choice.reserve is not None and world.choice.reserve.server == B and not world.choice.is_complete


def test_a_client_with_one_server_has_nothing_in_reserve_and_never_moves() -> None:
    world = World(A).run(2)
    world.lose(A)
    assert world.run(100).moves == [] and world.choice.reserve is None


def test_where_nothing_stands_by_no_second_server_is_dialed_while_all_is_well() -> None:
    assert World(A, B, terms=TERMS._replace(stands_by=False)).run(5).choice.reserve is None


def test_a_server_that_refuses_is_left_at_once_for_the_one_that_stands_by(world: World) -> None:
    number = world.choice.reserve.number
    lost = world.lose(A)
    world.run(1)
    ((when, server, why),) = world.moves
    assert (server, world.choice.current.number) == (B, number) and "a:9000 was lost" in why
    assert when - lost <= 2 * STEP


def test_a_server_whose_connections_end_has_a_moment_for_new_ones(world: World) -> None:
    """One of its workers may have died, which is replaced in less."""
    lost = world.lose(A, refuses=False)
    world.run(GRACE_NS / SECOND / 2)
    assert world.moves == []
    world.run(1)
    assert GRACE_NS <= world.moves[0][0] - lost <= GRACE_NS + 2 * STEP


def test_a_silent_server_is_left_as_soon_as_another_one_answers(world: World) -> None:
    world.silent.add(A)
    world.run(0.1)
    assert world.reasons == [(B, SILENT)]


def test_where_all_servers_are_silent_the_client_stays_until_one_answers(world: World) -> None:
    """The path is broken, and not the servers."""
    world.silent |= {A, B}
    world.run(20)
    assert world.moves == []
    world.silent.clear()
    world.run(5)
    assert world.moves == [] and world.choice.current.server == A


def test_without_a_standby_a_silent_server_is_left_when_connections_to_another_one_stand() -> None:
    world = World(A, B, terms=TERMS._replace(stands_by=False), slowness=6).run(5)
    world.silent.add(A)
    world.run(0.1)
    assert world.moves == [] and world.choice.is_complete
    world.run(1)
    assert world.reasons == [(B, SILENT)]


def test_a_server_that_is_about_to_stop_is_left_when_all_connections_to_the_next_one_stand(world: World) -> None:
    world.stopping.add(A)
    world.run(STEP / SECOND)
    assert world.moves == [] and world.choice.is_complete
    world.run(READY_NS / SECOND + 1)
    assert world.reasons == [(B, LEAVING)]
    world.run(LEAVING_NS / SECOND - 3)
    assert world.choice.reserve is None, "a server that stops is not dialed"


def test_a_standby_that_is_about_to_stop_lets_go(world: World) -> None:
    world.stopping.add(B)
    world.run(0.1)
    assert world.choice.reserve is None
    world.stopping.clear()
    world.run(LEAVING_NS / SECOND + 1)
    assert world.choice.reserve is not None and world.choice.reserve.server == B and world.moves == []


def test_connections_that_do_not_come_hold_up_a_move_for_a_moment_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.policy.test_server_choice.ALL", 8)
    world.stopping.add(A)
    real = world.reports

    def fewer() -> dict[int, VisitReport]:
        return {
            number: report._replace(wanted=9) if number != world.choice.current.number else report
            for number, report in real().items()
        }

    world.reports = fewer  # type: ignore[method-assign]
    world.run(READY_NS / SECOND + 1)
    assert world.reasons == [(B, LEAVING)]


def test_a_client_comes_home_when_the_first_server_has_been_back_for_so_long(world: World) -> None:
    world.lose(A)
    world.run(1)
    world.bring(A)
    world.run(HOME_NS / SECOND + 20)
    assert [server for server, _ in world.reasons] == [B, A] and world.choice.why == HOME
    assert world.moves[1][0] - world.moves[0][0] >= HOME_NS


def test_a_client_that_prefers_the_current_server_stays(world: World) -> None:
    world = World(A, B, terms=TERMS._replace(prefers_first=False)).run(5)
    world.lose(A)
    world.run(1)
    world.bring(A)
    world.run(10 * HOME_NS / SECOND)
    assert [server for server, _ in world.reasons] == [B]
    assert world.choice.reserve is not None and world.choice.reserve.server == A


def test_a_first_server_that_is_not_there_costs_nothing_to_those_at_another_one(world: World) -> None:
    world.lose(A, refuses=False)
    world.run(1)
    number = world.choice.current.number
    world.run(5 * HOME_NS / SECOND)
    assert world.choice.current.number == number and world.choice.current.server == B


def test_of_three_servers_the_next_that_is_there_is_taken() -> None:
    world = World(A, B, C).run(5)
    world.lose(B)
    world.lose(A)
    world.run(2)
    assert world.choice.current.server == C


def test_while_all_are_gone_each_is_tried_again_and_again_with_pauses_that_grow() -> None:
    world = World(A, B, C).run(5)
    for server in (A, B, C):
        world.lose(server)
    world.run(120)
    assert len(world.moves) < 40
    assert {server for server, _ in world.reasons} == {A, B, C}
    world.bring(C)
    world.run(3 * STAY_MAX_NS / SECOND + 5)
    assert world.choice.current.server == C


def test_a_server_that_answers_nothing_at_the_start_is_left_after_the_patience() -> None:
    world = World(A, B)
    world.lose(A, refuses=False)
    begin = world.now
    world.run(4)
    ((when, server, why),) = world.moves
    assert server == B and "is out of reach" in why and PATIENCE_NS <= when - begin <= PATIENCE_NS + 2 * STEP


def test_the_time_until_workers_dial_is_no_fault_of_a_server() -> None:
    world = World(A, B)
    for _ in range(1000):
        world.now += STEP
        world.choice.step({}, world.now)
    assert world.choice.current.server == A
    assert world.run(5).moves == []


@pytest.mark.parametrize("stay", [2, 20])
def test_a_home_that_does_not_last_is_waited_for_longer_each_time(stay: int) -> None:
    world = World(A, B).run(5)
    stays = []
    for _ in range(3):
        world.lose(A)
        world.run(1)
        left = world.now
        world.bring(A)
        for _ in range(3600):
            world.run(1)
            if world.choice.current.server == A:
                break
        stays.append(world.now - left)
        world.run(stay)
    assert stays == sorted(stays) and stays[-1] >= 2 * stays[0]
    world.run(2 * HOME_NS / SECOND)
    world.lose(A)
    world.run(1)
    world.bring(A)
    world.run(HOME_NS / SECOND + 20)
    assert world.choice.current.server == A, "it has lasted, and all is forgotten"


def test_a_server_that_is_no_longer_in_the_list_is_left_without_a_gap(world: World) -> None:
    world.choice.follow([B, C])
    world.run(READY_NS / SECOND + 1)
    assert world.reasons == [(B, DROPPED)]


def test_an_empty_list_changes_nothing(world: World) -> None:
    world.choice.follow([])
    assert world.choice.servers == [A, B] and world.run(5).moves == []


def test_without_a_reserve_a_lost_server_is_left_and_a_working_one_is_not() -> None:
    world = World(A, B, terms=TERMS._replace(has_reserve=False)).run(5)
    assert world.choice.reserve is None
    world.lose(A)
    world.run(1)
    assert [server for server, _ in world.reasons] == [B]
    world.bring(A)
    assert len(world.run(3 * HOME_NS / SECOND).moves) == 1


def test_every_visit_has_a_number_of_its_own(world: World) -> None:
    numbers = {world.choice.current.number}
    for _ in range(5):
        world.lose(world.choice.current.server)
        world.run(3)
        assert world.choice.current.number not in numbers
        numbers.add(world.choice.current.number)
        for server in (A, B):
            world.bring(server)


def test_a_server_is_written_as_people_write_it() -> None:
    assert str(Server("fe80::1%eth0", 9000)) == "[fe80::1%eth0]:9000"
    assert Server("vpn.example.org.", 443).certificate_name == "vpn.example.org"
