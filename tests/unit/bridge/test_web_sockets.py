"""The bridge of a server, with real sockets: clients as web servers pass them on, and clients that want harm."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request

from pipeline.bridge import carry, web_sockets
from pipeline.bridge.counts import Counts
from pipeline.bridge.plan import WebSocketPlan, of_text, to_text
from pipeline.bridge.web_sockets import BARE_BURST, WebSockets
from pipeline.wire.proxy_protocol import Client, ProxyHeader

TOKEN = bytes(range(16))
PATH = "/hidden"
SECONDS = 20.0
PLAN = WebSocketPlan(
    name="test",
    account=None,
    path=PATH,
    proxies=["127.0.0.1/32"],
    field="x-forwarded-for",
    target=[],
    token=TOKEN.hex(),
    web_server=None,
    tells_address=False,
    seconds=10.0,
    timeout=5.0,
    requests=4,
    tunnels=4,
    visitors=2,
    log_level="info",
    log_format="text",
)
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Made:
    """A bridge, and what it leads to."""

    def __init__(self, bridge: WebSockets, port: int, behind: asyncio.Queue[Streams]) -> None:
        self.bridge = bridge
        self.port = port
        self.behind = behind
        self.kept: list[Streams] = []  # a stream that nobody keeps loses what it gets

    @property
    def counts(self) -> Counts:
        found = Counts.latest(self.bridge.report())
        assert found is not None
        return found

    async def until(self, **counts: int) -> None:
        while not counts.items() <= self.counts._asdict().items():
            await asyncio.sleep(0.01)

    async def connect(self, data: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        self.kept.append((reader, writer))
        return reader, writer

    async def answer_to(self, data: bytes) -> bytes:
        reader, writer = await self.connect(data)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def open(self, path: str = PATH, fields: Any = ()) -> tuple[Streams, WSConnection]:
        talk = WSConnection(ConnectionType.CLIENT)
        reader, writer = await self.connect(talk.send(Request(host="www.test", target=path, extra_headers=[*fields])))
        talk.receive_data(await reader.readuntil(b"\r\n\r\n"))
        assert [type(event) for event in talk.events()] == [AcceptConnection]
        return (reader, writer), talk

    async def worker_end(self, token: bytes = TOKEN) -> tuple[Streams, Client | None]:
        """As a tcp worker gets it: the streams behind the header, and the client in it."""
        reader, writer = await self.behind.get()
        header = ProxyHeader(token)
        while header.needs:
            header.feed(await reader.readexactly(header.needs))
        return (reader, writer), header.client


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[list[Any], asyncio.Queue[Streams]]]:
    taken: asyncio.Queue[Streams] = asyncio.Queue()
    kept: list[Streams] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append((reader, writer))
        taken.put_nowait((reader, writer))

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield list(server.sockets[0].getsockname()), taken
    finally:
        server.close()
        for _, writer in kept:
            writer.transport.abort()


@asynccontextmanager
async def bridge(**change: Any) -> AsyncIterator[Made]:
    async with listening() as (target, behind):
        plan = of_text(to_text(PLAN._replace(target=target)._replace(**change)))
        assert isinstance(plan, WebSocketPlan)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        made = WebSockets(plan)
        seen = Made(made, listener.getsockname()[1], behind)
        serving = asyncio.ensure_future(made.serve(listener))
        try:
            yield seen
        finally:
            for _, writer in seen.kept:
                writer.transport.abort()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            listener.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(limited())


def masked(first: int, payload: bytes) -> bytes:
    return bytes([first, 0x80 | len(payload)]) + bytes(4) + payload


@pytest.fixture(autouse=True)
def no_long_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end of a WebSocket that has ended has less time than ever."""
    monkeypatch.setattr(carry, "LINGER_SECONDS", 0.1)


# -- who comes


def test_bytes_pass_both_ways_and_the_worker_hears_whose_they_are() -> None:
    async def test() -> None:
        async with bridge() as made:
            (reader, writer), talk = await made.open(fields=[("X-Forwarded-For", "203.0.113.9, 192.0.2.7")])
            (worker_reader, worker_writer), client = await made.worker_end()
            assert client == Client("192.0.2.7", 0)
            writer.write(talk.send(BytesMessage(data=b"up" * 50000)))
            assert await worker_reader.readexactly(100000) == b"up" * 50000
            worker_writer.write(b"down" * 50000)
            got = b""
            while len(got) < 200000:
                talk.receive_data(await reader.read(1 << 16))
                got += b"".join(event.data for event in talk.events())
            assert got == b"down" * 50000
            assert made.counts.open == made.counts.opened == 1
            writer.write(talk.send(CloseConnection(code=1000)))
            assert await worker_reader.read() == b""
            worker_writer.close()
            await made.until(open=0)

    run(test)


