"""The book: the SQLite file with the bytes of each peer by day and by month, and the quota marks that were told.

    STATE_DIR/accounting.sqlite    mode 0600, with -wal and -shm beside it while it is open

    day, month     peer, received, sent: bytes as this end sees them. Days and months are those of UTC
    told           period, peer, mark of a quota: each is told once
    forgiven       period, peer, bytes of the quota that an operator has given back, or taken
    written        who has written last, and the number of that writer's last batch

A batch is written as a whole, in one transaction, with its number. So a batch whose fate is unknown may be written
again: if its number is there, nothing happens. The days that were written last are kept, DAYS_KEPT of them, whatever
the clock says now; months are kept for ever. A name that is gone keeps what it has.

`user_version` is the version of the tables. MIGRATIONS[n] leads from version n to n + 1. A file of a later version is
left alone. A file that is damaged is renamed, and a new one is begun: DamagedBook says so.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pipeline.accounting.batch import Batch, Told, Usage
from pipeline.policy.quota import Period
from pipeline.policy.traffic_meter import Traffic

DAYS_KEPT = 400
LOCK_SECONDS = 5.0  # another program may read or copy the file
LOG_PAGES = 32  # of 4 KiB, then they go into the file: the log stays small, and a loss of power costs half a minute
DAMAGED_KEPT = 3  # damaged files that are kept; on a disk that damages every file, no further one is begun

MIGRATIONS = (
    """
    CREATE TABLE day (day TEXT, peer TEXT, received INTEGER NOT NULL, sent INTEGER NOT NULL,
        PRIMARY KEY (day, peer)) WITHOUT ROWID;
    CREATE TABLE month (month TEXT, peer TEXT, received INTEGER NOT NULL, sent INTEGER NOT NULL,
        PRIMARY KEY (month, peer)) WITHOUT ROWID;
    CREATE TABLE told (period TEXT, peer TEXT, mark TEXT, PRIMARY KEY (period, peer, mark)) WITHOUT ROWID;
    CREATE TABLE written (writer TEXT PRIMARY KEY, batch INTEGER NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE forgiven (period TEXT, peer TEXT, size INTEGER NOT NULL, PRIMARY KEY (period, peer)) WITHOUT ROWID;
    """,
)
VERSION = len(MIGRATIONS)
FORGIVES_FROM = 2  # the version that has the table

ADD = """INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
    SET received = received + excluded.received, sent = sent + excluded.sent"""

FORGIVE = "INSERT INTO forgiven VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET size = size + excluded.size"

T = TypeVar("T")

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DamagedBook(Exception):
    """The file is no book any more."""


class ForeignBook(Exception):
    """The file is of a later version of this program."""


class BookFile:
    """An open book. sqlite3.Error or OSError if it cannot be opened or written, DamagedBook, ForeignBook.

    A connection belongs to the thread that has opened it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
        self._inode = path.stat().st_ino
        self._connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            self._set_up()
        except BaseException as error:
            self._connection.close()
            raise _damaged(error) from None

    def _set_up(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        (found,) = execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedBook(found)
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise ForeignBook(f"version {version}, and this program knows {VERSION}: an older one must not write to it")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")

    @property
    def is_current(self) -> bool:
        """Whether the file at the path is still the one that is open."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def write(self, batch: Batch, usage_of: Period | None) -> Usage | None:
        """Add a batch, all of it or nothing; and what the book has then about a period, if that is asked for."""
        connection = self._connection
        try:
            with _transaction(connection):
                row = connection.execute("SELECT batch FROM written WHERE writer = ?", (batch.writer,)).fetchone()
                if row is None or row[0] < batch.number:
                    self._add(batch)
                return _usage(connection, usage_of) if usage_of is not None else None
        except sqlite3.Error as error:
            raise _damaged(error) from None

    def _add(self, batch: Batch) -> None:
        rows = [(day.isoformat(), peer, *traffic) for (day, peer), traffic in batch.entries.items()]
        connection = self._connection
        connection.executemany(ADD.format(table="day"), rows)
        connection.executemany(ADD.format(table="month"), ((day[:7], *rest) for day, *rest in rows))
        for first, peer, size in batch.forgiven:
            connection.execute(FORGIVE, (str(first), peer, size))
            connection.execute("DELETE FROM told WHERE period = ? AND peer = ?", (str(first), peer))
        connection.executemany("INSERT OR IGNORE INTO told VALUES (?, ?, ?)", ((str(t[0]), *t[1:]) for t in batch.told))
        connection.execute("DELETE FROM written")
        connection.execute("INSERT INTO written VALUES (?, ?)", (batch.writer, batch.number))
        self._prune()

    def _prune(self) -> None:
        oldest = self._connection.execute(
            "SELECT day FROM (SELECT DISTINCT day FROM day) ORDER BY day DESC LIMIT 1 OFFSET ?", (DAYS_KEPT - 1,)
        ).fetchone()
        if oldest is not None:
            self._connection.execute("DELETE FROM day WHERE day < ?", oldest)
            self._connection.execute("DELETE FROM told WHERE period < ?", oldest)
            self._connection.execute("DELETE FROM forgiven WHERE period < ?", oldest)

    def close(self) -> None:
        """The other files go with it."""
        with suppress(sqlite3.Error):
            self._connection.close()


def move_away(path: Path) -> Path:
    """Rename a damaged book, with its other files. The new path; OSError if there are DAMAGED_KEPT already."""
    for number in range(1, DAMAGED_KEPT + 1):
        renamed = path.with_name(f"{path.name}.damaged-{number}")
        if not os.path.lexists(renamed):
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    os.rename(f"{path}{suffix}", f"{renamed}{suffix}")
            return renamed
    raise OSError(f"{path} is damaged, as were {DAMAGED_KEPT} before it, which lie beside it: is the disk broken?")


def read(path: Path, table: str) -> list[tuple[str, str, Traffic]]:
    """All rows of "day" or "month": day or month, peer, traffic. They may be some seconds behind a running instance.

    sqlite3.Error, DamagedBook, or FileNotFoundError if there is no book.
    """

    def rows(connection: sqlite3.Connection) -> list[tuple[str, str, Traffic]]:
        found = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
        return [(when, peer, Traffic(received, sent)) for when, peer, received, sent in found]

    return _read(path, rows)


def read_usage(path: Path, period: Period) -> Usage:
    """The usage of a period, without a write; the errors are those of read()."""
    return _read(path, lambda connection: _usage(connection, period))


def _read(path: Path, query: Callable[[sqlite3.Connection], T]) -> T:
    """Nothing is written, not even beside the file if no instance has it open."""
    path.stat()
    is_open = os.path.exists(f"{path}-wal")
    try:
        return _query(path, "" if is_open else "&immutable=1", query)
    except sqlite3.OperationalError:
        if not is_open:
            raise
    return _query(path, "&immutable=1", query)  # on a read-only disk SQLite cannot follow what is not checkpointed


def _query(path: Path, options: str, query: Callable[[sqlite3.Connection], T]) -> T:
    uri = path.absolute().as_uri() + "?mode=ro" + options
    connection = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)
    try:
        return query(connection)
    except sqlite3.Error as error:
        raise _damaged(error) from None
    finally:
        connection.close()


def _usage(connection: sqlite3.Connection, period: Period) -> Usage:
    sums = "SELECT peer, sum(received), sum(sent) FROM day WHERE day >= ? AND day < ? GROUP BY peer"
    rows = connection.execute(sums, (str(period.first), str(period.next)))
    traffic = {peer: Traffic(received, sent) for peer, received, sent in rows}
    marks = connection.execute("SELECT peer, mark FROM told WHERE period = ?", (str(period.first),))
    told = {Told(period.first, peer, mark) for peer, mark in marks}
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < FORGIVES_FROM:  # of a disk that is read-only since an older version
        return Usage(period, traffic, told, {})
    sizes = connection.execute("SELECT peer, size FROM forgiven WHERE period = ?", (str(period.first),))
    return Usage(period, traffic, told, dict(sizes.fetchall()))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; the lock is taken at the beginning, so that nothing fails half way for want of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _damaged(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
        return DamagedBook(str(error))
    return error
