"""Rules of reach on a running server: compiled when something changes, given to both who enforce them, and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import pytest

from pipeline.config import Config, parse
from pipeline.errors import LocalError
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.membership import Member
from pipeline.peers.peer_status import PeerRow
from pipeline.shm.flow_table import Note
from pipeline.shm.reach_rules import NO_POLICY
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.kernel.reach_table import Guarded
from pipeline.supervisor.roles.peer_reach import LOOK_NS, TOLD_MAX, PeerReach
from tests.unit.packet.test_flow import UDP_HEADER, v4

SERVER = {"mode": "server", "tunnel_addr": "10.0.0.1/24", "groups": {"office": ["192.168.10.0/24"]}}
HANDLES = {"laptop": 1 << 12 | 5, "nas": 2 << 12 | 6}


class Kernel:
    """In the place of the guard: takes rules, and tells what a test lets it refuse."""

    def __init__(self) -> None:
        self.applied: list[Sequence[Guarded]] = []
        self.is_in_place = True
        self.counts: Counter[str] = Counter()
        self.told: list[tuple[str, bytes]] = []
        self.notes: list[str] = []

    def apply(self, guarded: Sequence[Guarded]) -> None:
        self.applied.append(guarded)

    def tick(self, now: int) -> None:
        pass

    def take_refusals(self) -> list[tuple[str, bytes]]:
        found, self.told = self.told, []
        return found


class Memory:
    """In the place of the memory of tun workers."""

    def __init__(self) -> None:
        self.rules = self
        self.refusals = self
        self.written: list[tuple] = []
        self.refused: Counter[int] = Counter()
        self.notes: list[Note] = []
        self.room = 1000

    def write(self, is_guarded: bool, serial: int, own: list, handles: dict, policies: list, kept: set) -> None:
        if sum(map(len, policies)) > self.room:
            raise LocalError("may_reach: too many rows")
        self.written.append((is_guarded, handles, policies))
        self.kept = kept

    def counts(self, peer: int) -> int:
        return self.refused[peer]

    def take_notes(self) -> Iterator[Note]:
        found, self.notes = self.notes, []
        return iter(found)


class Reach:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.kernel, self.memory = Kernel(), Memory()
        self.config: Config = parse(SERVER)
        record = SimpleNamespace(record=lambda *event: self.events.append(event))
        self.it = PeerReach(self.config, record)
        self.it.use(self.kernel, self.memory)
        self.now = 1_000_000_000_000

    def follow(self, handles: dict[str, int] | None = None, **may_reach: tuple[str, ...] | None) -> None:
        members = [
            Member(index, PeerPolicy(name, may_reach=targets), 1, (ip_address(f"10.0.0.{index + 2}"),))
            for index, (name, targets) in enumerate(may_reach.items())
        ]
        self.it.follow(self.config, members, HANDLES if handles is None else handles)

    def look(self) -> None:
        self.now += LOOK_NS
        self.it.tick(self.now)


@pytest.fixture
def reach() -> Reach:
    return Reach()


def test_without_rules_nobody_is_bothered(reach: Reach) -> None:
    reach.follow(laptop=None, nas=None)
    reach.look()
    assert reach.kernel.applied == [] and reach.memory.written == []


def test_rules_go_to_the_kernel_and_to_tun_workers(reach: Reach) -> None:
    reach.follow(laptop=("192.168.10.0/24",), nas=None)
    ((guarded,),) = reach.kernel.applied
    assert (guarded.name, guarded.sources) == ("laptop", (ip_network("10.0.0.2/32"),))
    ((is_guarded, handles, policies),) = reach.memory.written
    assert is_guarded and handles == {HANDLES["laptop"]: 0, HANDLES["nas"]: NO_POLICY} and len(policies[0]) == 1


def test_a_new_session_changes_the_handles_alone(reach: Reach) -> None:
    reach.follow(laptop=("192.168.10.0/24",), nas=None)
    reach.follow({"laptop": 7 << 12 | 5}, laptop=("192.168.10.0/24",), nas=None)
    assert len(reach.kernel.applied) == 1
    assert reach.memory.written[-1][1] == {7 << 12 | 5: 0}


def test_peers_that_come_in_numbers_are_told_to_the_kernel_together(reach: Reach) -> None:
    reach.follow(laptop=("192.168.10.0/24",))
    reach.it._apply_ns = 1 << 62  # nft has just taken long
    reach.follow(laptop=("192.168.10.0/24",), nas=())
    assert len(reach.kernel.applied) == 1 and reach.memory.kept == {HANDLES["nas"]}, "until then it waits"
    reach.look()
    assert len(reach.kernel.applied) == 1
    reach.it._apply_ns = 0
    reach.look()
    assert len(reach.kernel.applied) == 2 and reach.memory.kept == set()


def test_a_group_that_grows_meanwhile_is_told_to_the_kernel_as_well(reach: Reach) -> None:
    reach.follow(laptop=("peer:nas",), nas=None)
    reach.it._apply_ns = 1 << 62
    reach.follow(laptop=("peer:nas",), other=None, nas=None)  # nas has another address now
    assert len(reach.kernel.applied) == 1 and reach.memory.kept == set()
    reach.it._apply_ns = 0
    reach.look()
    assert len(reach.kernel.applied) == 2


def test_rules_that_change_do_not_wait(reach: Reach) -> None:
    reach.follow(laptop=("192.168.10.0/24",))
    reach.it._apply_ns = 1 << 62
    reach.follow(laptop=())
    assert len(reach.kernel.applied) == 2 and reach.memory.kept == set()


def test_when_the_last_rule_goes_everything_of_it_goes(reach: Reach) -> None:
    reach.follow(laptop=("192.168.10.0/24",), nas=None)
    reach.follow(laptop=None, nas=None)
    assert reach.kernel.applied[-1] == [] and NO_POLICY in reach.memory.written[-1][1].values()
    reach.follow(laptop=None, nas=None)
    assert len(reach.kernel.applied) == 2


def test_tun_workers_are_told_when_the_kernel_loses_its_part(reach: Reach) -> None:
    reach.follow(laptop=())
    for is_there in (False, True):
        reach.kernel.is_in_place = is_there
        reach.look()
        assert reach.memory.written[-1][0] is is_there
    count = len(reach.memory.written)
    reach.look()
    assert len(reach.memory.written) == count


def test_rules_that_find_no_room_shut_out(reach: Reach, caplog: pytest.LogCaptureFixture) -> None:
    reach.memory.room = 1
    reach.follow(laptop=("10.1.0.0/16", "10.2.0.0/16"))
    assert reach.memory.written[-1][2] == [[]]
    assert "too many rows. Until then, peers with rules reach no other peer" in caplog.text


def test_refusals_of_both_are_events_and_counted_together(reach: Reach) -> None:
    reach.follow(laptop=("10.1.0.0/16",), nas=None)
    reach.kernel.counts["laptop"] = 3
    reach.kernel.told = [("laptop", v4(17, UDP_HEADER)), ("laptop", b"garbage")]
    reach.memory.refused[5] = 2
    reach.memory.notes = [Note(HANDLES["laptop"], 6, 22, bytes([10, 0, 0, 9])), Note(99, 6, 22, bytes(4))]
    reach.look()
    assert reach.events == [
        ("reach-refused", "laptop", "may not reach 10.0.0.3:53/udp; it may reach 10.1.0.0/16"),
        ("reach-refused", "laptop", "may not reach 10.0.0.9:22/tcp; it may reach 10.1.0.0/16"),
    ]
    laptop, nas = reach.it.complete([PeerRow("laptop"), PeerRow("nas")])
    assert (laptop.refused_packets, laptop.may_reach, laptop.may_reach_count) == (5, ("10.1.0.0/16",), 1)
    assert (nas.refused_packets, nas.may_reach) == (0, None)


def test_a_refusal_is_told_with_the_rules_that_have_refused(reach: Reach) -> None:
    reach.follow(laptop=("10.1.0.0/16",))
    reach.memory.notes = [Note(HANDLES["laptop"], 6, 22, bytes([10, 0, 0, 9]))]
    reach.follow(laptop=("10.0.0.0/8",))
    assert [text for _, _, text in reach.events] == ["may not reach 10.0.0.9:22/tcp; it may reach 10.1.0.0/16"]


def test_events_of_refusals_are_few(reach: Reach) -> None:
    reach.follow(laptop=())
    for _ in range(3):
        reach.memory.notes = [Note(HANDLES["laptop"], 6, port, bytes([10, 0, 0, 9])) for port in range(1, 100)]
        reach.look()
    assert len(reach.events) == TOLD_MAX == len(set(reach.events))


def test_counts_stay_with_the_peer_when_its_index_goes_to_another(reach: Reach) -> None:
    reach.follow(laptop=(), nas=())
    reach.memory.refused[5] = 4
    reach.follow({"nas": 9 << 12 | 5}, laptop=(), nas=())
    reach.memory.refused[5] = 5
    reach.look()
    counts = {row.name: row.refused_packets for row in reach.it.complete([PeerRow("laptop"), PeerRow("nas")])}
    assert counts == {"laptop": 4, "nas": 1}


def test_a_peer_that_there_is_not_cannot_be_explained(reach: Reach) -> None:
    with pytest.raises(LocalError, match='no peer "nobody"; known peers: none'):
        reach.it.explain([], "nobody", "10.0.0.1")


def test_events_have_a_kind_that_there_is() -> None:
    Events().record("reach-refused", "laptop", "may not reach 10.0.0.9:22/tcp")
