"""The reference client sends and understands the bytes of docs/wire.md, and uses no code of the program."""

from __future__ import annotations

import ast
import hashlib
import re
import socket
from collections.abc import Iterator

import pytest

from tests.harness.wire_document import DOCUMENT, named_example
from tests.reference import erasure_code, key_schedule, records
from tests.reference.blocks import Runs, block_frame, packets_of, run_frame
from tests.reference.client import Ended, Refused, Violation, WireClient
from tests.reference.packets import echo_request, is_reply, reply_to
from tests.reference.records import HeaderSeal
from tests.reference.sealed_blocks import TO_CLIENT, TO_SERVER, Session, Window
from tests.reference.sealed_blocks import packets_of as packets_of_plaintext
from tests.support import ROOT

KEY_SHARE_EXTENSION_BYTES = 2 + 1 + 32  # at the end of a hello: type, length, suite, public value

CODE_DOCUMENT = (ROOT / "docs" / "fec-code.md").read_text()


@pytest.fixture
def pair() -> Iterator[tuple[WireClient, socket.socket]]:
    """A client in the middle of the document's handshake, and the server's end."""
    example = named_example()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with (
        theirs,
        WireClient(
            ours,
            key=example["key"],
            offloads=0x6F,
            session=Session(2, key=example["key"], private=example["client's secret"]),
            requested_addresses=["10.0.0.2", "fd00::2"],
            runs=Runs(),
        ) as client,
    ):
        client.certificate_hash = example["certificate hash"]
        client.sent_hello = example["hello"]
        theirs.settimeout(5.0)
        yield client, theirs


