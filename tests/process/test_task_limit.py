"""Processes that may start no further thread: every part says so and what to do, and none of them fails otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.system.task_limit import REACHED

UID = 2_000_000_000 + os.getpid() % 1000

WITHOUT_THREADS = f"""
import encodings.idna, json, os, resource, socket, threading
from types import SimpleNamespace
from pipeline.system import hang_guard, task_limit
from pipeline.errors import LocalError
from pipeline.runtime import worker
from pipeline.supervisor.kernel.server_lookup import ServerLookup
from pipeline.transport.resolver import Resolver

resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
os.setuid({UID})

def why(act):
    try:
        return act()
    except OSError as error:
        return task_limit.explain(error)
    except LocalError as error:
        return str(error)

resolver = Resolver("hub.test", 9000)
resolver.begin()
stop = SimpleNamespace()
attachment = SimpleNamespace(stop=stop, page=SimpleNamespace(heartbeat=lambda name: None), ports_of=lambda name: [])
print(json.dumps({{
    "file": why(lambda: hang_guard.call(list)),
    "resolver": [answer.why for answer in resolver.answers()],
    "lookup": why(lambda: ServerLookup(["hub.test"])),
    "worker": why(lambda: worker.run(attachment, [SimpleNamespace(name="outbound")], -1, os.getppid())),
}}))
"""


def test_without_a_further_thread_each_part_says_what_to_raise() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    done = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, timeout=30)
    assert done.stderr == "" and done.returncode == 0
    assert json.loads(done.stdout) == {
        "file": REACHED,
        "resolver": [f"no thread for a lookup: {REACHED}"],
        "lookup": REACHED,
        "worker": f"a thread cannot be started: {REACHED}",
    }
