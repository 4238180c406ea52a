"""Memory of this process in place of a segment, for rings that no other process sees."""

from __future__ import annotations

from pipeline.shm.segment import Segment

BYTES = 1 << 20


class PlainMemory(Segment):
    def __init__(self, size: int = BYTES) -> None:
        self.name, self.size = "plain", size
        self.view = memoryview(bytearray(size))
        self.words = self.view.cast("Q")

    def cut(self, at: int, size: int) -> memoryview:
        return self.view[at : at + size]
