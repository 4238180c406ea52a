"""The values of the examples in docs/wire.md."""

from __future__ import annotations

import re

from tests.support import ROOT

DOCUMENT = (ROOT / "docs" / "wire.md").read_text()


def named_example() -> dict[str, bytes]:
    """The sections "... in bytes": each indented line has a name, or spaces, and hexadecimal bytes."""
    sections = re.findall(r"^### [^\n]*, in bytes\n(.*?)(?=^##)", DOCUMENT, re.MULTILINE | re.DOTALL)
    values: dict[str, str] = {}
    name = ""
    for line in "".join(sections).splitlines():
        if line.startswith("    "):
            name = line[:22].strip() or name
            values[name] = values.get(name, "") + line[22:]
    return {name: bytes.fromhex(value) for name, value in values.items()}
