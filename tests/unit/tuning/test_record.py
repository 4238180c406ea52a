"""The record of what was set: everything comes back exactly, and nothing of another's is touched."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import LocalError
from pipeline.tuning.advice import Advice
from pipeline.tuning.record import BOOT_ID, STATE_FILE, Outcome, Record

BUFFERS, PROBING = "/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_mtu_probing"
MASK = "/sys/class/net/eth0/queues/rx-0/rps_cpus"
BEFORE = {BUFFERS: "4096\t131072\t6291456\n", PROBING: "0\n", MASK: "00000000,00000000\n"}
WANTED = {BUFFERS: "4096\t131072\t33554432", PROBING: "1", MASK: "00000000,000000f0"}
ADVICE = [Advice(path, BEFORE[path].strip("\n"), value, "why") for path, value in WANTED.items()]


class Host:
    """A machine with these files; `record()` is that of another run of the command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "var/lib/tunnel-supervisor"
        self.boot("one")
        for path, text in BEFORE.items():
            self.put(path, text)

    def put(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def get(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text().strip("\n")

    def values(self) -> dict[str, str]:
        return {path: self.get(path) for path in BEFORE}

    def boot(self, name: str) -> None:
        self.put(str(BOOT_ID), name)

    def record(self) -> Record:
        return Record(str(self.directory), self.root)

    @property
    def state(self) -> Path:
        return self.directory / STATE_FILE


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_was_set_is_put_back_exactly(host: Host) -> None:
    assert host.record().apply(ADVICE) == [Outcome(path, "") for path in WANTED]
    assert host.values() == WANTED
    assert host.record().revert() == [Outcome(path, "") for path in reversed(WANTED)]
    assert host.values() == {path: text.strip("\n") for path, text in BEFORE.items()}
    assert not host.state.exists()
    assert host.record().revert() == []


def test_the_record_is_for_root_alone(host: Host) -> None:
    host.record().apply(ADVICE)
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o600


def test_to_apply_twice_keeps_what_was_there_at_first(host: Host) -> None:
    host.record().apply(ADVICE)
    host.record().apply([ADVICE[0]._replace(before=WANTED[BUFFERS], wanted="4096\t131072\t67108864")])
    assert host.get(BUFFERS) == "4096\t131072\t67108864"
    host.record().revert()
    assert host.values() == {path: text.strip("\n") for path, text in BEFORE.items()}


def test_a_value_that_somebody_has_changed_since_is_theirs(host: Host) -> None:
    host.record().apply(ADVICE)
    host.put(PROBING, "2\n")
    outcomes = dict(host.record().revert())
    assert host.get(PROBING) == "2"
    assert outcomes[PROBING] == "somebody has set it to 2 since: left alone; it was 0 before"
    assert outcomes[BUFFERS] == outcomes[MASK] == ""
    assert not host.state.exists()


def test_a_value_that_somebody_has_put_back_is_no_trouble(host: Host) -> None:
    host.record().apply(ADVICE)
    host.put(PROBING, "0\n")
    assert all(not each.problem for each in host.record().revert())


def test_a_device_that_is_gone_has_taken_its_value_along(host: Host) -> None:
    host.record().apply(ADVICE)
    (host.root / MASK.lstrip("/")).unlink()
    assert dict(host.record().revert())[MASK] == "it is gone, and its value with it"
    assert host.get(BUFFERS) == BEFORE[BUFFERS].strip("\n")


def test_after_a_restart_of_the_machine_the_record_means_nothing(host: Host) -> None:
    host.record().apply(ADVICE)
    host.boot("two")
    host.put(BUFFERS, "4096\t131072\t7000000\n")  # another default of another kernel
    assert host.record().entries() == []
    assert host.record().revert() == []
    assert host.get(BUFFERS) == "4096\t131072\t7000000"
    host.record().apply([ADVICE[0]._replace(before="4096\t131072\t7000000")])
    host.record().revert()
    assert host.get(BUFFERS) == "4096\t131072\t7000000"


def test_a_file_that_cannot_be_set_is_told_of_and_leaves_no_record(host: Host) -> None:
    missing = Advice("/proc/sys/net/ipv4/tcp_none", "0", "1", "why")
    (host.root / "proc/sys/net/ipv4/tcp_none").mkdir()
    outcomes = host.record().apply([missing, ADVICE[1]])
    assert "cannot be set: Is a directory" in outcomes[0].problem and not outcomes[1].problem
    assert [each.path for each in host.record().entries()] == [PROBING]
    host.record().revert()
    host.record().apply([missing])
    assert not host.state.exists()


def test_a_command_that_is_killed_before_it_has_set_a_value_leaves_nothing_wrong(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "_set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        host.record().apply(ADVICE)
    monkeypatch.undo()
    assert [each.path for each in host.record().entries()] == [BUFFERS]
    assert host.record().revert() == [Outcome(BUFFERS, "")]
    assert host.values() == {path: text.strip("\n") for path, text in BEFORE.items()}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": 2, "entries": []}',
        '{"version": 1}',
        json.dumps({"version": 1, "boot": "one", "entries": [["/etc/passwd", "", "x"]]}),
        json.dumps({"version": 1, "boot": "one", "entries": [["/proc/sys/net/../../../etc/passwd", "", "x"]]}),
    ],
)
def test_a_record_that_is_none_is_not_followed(host: Host, content: str) -> None:
    host.directory.mkdir(0o700, parents=True)
    host.state.write_text(content)
    for act in (host.record().revert, lambda: host.record().apply(ADVICE)):
        with pytest.raises(LocalError, match="not a record"):
            act()
    assert host.values() == {path: text.strip("\n") for path, text in BEFORE.items()}


def test_a_directory_that_others_can_change_is_not_trusted(host: Host) -> None:
    host.record().apply(ADVICE)
    os.chmod(host.directory, 0o777)
    for act in (host.record().revert, lambda: host.record().apply(ADVICE)):
        with pytest.raises(LocalError):
            act()
    assert host.values() == WANTED


def test_a_machine_on_which_nothing_was_set_gets_no_directory(host: Host) -> None:
    assert host.record().revert() == []
    assert not host.directory.exists()
