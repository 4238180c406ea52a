"""The topology table: every worker, ring, place and kick, for each number of lanes, with and without fec, for one peer
and for several."""

from __future__ import annotations

import json
import os

import pytest

from pipeline.fec import shard
from pipeline.runtime import topology
from pipeline.runtime.plan import PeerTablePlan, Plan, RingPlan, StageMember, WorkerPlan, WorkerSettings
from pipeline.shm import layout
from pipeline.transport.settings import TlsMaterial
from tests.harness.settings import WORKER_SETTINGS

LANES = (1, 2, 3)
OFF = WORKER_SETTINGS._replace(requested_addresses=["10.0.0.2", "fd00::2"])
FEC = OFF._replace(fec="auto", tls=TlsMaterial("c", "k", "", "1.3", "00ff", None, True), account=(1, 2))

Shape = tuple[int, bool, int]  # lanes, fec, peers at a time

EVERY_SHAPE = pytest.mark.parametrize(
    "shape",
    [
        pytest.param((lanes, fec, capacity), id=f"{lanes}-{'fec' if fec else 'plain'}-{capacity}")
        for lanes in LANES
        for fec in (False, True)
        for capacity in (1, 5)
    ],
)
LANE_COUNTS = pytest.mark.parametrize("lanes", LANES)


def build(lanes: int, fec: bool, capacity: int = 1, name: str = "town") -> Plan:
    return topology.build_plan(name, "0123abcd", "server", lanes, 32, 135168, FEC if fec else OFF, capacity)


def ring(plan: Plan, name: str) -> RingPlan:
    return next(each for each in plan.rings if each.name == name)


def shown(stages: list[list[StageMember]]) -> str:
    """A ring as documents draw it."""
    return " -> ".join(" ".join(f"{m.worker}.{m.duty}" for m in stage) for stage in stages)


def drawn(plan: Plan) -> dict[str, str]:
    return {each.name: shown(each.stages) for each in plan.rings}


def group(kind: str, duty: str, lanes: int) -> str:
    return " ".join(f"{kind}-{i}.{duty}" for i in range(lanes))


@LANE_COUNTS
def test_without_fec_tun_and_tcp_face_each_other(lanes: int) -> None:
    expected = {
        f"{kind}-{i}": f"tun-{i}.outbound -> {group('tcp', 'outbound', lanes)}"
        for kind in ("plain", "light")
        for i in range(lanes)
    }
    expected |= {f"inbound-{j}": f"tcp-{j}.inbound -> {group('tun', 'inbound', lanes)}" for j in range(lanes)}
    assert drawn(build(lanes, False)) == expected


@LANE_COUNTS
def test_with_fec_its_worker_stands_in_a_ring_between_them_and_fills_one_of_its_own(lanes: int) -> None:
    expected = {
        f"{kind}-{i}": f"tun-{i}.outbound -> {group('tcp', 'outbound', lanes)}"
        for kind in ("plain", "light")
        for i in range(lanes)
    }
    expected |= {
        f"coded-{i}": f"tun-{i}.outbound -> fec-{i}.outbound -> {group('tcp', 'outbound', lanes)}" for i in range(lanes)
    }
    both = f"{group('tun', 'inbound', lanes)} {group('fec', 'inbound', lanes)}"
    expected |= {f"inbound-{j}": f"tcp-{j}.inbound -> {both}" for j in range(lanes)}
    expected |= {f"decoded-{i}": f"fec-{i}.inbound -> tun-{i}.inbound" for i in range(lanes)}
    assert drawn(build(lanes, True)) == expected


@LANE_COUNTS
@pytest.mark.parametrize("fec", [False, True])
def test_with_several_peers_there_is_a_ring_from_peer_to_peer_in_each_lane_and_no_other_difference(
    lanes: int, fec: bool
) -> None:
    coded = "fec-{0}.outbound -> " if fec else ""
    expected = {
        f"transit-{i}": f"tun-{i}.inbound -> {coded.format(i)}{group('tcp', 'outbound', lanes)}" for i in range(lanes)
    }
    assert drawn(build(lanes, fec, 2)) == drawn(build(lanes, fec)) | expected
    assert build(lanes, fec, 2).workers == build(lanes, fec).workers


