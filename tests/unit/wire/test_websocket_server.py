"""A WebSocket at the end of a server: heads of requests, answers, and frames that a client may not send."""

from __future__ import annotations

import os
import struct

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request

from pipeline.wire.websocket_server import (
    HEAD_BYTES_MAX,
    Head,
    for_one_answer,
    path_of,
    read_upgrade,
    refusal,
    values_of,
)
from pipeline.wire.websocket_stream import FRAMES_AT_ONCE, WebSocketStream

UPGRADE = (
    b"GET /path?x=1 HTTP/1.1\r\nHost: www.test\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
MASK = b"mask"


def opened() -> tuple[WebSocketStream, WSConnection]:
    """Both ends of a WebSocket that is open."""
    client = WSConnection(ConnectionType.CLIENT)
    upgrade = read_upgrade(client.send(Request(host="www.test", target="/")))
    assert upgrade is not None
    client.receive_data(upgrade.answer)
    assert [type(event) for event in client.events()] == [AcceptConnection]
    return upgrade.stream, client


def frame(first: int, payload: bytes, length: bytes = b"") -> bytes:
    """A masked frame; `length`: its length field, in place of the right one."""
    masked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))
    return bytes([first]) + (length or bytes([0x80 | len(payload)])) + MASK + masked


# -- heads


@pytest.mark.parametrize("size", [1, 7, 10000])
def test_a_head_is_whole_at_its_empty_line_in_whatever_pieces_it_comes(size: int) -> None:
    head, wire = Head(), UPGRADE + b"\x82\x80mask"
    for at in range(0, len(wire), size):
        assert head.is_whole is (at >= len(UPGRADE)) and not head.is_too_long
        head.add(wire[at : at + size])
    assert (head.head, head.rest) == (UPGRADE, b"\x82\x80mask")


def test_a_head_that_never_ends_is_too_long_and_one_of_the_greatest_length_is_not() -> None:
    fields = b"GET / HTTP/1.1\r\nX: "
    longest, head = fields + b"x" * (HEAD_BYTES_MAX - len(fields) - 4) + b"\r\n\r\n", Head()
    head.add(longest)
    assert head.is_whole and not head.is_too_long and head.head == longest
    for endless in (fields + b"x" * HEAD_BYTES_MAX, b"\0" * HEAD_BYTES_MAX):
        head = Head()
        head.add(endless)
        assert head.is_too_long and not head.is_whole


@pytest.mark.parametrize("line", [b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\r\n", b"\r\n", b"GET / HTTP/2.0\r\n"])
def test_what_is_no_http_is_known_by_its_first_line(line: bytes) -> None:
    head = Head()
    head.add(line)
    assert head.is_no_request
    assert refusal(head.head).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_path_and_fields_are_read_as_they_stand() -> None:
    head = b"GET /a%20b?c HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\nHost: x\r\nx-forwarded-for:  198.51.100.1 \r\n\r\n"
    assert path_of(head) == b"/a%20b?c"
    assert values_of(head, b"x-forwarded-for") == [b"192.0.2.1", b"198.51.100.1"]
    assert path_of(b"\xff\r\n\r\n") == b"" and values_of(b"\xff:\r\n\r\n", b"host") == []


@pytest.mark.parametrize(
    "change",
    [
        (b"Upgrade: WebSocket\r\n", b""),
        (b"keep-alive, upgrade", b"close"),
        (b"Version: 13", b"Version: 8"),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
        (b"GET", b"POST"),
        (b"Host: www.test\r\n", b""),
        (b"/path?x=1 ", b""),
        (b"Host: www.test", b"Host: www.test\r\nA\0: b"),
        (UPGRADE, b"\r\n\r\n"),
    ],
)
def test_what_asks_for_no_websocket_is_no_upgrade(change: tuple[bytes, bytes]) -> None:
    assert read_upgrade(UPGRADE) is not None
    assert read_upgrade(UPGRADE.replace(*change)) is None


def test_an_extension_is_not_taken() -> None:
    upgrade = read_upgrade(UPGRADE)
    assert upgrade is not None and b"xtension" not in upgrade.answer
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in upgrade.answer


def test_a_refusal_looks_like_one_of_a_web_server_and_has_no_page_for_head() -> None:
    answer = refusal(b"GET /x HTTP/1.1\r\n\r\n")
    fields, _, page = answer.partition(b"\r\n\r\n")
    assert fields.startswith(b"HTTP/1.1 404 Not Found\r\n") and b"Connection: close" in fields
    assert f"Content-Length: {len(page)}".encode() in fields and b"404 Not Found" in page
    assert refusal(b"HEAD /x HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (
            b"GET / HTTP/1.1\r\nConnection: keep-alive\r\nHost: x\r\nKeep-Alive: timeout=5\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n"),
        (UPGRADE, UPGRADE),
        (b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n"),
    ],
)
def test_another_web_server_is_asked_for_one_answer_unless_the_connection_changes_its_protocol(
    head: bytes, told: bytes
) -> None:
    assert for_one_answer(head) == told


# -- frames


def test_messages_in_fragments_and_with_pings_between_are_one_stream() -> None:
    stream, client = opened()
    sent = os.urandom(70000)
    wire = client.send(BytesMessage(data=sent[:10], message_finished=False)) + client.send(Ping(payload=b"x"))
    wire += client.send(BytesMessage(data=sent[10:], message_finished=True))
    got = [stream.receive(wire[at : at + 999]) for at in range(0, len(wire), 999)]
    assert b"".join(each.data for each in got) == sent
    client.receive_data(b"".join(each.send for each in got))
    assert [type(event) for event in client.events()] == [Pong]
    assert sum(each.bare for each in got) == 1


def test_a_length_of_64_bits_keeps_nothing_back() -> None:
    stream, _ = opened()
    endless = frame(0x82, b"abc", length=b"\xff" + struct.pack("!Q", (1 << 63) - 1))
    assert stream.receive(endless).data == b"abc"
    assert len(stream.receive(bytes(100000)).data) == 100000


@pytest.mark.parametrize(
    "wire",
    [
        b"\x82\x03abc",
        frame(0x82, b"abc", length=b"\xff" + struct.pack("!Q", 1 << 63)),
        frame(0xC2, b"compressed"),
        frame(0x80, b"a continuation of nothing"),
        frame(0x83, b"an opcode that is none"),
        frame(0x09, b"a ping in fragments"),
        frame(0x89, b"x" * 126, length=b"\xfe\x00\x7e"),
        frame(0x81, b"text"),
        frame(0x88, b"x"),
    ],
    ids=["no mask", "length", "reserved bit", "continuation", "opcode", "fragment", "long ping", "text", "close"],
)
def test_frames_that_a_client_may_not_send_end_it(wire: bytes) -> None:
    stream, _ = opened()
    got = stream.receive(wire)
    assert got.is_over and not got.data


def test_many_small_frames_are_taken_in_turns() -> None:
    stream, client = opened()
    wire = client.send(BytesMessage(data=b"x")) * (2 * FRAMES_AT_ONCE + 1)
    got = [stream.receive(wire), stream.receive(b""), stream.receive(b"")]
    assert [len(each.data) for each in got] == [FRAMES_AT_ONCE, FRAMES_AT_ONCE, 1]
    assert [each.has_more for each in got] == [True, True, False]


def test_an_end_is_answered() -> None:
    stream, client = opened()
    assert stream.receive(client.send(CloseConnection(code=1001))).is_over
    client.receive_data(stream.end())
    assert [type(event) for event in client.events()] == [CloseConnection]
