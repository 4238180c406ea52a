"""The commands that look at a configuration, a machine or an instance: what they look at."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import check_commands, joined_client
from pipeline.supervisor import instance

Configure = Callable[[str], None]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """A machine on which no instance runs. The call configures one."""
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "run")
    monkeypatch.setattr(joined_client, "ETC", tmp_path / "etc")

    def configure(name: str) -> None:
        (tmp_path / "etc" / name).mkdir(parents=True)
        file = tmp_path / "etc" / name / "config.json"
        file.write_text(json.dumps({"mode": "server", "name": name}))

    return configure


def looked_at() -> str:
    return check_commands._find_subject(
        argparse.Namespace(config="", name="", instance=lambda arguments: instance.Instance(arguments.name))
    ).name


def test_without_a_name_the_doctor_looks_at_the_only_instance_that_is_configured(configure: Configure) -> None:
    assert looked_at() == ""
    configure("office")
    assert looked_at() == "office"
    configure("home")
    assert looked_at() == ""
