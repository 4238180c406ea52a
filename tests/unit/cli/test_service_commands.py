"""`install-service`: files below a root, written once, removed again, and never in place of another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.service import unit

UNIT, SYSUSERS, TMPFILES = unit.UNIT_PATH, unit.SYSUSERS_PATH, unit.TMPFILES_PATH


def run(root: Path, *words: str) -> int:
    return main(["install-service", "--prefix", str(root), *words])


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_the_unit_the_user_and_the_directory_are_written_and_a_second_time_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    first, said = tree(tmp_path), capsys.readouterr().out
    assert first.keys() == {UNIT, SYSUSERS, TMPFILES}
    assert f"written: {tmp_path / UNIT}" in said
    assert run(tmp_path) == 0
    assert tree(tmp_path) == first
    assert "written" not in capsys.readouterr().out


def test_a_file_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    run(tmp_path)
    wanted = tree(tmp_path)
    (tmp_path / UNIT).write_text(unit.MARK + "[Service]\n")
    assert run(tmp_path) == 0
    assert tree(tmp_path) == wanted


def test_removal_removes_what_was_written_and_a_second_one_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    assert run(tmp_path, "--remove") == 0
    assert tree(tmp_path) == {}
    capsys.readouterr()
    assert run(tmp_path, "--remove") == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--remove"]], ids=["install", "remove"])
def test_a_unit_that_is_anothers_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    (tmp_path / UNIT).parent.mkdir(parents=True)
    (tmp_path / UNIT).write_text("[Service]\nExecStart=/opt/mine\n")
    assert run(tmp_path, *words) == 1
    assert tree(tmp_path) == {UNIT: "[Service]\nExecStart=/opt/mine\n"}
    assert "move it away" in capsys.readouterr().err


def test_a_service_that_is_enabled_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "tunnel-supervisor@hub.service").symlink_to(tmp_path / UNIT)
    assert run(tmp_path, "--remove") == 1
    assert (tmp_path / UNIT).exists()
    assert "tunnel-supervisor@hub.service" in capsys.readouterr().err


def test_a_root_that_is_no_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "missing") == 1
    assert str(tmp_path / "missing") in capsys.readouterr().err


def test_one_instance_gets_packet_sockets_and_nothing_else_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unit.FAKE_TCP_PATHS.format(name="hub")
    assert run(tmp_path, "--fake-tcp", "hub") == 0
    text = tree(tmp_path)[path]
    assert tree(tmp_path).keys() == {path} and text.startswith(unit.MARK)
    assert "RestrictAddressFamilies=AF_PACKET\n" in text and "CapabilityBoundingSet=CAP_NET_RAW\n" in text
    assert "systemctl restart tunnel-supervisor@hub" in capsys.readouterr().out
    assert run(tmp_path, "--fake-tcp", "hub", "--remove") == 0
    assert tree(tmp_path) == {} and not (tmp_path / path).parent.exists()


def test_the_unit_of_all_instances_has_no_packet_sockets_and_its_removal_takes_the_drop_ins_along(
    tmp_path: Path,
) -> None:
    run(tmp_path)
    assert "AF_PACKET" not in tree(tmp_path)[UNIT] and "NET_RAW" not in tree(tmp_path)[UNIT]
    run(tmp_path, "--fake-tcp", "hub")
    assert run(tmp_path, "--remove") == 0
    assert tree(tmp_path) == {}


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--fake-tcp", "../../x") == 1
    assert tree(tmp_path) == {} and "expected the name of an instance" in capsys.readouterr().err
