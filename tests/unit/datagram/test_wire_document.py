"""The bytes of datagrams in docs/wire.md are those of the code: the numbers that stand there, and a segment by hand."""

from __future__ import annotations

import re
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from pipeline.datagram.cut import PARTS_MAX, cut
from pipeline.datagram.segment import FIELDS, HEADER_BYTES, SAMPLE_BYTES, TOKEN, Mask
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec.codec import Codec
from pipeline.fec.shard import DATA_SHARDS_MAX, PARITY_SHARDS_MAX
from pipeline.sealing.datagram_seal import LANE_BITS, NUMBER_BITS, STRETCH_BITS, WINDOW
from pipeline.sealing.kinds import PROCESSES_MAX
from pipeline.wire import control_datagram
from tests.support import ROOT

TEXT = (ROOT / "docs" / "wire.md").read_text().partition("### Datagrams\n")[2].partition("\n### ")[0]
PLAIN = " ".join(TEXT.split())
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def sizes_of(*packed: struct.Struct) -> list[int]:
    """Of each field."""
    return [struct.calcsize(f">{code}") for each in packed for code in each.format.removeprefix(">")]


def test_the_table_of_a_segment_has_the_fields_of_the_code() -> None:
    rows = [(int(at), size) for at, size in re.findall(r"^\| (\d+) \| (\d+|R) \|", TEXT, re.MULTILINE)]
    sizes = [int(size) for _, size in rows[:-1]]
    assert sizes == sizes_of(TOKEN, FIELDS)
    assert [at for at, _ in rows] == [sum(sizes[:number]) for number in range(len(rows))]
    assert rows[-1] == (HEADER_BYTES, "R")
    assert f"Bytes 4 to {HEADER_BYTES - 1} are masked" in PLAIN
    assert f"The sample is the first {SAMPLE_BYTES} bytes of the row" in PLAIN


def test_the_bodies_of_control_datagrams_have_the_fields_of_the_code() -> None:
    (probe, answer, report) = re.findall(r"^    (?:probe|answer|report) (.*(?:\n {14}.*)*)", TEXT, re.MULTILINE)
    fixed, _, rest = report.partition("for each stream")
    streams, _, codewords = rest.partition("for each incomplete codeword")
    private = vars(control_datagram)
    for text, packed in (
        (probe, [private["_PROBE"]]),
        (answer, [private["_ANSWER"]]),
        (fixed, [private["_HEAD"], private["_COUNTS"]]),
        (streams, [private["_STREAM"]]),
        (codewords, [private["_CODEWORD"]]),
    ):
        assert [SIZES[each] for each in re.findall(r"\bu\d+\b", text)] == sizes_of(*packed)


def test_the_limits_are_those_of_the_code() -> None:
    for sentence in (
        f"and at most {PARTS_MAX}.",
        f"n is at most {DATA_SHARDS_MAX} and m at most {PARITY_SHARDS_MAX};",
        f"at most {control_datagram.STREAMS_MOST} streams, of at most {control_datagram.BITS_MOST} bytes of bits, and",
        f"{control_datagram.INCOMPLETE_MOST} incomplete codewords",
        f"at most {control_datagram.WAIT_MOST}.",
        f"one {control_datagram.FAR_LAG} before",
        f"({PROCESSES_MAX.bit_length() - 1} bits), lane of the sender ({LANE_BITS} bits), number ({NUMBER_BITS} bits)",
        f"s = count / 2^{STRETCH_BITS}",
        f"a window of {WINDOW} counts",
    ):
        assert sentence in PLAIN


def test_a_segment_is_read_as_the_document_says() -> None:
    key, block = bytes(range(32)), bytes(np.random.default_rng(7).bytes(3001))
    made = cut(len(block), 700, 2)
    memory = memoryview(bytearray(made.segments * (HEADER_BYTES + made.row_bytes)))
    args = (0x01020304, Mask(key, made.segments), 0xFFFFFFFE, 0x301, 77, 5)
    train = Segmenter(Codec(), 9, made.segments).cut_block(memory, memoryview(block), made, *args)
    rows = {}
    for number in range(train.count):
        datagram = bytes(memory[number * train.segment_bytes : (number + 1) * train.segment_bytes])
        row = datagram[28:]
        mask = Cipher(AES(key), ECB()).encryptor().update(row[:32].ljust(32, b"\0"))
        head = bytes(a ^ b for a, b in zip(datagram[4:28], mask, strict=False))
        sequence, sender, stream, block_number, epoch, size = struct.unpack_from(">IHIIHI", head)
        part, n, m, index = head[20:]
        assert datagram[:4] == b"\1\2\3\4" and sequence == (0xFFFFFFFE + number) % (1 << 32)
        assert (sender, stream, block_number, epoch, size) == (9, 0x301, 77, 5, len(block))
        assert (n, m) == (made.n, 2) and part < -(-size // (n * len(row)))
        rows[part, index] = row
    whole = b"".join(rows[part, index] for part in range(made.parts) for index in range(made.n))
    assert whole[: len(block)] == block
