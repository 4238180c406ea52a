"""Consequences of changes of the network beneath, in simulated time."""

from __future__ import annotations

from pipeline.policy.underlay import (
    CALM_NS,
    PAUSE_MAX_NS,
    SLEPT,
    SLEPT_NS,
    SOURCE_GONE,
    WAY_CHANGED,
    Changes,
    Path,
    Underlay,
    Way,
)

MS = 1_000_000
STEP = 100 * MS
SERVER, SOURCE = "198.18.0.1", "198.18.0.2"
UPLINK, OTHER = Way(2, b"", True), Way(3, b"\x0a\0\0\1", True)


class Watched:
    """A machine with one connection, observed every STEP; `acts` are the changes that were acted upon."""

    def __init__(self, way: Way | None = UPLINK, connected: bool = True) -> None:
        self.underlay = Underlay()
        self.way = way
        self.gone: set[str] = set()
        self.paths = {1: Path(SERVER, SOURCE, way)} if connected else {}
        self.now = 1000 * CALM_NS
        self.asleep = 0
        self.acts: list[Changes] = []
        self.observe()

    def observe(self, times: int = 1) -> list[Changes]:
        for _ in range(times):
            changes = self.underlay.observe({SERVER: self.way}, self.gone, self.paths, self.now, self.asleep)
            self.now += STEP
            if changes:
                self.acts.append(changes)
            for key in changes.renew:
                self.paths[key] = self.paths[key]._replace(way=self.underlay.ways[SERVER])
        return self.acts


def test_nothing_happens_while_nothing_changes() -> None:
    assert Watched().observe(1000) == []


def test_a_local_address_that_is_gone_closes_its_connections() -> None:
    machine = Watched()
    machine.gone = {SOURCE, "198.18.0.9"}
    assert machine.observe(2) == [Changes(close={1: SOURCE_GONE})]


def test_an_address_that_is_back_at_the_next_look_has_not_been_gone() -> None:
    machine = Watched()
    machine.gone = {SOURCE}
    machine.observe()
    machine.gone = set()
    assert machine.observe(10) == []


def test_another_way_renews_the_connections_once_and_hurries_the_dials() -> None:
    machine = Watched()
    machine.way = OTHER
    assert machine.observe(100) == [Changes(renew={1: WAY_CHANGED}, hurry=True)]


def test_the_way_back_renews_them_again() -> None:
    machine = Watched()
    machine.way = OTHER
    machine.observe(20)
    machine.way = UPLINK
    machine.observe(20)
    assert [changes.renew for changes in machine.acts] == [{1: WAY_CHANGED}] * 2


def test_another_gateway_is_another_way() -> None:
    machine = Watched(OTHER)
    machine.way = OTHER._replace(gateway=b"\x0a\0\0\2")
    assert machine.observe(3) == [Changes(renew={1: WAY_CHANGED}, hurry=True)]


def test_a_way_that_is_lost_renews_nothing_until_there_is_another_one() -> None:
    machine = Watched()
    machine.way = None
    assert machine.observe(50) == []
    machine.way = OTHER
    assert machine.observe(3) == [Changes(renew={1: WAY_CHANGED}, hurry=True)]


def test_another_way_renews_nothing_before_its_link_has_a_carrier() -> None:
    machine = Watched()
    machine.way = OTHER._replace(running=False)
    assert machine.observe(50) == []
    machine.way = OTHER
    assert machine.observe(3) == [Changes(renew={1: WAY_CHANGED}, hurry=True)]


def test_a_carrier_that_returns_hurries_the_dials_and_renews_no_connection() -> None:
    machine = Watched()
    machine.way = UPLINK._replace(running=False)
    assert machine.observe(50) == []
    machine.way = UPLINK
    assert machine.observe(3) == [Changes(hurry=True)]


def test_a_way_that_appears_makes_the_dials_due() -> None:
    machine = Watched(way=None, connected=False)
    assert machine.observe(50) == []
    machine.way = UPLINK
    assert machine.observe(3) == [Changes(hurry=True)]


def test_a_link_that_flaps_ten_times_a_second_causes_an_action_every_few_seconds() -> None:
    machine = Watched()
    for number in range(600):
        machine.way = OTHER if number % 4 < 2 else UPLINK
        machine.observe(1)
    assert len(machine.acts) < 600 * STEP / PAUSE_MAX_NS + 5


def test_a_link_that_flaps_faster_than_the_looks_causes_nothing() -> None:
    machine = Watched()
    for number in range(600):
        machine.way = OTHER if number % 2 else UPLINK
        machine.observe(1)
    assert machine.acts == []


def test_after_a_calm_time_the_first_change_is_acted_upon_at_once_again() -> None:
    machine = Watched()
    for number in range(100):
        machine.way = OTHER if number % 4 < 2 else UPLINK
        machine.observe(1)
    machine.observe(CALM_NS // STEP + 60)
    machine.acts.clear()
    machine.way = OTHER if machine.way == UPLINK else UPLINK
    assert len(machine.observe(2)) == 1


def test_a_machine_that_slept_renews_its_connections() -> None:
    machine = Watched()
    machine.asleep += SLEPT_NS - 1
    assert machine.observe(10) == []
    machine.asleep += 600 * 1000 * MS
    assert machine.observe(100) == [Changes(renew={1: SLEPT}, hurry=True)]


def test_an_address_of_the_server_that_is_new_is_no_change() -> None:
    machine = Watched()
    underlay = machine.underlay
    assert not underlay.observe({SERVER: UPLINK, "fd99::1": OTHER}, set(), machine.paths, machine.now, 0)
    assert not underlay.observe({"fd99::1": OTHER}, set(), machine.paths, machine.now + STEP, 0)
    assert list(underlay.ways) == ["fd99::1"]
