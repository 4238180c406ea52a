"""The accountant: the counts of a peer table, the wall clock, and the quotas that follow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.accounting import FILE_NAME
from pipeline.accounting.book_file import read
from pipeline.config import parse
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy.quota import UNLIMITED, QuotaState, QuotaTerms
from pipeline.supervisor.accounting.accountant import LOOK_NS, Accountant
from tests.support import eventually

NOVEMBER = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
DECEMBER = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC).timestamp()
OCTOBER = datetime(2026, 10, 31, 12, tzinfo=UTC).timestamp()


class Table:
    """The counts of a peer table."""

    def __init__(self) -> None:
        self.received: dict[int, int] = {}
        self.sent: dict[int, int] = {}

    def received_bytes(self, index: int) -> int:
        return self.received.get(index, 0)

    def sent_bytes(self, index: int) -> int:
        return self.sent.get(index, 0)


class Office:
    """An accountant of a server, its clocks and its table."""

    def __init__(self, state: Path, terms: QuotaTerms, **settings: Any) -> None:
        self.reports: list[tuple[str, str]] = []
        self.troubles: list[tuple[str, str]] = []
        self.wall = NOVEMBER
        self.now = time.monotonic_ns()
        self.table = Table()
        config = parse({"mode": "server", "state_dir": str(state), **settings})
        self.accountant = Accountant(config, self._record, lambda: self.wall)
        self.accountant.configure(1, {"ann": terms}, UNLIMITED)
        self.accountant.start(self.table)
        self.accountant.begin(0, "ann")

    def _record(self, kind: str, subject: str, text: str) -> None:
        if kind == "quota":
            self.reports.append((subject, text))
        else:
            self.troubles.append((kind, text))

    def carry(self, size: int) -> set[str]:
        """So many bytes from the peer, and the next look."""
        self.table.received[0] = self.table.received_bytes(0) + size
        self.now += LOOK_NS
        return self.accountant.tick(self.now)

    def state(self) -> QuotaState:
        return self.accountant.quotas.state("ann")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def office(state: Path) -> Iterator[Office]:
    made = Office(state, QuotaTerms(1000, "stop"))
    yield made
    made.accountant.close()


def test_a_quota_is_told_twice_and_its_end_once(office: Office) -> None:
    assert [office.carry(size) for size in (799, 1, 100, 100, 500)] == [set(), set(), set(), {"ann"}, set()]
    assert [text.split(" %")[0] for _, text in office.reports] == ["80", "100"]
    assert office.state() is QuotaState.STOPPED
    assert office.accountant.quotas.refusal("ann").endswith("until 1 December (UTC)")


def test_the_next_month_lifts_a_quota_by_itself(office: Office) -> None:
    office.carry(2000)
    assert office.state() is QuotaState.STOPPED
    office.wall = DECEMBER
    assert office.carry(0) == {"ann"} and office.state() is QuotaState.OPEN
    office.carry(900)
    assert [text.split(" %")[0] for _, text in office.reports] == ["100", "80"]
    assert "until 1 January" in office.reports[-1][1]


def test_a_clock_that_jumps_and_comes_back_finds_what_was_used_and_tells_nothing_twice(
    office: Office, state: Path
) -> None:
    office.carry(2000)
    told = list(office.reports)
    for wall in (DECEMBER, OCTOBER, NOVEMBER):
        office.wall = wall
        office.carry(1)
    eventually(lambda: office.carry(0) or office.state() is QuotaState.STOPPED, what="the book's answer")
    assert office.reports == told
    office.accountant.close()
    assert [(row[0], row[2].total) for row in read(state / FILE_NAME, "month")] == [
        ("2026-10", 1),
        ("2026-11", 2001),
        ("2026-12", 1),
    ]


def test_after_a_restart_the_quota_and_its_marks_are_known_before_the_first_look(office: Office, state: Path) -> None:
    office.carry(2000)
    office.accountant.close()
    again = Office(state, QuotaTerms(1000, "stop"))
    assert again.state() is QuotaState.STOPPED
    assert again.carry(0) == {"ann"} and again.reports == []
    again.accountant.close()


def test_another_peer_table_begins_with_nothing_and_nothing_is_counted_twice(office: Office, state: Path) -> None:
    office.carry(10)
    office.table.received[0] += 5
    office.accountant.settle()
    office.table.received[0] = 0
    office.accountant.start(office.table)
    office.accountant.begin(0, "ann")
    office.carry(7)
    office.accountant.close()
    assert [row[2].total for row in read(state / FILE_NAME, "day")] == [22]


def test_a_greater_quota_lets_a_peer_in_at_once(office: Office) -> None:
    office.carry(2000)
    office.accountant.configure(1, {"ann": QuotaTerms(5000, "stop")}, UNLIMITED)
    assert office.accountant.quotas.refusal("ann") == ""


def test_a_quota_is_said_to_be_open_again_only_of_a_peer_that_is_still_there(
    office: Office, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level(logging.INFO, LOG.name)
    office.carry(2000)
    office.accountant.configure(1, {"ann": QuotaTerms(5000, "stop")}, UNLIMITED)
    assert office.carry(0) == {"ann"} and "ann: its quota is open again" in caplog.text
    office.carry(5000)
    assert office.state() is QuotaState.STOPPED
    caplog.clear()
    office.accountant.configure(1, {}, UNLIMITED)  # it has been revoked, or has left
    office.carry(0)
    assert "open again" not in caplog.text


def test_another_day_of_the_month_is_another_period(office: Office) -> None:
    office.carry(2000)
    office.accountant.configure(29, {"ann": QuotaTerms(1000, "stop")}, UNLIMITED)
    eventually(lambda: office.carry(0) or office.state() is QuotaState.STOPPED, what="the book's answer")
    assert office.accountant.quotas.refusal("ann").endswith("until 29 December (UTC)")


def test_without_accounting_nothing_is_written_and_nothing_has_a_quota(state: Path) -> None:
    office = Office(state, UNLIMITED, accounting=False)
    assert office.carry(1 << 40) == set() and office.accountant.status() is None and office.accountant.notes == []
    office.accountant.close()
    assert not state.exists()


def test_a_client_keeps_account_of_its_server(state: Path) -> None:
    config = parse({"mode": "client", "remote_addr": "vpn.example.org:9000", "state_dir": str(state)})
    table = Table()
    accountant = Accountant(config, wall=lambda: NOVEMBER)
    accountant.start(table)
    accountant.begin(0, "vpn.example.org")
    assert not state.exists()
    table.received[0], table.sent[0] = 5, 7
    accountant.tick(time.monotonic_ns())
    accountant.close()
    assert read(state / FILE_NAME, "day") == [("2026-11-29", "vpn.example.org", (5, 7))]


def test_an_operator_gives_a_quota_back_and_its_marks_are_told_again(office: Office, state: Path) -> None:
    assert office.carry(1200) == {"ann"} and office.state() is QuotaState.STOPPED
    assert office.accountant.set_used("ann", 0) == QuotaTerms(1000, "stop")
    assert office.state() is QuotaState.OPEN and office.carry(0) == {"ann"}, "its session may begin again"
    office.carry(850)
    assert [text.split(" %")[0] for _, text in office.reports] == ["100", "80"]
    office.accountant.close()
    again = Office(state, QuotaTerms(1000, "stop"))
    assert again.accountant.quotas.used("ann") == 850, "it is so after a restart"
    again.carry(1)
    assert not again.reports, "a mark that was told since is not told again"
    again.accountant.close()
    assert sum(traffic.total for *_, traffic in read(state / FILE_NAME, "month")) == 2051


def test_a_quota_is_set_to_a_part_of_what_was_used_and_what_is_reached_is_not_told(office: Office) -> None:
    office.carry(100)
    office.accountant.set_used("ann", 900)
    office.carry(1)
    assert office.accountant.quotas.used("ann") == 901 and not office.reports
    office.carry(99)
    assert [text.split(" %")[0] for _, text in office.reports] == ["100"]


def test_a_correction_is_of_its_month(office: Office) -> None:
    office.carry(100)
    office.accountant.set_used("ann", 50)
    office.wall = DECEMBER
    office.carry(10)
    assert office.accountant.quotas.used("ann") == 10
    office.wall = NOVEMBER
    eventually(
        lambda: office.carry(0) is not None and office.accountant.quotas.used("ann") == 50, what="November again"
    )


def test_without_a_quota_or_an_account_there_is_nothing_to_set(state: Path) -> None:
    office = Office(state, UNLIMITED)
    with pytest.raises(LocalError, match="has no quota"):
        office.accountant.set_used("ann", 0)
    office.accountant.close()
    office = Office(state, QuotaTerms(1000, "stop"), accounting=False)
    with pytest.raises(LocalError, match="keeps no account"):
        office.accountant.set_used("ann", 0)
