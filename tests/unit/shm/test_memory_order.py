"""Fences where the machine needs them, nothing where it does not; machines without words of 64 bits are refused."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from pipeline.runtime.port import Port
from pipeline.shm import doorbell, memory_order
from pipeline.shm.memory_order import MACHINES, judge_machine
from pipeline.shm.ring import StageView
from tests.support import ROOT

OTHER_MACHINE = "import tests.harness.other_machine\n"


def on_other_machine(code: str) -> str:
    """What the code prints in a process that takes this machine for arm64."""
    words = [sys.executable, "-c", OTHER_MACHINE + code]
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (("x86_64", 64, "little", True), ""),
        (("aarch64", 64, "little", True), ""),
        (("riscv64", 64, "little", True), "this machine is riscv64: tunnel-supervisor needs x86-64 or arm64"),
        (("", 64, "little", True), "this machine is of an unknown kind: tunnel-supervisor needs x86-64 or arm64"),
        (("armv7l", 32, "little", True), "this machine is armv7l: tunnel-supervisor needs x86-64 or arm64"),
        (("aarch64", 32, "little", True), "but its Python is for 32 bits, little endian"),
        (("x86_64", 32, "little", True), "but its Python is for 32 bits, little endian"),
        (("aarch64", 64, "big", True), "but its Python is for 64 bits, big endian"),
        (("aarch64", 64, "little", False), "libatomic.so.1 is missing: install it (apt-get install libatomic1)"),
    ],
    ids=str,
)
def test_a_machine_is_refused_with_the_reason(machine: tuple[str, int, str, bool], expected: str) -> None:
    name, bits, order, has_fence = machine
    refusal = judge_machine(name, bits, order, has_fence=has_fence)
    assert expected in refusal and bool(expected) == bool(refusal)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="about machines that keep their stores in order")
def test_on_x86_64_an_order_that_the_machine_keeps_costs_not_even_a_call() -> None:
    assert memory_order.fence is memory_order.nothing and not memory_order.REORDERS
    methods = (StageView.ready, StageView.advance, Port.advance)
    assert not [method for method in methods if hasattr(method, "__wrapped__")]
    assert doorbell.FENCE_PAIR[0].__name__ == "acquire"  # a locked instruction
    assert (memory_order.find_refusal(), memory_order.find_caution()) == ("", "")


def test_on_arm64_cursors_and_doorbells_have_a_fence_of_the_c_library() -> None:
    said = on_other_machine(
        "from pipeline.runtime.port import Port\n"
        "from pipeline.shm import doorbell, memory_order\n"
        "from pipeline.shm.ring import StageView\n"
        "methods = StageView.ready, StageView.advance, Port.advance\n"
        "assert all(hasattr(method, '__wrapped__') for method in methods)\n"
        "assert doorbell.FENCE_PAIR[0] is memory_order.fence\n"
        "print(memory_order.fence.func.__name__, memory_order.fence(), repr(memory_order.find_refusal()))\n"
        "print(memory_order.find_caution())\n"
    )
    assert said.splitlines() == [
        "atomic_thread_fence None ''",
        "this machine is arm64, which is beta: the program has been tested on an emulated one alone",
    ]


def test_without_the_library_of_fences_a_process_is_refused_when_it_needs_one_and_not_before() -> None:
    said = on_other_machine(
        "import ctypes\n"
        "def missing(name): raise OSError(f'{name}: cannot open shared object file')\n"
        "ctypes.PyDLL = missing\n"
        "import workers.tun, pipeline.cli.main\n"
        "from pipeline.errors import LocalError\n"
        "from pipeline.shm import memory_order\n"
        "try: memory_order.fence()\n"
        "except LocalError as error: print(error)\n"
    )
    assert said.startswith("this machine is aarch64, which needs fences between processes, and libatomic.so.1 is miss")


COUNTED = """
from pipeline.shm import memory_order
fences = []
memory_order.fence = lambda: fences.append(1)
from pipeline.shm.ring import Ring, StageView
from tests.harness.plain_memory import PlainMemory
ring = Ring(PlainMemory(), 2, 4, 64)
first, last = StageView(ring, 0, [1], first=True), StageView(ring, 1, [0])

def count(action):
    fences.clear()
    action()
    return len(fences)
"""


def test_a_fence_stands_before_a_cursor_is_stored_and_behind_each_load_that_finds_more() -> None:
    said = on_other_machine(
        COUNTED + "print(count(last.ready), count(first.ready), count(first.ready), end=' ')\n"  # none, four free
        "print(count(lambda: first.advance(2)), count(last.ready), count(last.ready), end=' ')\n"
        "print(count(lambda: last.advance(1)), count(last.ready), count(lambda: last.advance(1)), count(last.ready))\n"
    )
    assert said.split() == ["0", "1", "0", "1", "1", "0", "1", "0", "1", "0"]


def test_no_cursor_is_loaded_or_stored_but_in_the_ring_and_its_port() -> None:
    """Code that does it elsewhere needs a fence there as well, and a row in docs/memory-order.md."""
    found = set()
    for folder in ("pipeline", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in ("cursors", "_own_word", "_words_before"):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {"pipeline/shm/ring.py", "pipeline/shm/litmus.py", "pipeline/runtime/port.py"}


def test_every_machine_has_its_row_in_the_documents() -> None:
    text = (ROOT / "docs/memory-order.md").read_text()
    assert all(machine.title in text for machine in MACHINES.values())
