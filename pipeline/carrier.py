"""Floor 2. What a tcp worker tells the others on its page of the board: its carrier words and its connection rows.

    tun, fec workers     which tcp worker has how many connections, which offloads and shards all its peers accept
    other tcp workers    whose client is connected, and by which session
    supervisor           the rows, for `status`

Written by the inbound duty of the tcp worker alone; `others` are the words of the other tcp workers, read only.
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline import layout, wire
from pipeline.connection import Connection
from pipeline.layout import ROWS_MAX
from pipeline.session import Holder
from pipeline.worker import Attachment

# places in the carrier words
ESTABLISHED, OFFLOADS, CLIENT, SESSION, LIGHT, DECODES, PARITY = (
    (at - layout.CARRIER_AT) // 8
    for at in (layout.CARRIER_ESTABLISHED_AT, layout.CARRIER_OFFLOADS_AT, layout.CARRIER_CLIENT_AT,
               layout.CARRIER_SESSION_AT, layout.CARRIER_LIGHT_AT, layout.CARRIER_DECODES_AT,
               layout.CARRIER_PARITY_AT)
)


class Carrier:
    """This tcp worker's words and rows; a predecessor's are cleared."""

    def __init__(self, attachment: Attachment) -> None:
        self._page = attachment.page
        self._offloads = attachment.settings["offloads"]
        self._others = others(attachment)
        self.write_rows(())
        self.write(())
        self.call_for(0)

    def write(self, established: Collection[Connection]) -> None:
        """Say what is established now. The count comes last: who reads it finds the rest in place."""
        words = self._page.carrier
        offloads = self._offloads
        for connection in established:
            offloads &= connection.offloads
            words[CLIENT] = connection.client
            words[SESSION] = connection.session
        words[OFFLOADS] = offloads
        words[LIGHT] = sum(connection.purpose == wire.LIGHT for connection in established)
        words[DECODES] = bool(established) and all(connection.decodes for connection in established)
        words[ESTABLISHED] = len(established)

    def write_rows(self, connections: Collection[Connection]) -> None:
        rows = [connection.row() for connection in connections]
        for index in range(ROWS_MAX):
            self._page.write_row(index, rows[index] if index < len(rows) else None)

    def call_for(self, parity: int) -> None:
        """Say how many parity shards the state of the connections calls for."""
        self._page.carrier[PARITY] = parity

    def holder(self) -> Holder:
        """Whose connections this worker carries."""
        return _holder(self._page.carrier)

    def other_holders(self) -> list[Holder]:
        """Whose connections the other workers carry."""
        return [_holder(words) for words in self._others]


def others(attachment: Attachment) -> list[memoryview]:
    """The carrier words of the other tcp workers."""
    return [attachment.board.pages[worker.page].carrier for worker in attachment.plan.of_kind("tcp")
            if worker.name != attachment.me.name]


def _holder(words: memoryview) -> Holder:
    return Holder(words[ESTABLISHED], words[CLIENT], words[SESSION])