def test_a_client_that_is_no_proxy_is_believed_in_nothing() -> None:
    async def test() -> None:
        async with bridge(proxies=["192.0.2.1/32"]) as made:
            _, _ = await made.open(fields=[("X-Forwarded-For", "192.0.2.7")])
            _, client = await made.worker_end()
            assert client == Client("127.0.0.1", 0)

    run(test)


def test_bytes_right_behind_the_request_are_not_lost() -> None:
    async def test() -> None:
        async with bridge() as made:
            request = WSConnection(ConnectionType.CLIENT).send(Request(host="www.test", target=PATH))
            await made.connect(request + masked(0x82, b"early"))
            (reader, _), _ = await made.worker_end()
            assert await reader.readexactly(5) == b"early"

    run(test)


def test_the_end_of_the_worker_is_the_end_of_the_websocket() -> None:
    async def test() -> None:
        async with bridge() as made:
            (reader, _), talk = await made.open()
            (_, worker_writer), _ = await made.worker_end()
            worker_writer.write(b"last")
            worker_writer.close()
            talk.receive_data(await reader.read())
            assert [type(event) for event in talk.events()] == [BytesMessage, CloseConnection]
            await made.until(open=0)

    run(test)


@pytest.mark.parametrize("path", ["/", "/hidden/", "/hidden?x", "/Hidden", "/hidde", "//hidden"])
def test_a_websocket_at_another_path_finds_nothing_there(path: str) -> None:
    async def test() -> None:
        async with bridge() as made:
            request = WSConnection(ConnectionType.CLIENT).send(Request(host="www.test", target=path))
            assert (await made.answer_to(request)).startswith(b"HTTP/1.1 404 Not Found\r\n")
            assert made.counts == Counts(not_ours=1)

    run(test)


def test_the_path_without_an_upgrade_is_hidden_like_any_other_and_the_operator_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with bridge() as made:
            asked = [f"GET {path} HTTP/1.1\r\nHost: www.test\r\n\r\n".encode() for path in (PATH, "/other", PATH)]
            answers = {await made.answer_to(each) for each in asked}
            assert len(answers) == 1 and answers.pop().startswith(b"HTTP/1.1 404")
            assert made.counts == Counts(not_ours=3, without_upgrade=2)

    run(test)
    assert caplog.text.count("asks for no WebSocket") == 1


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\x00\r\n", b"GET / HTTP/1.1\r\nA\0\r\n\r\n"])
def test_garbage_gets_the_answer_of_a_web_server(garbage: bytes) -> None:
    async def test() -> None:
        async with bridge() as made:
            assert (await made.answer_to(garbage)).startswith(b"HTTP/1.1 40")

    run(test)


# -- the web server of the site


