"""The hosts file: written when the peers have changed, or when it is gone, and readable for a DNS server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config import Config, parse
from pipeline.supervisor import instance
from pipeline.supervisor.roles.hosts_file import CHECK_NS, HostsFile

LAPTOP = {"laptop": ["10.0.0.2"]}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(instance, "NAMES_DIRECTORY", tmp_path / "names")
    return tmp_path / "names"


def config(**settings: object) -> Config:
    return parse({"mode": "server", "name": "hub", "names": "tunnel", "tunnel_addr": "10.0.0.1/24", **settings})


def test_the_file_has_the_hub_and_its_peers_and_others_may_read_it(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        HostsFile(config()).tick(0, 1, lambda: LAPTOP)
    finally:
        os.umask(before)
    (file,) = directory.iterdir()
    assert file.name == "hub.hosts"
    assert file.read_text().splitlines()[1:] == ["10.0.0.1\thub.tunnel", "10.0.0.2\tlaptop.tunnel"]
    assert file.stat().st_mode & 0o777 == 0o644 and directory.stat().st_mode & 0o777 == 0o755


def test_the_peers_are_looked_at_after_a_change_alone(directory: Path) -> None:
    file, looks = HostsFile(config()), []

    def addresses() -> dict[str, list[str]]:
        looks.append(1)
        return LAPTOP

    for now, version in ((0, 1), (1, 1), (CHECK_NS + 1, 1), (CHECK_NS + 2, 2)):
        file.tick(now, version, addresses)
    assert len(looks) == 2


def test_without_a_change_the_file_stays_as_it_is(directory: Path) -> None:
    file = HostsFile(config())
    file.tick(0, 1, lambda: LAPTOP)
    before = (directory / "hub.hosts").stat().st_ino
    file.tick(CHECK_NS, 2, lambda: LAPTOP)
    assert (directory / "hub.hosts").stat().st_ino == before


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_file_that_others_have_removed_or_changed_is_written_again(directory: Path, damage: str) -> None:
    file = HostsFile(config())
    file.tick(0, 1, lambda: LAPTOP)
    path = directory / "hub.hosts"
    text = path.read_text()
    path.write_bytes(b"\xff") if damage == "changed" else path.unlink()
    file.tick(CHECK_NS, 1, lambda: LAPTOP)
    assert path.read_text() == text


def test_a_reload_brings_another_domain_or_none(directory: Path) -> None:
    file = HostsFile(config())
    file.tick(0, 1, lambda: LAPTOP)
    file.configure(config(names="vpn.example.org"))
    file.tick(1, 1, lambda: LAPTOP)
    assert "laptop.vpn.example.org" in (directory / "hub.hosts").read_text()
    file.configure(config(names=""))
    file.tick(CHECK_NS, 1, lambda: LAPTOP)
    assert not list(directory.iterdir()) and not file.notes


def test_a_file_that_cannot_be_written_is_a_note_and_an_error_once(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.write_text("no directory")
    file = HostsFile(config())
    for now in (0, CHECK_NS, 2 * CHECK_NS):
        file.tick(now, 1, lambda: LAPTOP)
    assert len(file.notes) == len(caplog.records) == 1 and "not up to date" in file.notes[0]
    directory.unlink()
    file.tick(3 * CHECK_NS, 1, lambda: LAPTOP)
    assert not file.notes and (directory / "hub.hosts").exists()


def test_nothing_is_written_where_other_users_could_put_other_names(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    file = HostsFile(config())
    file.tick(0, 1, lambda: LAPTOP)
    assert not list(directory.iterdir()) and "chmod go-w" in file.notes[0]


def test_a_link_in_place_of_the_unfinished_file_leads_nowhere(directory: Path, tmp_path: Path) -> None:
    directory.mkdir(mode=0o755)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (directory / ".hub.hosts").symlink_to(victim)
    HostsFile(config()).tick(0, 1, lambda: LAPTOP)
    assert victim.read_text() == "precious" and "laptop" in (directory / "hub.hosts").read_text()


def test_each_peer_without_a_name_is_a_note_and_a_warning_once(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = HostsFile(config())
    for version in (1, 2):
        file.tick(version, version, lambda: {"Web": ["10.0.0.2"], "web": ["10.0.0.3"]})
    assert len(file.notes) == len(caplog.records) == 1 and '"Web"' in file.notes[0]
