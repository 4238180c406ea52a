"""The reference client sends and understands the bytes of docs/wire.md, and uses no code of the program."""

from __future__ import annotations

import ast
import hashlib
import re
import socket
from collections.abc import Iterator

import pytest

from tests.harness.wire_document import DOCUMENT, named_example
from tests.reference import erasure_code
from tests.reference.blocks import Runs, block_frame, packets_of, run_frame
from tests.reference.client import Refused, Violation, WireClient
from tests.reference.packets import echo_request, is_reply, reply_to
from tests.support import ROOT

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
            ours, key=example["key"], offloads=0x6F, session=2, requested_addresses=["10.0.0.2", "fd00::2"], runs=Runs()
        ) as client,
    ):
        client.certificate_hash = example["certificate hash"]
        client.sent_hello = example["hello"]
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
    assert Runs().add(run[5:]) == [block]
    assert packets_of(block[5:]) == [packet]
    assert is_reply(reply_to(packet), packet)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 13, 14, 37])
def test_a_block_is_put_together_from_the_runs_it_was_cut_into(n: int) -> None:
    packets = [echo_request("10.0.0.2", "10.0.0.1", number, bytes([number]) * 500) for number in range(20)]
    runs = Runs()
    found = [block for shard in range(n) for block in runs.add(run_frame(1, 2, n, packets, shard, 1)[5:])]
    assert found == [block_frame(*packets)] and runs.incomplete == 0
    assert runs.add(run_frame(1, 2, n, packets)[5:]) == []


def test_lost_shards_are_recovered_from_the_documents_parity() -> None:
    for n, title in ((2, "2 + 2 shards"), (3, "3 + 3 shards")):
        section = CODE_DOCUMENT[CODE_DOCUMENT.index(title) :]
        size = int(re.search(r"a block of (\d+) bytes", section)[1])
        data = bytes((k * k + 7 * k) % 251 for k in range(size)).ljust(80 * n, b"\0")
        parity = [bytes.fromhex(re.search(rf"Parity {j}:\n\n((?:    [0-9a-f]+\n)+)", section)[1]) for j in range(n)]
        assert f"{erasure_code.checksum(data, n, n):08x}" == re.search(r"checksum ([0-9a-f]+)", section)[1]
        assert erasure_code.recover({n + j: parity[j] for j in range(n)}, n, n) == data
        assert erasure_code.recover({0: data[:80], **{n + j: parity[j] for j in range(1, n)}}, n, n) == data