def test_two_lanes_written_out() -> None:
    assert drawn(build(2, False)) == {
        "plain-0": "tun-0.outbound -> tcp-0.outbound tcp-1.outbound",
        "plain-1": "tun-1.outbound -> tcp-0.outbound tcp-1.outbound",
        "light-0": "tun-0.outbound -> tcp-0.outbound tcp-1.outbound",
        "light-1": "tun-1.outbound -> tcp-0.outbound tcp-1.outbound",
        "inbound-0": "tcp-0.inbound -> tun-0.inbound tun-1.inbound",
        "inbound-1": "tcp-1.inbound -> tun-0.inbound tun-1.inbound",
    }


@LANE_COUNTS
@pytest.mark.parametrize(("fec", "kinds"), [(False, ["tcp", "tun"]), (True, ["tcp", "fec", "tun"])])
def test_consumers_of_a_ring_start_before_the_filler_from_tun(lanes: int, fec: bool, kinds: list[str]) -> None:
    plan = build(lanes, fec)
    assert [(w.name, w.kind, w.lane) for w in plan.workers] == [
        (f"{kind}-{lane}", kind, lane) for kind in kinds for lane in range(lanes)
    ]
    assert [w.page for w in plan.workers] == list(range(len(kinds) * lanes))


def split(fec: bool, *kinds: str, lanes: int = 2) -> Plan:
    settings = FEC if fec else OFF
    return topology.build_plan("town", "0123abcd", "server", lanes, 32, 135168, settings, 2, split=kinds)


def test_the_duties_of_a_worker_that_is_two_processes_take_its_places_in_the_rings() -> None:
    whole, halves = build(2, True, 2), split(True, "tun", "fec")
    names = {f"{kind}-{lane}.{duty}": f"{kind}-{short}-{lane}.{duty}" for kind in ("tun", "fec") for lane in range(2)
             for duty, short in (("outbound", "out"), ("inbound", "in"))}  # fmt: skip
    expected = {
        name: " ".join(names.get(word, word) for word in stages.split(" ")) for name, stages in drawn(whole).items()
    }
    assert drawn(halves) == expected
    assert [(each.rarely_kicked, each.members) for each in halves.rings if each.kind == "inbound"] == [
        ([StageMember("fec-in-0", "inbound"), StageMember("fec-in-1", "inbound")], 5)
    ] * 2


def test_each_half_has_a_page_and_a_doorbell_and_the_inbound_half_starts_first() -> None:
    plan = split(True, "tun")
    assert [(each.name, each.kind, each.lane, each.duties) for each in plan.workers[4:]] == [
        ("tun-in-0", "tun", 0, ("inbound",)),
        ("tun-in-1", "tun", 1, ("inbound",)),
        ("tun-out-0", "tun", 0, ("outbound",)),
        ("tun-out-1", "tun", 1, ("outbound",)),
    ]
    assert [each.page for each in plan.workers] == list(range(8))
    bells = [bell for each in plan.workers for bell in each.doorbells.values()]
    assert len(set(bells)) == len(bells) == 12
    assert Plan.from_json(plan.to_json()) == plan


def test_both_halves_answer_to_the_name_of_the_whole() -> None:
    plan = split(False, "tun")
    assert [each.name for each in plan.named("tun-1")] == ["tun-in-1", "tun-out-1"]
    assert [each.name for each in plan.named("tun-in-1")] == ["tun-in-1"]
    assert [each.name for each in plan.named("tcp-0")] == ["tcp-0"]
    assert plan.named("tun-2") == []


@EVERY_SHAPE
def test_rings_know_kind_and_lane_of_their_own(shape: Shape) -> None:
    for each in build(*shape).rings:
        assert each.name == f"{each.kind}-{each.lane}"
        assert each.members == sum(len(stage) for stage in each.stages)


