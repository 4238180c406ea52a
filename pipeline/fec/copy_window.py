"""The windows against further copies of blocks that are not sealed: the first copy of a block goes on, and no other.

One for each peer and stream: the highest number that has come, and a bit for each of the WINDOW numbers up to it. A
block older than that is taken for a copy that comes late. If nothing else comes, the highest number was wrong, of a
worker of the other end that ran amok: after STRAYS_MOST of them the window begins anew.
"""

from __future__ import annotations

from pipeline.shm.layout import PEER_INDEX_MASK

WINDOW = 1024
STRAYS_MOST = 64
STREAMS_MAX = 64  # of a peer: lanes, twice; one more, and the oldest is forgotten

_U32 = 0xFFFFFFFF
_BITS = (1 << WINDOW) - 1


class _Window:
    __slots__ = ("bits", "strays", "top")

    def __init__(self, number: int) -> None:
        self.top = number
        self.bits = 1  # bit i stands for top - i
        self.strays = 0


class CopyWindows:
    """Those of all peers of one tun worker. It does not know what a predecessor has seen: some blocks come twice."""

    def __init__(self) -> None:
        self._peers: dict[int, tuple[int, dict[int, _Window]]] = {}  # by index: handle, windows by stream

    def is_first(self, peer_handle: int, stream: int, number: int) -> bool:
        """Whether this is the first copy that has come of a block."""
        handle, windows = self._peers.get(peer_handle & PEER_INDEX_MASK, (-1, {}))
        if handle != peer_handle:
            windows = {}
            self._peers[peer_handle & PEER_INDEX_MASK] = peer_handle, windows
        window = windows.get(stream)
        if window is None:
            if len(windows) >= STREAMS_MAX:
                del windows[next(iter(windows))]
            windows[stream] = _Window(number)
            return True
        ahead = number - window.top & _U32
        if 0 < ahead <= _U32 >> 1:
            window.bits = (window.bits << ahead | 1) & _BITS if ahead < WINDOW else 1
            window.top = number
            window.strays = 0
            return True
        behind = window.top - number & _U32
        if behind >= WINDOW:
            window.strays += 1
            if window.strays > STRAYS_MOST:
                windows[stream] = _Window(number)
                return True
            return False
        if window.bits >> behind & 1:
            return False
        window.bits |= 1 << behind
        window.strays = 0
        return True
