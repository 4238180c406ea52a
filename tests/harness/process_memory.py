"""What is in the memory of another process, freed or not: /proc/PID/mem over /proc/PID/maps, proc(5). For root."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PIECE_BYTES = 1 << 20
ZEROS = memoryview(bytes(2 * PIECE_BYTES))
KERNEL = 1 << 63  # from here on, addresses are the kernel's, which pread() does not take: [vsyscall]


def forms_of(key: bytes) -> dict[str, bytes]:
    """All that a key looks like: also as text, and as HMAC keeps it (RFC 2104, 2)."""
    return {
        "bytes": key,
        "hexadecimal": key.hex().encode(),
        "base64": base64.b64encode(key).rstrip(b"="),
        "inner pad": bytes(byte ^ 0x36 for byte in key),
        "outer pad": bytes(byte ^ 0x5C for byte in key),
    }


def found_in(pid: int, wanted: Mapping[str, bytes]) -> set[str]:
    """The names of those byte strings that are anywhere in the memory, the command line or the environment."""
    longest = max(map(len, wanted.values()))
    found: set[str] = set()
    for piece in _pieces(pid, longest):
        found |= {name for name, value in wanted.items() if value in piece}
    return found


def _pieces(pid: int, overlap: int) -> Iterator[bytes]:
    """The whole memory, in pieces that overlap by so much."""
    proc = Path(f"/proc/{pid}")
    memory = os.open(proc / "mem", os.O_RDONLY)
    try:
        for begin, end in _mapped(proc):
            for at in range(begin, end, PIECE_BYTES):
                try:
                    piece = os.pread(memory, min(PIECE_BYTES + overlap, end - at), at)
                except OSError:
                    continue  # of a device or the kernel's own, such as [vvar]
                if piece != ZEROS[: len(piece)]:
                    yield piece
    finally:
        os.close(memory)
    for name in ("cmdline", "environ"):
        yield (proc / name).read_bytes()


def _mapped(proc: Path) -> Iterable[tuple[int, int]]:
    """What the process can have written to: not the text of programs, nor what it keeps from itself."""
    for line in (proc / "maps").read_text().splitlines():
        area, rights, _, _, inode, *_ = line.split()
        begin, _, end = area.partition("-")
        if rights != "---p" and (inode == "0" or "w" in rights or "s" in rights) and int(begin, 16) < KERNEL:
            yield int(begin, 16), int(end, 16)