@EVERY_SHAPE
def test_every_member_has_its_position_between_its_neighbours(shape: Shape) -> None:
    for each in build(*shape).rings:
        numbers: list[list[int]] = []
        for stage in each.stages:
            first = sum(map(len, numbers))
            numbers.append(list(range(first, first + len(stage))))
        for index, stage in enumerate(each.stages):
            for position, member in enumerate(stage):
                at = each.position_of(member)
                assert at.number == numbers[index][position]
                assert at.position == position
                assert at.before == numbers[index - 1]
                assert at.first is (index == 0)
                assert at.after + at.after_rarely == each.stages[(index + 1) % len(each.stages)]


def test_positions_in_the_largest_shape_written_out() -> None:
    outbound = ring(build(3, True), "coded-1")
    tcp = [StageMember(f"tcp-{i}", "outbound") for i in range(3)]
    assert outbound.position_of(StageMember("tun-1", "outbound")) == (
        0,
        0,
        [2, 3, 4],
        True,
        [StageMember("fec-1", "outbound")],
        [],
    )
    assert outbound.position_of(StageMember("fec-1", "outbound")) == (1, 0, [0], False, tcp, [])
    assert outbound.position_of(tcp[2]) == (4, 2, [1], False, [StageMember("tun-1", "outbound")], [])
    inbound = ring(build(3, True), "inbound-2")
    assert inbound.position_of(StageMember("fec-0", "inbound")) == (
        4,
        3,
        [0],
        False,
        [StageMember("tcp-2", "inbound")],
        [],
    )
    transit = ring(build(3, True, 5), "transit-1")
    assert transit.position_of(StageMember("tun-1", "inbound")) == (
        0,
        0,
        [2, 3, 4],
        True,
        [StageMember("fec-1", "outbound")],
        [],
    )
    assert transit.position_of(tcp[0]) == (2, 0, [1], False, [StageMember("tun-1", "inbound")], [])


def test_a_duty_that_does_not_visit_a_ring_has_no_position_in_it() -> None:
    plan = build(2, False)
    assert ring(plan, "plain-0").position_of(StageMember("tun-1", "outbound")) is None
    assert ring(plan, "plain-0").position_of(StageMember("tun-0", "inbound")) is None
    assert ring(plan, "inbound-0").position_of(StageMember("tcp-1", "inbound")) is None


@EVERY_SHAPE
def test_a_consumer_in_a_group_stands_at_the_position_of_its_lane(shape: Shape) -> None:
    plan = build(*shape)
    for each in plan.rings:
        for stage in each.stages:
            if len(stage) > 1:
                assert [plan.worker(member.worker).lane for member in stage[: shape[0]]] == list(range(shape[0]))


def test_compat_has_the_two_rings_that_the_original_wire_format_needs() -> None:
    plan = topology.build_plan("town", "0123abcd", "server", 1, 32, 135168, OFF._replace(compat=True))
    assert drawn(plan) == {
        "plain-0": "tun-0.outbound -> tcp-0.outbound",
        "inbound-0": "tcp-0.inbound -> tun-0.inbound",
    }


@pytest.mark.parametrize("code", [(1, 1), (2, 6), (10, 3), (11, 6), (13, 5), (13, 6), (37, 6), (37, 1)])
def test_a_coded_slot_holds_the_longest_block_with_its_parity(code: tuple[int, int]) -> None:
    plan = topology.build_plan(
        "town", "0123abcd", "server", 1, 32, 135168, FEC._replace(fec_data=code[0], fec_parity=code[1]), 2
    )
    room = ring(plan, "coded-0").slot_bytes - layout.SLOT_BODY_AT
    assert ring(plan, "transit-0").slot_bytes == ring(plan, "coded-0").slot_bytes
    for size in range(1, shard.BLOCK_BYTES_MAX + 1, 97):
        n = shard.data_shards(size, code[0])
        m = code[1] if n > 1 else 0
        assert (n + m) * shard.shard_bytes(size, n, m) <= room


