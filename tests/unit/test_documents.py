"""Documents from which others implement agree with the code."""

import hashlib
import mmap
import re
from ipaddress import ip_address, ip_interface, ip_network
from itertools import product

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from pipeline.credentials import key_exchange
from pipeline.fec import shard
from pipeline.runtime import topology
from pipeline.sealing import frame_cut, key_schedule, kinds
from pipeline.sealing.aead import aead
from pipeline.sealing.block_seal import BlockSealer
from pipeline.sealing.header_seal import HeaderSealer
from pipeline.sealing.key_schedule import (
    AES_256_GCM,
    CLIENT_TO_SERVER,
    SERVER_TO_CLIENT,
    EpochSecret,
    HeaderSecret,
    Session,
)
from pipeline.sealing.records import RecordWriter
from pipeline.sealing.session import KeyShare
from pipeline.shm import layout
from pipeline.shm.slot import SLOT_BYTES_MIN, read_header, seal_block
from pipeline.wire import auth, block, framing, messages
from tests.harness.run_header import decode
from tests.harness.wire_document import named_example
from tests.support import ROOT
from tools import reference

DOCS = ROOT / "docs"
OFFLOADS = 0x6F


def _examples() -> list[bytes]:
    """The indented hexadecimal lines of docs/wire.md, one frame per paragraph."""
    text = (DOCS / "wire.md").read_text()
    text = text[text.index("## An example") : text.index("## Compatibility")]
    paragraphs = re.findall(r"(?:^    [0-9a-f ]+\n)+", text, re.MULTILINE)
    return [bytes.fromhex(paragraph) for paragraph in paragraphs]


def test_the_examples_of_the_wire_format_are_what_the_code_makes():
    hello, welcome, packet_block, run, keepalive = _examples()
    assert hello == messages.Hello(2, OFFLOADS, 0, 1, 1400, 1, 2, framing.BULK, messages.ACCEPTS_SHARDS).frame()
    assert (
        welcome
        == messages.Welcome(
            2, OFFLOADS, 1400, messages.ACCEPTS_SHARDS, addresses=(ip_interface("10.0.0.2/24"),)
        ).frame()
    )
    assert keepalive == framing.KEEPALIVE_FRAME
    view = memoryview(bytearray(packet_block))
    first, lengths = block.lengths(view, 0, len(view))
    assert (first, lengths) == (11, (38,))
    slot = memoryview(bytearray(SLOT_BYTES_MIN))
    slot[layout.SLOT_BODY_AT : layout.SLOT_BODY_AT + 38] = view[11:]
    seal_block(slot, [38], layout.SLOT_BODY_AT + 38, 0, 0)
    start, length, _, _ = read_header(slot)
    assert slot[start : start + length] == packet_block
    header = decode(memoryview(run), 0, len(run) - 4)
    assert header == (0x301, 7, 1, 1, 0, 1, len(packet_block), 0)
    assert shard.stream(3, 0, framing.LIGHT) == 0x301
    assert run[shard.RUN_BYTES :] == packet_block


def test_the_exchange_of_keys_in_the_wire_format_is_what_the_code_makes():
    example = named_example()
    key, private = example["key"], {end: example[f"{end}'s private"] for end in ("client", "server")}
    public = {f"{end}_public": example[f"{end}'s public"] for end in private}
    assert public == {f"{end}_public": key_exchange.public_of(value) for end, value in private.items()}
    hello = messages.decode(example["hello"])
    assert isinstance(hello, messages.Hello)
    assert example["exchange hello"] == hello._replace(exchange=public["client_public"], key_share=b"").frame()
    seen = auth.transcript(example["exchange hello"], example["challenge"], example["certificate hash"])
    assert example["exchange proof"] == messages.Proof(auth.client_proof(key, seen)).frame()
    done = messages.decode(example["done"])
    assert isinstance(done, messages.Done) and done[1:] == (public["server_public"], "laptop")
    assert auth.done_proved(key, seen, example["done"])
    for value in private.values():
        assert key_exchange.new_key(key, value, **public) == example["new key"]


