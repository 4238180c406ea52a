"""A send item: a reference into a slot, for one connection. Its bytes are sent from there.

The slot goes on once all its items are sent, skipped or moved elsewhere. An item can be copied out of its slot
(`workers.tcp.backlog`, `workers.tcp.delayed_items`, `workers.tcp.kept_items`), so that the slot need not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    from pipeline.transport.connection import Connection


class ItemSource(Protocol):
    """The holder of an item's bytes: a ring, or the backlog of a peer."""

    in_ring: ClassVar[bool]
    """Whether the bytes stand in a slot, which waits for them."""

    @property
    def lane(self) -> int:
        """The lane of the ring; 0 for a backlog."""

    def finish(self, item: SendItem) -> None:
        """Note that the item is done with: sent, moved or dropped."""


class CopiedBlock:
    """A block of which several copies go out, each of them an item. `gone_on`: the connection that took one last."""

    __slots__ = ("gone_on",)

    def __init__(self, gone_on: Connection | None = None) -> None:
        self.gone_on = gone_on


class SendItem(NamedTuple):
    """Bytes of one slot for one connection: `head` (or None) and then `body`, `size` bytes in all.

    `shards` 0: a plain block, which goes out once and is never skipped.
    """

    source: ItemSource
    slot_index: int
    shards: int
    light: bool
    size: int
    head: memoryview | bytes | None
    body: memoryview | bytes
    voice: bool = False  # goes ahead of other light items
    copied: CopiedBlock | None = None  # the block of which it is a copy
