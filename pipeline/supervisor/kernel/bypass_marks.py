"""The marks of the bypass, by nftables: packets of the tunnel's own connections that have no process (policy.bypass).

A packet of the workers' user marks its connection, which the kernel's connection tracking knows from then on. Its other
packets get the mark: those that arrive, before the reverse path filter looks at them (`src_valid_mark`), and those that
no process sends. The packets of the workers need none, and are not routed twice. A program with rights that sets the
mark itself goes the same way: `doctor` does, to try the path to the server.
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline.log import LOG
from pipeline.policy import bypass
from pipeline.supervisor.kernel.borrowed_sysctls import NET, BorrowedSysctls
from pipeline.supervisor.kernel.own_table import OwnTable
from pipeline.supervisor.kernel.table_keeper import TableKeeper

CHAINS = """\
    chain send {{
        type route hook output priority mangle; policy accept;
        meta skuid {uid} ct mark set {mark} accept
        meta mark {mark} ct mark set {mark} accept
        ct mark {mark} meta mark set {mark}
    }}
    chain receive {{
        type filter hook prerouting priority mangle; policy accept;
        ct mark {mark} meta mark set {mark}
    }}
"""
VALID_MARK = "ipv4/conf/all/src_valid_mark"
PURPOSE = "bypass"


class BypassMarks:
    """`notes`: sentences about what cannot be set."""

    def __init__(self, instance_name: str, uid: int | None, there: Collection[str]) -> None:
        mark = bypass.numbers(instance_name).table
        cost = "With a reverse path filter (rp_filter) no connection to the server comes about"
        self._table = OwnTable(f"tunnel-{instance_name}/bypass", CHAINS.format(uid=uid, mark=mark), "bypass", cost)
        self._keeper = TableKeeper(self._table, may_be_there=self._table.table in there)
        self._sysctls = BorrowedSysctls(instance_name, PURPOSE)
        self._is_there: bool | None = None  # None: nobody has said yet
        self.notes: list[str] = []

    def apply(self, wanted: bool) -> list[str]:
        """The notes."""
        self._is_there = wanted
        self.notes = self._keeper.apply(wanted)
        if not wanted:
            self._sysctls.give_back()
            return self.notes
        failed = self._sysctls.borrow({VALID_MARK: "1"})
        if failed and (filtering := _with_filter()):
            why, cure = failed[VALID_MARK], "sysctl -w net.ipv4.conf.all.src_valid_mark=1"
            devices = ", ".join(filtering)
            note = f"the reverse path filter of {devices} drops what the server sends: {why}. On the host: {cure}"
            LOG.warning("%s", note)
            self.notes.append(note)
        return self.notes

    def follow(self, wanted: bool, now: int) -> None:
        """Once a turn."""
        if wanted != self._is_there:
            self.apply(wanted)
        self._keeper.tick(now)

    def close(self, *, leave: bool = False) -> None:
        """`leave`: everything stays where it is."""
        self._keeper.close(leave=leave)
        if not leave:
            self._sysctls.give_back()

    def remove_remains(self) -> None:
        """Of a killed run."""
        self._table.remove()
        self._sysctls.give_back()


def _with_filter() -> list[str]:
    """The devices that have a reverse path filter."""
    found = []
    for path in sorted((NET / "ipv4/conf").glob("*/rp_filter")):
        try:
            if path.read_text().strip() != "0" and path.parent.name not in ("default", "lo"):
                found.append(path.parent.name)
        except OSError:
            pass  # the device has gone
    return found
