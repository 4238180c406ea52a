"""The shared memory of an instance that has no worker, and whose supervisor is this process: for observers."""

from __future__ import annotations

import json
import os
import secrets
from typing import Any, Self

from pipeline.observe.overview_text import compose
from pipeline.observe.process_stat import read_process
from pipeline.runtime import topology
from pipeline.runtime.assignment import FORMAT
from pipeline.shm import layout
from pipeline.supervisor.run.shared_memory import SharedMemory
from tests.harness.settings import WORKER_SETTINGS


class MadeRun:
    """`about`: of the overview; `publish` writes it. `changes`: to it."""

    def __init__(self, name: str, mode: str = "client", lanes: int = 1, capacity: int = 1, **changes: Any) -> None:
        self.plan = topology.build_plan(
            name, secrets.token_hex(4), mode, lanes, 4, layout.PAGE, WORKER_SETTINGS, capacity
        )
        self.memory = SharedMemory(self.plan)
        own = read_process(os.getpid())
        self.about = {
            "format": FORMAT.decode(),
            "version": "1",
            "pid": os.getpid(),
            "began": own.began,
            "state": "running",
            "started_ns": 0,
            "failures": 0,
            "workers": {
                each.name: {"pid": 0, "state": "stopped", "restarts": 0, "cores": []} for each in self.plan.workers
            },
            "spares": [],
            "rolling": {"left": [], "error": ""},
            "device": {"name": "tun9", "notes": [], "left_out": []},
            "server": None,
            "notes": [],
            **changes,
        }
        self.publish()

    def publish(self, peers: tuple[dict[str, Any], ...] | list[dict[str, Any]] = ({"name": "laptop"},)) -> None:
        overview = self.memory.overview
        overview.publish(compose(self.about, self.plan.to_json(), list(map(json.dumps, peers)), overview.room))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()
