"""The bursts that have gone out on a path: bytes and times by sequence, as reports know segments alone.

    add(highest, sent, now)    a burst has gone out, up to this sequence; `sent`: bytes ever
    pass_by(highest)           the bytes that went out up to this sequence; it is forgotten then
    passed_ns                  when that segment went out, as of the last pass_by

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque

BURSTS_MOST = 4096
"""Bursts beyond are one with the last of them, so their segments count as of one size."""


class SentLog:
    """`before`: the last sequence that it does not know."""

    def __init__(self, now: int, before: int = -1) -> None:
        self._bursts: deque[tuple[int, int, int]] = deque()
        self._before = before, 0  # the last sequence, and the bytes, in front of the first burst
        self.passed_ns = now

    def add(self, highest: int, sent: int, now: int) -> None:
        if len(self._bursts) == BURSTS_MOST:
            _, _, now = self._bursts.pop()
        self._bursts.append((highest, sent, now))

    def pass_by(self, highest: int) -> int:
        bursts = self._bursts
        while bursts and bursts[0][0] <= highest:
            last, sent, self.passed_ns = bursts.popleft()
            self._before = last, sent
        before, sent = self._before
        if not bursts or highest <= before:
            return sent
        last, end, self.passed_ns = bursts[0]
        passed = sent + (highest - before) * (end - sent) // (last - before)
        self._before = highest, passed
        return passed