def test_all_others_are_the_web_servers_with_what_they_have_said() -> None:
    async def test() -> None:
        async with listening() as (address, visits), bridge(web_server=address) as made:
            asking = asyncio.ensure_future(
                made.answer_to(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
            )
            reader, writer = await visits.get()
            told = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"
            assert await reader.readexactly(len(told)) == told
            writer.write(PAGE)
            writer.close()
            assert await asking == PAGE
            await made.open()
            assert made.counts.opened == 1

    run(test)


def test_the_web_server_hears_whose_request_it_is_if_it_wants_that() -> None:
    async def test() -> None:
        async with listening() as (address, visits), bridge(web_server=address, tells_address=True) as made:
            await made.connect(b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
            reader, _ = await visits.get()
            header = ProxyHeader()
            while header.needs:
                header.feed(await reader.readexactly(header.needs))
            assert header.client == Client("192.0.2.7", 0)

    run(test)


def test_visitors_are_bounded_and_a_web_server_that_is_away_is_said() -> None:
    async def test() -> None:
        ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        async with listening() as (address, visits), bridge(web_server=address) as made:
            for _ in range(2):
                await made.connect(ask)
                await visits.get()
            assert (await made.answer_to(ask)).startswith(b"HTTP/1.1 503 ")
            assert made.counts.full == 1
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nowhere = list(closed.getsockname())
        async with bridge(web_server=nowhere) as made:
            assert (await made.answer_to(ask)).startswith(b"HTTP/1.1 503 ")
            assert made.counts.failed == 1

    run(test)


# -- clients that want harm


def test_heads_that_do_not_come_have_their_time_and_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: honest clients get in beside it."""
    monkeypatch.setattr(web_sockets, "ENOUGH_SECONDS", 0.2)

    async def test() -> None:
        async with bridge() as made:
            slow = [await made.connect(b"GET / HTTP/1.1\r\nX: ") for _ in range(4)]
            while len(made.bridge._requests) < 4:
                await asyncio.sleep(0.01)
            assert await made.answer_to(b"GET / HTTP/1.1\r\n\r\n") == b""  # none of them has had its time
            assert made.counts.full == 1
            await asyncio.sleep(0.3)
            await made.open()
            assert made.counts.late == 1
            assert await slow[0][0].read() == b""

    run(test)


def test_a_head_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with bridge(seconds=0.2) as made:
            assert await made.answer_to(b"GET / HTTP/1.1\r\nX: ") == b""
            assert made.counts.late == 1 and not made.bridge._requests

    run(test)


def test_a_head_that_never_ends_is_cut_short() -> None:
    async def test() -> None:
        async with bridge() as made:
            reader, writer = await made.connect(b"GET / HTTP/1.1\r\nX: " + b"x" * 40000)
            with suppress(ConnectionResetError):
                await reader.read()
            writer.close()
            await made.until(late=1)
            assert not made.bridge._requests

    run(test)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x82\x05plain",
        b"\x82\xff" + struct.pack("!Q", 1 << 63),
        masked(0x81, b"text"),
        masked(0xC2, b"compressed"),
    ],
    ids=["no mask", "length", "text", "reserved bit"],
)
def test_frames_that_break_the_rules_end_their_websocket_alone(frames: bytes) -> None:
    async def test() -> None:
        async with bridge() as made:
            (reader, writer), _ = await made.open()
            (_, other_writer), other = await made.open()
            await made.worker_end()
            (worker_reader, _), _ = await made.worker_end()
            writer.write(frames)
            await reader.read()
            other_writer.write(other.send(BytesMessage(data=b"still here")))
            assert await worker_reader.readexactly(10) == b"still here"
            await made.until(open=1)

    run(test)


def test_a_length_without_end_passes_on_what_comes() -> None:
    async def test() -> None:
        async with bridge() as made:
            (_, writer), _ = await made.open()
            (worker_reader, _), _ = await made.worker_end()
            writer.write(b"\x82\xff" + struct.pack("!Q", (1 << 63) - 1) + bytes(4) + b"here")
            assert await worker_reader.readexactly(4) == b"here"

    run(test)


@pytest.mark.parametrize(
    "frame", [masked(0x89, b""), masked(0x8A, b"x"), masked(0x82, b"")], ids=["ping", "pong", "empty"]
)
def test_a_flood_of_frames_without_contents_ends_its_websocket(frame: bytes) -> None:
    async def test() -> None:
        async with bridge() as made:
            (reader, writer), _ = await made.open()
            writer.write(frame * (BARE_BURST + 200))
            with suppress(ConnectionResetError):
                await reader.read()
            writer.close()
            await made.until(bare_frames=1, open=0)

    run(test)


def test_a_ping_now_and_then_is_answered() -> None:
    async def test() -> None:
        async with bridge() as made:
            (reader, writer), talk = await made.open()
            for _ in range(20):
                writer.write(talk.send(Ping(payload=b"alive")))
                assert await reader.readexactly(7) == b"\x8a\x05alive"
            assert made.counts == Counts(open=1, opened=1)

    run(test)


def test_an_end_that_takes_nothing_holds_the_other_one_back_and_little_waits() -> None:
    async def test() -> None:
        async with bridge() as made:
            await made.open()
            (_, worker_writer), _ = await made.worker_end()
            sock = worker_writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
            sent = 0
            with pytest.raises(TimeoutError):
                while True:
                    worker_writer.write(bytes(1 << 16))
                    async with asyncio.timeout(0.5):
                        await worker_writer.drain()
                    sent += 1 << 16
            assert sent < 16 << 20  # buffers of sockets, which the kernel bounds

    run(test)


def test_websockets_beyond_their_number_find_no_place() -> None:
    async def test() -> None:
        async with bridge() as made:
            for _ in range(4):
                await made.open()
            request = WSConnection(ConnectionType.CLIENT).send(Request(host="www.test", target=PATH))
            assert (await made.answer_to(request)).startswith(b"HTTP/1.1 503 ")
            assert made.counts.full == 1

    run(test)


def test_without_a_worker_behind_it_says_so() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nowhere = list(closed.getsockname())
        async with bridge(target=nowhere) as made:
            request = WSConnection(ConnectionType.CLIENT).send(Request(host="www.test", target=PATH))
            assert (await made.answer_to(request)).startswith(b"HTTP/1.1 503 ")
            assert made.counts == Counts(failed=1)

    run(test)
