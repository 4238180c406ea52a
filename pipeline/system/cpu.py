"""The abilities of the processor."""

from __future__ import annotations

CPU_INFO = "/proc/cpuinfo"  # proc(5); "flags" on x86, "Features" on arm64


def has_aes() -> bool:
    """Whether it has instructions for AES. True if nothing tells."""
    try:
        with open(CPU_INFO) as file:
            for line in file:
                name, _, words = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return "aes" in words.split()
    except OSError:
        pass
    return True
