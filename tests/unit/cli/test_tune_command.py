"""The command `tune`: plans for described machines, and settings of this one that are put back exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import LocalError
from pipeline.policy.machine import Machine, from_json, made_of, to_json
from pipeline.system import machine_reader
from pipeline.tuning import advice
from pipeline.tuning import record as record_module
from pipeline.tuning.plan import ranges

Describe = Callable[[Machine], str]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """A file that describes a machine."""

    def written(machine: Machine) -> str:
        file = tmp_path / "machine.json"
        file.write_text(to_json(machine))
        return str(file)

    return written


def printed(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["tune", *words]) == status
    return capsys.readouterr().out


def test_the_plan_of_this_machine_is_printed_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    assert text.startswith("machine: ") and "\nplan: " in text and "a lane has 5 busy duties" in text


def test_a_machine_that_was_described_gets_the_plan_of_that_machine(
    capsys: pytest.CaptureFixture[str], describe: Describe
) -> None:
    text = printed(capsys, "--machine", describe(made_of(2, 4, 8, smt=2, processor="Model 1")), "--set", "fec=off")
    assert "machine: Model 1; 64 core(s), 128 threads, 8 last-level cache(s), 2 node(s) of memory" in text
    assert "plan: 7 lane(s), 21 processes" in text
    assert "tun-out-6  6     outbound              27,91" in text


def test_lanes_that_are_configured_are_beside_those_that_auto_would_choose(
    capsys: pytest.CaptureFixture[str], describe: Describe
) -> None:
    text = printed(capsys, "--machine", describe(made_of(1, 1, 4)), "--set", "lanes=2", "--set", "fec=off")
    assert "configured: lanes 2, split_workers []" in text
    assert "`auto` would choose lanes 1, split_workers [tun]" in text


def test_with_datagrams_the_dgram_worker_of_each_lane_is_in_the_plan(
    capsys: pytest.CaptureFixture[str], describe: Describe
) -> None:
    machine = describe(made_of(1, 1, 8))
    plan = json.loads(printed(capsys, "--machine", machine, "--set", "carrier=auto", "--set", "fec=off", "--json"))
    names = [each["name"] for each in plan["workers"]]
    assert [name for name in names if name.startswith("dgram")] == ["dgram-0"]
    assert all(each["cores"] for each in plan["workers"])


def test_a_configuration_file_says_what_is_to_run(
    capsys: pytest.CaptureFixture[str], describe: Describe, tmp_path: Path
) -> None:
    file = tmp_path / "client.json"
    file.write_text(json.dumps({"mode": "client", "remote_addr": "192.0.2.1:9000", "fec": "on"}))
    machine = describe(made_of(1, 1, 16, settings={advice.LISTEN_QUEUE: "128"}))
    plan = json.loads(printed(capsys, "--config", str(file), "--machine", machine, "--json"))
    assert (plan["schema_version"], plan["lanes"], plan["split_workers"]) == (1, 2, ["tun", "fec"])
    assert [each["name"] for each in plan["workers"]][:2] == ["tcp-0", "tcp-1"]
    assert plan["advice"] == []  # a client has no queue of connections


def test_the_description_of_this_machine_can_be_planned_for(
    capsys: pytest.CaptureFixture[str], describe: Describe
) -> None:
    machine = from_json(printed(capsys, "--describe"))
    assert machine.threads and advice.RECEIVE in machine.settings
    here = json.loads(printed(capsys, "--json"))
    assert json.loads(printed(capsys, "--machine", describe(machine), "--json")) == here


@pytest.mark.parametrize("text", ["", "{}", '{"threads": [{"number": 0}], "quota": -1}', "\0"])
def test_a_file_that_describes_no_machine_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    assert main(["tune", "--machine", str(file)]) == 78
    assert str(file) in capsys.readouterr().err


def test_options_that_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--apply", "--revert"])
    assert caught.value.code == 2


# -- setting


class Host:
    """The files of a small host, which the command takes for those of this machine."""

    files = (advice.SEND, advice.PROBING, advice.IDLE_RESTART)

    def __init__(self, root: Path) -> None:
        self.root = root
        for path, text in zip(self.files, ("4096\t16384\t4194304\n", "0\n", "0\n"), strict=True):
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).write_text(text)

    def values(self) -> list[str]:
        return [(self.root / path.lstrip("/")).read_text().strip("\n") for path in self.files]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path / "root")
    read, keep = machine_reader.read_machine, record_module.Record
    monkeypatch.setattr(machine_reader, "read_machine", lambda pid, settings: read(pid, settings, made.root))
    monkeypatch.setattr(record_module, "Record", lambda directory: keep(str(tmp_path / "state"), made.root))
    return made


def test_what_is_set_is_printed_and_put_back_exactly(capsys: pytest.CaptureFixture[str], host: Host) -> None:
    before = host.values()
    text = printed(capsys, "--apply")
    assert "net.ipv4.tcp_wmem = 4096 16384 33554432" in text and "net.ipv4.tcp_mtu_probing = 1" in text
    assert "tcp_slow_start_after_idle" not in text
    assert host.values() == ["4096\t16384\t33554432", "1", "0"]
    assert printed(capsys, "--apply").startswith("nothing is to be set")
    assert printed(capsys, "--revert").count("put back") == 2
    assert host.values() == before
    assert printed(capsys, "--revert").startswith("nothing is to be put back")


def test_a_value_of_anothers_stays_and_the_exit_status_says_so(capsys: pytest.CaptureFixture[str], host: Host) -> None:
    printed(capsys, "--apply")
    (host.root / advice.PROBING.lstrip("/")).write_text("2\n")
    assert main(["tune", "--revert"]) == 1
    assert "somebody has set it to 2 since" in capsys.readouterr().err
    assert host.values() == ["4096\t16384\t4194304", "2", "0"]


def test_without_the_right_to_set_it_the_reason_is_told(
    capsys: pytest.CaptureFixture[str], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: str) -> None:
        raise LocalError("no")

    monkeypatch.setattr(record_module, "Record", refuse)
    assert main(["tune", "--apply"]) == 1
    assert host.values()[1] == "0"


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5], "0-2,5"), ([9, 8, 1], "1,8-9"), ([0, 2, 4], "0,2,4")]
)
def test_numbers_are_listed_as_the_kernel_does(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