@EVERY_SHAPE
def test_every_member_is_kicked_by_exactly_those_that_it_waits_for(shape: Shape) -> None:
    for each in build(*shape).rings:
        members = [member for stage in each.stages for member in stage]
        for member in members:
            waits_for = {members[number] for number in each.position_of(member).before}
            kicked_by = {
                other
                for other in members
                if member in (place := each.position_of(other)).after or member in place.after_rarely
            }
            assert waits_for == kicked_by != set()


@EVERY_SHAPE
def test_every_duty_of_every_worker_visits_a_ring(shape: Shape) -> None:
    plan = build(*shape)
    visiting = {member for each in plan.rings for stage in each.stages for member in stage}
    assert visiting == {StageMember(w.name, duty) for w in plan.workers for duty in layout.DUTIES}


@EVERY_SHAPE
def test_every_duty_has_one_doorbell_and_every_name_is_one_of_a_kind(shape: Shape) -> None:
    plan = build(*shape)
    names = [plan.scoreboard, plan.peer_table.segment, *(each.segment for each in plan.rings)]
    for worker in plan.workers:
        assert set(worker.doorbells) == set(layout.DUTIES)
        names += worker.doorbells.values()
    assert len(set(names)) == len(names)
    for name in names:
        assert name.startswith("/tunnel@town@0123abcd@")
        assert "/" not in name[1:]


def test_nobody_can_tell_the_names_of_a_run_before_they_are_made() -> None:
    arguments = "town", "0123abcd", "server", 1, 32, 135168, FEC, 5
    names = [
        {ring.segment for ring in topology.build_plan(*arguments, name_key=key).rings} for key in (b"1", b"2", b"1")
    ]
    assert names[0] == names[2] and not names[0] & names[1]


def test_names_fit_a_file_name_with_the_longest_instance_name() -> None:
    longest = "n" * 64
    plan = build(3, True, 5, longest)
    for worker in plan.workers:
        for name in worker.doorbells.values():
            assert len("sem." + name) < os.pathconf("/dev/shm", "PC_NAME_MAX")


def test_the_prefix_of_one_instance_is_never_the_beginning_of_anothers() -> None:
    assert not topology.name_prefix("town-2").startswith(topology.name_prefix("town"))


@EVERY_SHAPE
def test_a_plan_crosses_a_pipe_as_json_unchanged(shape: Shape) -> None:
    plan = build(*shape)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert isinstance(again.workers[0], WorkerPlan)
    assert isinstance(again.rings[0], RingPlan)
    assert isinstance(again.peer_table, PeerTablePlan)
    assert isinstance(again.settings, WorkerSettings)
    assert isinstance(again.settings.tls, TlsMaterial) == (again.settings.tls is not None)
    assert isinstance(again.rings[0].stages[0][0], StageMember)
    assert isinstance(json.loads(plan.to_json()), list)
    for before, after in zip(plan.rings, again.rings, strict=True):
        for stage in before.stages:
            for member in stage:
                assert before.position_of(member) == after.position_of(member)


@pytest.mark.parametrize(("capacity", "rows"), [(1, 80), (2, 90), (200, 2070), (1000, 8192), (8000, 8192)])
def test_a_tcp_worker_has_room_for_the_connections_of_as_many_peers_as_there_can_be(capacity: int, rows: int) -> None:
    name, *numbers = build(1, False, capacity).peer_table
    assert name.startswith("/tunnel@town@0123abcd@peer-table.") and numbers == [capacity, rows]


def test_workers_are_found_by_name_and_kind() -> None:
    plan = build(2, True)
    assert plan.worker("fec-1").lane == 1
    assert [w.name for w in plan.workers_of_kind("tcp")] == ["tcp-0", "tcp-1"]


def test_only_the_fec_workers_are_kicked_rarely_and_only_in_inbound_rings() -> None:
    rarely = {each.name: each.rarely_kicked for each in build(2, True, 5).rings if each.rarely_kicked}
    fec = [StageMember(f"fec-{i}", "inbound") for i in range(2)]
    assert rarely == {"inbound-0": fec, "inbound-1": fec}
    receiver = ring(build(2, True), "inbound-0").position_of(StageMember("tcp-0", "inbound"))
    assert (receiver.after, receiver.after_rarely) == ([StageMember(f"tun-{i}", "inbound") for i in range(2)], fec)


