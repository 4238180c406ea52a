"""Log lines about the connections of peers: a few for each peer, however often it connects.

The first change after some quiet is written at once. Those that follow are summed up a moment later, and from then on
every INTERVAL_NS, for as long as there are any. So a peer that connects with eight connections causes two lines, and
one that flaps a line every ten seconds. Each connection has a line of its own at level debug.
"""

from __future__ import annotations

from pipeline.log import LOG

MOMENT_NS = 1_000_000_000
INTERVAL_NS = 10_000_000_000
PEERS_MAX = 4096  # with a record of their own; a server that accepts everybody does not choose the names

OTHERS = "other peers"
NAMELESS = "clients without a name"  # with compat


class _PeerRecord:
    """Changes of one peer since its last line."""

    def __init__(self) -> None:
        self.count = 0  # connections now
        self.begun = self.ended = self.refused = 0
        self.address = ""  # of the connection that was begun last
        self.end_reason = self.refusal = ""  # of the last one
        self.line_at_ns = 0  # not before this time is there another line

    @property
    def has_changes(self) -> bool:
        return bool(self.begun or self.ended or self.refused)


class ConnectionLog:
    """A connection is named by its serial number. Times are CLOCK_MONOTONIC ns."""

    def __init__(self) -> None:
        self._peers: dict[int, str] = {}  # the name in the records, by connection
        self._records: dict[str, _PeerRecord] = {}
        self._due_ns = 0  # no record is due before

    def identify(self, connection: int, peer: str) -> None:
        """The name of the peer that has opened a connection; "" if it has none."""
        peer = peer or NAMELESS
        known = peer in self._records or len(self._records) < PEERS_MAX
        self._peers[connection] = peer if known else OTHERS

    def begun(self, connection: int, address: str, now: int) -> None:
        """A connection has been established."""
        record = self._record_of(connection)
        record.count += 1
        record.begun += 1
        record.address = address
        self._changed(connection, now)

    def ended(self, connection: int, reason: str, now: int) -> None:
        """An established connection has ended."""
        record = self._record_of(connection)
        record.count -= 1
        record.ended += 1
        record.end_reason = reason
        self._changed(connection, now)

    def refused(self, connection: int, reason: str, now: int) -> None:
        """A peer that has proved who it is may not open this connection."""
        record = self._record_of(connection)
        record.refused += 1
        record.refusal = reason
        self._changed(connection, now)

    def forget(self, connection: int) -> None:
        self._peers.pop(connection, None)

    def tick(self, now: int) -> None:
        """Call often: it writes the lines that are due, and forgets peers that have been away for long."""
        if now < self._due_ns:
            return
        self._due_ns = now + MOMENT_NS
        for peer, record in list(self._records.items()):
            if record.has_changes:
                if now >= record.line_at_ns:
                    self._write(peer, record, now + INTERVAL_NS)
            elif not record.count and now >= record.line_at_ns + INTERVAL_NS:
                del self._records[peer]

    def _record_of(self, connection: int) -> _PeerRecord:
        return self._records.setdefault(self._peers.setdefault(connection, NAMELESS), _PeerRecord())

    def _changed(self, connection: int, now: int) -> None:
        peer = self._peers[connection]
        record = self._records[peer]
        if now >= record.line_at_ns + INTERVAL_NS or not record.line_at_ns:
            self._write(peer, record, now + MOMENT_NS)
        else:
            self._due_ns = min(self._due_ns, record.line_at_ns)

    @staticmethod
    def _write(peer: str, record: _PeerRecord, next_line_ns: int) -> None:
        parts = [
            f"{_connections(record.begun)} from {record.address} established" if record.begun else "",
            f"{_connections(record.ended)} ended: {record.end_reason}" if record.ended else "",
            f"{_connections(record.refused)} {record.refusal}" if record.refused else "",
            f"{record.count} now",
        ]
        write = LOG.warning if record.refused else LOG.info
        write("%s: %s", peer if peer in (NAMELESS, OTHERS) else f"peer {peer}", "; ".join(filter(None, parts)))
        record.begun = record.ended = record.refused = 0
        record.line_at_ns = next_line_ns


def _connections(count: int) -> str:
    return f"{count} connection{'' if count == 1 else 's'}"
