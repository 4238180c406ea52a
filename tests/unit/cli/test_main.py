"""The command itself: its help in groups, its version, one setting explained, and what it refuses first."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from pipeline.cli import help_text
from pipeline.cli.main import main, make_parser
from pipeline.config.peer import PEER_SETTINGS
from pipeline.config.schema import SETTINGS
from pipeline.errors import LocalError
from pipeline.shm import litmus, memory_order
from pipeline.version import VERSION


def commands() -> dict[str, argparse.ArgumentParser]:
    return help_text.parsers_of(make_parser().commands)


def test_every_command_is_in_exactly_one_group_of_the_help() -> None:
    grouped = [name for names in help_text.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(commands())


def test_the_help_has_each_command_with_its_line_and_examples_that_can_be_parsed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["help"]) == 0
    text = capsys.readouterr().out
    assert "other:" not in text and "exit status:" in text
    for name, parser in commands().items():
        assert re.search(rf"^  {name} +{re.escape((parser.description or '')[:30])}", text, re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 79] == []
    for line in help_text.EXAMPLES.splitlines()[1:]:
        words = re.split(r" {2,}", line.strip())[0].split()
        assert words[0] == "tunnel-supervisor"
        make_parser().parse_args(words[1:])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]], ids=lambda words: words[0])
def test_all_ways_to_the_help_show_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == 0
    assert capsys.readouterr().out == help_text.overview(help_text.texts_of(make_parser().commands))


def test_help_for_a_command_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "restart"]) == 0
    assert "--rolling" in capsys.readouterr().out
    assert main(["help", "bench"]) == 0
    assert main(["help", "nonsense"]) == 2
    assert "no command nonsense; there are start, " in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_told(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"tunnel-supervisor {VERSION}\n")


def test_the_command_version_prints_the_version_alone_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(["version"]), capsys.readouterr().out) == (0, f"{VERSION}\n")


def test_a_machine_on_which_rings_do_not_work_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(memory_order, "find_refusal", lambda: "this machine is too small")
    assert main(["start", "--config", str(tmp_path / "missing.json")]) == 1
    assert "this machine is too small" in capsys.readouterr().err
    file = tmp_path / "config.json"
    file.write_text('{"mode": "client", "remote_addr": "192.0.2.1:9", "encryption": "none", "name": "refusal-test"}')
    assert main(["check", str(file)]) == 1
    assert "problem: this machine is too small" in capsys.readouterr().err
    assert main(["check", "--offline", str(file)]) == 0


def test_a_machine_that_needs_fences_is_tested_before_a_start_and_refused_if_they_do_not_suffice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise LocalError("this machine does not keep the order")

    monkeypatch.setattr(litmus, "check_start", fails)
    missing = ["start", "--config", "/nonexistent/config.json"]
    main(missing)
    assert "does not keep the order" not in capsys.readouterr().err
    monkeypatch.setattr(memory_order, "REORDERS", True)
    assert main(missing) == 1
    assert "this machine does not keep the order" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("mtu", ["mtu\n", "from 68 to 65535 bytes", "default  1400", "reload   restart", "MTU of the TUN device."]),
        ("connections", ["default  lanes, 1 with compat"]),
        ("peers.allowed", ["allowed, of a peer\n", "Networks behind this peer."]),
        ("peers[2].allowed", ["allowed, of a peer\n"]),
        ("allowed", ["allowed, of a peer\n"]),
    ],
)
def test_a_setting_is_explained_as_in_the_reference(
    word: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", word]) == 0
    text = capsys.readouterr().out
    assert all(each in text for each in expected) and "`" not in text


def test_every_setting_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (*SETTINGS, *(f"peers.{name}" for name in PEER_SETTINGS)):
        assert main(["explain", name]) == 0
    assert all(len(line) <= 100 for line in capsys.readouterr().out.splitlines())


def test_an_unknown_setting_brings_the_names_that_are_near(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "lane"]) == 2
    assert "no setting lane: lanes?" in capsys.readouterr().err
    assert main(["explain", "quota"]) == 2
    assert "no setting quota: quota_gb or quota_day?" in capsys.readouterr().err
    assert main(["explain", "zzz"]) == 2
    assert "docs/configuration.md" in capsys.readouterr().err
