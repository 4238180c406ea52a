"""The floors: imports point down, workers stand alone, and what a worker process must not load it does not load.

Each module says its floor in the first line of its docstring; `pipeline/__init__.py` has the map.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pipeline
import workers

PIPELINE = Path(pipeline.__file__).parent
WORKERS = Path(workers.__file__).parent
KINDS = ("tun", "fec", "tcp")

WORKER_MAY_NOT_LOAD = {"msgspec", "psutil", "cryptography", "numpy", "asyncio", "multiprocessing", "uuid"}
"""Each would lengthen the gap that a restarted worker leaves, and none is of use there."""

ALLOWED = {"cryptography", "msgspec", "numpy", "posix_ipc", "psutil", "pipeline", "workers", "tools"} | set(
    sys.stdlib_module_names
)


def modules(package: Path) -> list[Path]:
    return sorted(path for path in package.glob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in it; of a package the modules taken from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            if node.module in ("pipeline", "workers", "tools"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def ours(path: Path) -> set[str]:
    """The modules of the pipeline that a file imports, by name."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}


def floor(path: Path) -> int:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = re.match(r"Floor (\d)[.,]", text)
    assert found, f"{path.name}: its docstring does not begin with its floor"
    return int(found[1])


def mapped() -> dict[str, int]:
    """The map in pipeline/__init__.py: floor of each module; a name with * stands for all that it fits."""
    names: dict[str, int] = {}
    number = -1
    for line in (pipeline.__doc__ or "").splitlines():
        if not line.startswith("    "):
            continue
        if found := re.match(r"\s+floor (\d)\s+(.*)", line):
            number, line = int(found[1]), found[2]
        listed = re.split(r"\s{3,}", line.strip())[0]
        for pattern in listed.split(","):
            for path in PIPELINE.glob(f"{pattern.strip()}.py"):
                names[path.stem] = number
    return names


FLOORS = {path.stem: floor(path) for path in modules(PIPELINE)}


@pytest.mark.parametrize("path", modules(PIPELINE), ids=lambda path: path.stem)
def test_a_module_imports_from_its_own_floor_and_those_below(path: Path) -> None:
    above = {name: FLOORS[name] for name in ours(path) if FLOORS[name] > FLOORS[path.stem]}
    assert above == {}


def test_no_module_imports_itself_over_others() -> None:
    try:
        TopologicalSorter({path.stem: ours(path) for path in modules(PIPELINE)}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_map_has_every_module_on_the_floor_that_it_says_itself() -> None:
    assert mapped() == FLOORS


def test_the_design_document_has_every_module_on_its_floor() -> None:
    text = (PIPELINE.parent / "docs" / "design.md").read_text()
    shown: dict[str, int] = {}
    for number, listed in re.findall(r"^\| (\d) \| (.*) \|$", text[text.index("## Floors") :], re.MULTILINE):
        for name, parts in re.findall(r"`(\w+)`( and its parts)?", listed):
            names = [name] + [path.stem for path in PIPELINE.glob(f"{name}_*.py") if parts]
            assert not set(names) & set(shown)
            shown |= dict.fromkeys(names, int(number))
    assert shown == FLOORS


@pytest.mark.parametrize("path", [p for p in modules(PIPELINE) if FLOORS[p.stem] <= 1], ids=lambda path: path.stem)
def test_the_lower_floors_know_no_sockets_and_write_no_log(path: Path) -> None:
    assert not imports(path) & {"socket", "select", "selectors", "logging", "subprocess", "pipeline.log"}


@pytest.mark.parametrize(
    "path", [p for p in modules(PIPELINE) if ", pure." in p.read_text().splitlines()[0]], ids=lambda path: path.stem
)
def test_a_pure_module_looks_at_no_clock_and_touches_no_memory_or_file(path: Path) -> None:
    assert not imports(path) & {"time", "os", "mmap", "posix_ipc", "pathlib", "threading"}


@pytest.mark.parametrize("path", modules(PIPELINE), ids=lambda path: path.stem)
def test_the_pipeline_imports_no_worker_and_no_tool(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("workers", "tools", "tests")}


@pytest.mark.parametrize("path", modules(WORKERS), ids=lambda path: path.stem)
def test_workers_never_import_each_other_across_kinds(path: Path) -> None:
    kind = path.stem.split("_")[0]
    theirs = {name.split(".")[1] for name in imports(path) if name.startswith("workers.")}
    if path.stem == "__main__":
        assert theirs <= set(KINDS)
    else:
        assert kind in KINDS
        assert {name.split("_")[0] for name in theirs} <= {kind}


@pytest.mark.parametrize("path", modules(WORKERS), ids=lambda path: path.stem)
def test_workers_import_nothing_of_the_supervisors_floor(path: Path) -> None:
    assert {name for name in ours(path) if FLOORS[name] > 2} == set()


@pytest.mark.parametrize("path", modules(PIPELINE) + modules(WORKERS), ids=lambda path: path.stem)
def test_only_the_packages_that_we_depend_on_are_imported(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} - {"__future__"} <= ALLOWED


def loaded(statement: str) -> set[str]:
    """What a fresh interpreter, isolated as a worker's, has loaded after it."""
    script = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    bare = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(bare.stdout))


@pytest.mark.parametrize(("kind", "may_load"), [("tun", set()), ("tcp", set()), ("fec", {"numpy"})])
def test_a_worker_process_loads_nothing_that_slows_its_start(kind: str, may_load: set[str]) -> None:
    names = loaded(f"import workers.__main__, workers.{kind}")
    assert f"workers.{kind}" in names
    assert {name.split(".")[0] for name in names} & WORKER_MAY_NOT_LOAD == may_load


@pytest.mark.parametrize("kind", ["tun", "fec"])
def test_only_a_tcp_worker_loads_what_tls_needs(kind: str) -> None:
    assert "ssl" in loaded("import workers.__main__, workers.tcp")
    assert "ssl" not in loaded(f"import workers.__main__, workers.{kind}")


def test_the_pipeline_itself_starts_nothing_and_loads_nothing() -> None:
    assert {name for name in loaded("import pipeline") if name.startswith("pipeline")} == {"pipeline"}


def test_status_and_its_like_do_not_load_what_only_a_start_needs() -> None:
    assert not loaded("import pipeline.cli") & {"pipeline.supervisor", "pipeline.config", "msgspec", "psutil"}
