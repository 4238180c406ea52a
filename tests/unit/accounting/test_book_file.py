"""The book: batches are added once and as a whole, whatever the disk does."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest

from pipeline.accounting import FILE_NAME, book_file
from pipeline.accounting.batch import Batch, Entries, Forgiven, Told
from pipeline.accounting.book_file import (
    DAMAGED_KEPT,
    DAYS_KEPT,
    MIGRATIONS,
    BookFile,
    DamagedBook,
    ForeignBook,
    move_away,
    read,
    read_usage,
)
from pipeline.policy.quota import Period
from pipeline.policy.traffic_meter import Traffic
from tests.support import ROOT

DAY = date(2026, 11, 29)
NOVEMBER = Period(date(2026, 11, 1), date(2026, 12, 1))


@contextmanager
def opened(path: Path) -> Iterator[BookFile]:
    book = BookFile(path)
    try:
        yield book
    finally:
        book.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def entries(received: int = 1, sent: int = 2, peer: str = "ann", day: date = DAY) -> Entries:
    return {(day, peer): Traffic(received, sent)}


def test_batches_add_up_by_day_and_by_month(path: Path) -> None:
    with opened(path) as book:
        book.write(Batch("w", 1, entries(10, 20) | entries(1, 1, "bob"), [], []), None)
        book.write(Batch("w", 2, entries(5, 5, day=DAY - timedelta(1)), [], []), None)
    assert read(path, "day") == [
        ("2026-11-28", "ann", (5, 5)),
        ("2026-11-29", "ann", (10, 20)),
        ("2026-11-29", "bob", (1, 1)),
    ]
    assert read(path, "month") == [("2026-11", "ann", (15, 25)), ("2026-11", "bob", (1, 1))]


def test_a_batch_that_is_written_again_changes_nothing(path: Path) -> None:
    with opened(path) as book:
        book.write(Batch("w", 1, entries(10), [], []), None)
        book.write(Batch("w", 1, entries(10), [], []), None)
    with opened(path) as book:
        book.write(Batch("w", 1, entries(10), [], []), None)
        book.write(Batch("another start", 1, entries(3), [], []), None)
    assert read(path, "month") == [("2026-11", "ann", (13, 4))]


def test_the_usage_of_a_period_includes_the_batch_itself(path: Path) -> None:
    told = Told(NOVEMBER.first, "ann", "80 % of 20")
    with opened(path) as book:
        book.write(Batch("w", 1, entries(9, 0, day=date(2026, 10, 31)), [], []), None)
        usage = book.write(Batch("w", 2, entries(10, 7), [told, told], []), NOVEMBER)
    assert usage == (NOVEMBER, {"ann": Traffic(10, 7)}, {told}, {})
    assert book_file.read_usage(path, NOVEMBER) == usage


def test_only_we_can_read_the_book(path: Path) -> None:
    mask = os.umask(0)
    try:
        with opened(path) as book:
            book.write(Batch("w", 1, entries(), [], []), None)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys((FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"), 0o600)
    assert os.listdir(path.parent) == [FILE_NAME]  # the others go when the book is closed


def test_the_last_days_are_kept_whatever_the_clock_says_and_months_for_ever(path: Path) -> None:
    first = date(2025, 1, 1)
    with opened(path) as book:
        for number in range(DAYS_KEPT + 5):
            told = [Told(first + timedelta(number), "ann", "80 % of 1")]
            book.write(Batch("w", number + 1, entries(day=first + timedelta(number)), told, []), None)
        days = read(path, "day")
        book.write(Batch("w", 9999, entries(day=date(2190, 1, 1)), [], []), None)  # a clock that was wrong for a moment
    assert [row[0] for row in days] == [str(first + timedelta(number)) for number in range(5, DAYS_KEPT + 5)]
    after = read(path, "day")
    assert len(after) == DAYS_KEPT and after[:-1] == days[1:]
    assert read(path, "month")[0] == ("2025-01", "ann", (31, 62))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM told").fetchone() == (DAYS_KEPT - 1,)
    connection.close()


def test_reading_leaves_nothing_beside_a_book_that_is_closed_and_follows_one_that_is_open(path: Path) -> None:
    with opened(path) as book:
        book.write(Batch("w", 1, entries(1), [], []), None)
        assert read(path, "month") == [("2026-11", "ann", (1, 2))]
    read(path, "month")
    assert os.listdir(path.parent) == [FILE_NAME]


def test_a_book_that_does_not_exist_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(path, "month")
    assert not path.exists()


def test_something_else_in_place_of_the_book_is_damage(path: Path) -> None:
    path.write_bytes(b"no book at all, but long enough to have a header" * 100)
    with pytest.raises(DamagedBook):
        BookFile(path)
    with pytest.raises(DamagedBook):
        read(path, "month")


def test_a_page_that_was_overwritten_is_damage(path: Path) -> None:
    with opened(path) as book:
        for number in range(100):
            book.write(Batch("w", number + 1, entries(peer=f"peer-{number}"), [], []), None)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(DamagedBook):
        BookFile(path)


def test_an_empty_file_becomes_a_book(path: Path) -> None:
    path.touch()
    with opened(path) as book:
        book.write(Batch("w", 1, entries(), [], []), None)
    assert len(read(path, "day")) == 1


def test_a_book_of_a_later_version_is_left_alone(path: Path) -> None:
    with opened(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ForeignBook, match="version 99, and this program knows 2"):
        BookFile(path)
    assert path.read_bytes() == before


def test_damaged_books_are_kept_under_other_names_but_not_without_end(path: Path) -> None:
    for number in range(1, DAMAGED_KEPT + 1):
        path.write_text(str(number))
        Path(f"{path}-wal").write_text("log")
        renamed = move_away(path)
        assert renamed.read_text() == str(number) and Path(f"{renamed}-wal").read_text() == "log"
    path.write_text("more")
    with pytest.raises(OSError, match="is the disk broken"):
        move_away(path)
    assert path.read_text() == "more"


def test_a_fifo_in_its_place_holds_up_nobody(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises((OSError, sqlite3.Error, DamagedBook)):
        BookFile(path)


KILLED = """
import sys
import time
from datetime import date
from pathlib import Path
from pipeline.accounting.batch import Batch
from pipeline.accounting.book_file import BookFile
from pipeline.policy.traffic_meter import Traffic
book = BookFile(Path(sys.argv[1]))
for number in range(1, 1000000):
    book.write(Batch("w", number, {(date(2026, 11, 29), "ann"): Traffic(1, 1)}, [], []), None)
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_has_written_each_batch_whole_or_not_at_all(path: Path) -> None:
    reached = 0
    for _ in range(3):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as done:
            while reached < 40:
                reached = int(done.stdout.readline())
            done.send_signal(signal.SIGKILL)
            said = [int(line) for line in done.stdout.read().split()] or [reached]
        reached = 0
        with opened(path) as book:
            (row,) = read(path, "day")
            with closing(sqlite3.connect(path)) as connection:
                (number,) = connection.execute("SELECT batch FROM written").fetchone()
            assert row[2] == (number, number) and number in (said[-1], said[-1] + 1)
            book.write(Batch("w", number, entries(1, 1), [], []), None)
            assert read(path, "day") == [row]
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def test_a_book_is_whole_after_a_loss_of_power_at_any_instant(path: Path, tmp_path: Path) -> None:
    """The files as they are at one instant, and without an end of the log that the disk had not got yet."""
    chance = random.Random(0)
    checked = 0
    with subprocess.Popen([sys.executable, "-c", KILLED, path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for instant in range(12):
            written = int(writer.stdout.readline())
            time.sleep(chance.random() / 100)  # any instant will do
            writer.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOWAIT)
            copy = tmp_path / f"copy-{instant}"
            shutil.copytree(path.parent, copy, ignore=lambda _, names: [name for name in names if "copy" in name])
            writer.send_signal(signal.SIGCONT)
            for cut in (False, True):
                log = copy / f"{path.name}-wal"
                if cut and log.exists():
                    os.truncate(log, chance.randrange(log.stat().st_size + 1))
                rows = read(copy / path.name, "day")
                with opened(copy / path.name) as book:
                    usage = book.write(Batch("another start", 1, {}, [], []), NOVEMBER)
                total = rows[0][2].received if rows else 0
                assert usage is not None and usage.counted == ({"ann": 2 * total} if total else {})
                assert cut or total >= written
                checked += 1
        writer.kill()
    assert checked == 24


def test_what_is_forgiven_counts_no_more_in_its_period_and_its_marks_are_told_anew(path: Path) -> None:
    first = NOVEMBER.first
    forgiven = [Forgiven(first, "ann", 7), Forgiven(first, "ann", 2), Forgiven(date(2026, 10, 1), "ann", 99)]
    with opened(path) as book:
        book.write(Batch("w", 1, entries(10, 0), [Told(first, "ann", "80 %"), Told(first, "bob", "80 %")], []), None)
        book.write(Batch("w", 2, {}, [Told(first, "ann", "10 %")], forgiven), None)
        usage = book.write(Batch("w", 2, {}, [], forgiven), NOVEMBER)  # the same batch once more
    assert usage is not None and usage.forgiven == {"ann": 9} and usage.counted == {"ann": 1}
    assert usage.told == {Told(first, "ann", "10 %"), Told(first, "bob", "80 %")}
    assert read(path, "month") == [("2026-11", "ann", (10, 0))], "the account stays as it is"


def test_a_book_of_the_first_version_is_read_as_it_is_and_gets_its_table_when_it_is_opened(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(f"BEGIN; {MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    connection.execute("INSERT INTO day VALUES ('2026-11-29', 'ann', 3, 4)")
    connection.commit()
    connection.close()
    assert read_usage(path, NOVEMBER).counted == {"ann": 7}
    with opened(path) as book:
        usage = book.write(Batch("w", 1, {}, [], [Forgiven(NOVEMBER.first, "ann", -3)]), NOVEMBER)
    assert usage is not None and usage.counted == {"ann": 10}, "more may count than was carried"
