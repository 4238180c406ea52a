"""A firewall that follows the windows of a TCP connection, as nf_conntrack_proto_tcp.c does without `tcp_be_liberal`.

A packet is allowed if its data are inside the window that the receiver has announced, not older than the largest window
back from the newest, and if it acknowledges nothing that has not passed. SACK is left out, as nobody here sends it.
"""

from __future__ import annotations

from dataclasses import dataclass

U32 = 0xFFFFFFFF
ACK_BEHIND_LEAST = 66000  # MAXACKWINCONST


@dataclass
class _Side:
    end: int  # the highest byte that it has sent
    limit: int  # that it may send
    window: int  # the largest that it has announced
    scale: int


class WindowTracker:
    """Watches from the end of the handshake on. Each side: its next byte, its first window, its scale."""

    def __init__(self, first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
        self._sides = tuple(
            _Side(own[0], own[0] + other[1] & U32, own[1], own[2]) for own, other in ((first, second), (second, first))
        )

    def allows(self, side: int, sequence: int, acknowledged: int, window: int, size: int) -> bool:
        sender, receiver = self._sides[side], self._sides[1 - side]
        window <<= sender.scale
        end = sequence + size & U32
        allowed = (
            before(sequence, sender.limit + 1)
            and before(sender.end - receiver.window - 1, end)
            and before(acknowledged, receiver.end + 1)
            and before(receiver.end - max(sender.window, ACK_BEHIND_LEAST) - 1, acknowledged)
        )
        if allowed:
            sender.window = max(sender.window, window)
            if before(sender.end, end):
                sender.end = end
            if before(receiver.limit, acknowledged + window):
                receiver.limit = acknowledged + window & U32
        return allowed


def before(first: int, second: int) -> bool:
    return first != second and (second - first & U32) <= U32 >> 1
