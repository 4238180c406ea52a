"""An input of bytes as a sequence of choices: numbers and pieces from its front. Beyond its end, numbers are 0."""

from __future__ import annotations

from collections.abc import Iterator


class ByteSource:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.piece(size).ljust(size, b"\0"), "big")

    def piece(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        return self.piece(len(self._data))

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """The rest, as records of a byte of flags, a byte of length, and so many bytes."""
        while self:
            flags = self.number()
            yield flags, self.piece(self.number())


def chunk(data: bytes, flags: int = 0) -> bytes:
    """The other way: `data` in records of at most 255 bytes, all with these flags."""
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)] or [b""]
    return b"".join(bytes([flags, len(piece)]) + piece for piece in pieces)