def test_the_handshake_with_a_key_in_the_wire_format_is_what_the_code_makes():
    example = named_example()
    key, transcript = example["key"], example["transcript"]
    hello = messages.decode(example["hello"])
    assert (
        example["hello"]
        == messages.Hello(
            2,
            OFFLOADS,
            0,
            1,
            1400,
            1,
            2,
            framing.BULK,
            messages.ACCEPTS_SHARDS,
            messages.AUTH_KEY,
            auth.key_id(key),
            example["client's nonce"],
            (ip_address("10.0.0.2"), ip_address("fd00::2")),
            key_share=KeyShare(AES_256_GCM, example["client's share"]).pack(),
        ).frame()
    )
    assert hello.key_id == example["key id"]
    assert example["challenge"] == messages.Challenge(example["server's nonce"]).frame()
    assert transcript == auth.transcript(example["hello"], example["challenge"], example["certificate hash"])
    assert transcript == hashlib.sha256(example["transcript of"]).digest()
    assert example["proof"] == messages.Proof(auth.client_proof(key, transcript)).frame()
    assert auth.server_proved(key, transcript, example["welcome"])
    welcome = messages.decode(example["welcome"])
    assert welcome.addresses == (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64"))
    assert welcome == messages.Welcome(
        2,
        OFFLOADS,
        1400,
        messages.ACCEPTS_SHARDS,
        welcome.mac,
        welcome.addresses,
        (ip_network("10.1.0.0/16"),),
        key_share=KeyShare(AES_256_GCM, example["server's share"], example["share's nonce"], bytes(32)).pack(),
    )
    assert (
        example["welcome"]
        == example["welcome"][:5] + example["without proof"][:5] + welcome.mac + example["without proof"][5:]
    )
    assert example["its SHA-256"] == hashlib.sha256(example["without proof"]).digest()
    refused = messages.Refused(messages.ADDRESS_TAKEN, messages.REASONS[messages.ADDRESS_TAKEN])
    assert example["refused"] == refused.frame()


DATAGRAM_VALUES = 31
"""Those that tests/unit/datagram/test_vectors.py and tests/unit/reference/test_datagrams.py look at."""


def test_the_sealed_frame_in_the_wire_format_is_what_the_code_makes():
    example = named_example()
    for end in ("client", "server"):
        assert example[f"{end}'s share"] == key_exchange.public_of(example[f"{end}'s secret"])
    hello = messages.decode(example["hello"])
    context = Session(AES_256_GCM, example["client's share"], example["server's share"], hello.client_id, hello.session)
    assert example["context"] == context.context()
    shared = X25519PrivateKey.from_private_bytes(example["client's secret"]).exchange(
        X25519PublicKey.from_public_bytes(example["server's share"])
    )
    root = key_schedule.root(shared, example["key"])
    assert (shared, root) == (example["X25519"], example["root"])
    connection = key_schedule.connection(*(example[n] for n in ("hello", "challenge", "welcome", "certificate hash")))
    assert connection == example["connection"]
    blocks = EpochSecret.first(root, CLIENT_TO_SERVER, context)
    header_root = key_schedule.header_root(root, context)
    headers = HeaderSecret.first(header_root, CLIENT_TO_SERVER, connection)
    for number, (epoch, stretch) in enumerate(((blocks, headers), (blocks.next(), headers.next()))):
        assert (epoch.secret, epoch.block_key()) == (example[f"secret {number}"], example[f"block key {number}"])
        assert (stretch.secret, stretch.header_key()) == (example[f"headers {number}"], example[f"header key {number}"])
    assert example["header root"] == header_root
    assert example["secret 0 back"] == EpochSecret.first(root, SERVER_TO_CLIENT, context).secret
    assert example["headers 0 back"] == HeaderSecret.first(header_root, SERVER_TO_CLIENT, connection).secret

    plaintext, sealed = example["plaintext"], bytearray(example["sealed block"])
    assert block.table_lengths(memoryview(plaintext), block.EPOCH_BYTES, len(plaintext)) == (8, (38,))
    made = bytearray(len(sealed))
    BlockSealer(aead(AES_256_GCM, blocks.block_key())).seal(0x301, 7, 0, memoryview(plaintext), memoryview(made))
    assert (made, example["nonce"]) == (sealed, bytes.fromhex("000003010000000700000000"))
    assert example["header"] == frame_cut.HEADER.pack(
        framing.RUN, kinds.stream(3, 0, kinds.LIGHT), 7, 1, 0, 0, 1, 62, 0, 1
    )
    writer = RecordWriter(HeaderSealer(AES_256_GCM, headers))
    pieces, size = writer.pieces(0, bytes(framing.LENGTH.size) + example["header"], sealed)
    writer.sealer.advance(1)
    assert (b"".join(pieces), size) == (example["frame"], len(example["frame"]))
    assert writer.end() == example["end record"]
    assert len(example) == 51 + DATAGRAM_VALUES  # each is looked at here or above


def test_the_reasons_of_a_refusal_in_the_wire_format_are_those_of_the_code():
    text = (DOCS / "wire.md").read_text()
    table = text[text.index("| reason | text |") : text.index("### Proofs")]
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", table, re.MULTILINE)
    assert {int(number): reason for number, reason in rows} == messages.REASONS


def test_the_limits_in_the_wire_format_are_those_of_the_code():
    text = (DOCS / "wire.md").read_text()
    assert f"A length above {framing.LENGTH_LIMIT} ends" in text
    assert f"a length above {framing.HELLO_LENGTH_LIMIT} from a client" in text
    assert f"or above\n  {framing.WELCOME_LENGTH_LIMIT} from a server" in text
    assert text.count(f"addresses, at most {messages.ADDRESSES_MAX} |") == 2
    assert f"routes, at most {messages.PUSHED_ROUTES_MAX} |" in text
    assert f"at most {messages.TEXT_BYTES_MAX} bytes" in text
    assert f"at most {framing.COMPAT_LENGTH_LIMIT}" in text
    for name in ("DATA", "KEEPALIVE", "HELLO", "WELCOME", "REFUSED", "CHALLENGE", "PROOF", "DONE", "BLOCK", "RUN"):
        assert f"| {getattr(framing, name):#04x} | {name.lower()} |" in text


def _drawn(kind: str, shape: str) -> str:
    """A ring as the design document draws it."""
    own, other = ("j", "i") if kind in ("inbound", "arrived", "returned") else ("i", "j")
    stages = []
    for stage in topology.RINGS[shape].get(kind, ()):
        names = [f"{visitor.worker}_{other if visitor.group else own}" for visitor in stage]
        stages.append("{ " + ", ".join(names) + " }" if stage[0].group else names[0])
    return " -> ".join(stages)


TABLES_OF_RINGS = {
    "| ring | compat | fec off | fec on or auto |": ("compat", "off", "fec"),
    "| ring, with datagrams | fec off | fec on or auto |": ("off, datagrams", "fec, datagrams"),
}


@pytest.mark.parametrize(("head", "shapes"), TABLES_OF_RINGS.items())
def test_the_rings_in_the_design_document_are_those_of_the_code(head, shapes):
    text = (DOCS / "design.md").read_text()
    table = text[text.index(head) :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    documented = {row[0].split()[0]: row[1:] for row in rows}
    kinds = {kind for shape in shapes for kind in topology.RINGS[shape]}
    assert documented == {kind: [_drawn(kind, shape) for shape in shapes] for kind in kinds}


def test_every_shape_is_in_the_design_document():
    assert {shape for shapes in TABLES_OF_RINGS.values() for shape in shapes} == topology.RINGS.keys()


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="the document has the offsets with pages of 4 KiB")
def test_every_offset_in_the_shared_memory_document_is_the_codes():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", (DOCS / "shared-memory.md").read_text(), re.MULTILINE)
    documented = {name: int(value) for name, value in rows}
    in_code = {
        name: value
        for name, value in vars(layout).items()
        if name.isupper() and isinstance(value, int) and not name.endswith("_MAGIC") and name != "MASK64"
    }
    assert len(rows) == len(documented)
    assert documented == in_code


def test_the_magics_in_the_shared_memory_document_are_the_codes():
    text = (DOCS / "shared-memory.md").read_text()
    documented = dict(re.findall(r"^\| `([A-Z_]+_MAGIC)` \| \"(.{8})\" \|", text, re.MULTILINE))
    assert {name: int.from_bytes(magic.encode(), "little") for name, magic in documented.items()} == {
        name: value for name, value in vars(layout).items() if name.endswith("_MAGIC")
    }


def test_records_and_status_rows_are_where_the_shared_memory_document_says():
    text = (DOCS / "shared-memory.md").read_text()
    table = text[text.index("| records | written by |") : text.index("So the record of peer p in table k")]
    assert (
        tuple(re.findall(r"^\| ([a-z]+) \| (?:tcp|tun|fec) (?:in|out)bound duty \|$", table, re.MULTILINE))
        == layout.LANE_RECORDS
    )
    capacity, lanes, rows = 5, 3, 70

    def record_at(lane: int, table: int, peer: int) -> int:
        return layout.RECORDS_AT + whole_pages(64 * capacity) * (1 + 7 * lane + table) + 64 * peer

    def whole_pages(size: int) -> int:
        return -(-size // layout.MAP_PAGE) * layout.MAP_PAGE

    for lane in range(lanes):
        for number, kind in enumerate(layout.LANE_RECORDS):
            assert layout.records_at(capacity, lane, kind) == record_at(lane, number, 0)
        assert (
            layout.status_rows_at(capacity, lanes, rows, lane)
            == record_at(lanes, 0, 0) + whole_pages(128 * rows) * lane
        )
    behind = layout.status_rows_at(capacity, lanes, rows, lanes)
    assert layout.peer_table_bytes(capacity, lanes, rows) == behind
    table = text[text.index("| datagram records | written by |") : text.index("Let S be the place")]
    kinds = re.findall(r"^\| ([a-z_]+) \| dgram (?:in|out)bound duty \|$", table, re.MULTILINE)
    assert tuple(kinds) == layout.DATAGRAM_RECORDS
    for lane, (number, kind) in product(range(lanes), enumerate(layout.DATAGRAM_RECORDS)):
        at = layout.datagram_records_at(capacity, lanes, rows, lane, kind)
        assert at == behind + whole_pages(64 * capacity) * (3 * lane + number)
    datagrams = 3 * lanes * whole_pages(64 * capacity)
    assert layout.peer_table_bytes(capacity, lanes, rows, True) == behind + datagrams


def test_the_tables_that_are_made_from_the_code_are_current():
    for name, make in reference.TABLES.items():
        text = (ROOT / name).read_text()
        assert reference.with_table(text, make()) == text, f"{name}: run python -m tools.reference"


def test_the_knock_in_the_wire_format_is_what_the_code_makes():
    example = named_example()
    hello = messages.decode(example["hello"])
    assert isinstance(hello, messages.Hello)
    assert example["knock key"] == auth.knock_key(example["key"])
    assert example["knock"] == auth.knock(example["knock key"], hello.nonce, example["binding"])
