"""Shared memory whose names are gone from /dev/shm is made anew, and all that use it get the new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.runtime import topology
from pipeline.runtime.plan import Plan
from pipeline.shm import layout, segment
from pipeline.supervisor.memory_keeper import MemoryKeeper
from pipeline.supervisor.run.shared_memory import LOOK_NS, SharedMemory
from tests.harness.settings import WORKER_SETTINGS


class Instance:
    """`did` has what happened, in order."""

    def __init__(self, mode: str) -> None:
        self.did: list[str] = []
        self.config = SimpleNamespace(mode=mode)
        self.seal_memory = SimpleNamespace(begin_anew=lambda: self.did.append("keys forgotten"))
        self.datagram_memory = SimpleNamespace(begin_anew=lambda: self.did.append("datagrams forgotten"))
        self.lent: list[SharedMemory] = []
        self.renew_names()
        self.write_plan(None)
        self.keeper: Any = MemoryKeeper(
            self, lambda: self.did.append("settled"), lambda *event: self.did.append(event[0])
        )
        self.keeper.lend(self.lent.append)
        self.keeper.lend(lambda memory: self.did.append("lent"))
        self.workforce: Any = SimpleNamespace(
            replace_all=lambda reason: self.did.append("workers replaced"),
            adopt_plan=lambda: self.did.append("plan adopted"),
        )
        self.now = LOOK_NS

    def renew_names(self) -> None:
        self.run_id = secrets.token_hex(4)

    def write_plan(self, config: object) -> None:
        self.plan: Plan = topology.build_plan(
            "keepertest", self.run_id, "server", 1, 4, layout.PAGE, WORKER_SETTINGS, 4
        )

    def check(self) -> None:
        self.now += LOOK_NS
        self.keeper.check(self.workforce, self.now)


@pytest.fixture(params=["server", "client"])
def instance(request: pytest.FixtureRequest) -> Iterator[Instance]:
    made = Instance(request.param)
    yield made
    made.keeper.current.close()


def test_memory_with_all_its_names_stays(instance: Instance) -> None:
    for _ in range(3):
        instance.check()
    assert instance.did == ["lent"] and instance.lent == [instance.keeper.current]


def test_a_name_that_is_gone_brings_another_memory_with_the_same_counts(instance: Instance) -> None:
    before = instance.keeper.current
    before.scoreboard.pages[0].counters[3] = 77
    old = instance.plan.scoreboard
    os.unlink(segment.path(instance.plan.overview))
    instance.check()
    is_server = instance.config.mode == "server"  # a client's session goes on, with its keys
    forgotten = ["keys forgotten", "datagrams forgotten"] if is_server else []
    assert instance.did == ["lent", "memory-lost", "workers replaced", "settled", *forgotten, "lent", "plan adopted"]
    assert instance.lent == [before, instance.keeper.current] and instance.plan.scoreboard != old
    assert instance.keeper.current.scoreboard.pages[0].counters[3] == 77
    assert not os.path.exists(segment.path(old))
    instance.check()
    assert len(instance.lent) == 2


def test_at_the_end_no_name_is_left(instance: Instance) -> None:
    instance.keeper.end()
    assert not [name for name in os.listdir("/dev/shm") if "tunnel@keepertest@" in name and instance.run_id in name]
