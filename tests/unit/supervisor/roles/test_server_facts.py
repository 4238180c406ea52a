"""What a client knows of its server's program and clock."""

from __future__ import annotations

import logging

import pytest

from pipeline.supervisor.roles.server_facts import ServerFacts
from pipeline.version import VERSION
from pipeline.wire import messages
from pipeline.wire.messages import Welcome

WELCOME = Welcome(1, 0, 1380, messages.ACCEPTS_SHARDS)
NOW = 1_800_000_000.4


def test_before_a_welcome_nothing_is_known() -> None:
    facts = ServerFacts()
    assert facts.status() == {"version": "", "mtu": 0, "fec": None, "clock_ahead_seconds": None}
    assert facts.notes == []


def test_a_server_that_tells_nothing_of_itself_costs_no_note() -> None:
    facts = ServerFacts()
    facts.take(WELCOME, NOW)
    assert facts.status() == {"version": "", "mtu": 1380, "fec": True, "clock_ahead_seconds": None}
    assert facts.notes == []


def test_a_server_of_this_version_costs_no_note_and_shows_its_clock() -> None:
    facts = ServerFacts()
    facts.take(WELCOME._replace(program=VERSION, clock=1_800_000_060), NOW)
    assert facts.status()["clock_ahead_seconds"] == 60
    assert facts.notes == []


def test_another_version_is_one_note_and_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    facts = ServerFacts()
    with caplog.at_level(logging.INFO, "tunnel"):
        for _ in range(8):
            facts.take(WELCOME._replace(program="0.0.9", clock=int(NOW)), NOW)
    assert facts.notes == caplog.messages
    assert facts.notes[0].startswith(f"the server runs 0.0.9, this client runs {VERSION}: ")
    facts.take(WELCOME._replace(program=VERSION), NOW)
    assert facts.notes == []