def test_the_reference_uses_no_code_of_the_program() -> None:
    files = sorted((ROOT / "tests" / "reference").glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            found = (
                [each.name for each in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {each.split(".")[0] for each in found} & {"pipeline", "workers", "tools"}, file.name


def test_it_sends_the_documents_hello(pair: tuple[WireClient, socket.socket]) -> None:
    client, _ = pair
    documented, made = client.sent_hello, client.hello()
    nonce = slice(5 + 39, 5 + 71)
    assert made[: nonce.start] + documented[nonce] + made[nonce.stop :] == documented
    assert made[nonce] != documented[nonce]


def test_it_answers_the_documents_challenge_and_trusts_its_welcome(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    example = named_example()
    theirs.sendall(example["challenge"])
    client.receive_challenge()
    client.send_proof(client.proof())
    assert theirs.recv(1000) == example["proof"]
    assert client.transcript() == example["transcript"] == hashlib.sha256(example["transcript of"]).digest()
    theirs.sendall(example["welcome"])
    welcome = client.receive_welcome()
    assert [str(each) for each in (*welcome.addresses, *welcome.routes)] == ["10.0.0.2/24", "fd00::2/64", "10.1.0.0/16"]


def test_it_exchanges_its_key_as_the_document_does(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    example = named_example()
    private = example["client's private"]
    documented, made = example["exchange hello"], client.hello(extensions=client.exchange_extension(private))
    nonce = slice(5 + 39, 5 + 71)
    assert made[: nonce.start] + documented[nonce] + made[nonce.stop :] == documented
    client.sent_hello, client.received_challenge = documented, example["challenge"]
    client.send_proof(client.proof())
    assert theirs.recv(1000) == example["exchange proof"]
    theirs.sendall(example["done"])
    assert client.receive_done(private) == ("laptop", example["new key"])
    theirs.sendall(example["done"][:-1] + b"x")
    with pytest.raises(Violation):
        client.receive_done(private)


def test_its_secrets_are_those_of_the_document(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    example = named_example()
    client.received_challenge = example["challenge"]
    theirs.sendall(example["welcome"])
    client.receive_welcome()
    session = client.session
    assert (session.root, session.context) == (example["root"], example["context"])
    parts = client.sent_hello, client.received_challenge, client.received_welcome, client.certificate_hash
    connection = key_schedule.connection(*parts)
    assert connection == example["connection"]
    there = session.root, session.context, TO_SERVER
    back = session.root, session.context, TO_CLIENT
    for name, found in {
        "secret": key_schedule.block_secrets(*there),
        "block key": key_schedule.block_keys(*there),
        "headers": key_schedule.header_secrets(*there, connection),
        "header key": key_schedule.header_keys(*there, connection),
    }.items():
        assert [next(found), next(found)] == [example[f"{name} 0"], example[f"{name} 1"]]
    assert next(key_schedule.block_secrets(*back)) == example["secret 0 back"]
    assert next(key_schedule.header_secrets(*back, connection)) == example["headers 0 back"]


def test_its_records_are_those_of_the_document(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    example = named_example()
    client.received_challenge = example["challenge"]
    theirs.sendall(example["welcome"])
    client.receive_welcome()
    _, (packet,) = packets_of_plaintext(example["plaintext"])
    client.session.process, client.traffic_class = 3, 1
    for _ in range(7):
        client.session.next_number(0x301)
    client.send(packet)
    client.end()
    with theirs.makefile("rb") as stream:
        assert stream.read() == example["frame"] + example["end record"]


def server_of(client: WireClient) -> tuple[Session, HeaderSeal]:
    """The server's side of the session in the document, and the seal of the headers that it sends."""
    example = named_example()
    session = Session(2, key=example["key"], private=example["server's secret"])
    session.accept_hello(client.sent_hello[-KEY_SHARE_EXTENSION_BYTES:])
    parts = client.sent_hello, client.received_challenge, client.received_welcome, client.certificate_hash
    keys = key_schedule.header_keys(session.root, session.context, TO_CLIENT, key_schedule.connection(*parts))
    return session, HeaderSeal(session.suite, keys)


def test_both_ends_of_it_understand_each_other(pair: tuple[WireClient, socket.socket]) -> None:
    """Blocks of every form and of many sizes, over a change of the epoch, up to the end."""
    client, theirs = pair
    client.received_challenge = named_example()["challenge"]
    theirs.sendall(named_example()["welcome"])
    client.receive_welcome()
    session, seal = server_of(client)
    for number, size in enumerate((1, 1400, 16300, 16320, 16321, 16322, 16330, 33000, 65535, 131000)):
        packet = bytes([number]) * size
        if number in (3, 7):
            session.go_to_next_epoch()
        for block, first, count in (
            (session.seal(0, [packet]), 0, 1),
            *((copy, 0, 1) for copy in session.seal_copies([packet], 3)),
            (session.seal_coded([packet], 4, 2), 1, 4),
        ):
            header = block.header._replace(shards=count) if block.header.n > 1 else block.header
            header = header._replace(first=first) if header.n > 1 else header
            theirs.sendall(records.records(seal, header, b"".join(block.shards[first : first + count])))
        expected = [packet] * 3
        assert client.receive_packets(5.0, len(expected)) == expected
    assert client.session.acknowledged == 2
    assert client.session.dropped == {"replayed": 20}  # the other copies
    theirs.sendall(records.end_record(seal))
    with pytest.raises(Ended) as ended:
        client.receive_packets(5.0)
    assert ended.value.how == "close_notify"


def test_padding_is_skipped_where_it_was_announced_and_a_violation_elsewhere(
    pair: tuple[WireClient, socket.socket],
) -> None:
    client, theirs = pair
    client.received_challenge = named_example()["challenge"]
    theirs.sendall(named_example()["welcome"])
    client.receive_welcome()
    session, seal = server_of(client)
    for takes, padding in ((False, 0), (True, 100), (True, 0), (True, 1258), (False, 100)):
        client._takes_padding = takes
        block = session.seal(0, [b"packet"])
        theirs.sendall(records.records(seal, block.header._replace(padding=padding), block.shards[0]))
        if takes or not padding:
            assert client.receive_packets(5.0) == [b"packet"]
            assert client.frame_bytes[-1] == records.HEAD_BYTES + len(block.shards[0]) + padding
        else:
            with pytest.raises(Violation, match="does not take it"):
                client.receive_packets(5.0)


def test_a_frame_with_a_changed_byte_before_its_body_is_not_taken(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    client.received_challenge = named_example()["challenge"]
    theirs.sendall(named_example()["welcome"])
    client.receive_welcome()
    session, _ = server_of(client)
    block = session.seal(0, [bytes(40)])
    for at in range(records.HEAD_BYTES):
        _, seal = server_of(client)
        _, opener = client.header_seals()
        changed = bytearray(records.records(seal, block.header, block.shards[0]))
        changed[at] ^= 1
        reader = records.Reader(opener)
        reader.feed(bytes(changed))
        with pytest.raises(Violation):
            reader.next()


@pytest.mark.parametrize("body", [*range(16340, 16400), *range(32720, 32800), 133155])
def test_records_are_no_shorter_and_no_longer_than_those_of_tls(body: int) -> None:
    wire = records.records_of(bytes(37), bytes(body))
    lengths, at = [], 0
    while at < len(wire):
        assert wire[at : at + 3] == bytes.fromhex("170303")
        lengths.append(int.from_bytes(wire[at + 3 : at + 5], "big"))
        at += 5 + lengths[-1]
    assert at == len(wire) and min(lengths) >= 17 and max(lengths) <= 16401 and lengths[0] >= 37


def test_a_header_key_is_for_as_many_headers_as_the_document_says() -> None:
    keys = [bytes([number]) * 32 for number in range(3)]
    seal, opener = (HeaderSeal(1, iter(keys)) for _ in range(2))
    seal.index = opener.index = records.RATCHET_EVERY - 1
    for number in (0, 1):
        sealed = seal.seal(bytes(21))
        at = (records.RATCHET_EVERY - 1 + number).to_bytes(12, "big")
        assert key_schedule.aead(1, keys[number]).decrypt(at, sealed, None) == bytes(21)
        assert opener.open(sealed) == bytes(21)


def test_a_window_opens_a_number_once_and_none_that_is_too_old_or_of_an_earlier_process() -> None:
    window = Window()
    for number in (2**32 - 1, 5, 0, 9000):
        assert window.admits(7, number)
        window.mark(7, number)
        assert not window.admits(7, number)
    assert not window.admits(7, 9000 - 8192) and window.admits(7, 9001 - 8192)
    window.mark(9, 0)
    assert window.admits(7, 9001) and not window.admits(7, 9000) and not window.admits(8, 1)
    window.mark(10, 0)
    assert not window.admits(7, 9001) and window.admits(9, 1)


def test_lost_shards_are_those_of_the_documents_parity() -> None:
    data = bytes((k * k + 7 * k) % 251 for k in range(160))
    text = CODE_DOCUMENT[CODE_DOCUMENT.index("2 + 2 shards") :]
    documented = [bytes.fromhex(re.search(rf"Parity {j}:\n\n((?:    [0-9a-f]+\n)+)", text)[1]) for j in range(2)]
    assert erasure_code.parity([data[:80], data[80:]], 2) == documented


def test_it_trusts_no_welcome_with_a_changed_byte(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    example = named_example()
    client.received_challenge = example["challenge"]
    for at in range(5, len(example["welcome"])):
        changed = bytearray(example["welcome"])
        changed[at] ^= 1
        theirs.sendall(changed)
        with pytest.raises(Violation):
            client.receive_welcome()


def test_it_understands_the_documents_refusal(pair: tuple[WireClient, socket.socket]) -> None:
    client, theirs = pair
    theirs.sendall(named_example()["refused"])
    with pytest.raises(Refused) as refused:
        client.receive_welcome()
    assert (refused.value.reason, refused.value.text) == (5, "another peer has the requested address")


def test_its_blocks_and_runs_are_the_documents() -> None:
    text = DOCUMENT[DOCUMENT.index("## An example") : DOCUMENT.index("## Compatibility")]
    _, _, block, run, _ = map(bytes.fromhex, re.findall(r"(?:^    [0-9a-f ]+\n)+", text, re.MULTILINE))
    packet = block[-28:]
    assert block_frame(packet) == block
    assert run_frame(0x301, 7, 1, [packet])[5:13] == run[5:13]
    assert Runs().add_run(run[5:]) == [block]
    assert packets_of(block[5:]) == [packet]
    assert is_reply(reply_to(packet), packet)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 13, 14, 37])
def test_a_block_is_put_together_from_the_runs_it_was_cut_into(n: int) -> None:
    packets = [echo_request("10.0.0.2", "10.0.0.1", number, bytes([number]) * 500) for number in range(20)]
    runs = Runs()
    found = [block for shard in range(n) for block in runs.add_run(run_frame(1, 2, n, packets, shard, 1)[5:])]
    assert found == [block_frame(*packets)] and runs.incomplete == 0
    assert runs.add_run(run_frame(1, 2, n, packets)[5:]) == []


def test_lost_shards_are_recovered_from_the_documents_parity() -> None:
    for n, title in ((2, "2 + 2 shards"), (3, "3 + 3 shards")):
        section = CODE_DOCUMENT[CODE_DOCUMENT.index(title) :]
        size = int(re.search(r"a block of (\d+) bytes", section)[1])
        data = bytes((k * k + 7 * k) % 251 for k in range(size)).ljust(80 * n, b"\0")
        parity = [bytes.fromhex(re.search(rf"Parity {j}:\n\n((?:    [0-9a-f]+\n)+)", section)[1]) for j in range(n)]
        assert f"{erasure_code.checksum(data, n, n):08x}" == re.search(r"checksum ([0-9a-f]+)", section)[1]
        assert erasure_code.recover({n + j: parity[j] for j in range(n)}, n, n) == data
        assert erasure_code.recover({0: data[:80], **{n + j: parity[j] for j in range(1, n)}}, n, n) == data