# -- datagrams


def with_datagrams(lanes: int, fec: bool, capacity: int = 1, carrier: str = "auto") -> Plan:
    settings = (FEC if fec else OFF)._replace(carrier=carrier)
    return topology.build_plan("town", "0123abcd", "server", lanes, 32, 135168, settings, capacity)


@LANE_COUNTS
@pytest.mark.parametrize("fec", [False, True])
@pytest.mark.parametrize("capacity", [1, 5])
def test_the_dgram_workers_stand_behind_the_tcp_workers_in_every_last_stage_but_that_of_coded_blocks(
    lanes: int, fec: bool, capacity: int
) -> None:
    before, behind = drawn(build(lanes, fec, capacity)), group("dgram", "outbound", lanes)
    expected = {
        name: f"{stages} {behind}" if name.startswith(("plain", "light", "transit")) else stages
        for name, stages in before.items()
    }
    for lane in range(lanes):
        expected[f"arrived-{lane}"] = f"dgram-{lane}.inbound -> {group('tun', 'inbound', lanes)}"
        expected[f"returned-{lane}"] = f"dgram-{lane}.outbound -> {group('tcp', 'outbound', lanes)}"
    assert drawn(with_datagrams(lanes, fec, capacity)) == expected


def test_a_dgram_worker_is_the_consumer_behind_those_of_tcp() -> None:
    plan = with_datagrams(3, True, 5)
    for kind in ("plain-1", "light-2", "transit-0"):
        assert ring(plan, kind).position_of(StageMember("dgram-2", "outbound")).position == 3 + 2
        assert ring(plan, kind).only_reads(StageMember("dgram-2", "outbound"))


@pytest.mark.parametrize(("fec", "kinds"), [(False, ["tcp", "dgram", "tun"]), (True, ["tcp", "dgram", "fec", "tun"])])
def test_dgram_workers_start_behind_the_tcp_workers_that_they_give_blocks_back_to(fec: bool, kinds: list[str]) -> None:
    plan = with_datagrams(2, fec)
    assert [each.name for each in plan.workers] == [f"{kind}-{lane}" for kind in kinds for lane in range(2)]
    assert all(each.duties == layout.DUTIES for each in plan.workers_of_kind("dgram"))
    assert Plan.from_json(plan.to_json()) == plan


def test_every_duty_of_a_dgram_worker_is_kicked_by_those_that_it_waits_for() -> None:
    plan = with_datagrams(2, True, 5)
    visiting = {member for each in plan.rings for stage in each.stages for member in stage}
    assert visiting == {StageMember(w.name, duty) for w in plan.workers for duty in layout.DUTIES}
    filler = ring(plan, "plain-0").position_of(StageMember("tun-0", "outbound"))
    assert [each.worker for each in filler.after] == ["tcp-0", "tcp-1", "dgram-0", "dgram-1"]


@EVERY_SHAPE
def test_with_carrier_tcp_there_is_no_dgram_worker_no_ring_and_no_record(shape: Shape) -> None:
    lanes, fec, capacity = shape
    plan = with_datagrams(lanes, fec, capacity, "tcp")
    assert plan == build(*shape) and not plan.settings.datagrams
    assert not [each for each in plan.workers if each.kind == "dgram"]
    assert not [each for each in plan.rings if each.kind in ("arrived", "returned")]
    assert with_datagrams(lanes, fec, capacity, "udp").settings.datagrams


@pytest.mark.parametrize("fec", [False, True])
def test_rings_of_datagrams_have_room_for_the_longest_block(fec: bool) -> None:
    plan = with_datagrams(1, fec)
    for kind in ("arrived", "returned"):
        room = ring(plan, f"{kind}-0").slot_bytes - layout.SLOT_HEADER_BYTES
        assert room >= shard.RUN_BYTES + shard.BLOCK_BYTES_MAX
