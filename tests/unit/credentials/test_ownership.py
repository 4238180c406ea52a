"""Files and directories that others could change: found wherever they are on the way, and nothing else is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import parse
from pipeline.credentials import keys
from pipeline.credentials.ownership import check, find_exposure
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import ConfigError, LocalError

SOMEBODY = 4242  # neither root nor us

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


@pytest.fixture
def tree() -> Iterator[Path]:
    """a/b/c, where a lies in a sticky directory that everybody may write to."""
    made = Path(tempfile.mkdtemp())
    assert made.parent.stat().st_mode & 0o1002 == 0o1002, "this test needs a sticky directory for temporary files"
    (made / "a/b").mkdir(parents=True)
    (made / "a/b/c").write_bytes(b"")
    (made / "a/b/c").chmod(0o600)
    yield made
    shutil.rmtree(made)


def test_a_file_that_we_and_root_alone_can_change_is_not_exposed(tree: Path) -> None:
    assert find_exposure(tree / "a/b/c") == find_exposure(tree / "a/b") == ""


@pytest.mark.parametrize("what", ["a", "a/b", "a/b/c"])
def test_another_owner_on_the_way_is_said_with_the_cure(tree: Path, what: str) -> None:
    os.chown(tree / what, SOMEBODY, 0)
    expected = f"{tree / what} belongs to user {SOMEBODY}, who can change it: chown root {tree / what}"
    assert find_exposure(tree / "a/b/c") == expected


@pytest.mark.parametrize("what", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_a_directory_or_file_on_the_way_that_others_can_write_to_is_said(tree: Path, what: str, bits: int) -> None:
    mode = 0o700 | bits
    (tree / what).chmod(mode)
    found = find_exposure(tree / "a/b/c")
    assert found == f"other users can write to {tree / what} (mode {mode:04o}): chmod go-w {tree / what}"


def test_in_a_sticky_directory_the_entry_decides(tree: Path) -> None:
    (tree / "a").chmod(0o1777)
    assert find_exposure(tree / "a/b/c") == ""
    os.chown(tree / "a/b", SOMEBODY, 0)
    assert str(tree / "a/b") in find_exposure(tree / "a/b/c")


def test_a_sticky_bit_makes_no_file_safe(tree: Path) -> None:
    (tree / "a/b/c").chmod(0o1602)
    assert "other users can write" in find_exposure(tree / "a/b/c")


def test_a_symbolic_link_counts_and_so_does_the_way_behind_it(tree: Path) -> None:
    (tree / "link").symlink_to("a/../a/b/c")
    assert find_exposure(tree / "link") == ""
    os.lchown(tree / "link", SOMEBODY, 0)
    assert str(tree / "link") in find_exposure(tree / "link")
    os.lchown(tree / "link", 0, 0)
    (tree / "a/b").chmod(0o777)
    assert str(tree / "a/b") in find_exposure(tree / "link")


def test_links_in_a_circle_have_an_end(tree: Path) -> None:
    (tree / "one").symlink_to(tree / "two")
    (tree / "two").symlink_to("one")
    assert find_exposure(tree / "one/x") == ""


def test_a_path_that_does_not_exist_is_judged_by_what_exists_of_it(tree: Path) -> None:
    assert find_exposure(tree / "a/new/state") == ""
    (tree / "a").chmod(0o777)
    assert str(tree / "a") in find_exposure(tree / "a/new/state")
    assert find_exposure(Path("/nul\0byte")) == ""


def test_the_user_who_has_called_sudo_is_trusted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tree / "a", SOMEBODY, 0)
    monkeypatch.setenv("SUDO_UID", str(SOMEBODY + 1))
    assert find_exposure(tree / "a/b/c")
    monkeypatch.setenv("SUDO_UID", str(SOMEBODY))
    assert find_exposure(tree / "a/b/c") == ""


def test_a_file_on_nfs_that_has_become_nobodys_is_explained(tree: Path) -> None:
    os.chown(tree / "a/b", 65534, 65534)
    assert "root_squash" in find_exposure(tree / "a/b/c")


def test_a_secret_of_another_user_is_refused_though_nobody_else_can_read_it(tree: Path) -> None:
    os.chown(tree / "a/b/c", SOMEBODY, 0)
    with pytest.raises(ConfigError, match=f"belongs to user {SOMEBODY}, who can change it"):
        keys.read_secret(tree / "a/b/c", "key_file")


def test_a_state_directory_that_another_user_has_made_is_refused(tree: Path) -> None:
    os.chown(tree / "a/b", SOMEBODY, 0)
    with pytest.raises(LocalError, match=f"belongs to user {SOMEBODY}"):
        StateDir(str(tree / "a/b"))


def test_every_exposed_path_of_a_configuration_is_named_once(tree: Path) -> None:
    state, key = tree / "state", tree / "a/b/c"
    settings = {
        "mode": "server",
        "tunnel_addr": "10.0.0.1/24",
        "state_dir": str(state),
        "tls_ca_file": str(key),
        "peers": [{"name": "one", "key_file": str(key)}, {"name": "two", "key_file": str(tree / "missing")}],
    }
    check(parse(settings))
    state.mkdir(0o777)
    state.chmod(0o777)
    (tree / "a").chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        check(parse(settings))
    assert sorted(problem.path for problem in caught.value.problems) == ["state_dir", "tls_ca_file"]
