"""Control characters of others do no harm: on a terminal, in the log, in an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, Problem
from pipeline.peers import peer_file
from pipeline.plain_text import escaped, escaped_lines

EVIL = "\x1b[31mred\r\x07\u202e\x9b"
SHOWN = r"\x1b[31mred\r\x07\u202e\x9b"


def test_what_is_not_printable_is_escaped_and_nothing_else() -> None:
    assert escaped(EVIL) == SHOWN and escaped("a\nb\ud800") == r"a\nb\ud800"
    assert escaped("Gr\u00fc\u00dfe, 100 %") == "Gr\u00fc\u00dfe, 100 %"
    assert escaped_lines(f"one\n{EVIL}\n") == f"one\n{SHOWN}\n"


def test_a_problem_stays_on_one_line(tmp_path: Path) -> None:
    text = str(ConfigError([Problem(f"on.{EVIL}", "wrong\nfaked", f"/tmp/{EVIL}\n")]))
    assert text.isprintable() and SHOWN in text


def test_a_name_from_the_disk_is_escaped_where_it_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "peers"
    directory.mkdir(0o700)
    path = os.fsencode(directory) + b"/\x1b[31m\xff\n.json"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    _, (broken,) = peer_file.read_all(tmp_path)
    assert broken.name.isprintable() and str(broken.problem).isprintable()


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--offline", "PATH"],
        ["status", "--config", "PATH"],
        ["status", "--name", "PATH"],
        ["doctor", "--config", "PATH"],
        ["explain", "PATH"],
        ["help", "PATH"],
        ["PATH"],
        ["join", "@PATH"],
        ["invite", "PATH"],
        ["start", "--config", "PATH"],
        ["start", "--set", "name=PATH"],
        ["gen-cert", "PATH", "--ca", "ca"],
        ["install-service", "--prefix", "PATH"],
        ["support-bundle", "PATH/x"],
        ["leave", "PATH"],
    ],
    ids=lambda words: " ".join(words),
)
def test_no_command_prints_the_control_characters_of_a_word(words: list[str], tmp_path: Path) -> None:
    evil = f"{tmp_path}/{EVIL}".encode() + b"\xff"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *(word.encode().replace(b"PATH", evil) for word in words)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    said = (done.stdout + done.stderr).decode(errors="surrogateescape")
    assert said and all(line.isprintable() for line in said.split("\n")), said
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_caller_has_closed_its_standard_files_works(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m pipeline.cli.main version {closed}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "") and bool(done.stdout) is (">&-" not in closed.replace("2>&-", ""))
