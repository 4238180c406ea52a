"""A table of nftables that is one instance's own. No other table is touched.

    install()   put the table there, instead of one that a killed run has left; may be repeated at any time, such as
                after `nft flush ruleset`
    remove()    remove the table, also one that a killed run has left
    listing()   the table as the kernel has it

Each is one transaction. `table_keeper` keeps a table in place. The configuration allows only names that nft accepts;
none has a slash, so a table behind a slash is no other instance's.
"""

from __future__ import annotations

from pipeline.supervisor.kernel import nft

DELETE_TABLE = """\
add table inet {table}
delete table inet {table}
"""
"""Deletes a table that need not exist; nft 1.0.7 with Linux 6.3 has `destroy` for that."""


class OwnTable:
    """`setting`: what asks for the table, in texts; `cost`: the consequence where it cannot be."""

    def __init__(self, table: str, chains: str, setting: str, cost: str) -> None:
        self.table = table
        self.setting = setting
        self.text = f"table inet {table} {{\n{chains}}}\n"
        self._cost = cost
        self._installed = False

    def install(self) -> str:
        """The text of a warning; "" if the table is in place."""
        why_not = nft.run_script(DELETE_TABLE.format(table=self.table) + self.text)
        self._installed = not why_not
        return why_not and f"{self.setting}: {why_not}. {self._cost}"

    def remove(self) -> str:
        """The text of a warning if this run has installed a table that it cannot remove; else ""."""
        why_not = nft.run_script(DELETE_TABLE.format(table=self.table))
        was_installed, self._installed = self._installed, False
        by_hand = f"{self.setting}: {why_not}; by hand: nft delete table inet {self.table}"
        return by_hand if why_not and was_installed else ""

    def listing(self) -> str:
        """The table as nft prints it; "" if it is not there."""
        return nft.listing(self.table)
