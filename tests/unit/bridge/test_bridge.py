"""The bridge between a worker and what must stay around a connection: TLS to a proxy, or a command. All is real."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.bridge.bridge import Bridge
from pipeline.bridge.far_end import expand, proxy_context
from pipeline.bridge.plan import BridgePlan, of_text, to_text
from pipeline.wire.approach import Proxy
from pipeline.wire.bridge_approach import BridgeApproach
from tests.harness.tls_ends import Pair, issue

TOKEN = bytes(range(16)).hex()
LET_IN = b"HTTP/1.1 200 OK\r\n\r\n"
FIRST = b"the server's first bytes"
SECONDS = 10.0

PLAN = BridgePlan("test", None, TOKEN, None, [], None, "", SECONDS, 5.0, 131072, "info", "text")

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def bridge(**change: Any) -> AsyncIterator[int]:
    """The port of a bridge with this plan."""
    plan = of_text(to_text(PLAN._replace(**change)))
    assert isinstance(plan, BridgePlan)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    serving = asyncio.ensure_future(Bridge(plan, proxy_context(plan.ca_pem)).serve(listener))
    try:
        yield listener.getsockname()[1]
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


async def through(port: int, token: str = TOKEN, host: str = "127.0.0.1", to: int = 9) -> tuple[Ends, str]:
    """As a worker does it: both streams, and why there is no way to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    approach = BridgeApproach(host, to, token)
    writer.write(approach.begin())
    while True:
        data = await reader.read(1)
        if not data:
            return (reader, writer), approach.closed()
        step = approach.feed(data)
        if step.done or step.failure:
            return (reader, writer), step.failure


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(limited())


# -- a command


@pytest.mark.parametrize(
    ("word", "expanded"),
    [("%h:%p", "hub.test:9"), ("100%%h", "100%h"), ("%%%h", "%hub.test"), ("%x%", "%x%"), ("plain", "plain"), ("", "")],
)
def test_host_and_port_stand_where_ssh_has_them(word: str, expanded: str) -> None:
    assert expand(word, "hub.test", 9) == expanded


def test_bytes_go_through_a_command_and_end_with_it() -> None:
    async def test() -> None:
        async with bridge(command=["/bin/cat"]) as port:
            (reader, writer), failure = await through(port)
            assert failure == ""
            sent = os.urandom(3_000_000)
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    run(test)


def test_a_command_gets_host_and_port_and_few_variables() -> None:
    async def test() -> None:
        command = ["/bin/sh", "-c", 'echo "$0 $1 $HOME"; cat', "%h", "%p"]
        async with bridge(command=command) as port:
            (reader, writer), _ = await through(port, host="hub.test", to=443)
            assert await reader.readline() == b"hub.test 443 \n"
            writer.close()

    run(test)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/bin/sh", "-c", "echo one >&2; echo no way >&2; exit 3"], "ended at once (exit status 3): no way"),
        (["/nowhere/nc"], "cannot be started: /nowhere/nc: No such file or directory"),
    ],
)
def test_a_command_that_fails_at_once_is_quoted(command: list[str], words: str) -> None:
    async def test() -> None:
        async with bridge(command=command) as port:
            (_, writer), failure = await through(port)
            assert words in failure
            writer.close()

    run(test)


def test_a_command_and_what_it_has_started_end_with_the_connection() -> None:
    async def test() -> None:
        command = ["/bin/sh", "-c", 'trap "" TERM; sleep 60 & echo $$ $!; wait; sleep 60']
        async with bridge(command=command) as port:
            (reader, writer), _ = await through(port)
            pids = [int(word) for word in (await reader.readline()).split()]
            writer.close()
            while any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
                await asyncio.sleep(0.01)

    run(test)


# -- TLS to a proxy


@pytest.fixture(scope="module")
def ca() -> Pair:
    return issue("ca", is_ca=True)


@asynccontextmanager
async def tls_proxy(pair: Pair, directory: Path, answer: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Port of a proxy that sends what it gets back behind its answer, and what it was asked."""
    asked: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, text in (("crt", pair.certificate), ("key", pair.key)):
        (directory / name).write_text(text)
    context.load_cert_chain(directory / "crt", directory / "key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


def proxy_at(port: int) -> Proxy:
    return Proxy("https", "localhost", port, ("user", "word"))


def test_a_proxy_is_asked_in_tls_and_no_byte_behind_its_answer_is_lost(ca: Pair, tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            tls_proxy(issue("localhost", ca), tmp_path, LET_IN + FIRST) as (port, asked),
            bridge(proxy=proxy_at(port), ca_pem=ca.certificate) as near,
        ):
            (reader, writer), failure = await through(near, host="hub.test", to=443)
            assert failure == "" and asked[0].startswith(b"CONNECT hub.test:443 ") and b"Basic" in asked[0]
            assert await reader.readexactly(len(FIRST)) == FIRST
            sent = os.urandom(3_000_000)
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            writer.close()

    run(test)


def test_a_refusal_of_the_proxy_reaches_the_worker_in_words(ca: Pair, tmp_path: Path) -> None:
    async def test() -> None:
        answer = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n"
        async with (
            tls_proxy(issue("localhost", ca), tmp_path, answer) as (port, _),
            bridge(proxy=proxy_at(port), ca_pem=ca.certificate) as near,
        ):
            (_, writer), failure = await through(near)
            assert "does not accept this user and password" in failure
            writer.close()

    run(test)


def test_a_certificate_of_another_name_or_ca_is_refused_before_the_login_is_sent(ca: Pair, tmp_path: Path) -> None:
    async def test() -> None:
        other = issue("other", is_ca=True)
        for pair, trusted in ((issue("elsewhere.test", ca), ca), (issue("localhost", other), ca)):
            async with (
                tls_proxy(pair, tmp_path, LET_IN) as (port, asked),
                bridge(proxy=proxy_at(port), ca_pem=trusted.certificate) as near,
            ):
                (_, writer), failure = await through(near)
                assert "certificate is not accepted here" in failure and asked == []
                writer.close()

    run(test)


def test_without_the_token_nobody_gets_through(ca: Pair) -> None:
    async def test() -> None:
        async with bridge(command=["/bin/cat"]) as port:
            (_, writer), failure = await through(port, token=bytes(16).hex())
            assert "our own bridge has closed the connection" in failure
            writer.close()

    run(test)
