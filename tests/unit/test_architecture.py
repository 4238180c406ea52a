"""The architecture: contracts between the folders, what is pure, and what a worker process must not load.

The contracts themselves are in pyproject.toml (import-linter).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

WORKER_MAY_NOT_LOAD = {
    "msgspec",
    "psutil",
    "cryptography",
    "numpy",
    "asyncio",
    "multiprocessing",
    "uuid",
    "h11",
    "wsproto",
}
"""Each would lengthen the gap that a restarted worker leaves. A kind loads one of them if it has use for it alone."""

OURS = ("pipeline", "workers", "tools")
PACKAGES = {"cryptography", "dns", "h11", "msgspec", "numpy", "posix_ipc", "prometheus_client", "psutil", "rich"}
PACKAGES |= {"wsproto"}
ALLOWED = {*PACKAGES, *OURS} | set(sys.stdlib_module_names)
PURE = ("faketcp", "packet", "policy", "wire")


def modules(*folders: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in it; of a folder the modules taken from it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each for each in inside if (ROOT / each.replace(".", "/")).with_suffix(".py").exists()} or {
                node.module
            }
    return found


def test_the_contracts_between_the_folders_are_kept() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_module_imports_itself_over_others() -> None:
    try:
        TopologicalSorter({name_of(path): imports(path) for path in modules(*OURS)}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("folder", PURE)
def test_a_pure_folder_knows_no_socket_and_no_clock_touches_no_file_and_writes_no_log(folder: str) -> None:
    impure = {"socket", "select", "selectors", "logging", "subprocess", "pipeline.log"}
    impure |= {"time", "os", "mmap", "posix_ipc", "pathlib", "threading"}
    assert {path: imports(path) & impure for path in modules(f"pipeline/{folder}")} == {
        path: set() for path in modules(f"pipeline/{folder}")
    }


@pytest.mark.parametrize("path", modules("pipeline", "workers"), ids=name_of)
def test_only_the_packages_that_we_depend_on_are_imported(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} - {"__future__"} <= ALLOWED


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter, isolated as a worker's, has loaded after the statement."""
    script = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    bare = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(bare.stdout))


@pytest.mark.parametrize(
    ("kind", "may_load"), [("tun", {"cryptography"}), ("tcp", {"cryptography"}), ("fec", {"numpy"})]
)
def test_a_worker_process_loads_nothing_that_slows_its_start(kind: str, may_load: set[str]) -> None:
    names = loaded(f"import workers.__main__, workers.{kind}.duties")
    assert f"workers.{kind}.duties" in names
    assert {name.split(".")[0] for name in names} & WORKER_MAY_NOT_LOAD == may_load


@pytest.mark.parametrize("kind", ["tun", "fec"])
def test_only_a_tcp_worker_loads_what_tls_needs(kind: str) -> None:
    assert "ssl" in loaded("import workers.__main__, workers.tcp.duties")
    assert "ssl" not in loaded(f"import workers.__main__, workers.{kind}.duties")


def test_the_pipeline_itself_starts_nothing_and_loads_nothing() -> None:
    assert {name for name in loaded("import pipeline") if name.startswith("pipeline")} == {"pipeline"}


def test_status_and_its_like_do_not_load_what_only_a_start_needs() -> None:
    assert not loaded("import pipeline.cli.main") & {
        "pipeline.supervisor.supervisor",
        "pipeline.config",
        "msgspec",
        "psutil",
    }
