"""The values of the examples in docs/wire.md."""

from __future__ import annotations

from tests.support import ROOT

DOCUMENT = (ROOT / "docs" / "wire.md").read_text()


def named_example() -> dict[str, bytes]:
    """The handshake with a key: each indented line has a name, or spaces, and hexadecimal bytes."""
    text = DOCUMENT[DOCUMENT.index("### A handshake with a key, in bytes") : DOCUMENT.index("## Blocks")]
    values: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("    "):
            name = line[:22].strip() or name
            values[name] = values.get(name, "") + line[22:]
    return {name: bytes.fromhex(value) for name, value in values.items()}
