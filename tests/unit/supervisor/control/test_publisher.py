"""The publisher writes the overview when something has changed, and never too much of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.events import BY_NAME, Event
from pipeline.observe.overview_text import parse
from pipeline.peers.peer_status import PeerRow
from pipeline.policy.core_plan import Placement
from pipeline.policy.lifecycle import Lifecycle, Limits
from pipeline.policy.restart import RestartPolicy
from pipeline.runtime import topology
from pipeline.runtime.plan import Plan
from pipeline.shm import layout
from pipeline.supervisor.control.gathered_peers import GatheredPeers
from pipeline.supervisor.control.instance_facts import InstanceFacts
from pipeline.supervisor.control.publisher import INTERVAL_NS, SHARE, Publisher
from pipeline.supervisor.processes.process import Process
from pipeline.supervisor.run.shared_memory import SharedMemory
from tests.harness.settings import WORKER_SETTINGS

SECOND = 1_000_000_000


class Instance:
    def __init__(self, capacity: int = 4, lanes: int = 1) -> None:
        self.plan = topology.build_plan(
            "publishtest", secrets.token_hex(4), "server", lanes, 4, layout.PAGE, WORKER_SETTINGS, capacity
        )
        self.memory = SharedMemory(self.plan)
        limits = Limits(SECOND, SECOND, RestartPolicy(1, 1.0))
        self.rows: list[PeerRow] = []
        self.peers_version = 0
        self.gathered = 0
        self.notes: list[str] = []
        self.credentials = SimpleNamespace(expires=None)
        workforce = SimpleNamespace(
            lifecycle=Lifecycle([(worker.name, worker.kind) for worker in self.plan.workers], limits),
            workers=SimpleNamespace(processes={worker.name: Process(worker, []) for worker in self.plan.workers}),
            placement=Placement({}, ("no worker is pinned",)),
            spares=SimpleNamespace(rows=list),
            rolling=SimpleNamespace(status=lambda: {"left": [], "error": ""}),
        )
        device = SimpleNamespace(status=lambda: {"name": "tun9", "notes": [], "left_out": []})
        run = SimpleNamespace(plan=self.plan, started_ns=0, failures=SimpleNamespace(count=0))
        full = SimpleNamespace(status=lambda: {"on": False, "kill_switch": False, "dns": []})
        entries = SimpleNamespace(device=device, notes=[], full_tunnel=full)
        quiet = SimpleNamespace(notes=[], status=lambda: None)
        facts = InstanceFacts(run, workforce, self, entries, quiet, quiet, quiet)
        self.publisher = Publisher(run, facts, GatheredPeers(self))
        self.publisher.use(self.memory)
        self.now = SECOND

    def status(self) -> dict[str, Any]:
        return {"server": None, "notes": list(self.notes)}

    def peer_rows(self) -> list[PeerRow]:
        self.gathered += 1
        return self.rows

    def tick(self, after: int = INTERVAL_NS) -> dict[str, Any]:
        self.now += after
        self.publisher.tick(self.now)
        return self.overview()

    def overview(self) -> dict[str, Any]:
        about = parse(self.memory.overview.read())
        return about | {"peers": list(about["peers"])}


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance()
    yield made
    made.memory.unlink()


def test_the_overview_has_the_plan_without_secrets_and_the_state(instance: Instance) -> None:
    about = instance.tick()
    assert Plan.from_json(json.dumps(about["plan"])) == instance.plan
    assert about["state"] == "starting"
    assert about["workers"]["tcp-0"] == {"pid": 0, "state": "stopped", "restarts": 0, "deaths": 0, "cores": []}
    assert (about["peers"], about["peers_left_out"]) == ([], 0)
    assert instance.memory.overview.heartbeat == instance.now


def test_it_is_written_when_something_has_changed_and_not_more_often_than_a_few_times_a_second(
    instance: Instance,
) -> None:
    instance.tick()
    for _ in range(10):
        instance.tick()
    assert instance.memory.overview.count == 1
    for number in range(10):
        instance.notes.append(f"note {number}")
        instance.tick(INTERVAL_NS // 5)
    assert instance.memory.overview.count == 3
    assert instance.tick()["notes"] == instance.notes


def test_an_event_brings_a_look_at_once_and_a_storm_of_events_brings_few(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = 1_000_000
    clock = count(0, took)
    monkeypatch.setattr("time.monotonic_ns", lambda: next(clock))  # each look takes one step or more
    instance.tick()
    instance.now += INTERVAL_NS * 4 // 5  # by itself the next look would be later
    began = instance.now
    for number in range(200):
        instance.notes.append(f"note {number}")
        instance.publisher.handle(Event(0, BY_NAME["peer-joined"], "ann", "", 0))
        instance.tick(took)
        if not number:
            assert instance.overview()["notes"] == ["note 0"]
    looks = instance.memory.overview.count - 1
    assert 2 <= looks <= (instance.now - began) / (SHARE * took) + 1


def test_the_first_moment_of_running_is_published_before_anybody_is_told(instance: Instance) -> None:
    instance.tick()
    instance.notes.append("just now")
    instance.publisher.handle(Event(0, BY_NAME["up"], "", "", 0))
    assert instance.overview()["notes"] == ["just now"]


def test_what_a_command_has_changed_is_published_before_its_answer(instance: Instance) -> None:
    instance.tick()
    instance.rows, instance.peers_version = [PeerRow("ann")], 1
    instance.publisher.publish_now()
    assert [each["name"] for each in instance.overview()["peers"]] == ["ann"]


def test_peers_are_gathered_only_when_they_have_changed(instance: Instance) -> None:
    instance.tick()
    instance.rows = [PeerRow("ann", ("10.0.0.2",), peer=0, since_ns=5)]
    instance.tick(SECOND)
    assert instance.gathered == 1
    instance.peers_version += 1
    about = instance.tick(SECOND)
    assert (instance.gathered, about["peers"]) == (
        2,
        [{"name": "ann", "addresses": ["10.0.0.2"], "peer": 0, "since_ns": 5}],
    )


def test_peers_beyond_the_room_are_counted_and_those_in_front_are_kept(instance: Instance) -> None:
    instance.rows = [PeerRow(f"peer-{n:05}", ("10.0.0.2",), ("10.0.0.0/8",) * 9, problem="x") for n in range(8192)]
    about = instance.tick()
    shown = len(about["peers"])
    assert shown > 100 and about["peers_left_out"] == 8192 - shown
    assert about["peers"][0]["name"] == "peer-00000"
    assert len(instance.memory.overview.read()) <= instance.memory.overview.room


def test_8192_peers_of_a_large_hub_find_room() -> None:
    made = Instance(capacity=4096)
    try:
        row: Any = {"version": "0.1.0", "mtu": 1400, "fec": True}
        row |= {"encryption": "ChaCha20-Poly1305", "sent_epoch": 1000, "received_epoch": 1000}
        connected = [
            PeerRow(
                f"peer-{n:05}", (f"10.0.{n >> 8}.{n & 255}",), (f"10.{n & 255}.0.0/16",), peer=n, since_ns=10**15, **row
            )
            for n in range(4096)
        ]
        made.rows = connected + [PeerRow(f"away-{n:05}", (f"10.1.{n >> 8}.{n & 255}",)) for n in range(4096)]
        about = made.tick()
        assert (len(about["peers"]), about["peers_left_out"]) == (8192, 0)
    finally:
        made.memory.unlink()


def test_the_plan_of_many_lanes_finds_room() -> None:
    made = Instance(lanes=16)
    try:
        assert len(made.tick()["workers"]) == 32
    finally:
        made.memory.unlink()


def test_a_status_is_of_this_very_moment(instance: Instance) -> None:
    instance.tick()
    instance.notes.append("just now")
    instance.rows, instance.peers_version = [PeerRow("ann")], 1
    taken = instance.publisher.status()
    assert (taken["notes"], [each["name"] for each in taken["peers"]]) == (["just now"], ["ann"])
    assert taken["supervisor"]["state"] == "running"
