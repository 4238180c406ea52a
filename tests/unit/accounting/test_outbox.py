"""The outbox: nothing is lost or written twice while the disk has its troubles, and nobody waits."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest

from pipeline.accounting import FILE_NAME
from pipeline.accounting.batch import Forgiven, Told, Usage
from pipeline.accounting.book_file import read, read_usage
from pipeline.accounting.outbox import CLOSE_SECONDS, HANG_NS, RETRY_NS, WRITE_NS, Outbox
from pipeline.policy.quota import Period
from pipeline.policy.traffic_meter import Traffic
from tests.harness.hanging import hanging
from tests.support import eventually

DAY = date(2026, 11, 29)
NOVEMBER = Period(date(2026, 11, 1), date(2026, 12, 1))


class Driven:
    """An outbox with a clock of its own; the bookkeeper is real."""

    def __init__(self, path: Path) -> None:
        self.outbox = Outbox(path)
        self.now = time.monotonic_ns()

    def add(self, received: int) -> None:
        self.outbox.add(DAY, {"ann": Traffic(received, 0)})

    def pass_time(self, ns: int) -> Usage | None:
        """Let time pass, and wait for what is under way."""
        self.now += ns
        found = self.outbox.tick(self.now)
        usages = [found] if found else []

        def settled() -> bool:
            usage = self.outbox.tick(self.now)
            usages.extend([usage] if usage else [])
            return self.outbox._given is None

        eventually(settled, what="the bookkeeper's answer")
        return usages[-1] if usages else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE_NAME


@pytest.fixture
def driven(path: Path) -> Iterator[Driven]:
    made = Driven(path)
    yield made
    made.outbox.close()


def written(path: Path) -> int:
    return sum(row[2].total for row in read(path, "day"))


@contextmanager
def tiny_disk(directory: Path, options: str) -> Iterator[None]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


def test_nothing_is_touched_before_there_is_something_to_write(driven: Driven, path: Path) -> None:
    driven.pass_time(10 * WRITE_NS)
    assert not path.parent.exists()


def test_what_is_new_is_written_every_five_seconds(driven: Driven, path: Path) -> None:
    driven.add(1)
    driven.pass_time(1)
    assert written(path) == 1
    driven.add(2)
    driven.pass_time(WRITE_NS - 1)
    assert written(path) == 1
    driven.pass_time(1)
    assert written(path) == 3
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_at_the_end_the_rest_is_written_and_nothing_lies_beside_the_book(path: Path) -> None:
    driven = Driven(path)
    driven.add(1)
    driven.pass_time(0)
    driven.add(2)
    driven.outbox.close()
    assert written(path) == 3 and os.listdir(path.parent) == [FILE_NAME]


def test_the_usage_counts_what_is_not_in_the_book_yet(driven: Driven) -> None:
    driven.add(1)
    driven.pass_time(0)
    driven.outbox.tell([Told(NOVEMBER.first, "ann", "80 % of 1")])
    driven.outbox.want(NOVEMBER)
    driven.outbox.tick(driven.now)  # hands over
    driven.add(5)
    assert driven.outbox.unwritten(NOVEMBER) == {"ann": Traffic(5, 0)}
    usage = driven.pass_time(0)
    assert usage == (NOVEMBER, {"ann": Traffic(6, 0)}, {Told(NOVEMBER.first, "ann", "80 % of 1")}, {})


def test_a_damaged_book_is_kept_under_another_name_and_a_new_one_begun(
    driven: Driven, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"garbage" * 1000)
    driven.add(1)
    driven.pass_time(0)
    assert written(path) == 1 and driven.outbox.problem == ""
    assert (path.parent / f"{FILE_NAME}.damaged-1").read_bytes() == b"garbage" * 1000
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "was damaged" in caplog.text and "a new one begins with nothing" in caplog.text


def test_a_book_that_was_removed_is_begun_anew(driven: Driven, path: Path) -> None:
    driven.add(1)
    driven.pass_time(0)
    path.unlink()
    driven.add(2)
    driven.pass_time(WRITE_NS)
    assert written(path) == 2


def test_a_directory_that_others_can_change_gets_no_book(driven: Driven, path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    driven.add(1)
    driven.pass_time(0)
    assert "other users can write to" in driven.outbox.problem and not path.exists()
    path.parent.chmod(0o700)
    driven.pass_time(RETRY_NS)
    assert written(path) == 1


@needs_root
def test_a_full_disk_costs_one_line_and_nothing_is_lost_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with tiny_disk(tmp_path / "state", "size=256k"):
        path = tmp_path / "state" / FILE_NAME
        driven = Driven(path)
        driven.add(1)
        driven.pass_time(0)
        filler = tmp_path / "state" / "filler"
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for number in range(40):  # the pages that the log has already are used up at some time
            driven.add(10)
            driven.outbox.add(DAY, {f"peer-{number}-{i}": Traffic(1, 0) for i in range(10)})
            driven.pass_time(RETRY_NS)
        assert "full" in driven.outbox.problem and driven.outbox.failures > 1
        assert sum("cannot be written" in record.message for record in caplog.records) == 1
        filler.unlink()
        driven.pass_time(RETRY_NS)
        assert driven.outbox.problem == "" and written(path) == 1 + 40 * 10 + 40 * 10
        assert "is written again" in caplog.text
        driven.outbox.close()


@needs_root
def test_on_a_read_only_disk_the_usage_is_known_and_the_rest_waits(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "state", "size=1m"):
        path = tmp_path / "state" / FILE_NAME
        first = Driven(path)
        first.add(100)
        first.outbox.close()
        subprocess.run(["mount", "-o", "remount,ro", path.parent], check=True)
        driven = Driven(path)
        driven.outbox.want(NOVEMBER)
        driven.add(7)
        usage = driven.pass_time(0)
        assert usage is not None and usage.traffic == {"ann": Traffic(107, 0)}
        assert driven.outbox.problem != ""
        subprocess.run(["mount", "-o", "remount,rw", path.parent], check=True)
        driven.pass_time(RETRY_NS)
        assert written(path) == 107
        driven.outbox.close()


@needs_root
@pytest.mark.alone
def test_a_disk_that_does_not_answer_is_waited_for_by_nobody(
    driven: Driven, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driven.add(1)
    driven.pass_time(0)
    began = time.monotonic()
    with hanging(path.parent):
        for _ in range(5):
            driven.now += HANG_NS + 1
            driven.add(10)
            driven.outbox.tick(driven.now)
        assert "no answer" in driven.outbox.problem and driven.outbox.failures == 1
        assert sum("cannot be written" in record.message for record in caplog.records) == 1
        assert driven.outbox.unwritten(NOVEMBER) == {"ann": Traffic(50, 0)}
        assert time.monotonic() - began < CLOSE_SECONDS
    driven.pass_time(0)
    driven.pass_time(RETRY_NS)
    assert written(path) == 51 and driven.outbox.problem == ""


@needs_root
@pytest.mark.alone
def test_an_instance_that_ends_waits_for_a_disk_for_a_moment_only(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir(mode=0o700)
    driven = Driven(path)
    with hanging(path.parent):
        driven.add(7)
        began = time.monotonic()
        driven.outbox.close()
        assert CLOSE_SECONDS <= time.monotonic() - began < CLOSE_SECONDS + 2
    assert "7 bytes are in no account: no answer" in caplog.text


def test_a_book_that_cannot_be_written_and_then_can_is_two_events(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    driven = Driven(path)
    driven.outbox._record = lambda kind, subject, text: seen.append(kind)
    path.parent.mkdir(mode=0o700, parents=True)
    path.mkdir()
    for _ in range(2):
        driven.add(1)
        driven.pass_time(RETRY_NS)
    assert seen == ["accounting-failed"] and driven.outbox.failures >= 2
    path.rmdir()
    driven.pass_time(RETRY_NS)
    assert seen == ["accounting-failed", "accounting-works"]
    driven.outbox.close()


def test_what_is_forgiven_waits_for_the_book_and_ends_the_marks_of_before(path: Path) -> None:
    driven = Driven(path)
    first = NOVEMBER.first
    mark = Told(first, "ann", "80 % of 1")
    driven.add(6)
    driven.outbox.tell([mark])
    driven.outbox.forgive(Forgiven(first, "ann", 4))
    assert driven.outbox.unwritten_forgiven(NOVEMBER) == {"ann": 4}
    driven.outbox.want(NOVEMBER)
    usage = driven.pass_time(0)
    assert usage is not None and usage.counted == {"ann": 2} and usage.told == set()
    driven.outbox.forgive(Forgiven(first, "ann", 2))
    driven.outbox.close()
    assert read_usage(path, NOVEMBER).counted == {"ann": 0}
