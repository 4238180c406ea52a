"""The documents that other people implement from say what the code does."""

import re
from pathlib import Path

from pipeline import block, layout, session, shard, wire
from tests.unit.runs import decode

DOCS = Path(__file__).parents[2] / "docs"
OFFLOADS = 0x6F


def _examples() -> list[bytes]:
    """The indented hexadecimal lines of docs/wire.md, one frame per paragraph."""
    text = (DOCS / "wire.md").read_text()
    text = text[text.index("## An example") : text.index("## Compatibility")]
    paragraphs = re.findall(r"(?:^    [0-9a-f ]+\n)+", text, re.MULTILINE)
    return [bytes.fromhex(paragraph) for paragraph in paragraphs]


def test_the_examples_of_the_wire_format_are_what_the_code_makes():
    hello, welcome, packet_block, run, keepalive = _examples()
    assert hello == session.Hello(1, OFFLOADS, 0, 1, 1400, 1, 2, wire.BULK, session.DECODES).frame()
    assert welcome == session.Welcome(1, OFFLOADS, 1400, session.DECODES).frame()
    assert keepalive == wire.KEEPALIVE_FRAME
    view = memoryview(bytearray(packet_block))
    first, lengths = block.lengths(view, 0, len(view))
    assert (first, lengths) == (11, (38,))
    slot = memoryview(bytearray(block.SLOT_BYTES_MIN))
    slot[layout.SLOT_BODY_AT : layout.SLOT_BODY_AT + 38] = view[11:]
    block.seal(slot, [38], layout.SLOT_BODY_AT + 38, 0)
    start, length, _, _ = block.SLOT.unpack_from(slot)
    assert slot[start : start + length] == packet_block
    header = decode(memoryview(run), 0, len(run) - 4)
    assert header == (0x301, 7, 1, 1, 0, 1, len(packet_block), 0)
    assert shard.stream(3, 0, wire.LIGHT) == 0x301
    assert run[shard.RUN_BYTES :] == packet_block


def test_the_limits_in_the_wire_format_are_those_of_the_code():
    text = (DOCS / "wire.md").read_text()
    assert f"A length above {wire.LENGTH_LIMIT} ends" in text
    assert f"one above {wire.HELLO_LENGTH_LIMIT} does" in text
    assert f"at most {wire.COMPAT_LENGTH_LIMIT}" in text
    for name in ("DATA", "KEEPALIVE", "HELLO", "WELCOME", "REFUSED", "BLOCK", "RUN"):
        assert f"| {getattr(wire, name):#04x} | {name.lower()} |" in text


def test_every_offset_in_the_shared_memory_document_is_the_codes():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", (DOCS / "shared-memory.md").read_text(), re.MULTILINE)
    documented = {name: int(value) for name, value in rows}
    in_code = {name: value for name, value in vars(layout).items()
               if name.endswith(("_AT", "_STRIDE", "_BYTES", "_MAX", "_VERSION", "_WORDS")) and isinstance(value, int)}
    assert documented == in_code
