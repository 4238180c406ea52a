"""Ways from the bridge to the server: TLS to a proxy and then CONNECT, a command's standard input and output, or a
WebSocket of a web server, which may be behind a proxy.

open_far_end(plan, context, host, port)    a FarEnd that leads to the server; NoWay says why there is none
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

from pipeline.bridge.carry import CHUNK_BYTES
from pipeline.bridge.plan import BridgePlan
from pipeline.bridge.socket_ends import FarEnd, WebSocketEnd, configure
from pipeline.log import LOG
from pipeline.plain_text import escaped
from pipeline.runtime import privileges
from pipeline.transport import failure_words
from pipeline.transport.approach import make_approach
from pipeline.transport.uplink_names import look_up_around, uplink_servers
from pipeline.wire.approach import Proxy
from pipeline.wire.websocket import WebSocket
from pipeline.wire.websocket_stream import Received

NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305
EARLY_SECONDS = 0.1  # a command that ends within that has found no way; one that looks for longer is taken at its word
KILL_SECONDS = 1.0  # from SIGTERM to SIGKILL
LINE_BYTES_MAX = 500  # of what a command says on its standard error
LINES_MAX = 20  # of one command, in the log

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LANG = "C.UTF-8"

WEB_SERVER_CLOSED = "the web server has closed the connection without an answer"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NoWay(Exception):
    """There is no way to the server, with the reason in words."""


class CommandEnd(FarEnd):
    """A command, which ends with the connection, and its process group with it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        super().__init__(process.stdout, process.stdin)
        self._process = process
        self._said = b""  # its last line
        self._errors = process.stderr
        self._listener = asyncio.ensure_future(self._log_errors())

    async def ended_early(self) -> str:
        """Why it has ended at once; "" if it has not."""
        with suppress(TimeoutError):
            status = await asyncio.wait_for(self._process.wait(), EARLY_SECONDS)
            await self._listener
            said = self._said.decode(errors="replace")
            return f"proxy_command has ended at once (exit status {status}){f': {said}' if said else ''}"
        return ""

    async def close(self) -> None:
        await super().close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._process.wait()), KILL_SECONDS)
        self._listener.cancel()
        # what the command has left in the background may hold its output open for ever
        self._process._transport.close()  # type: ignore[attr-defined]

    async def _log_errors(self) -> None:
        lines = 0
        with suppress(OSError, ValueError):
            while line := await self._errors.readline():
                self._said = line.rstrip()[:LINE_BYTES_MAX] or self._said
                lines += 1
                if lines <= LINES_MAX:
                    LOG.info("proxy_command: %s", escaped(self._said.decode(errors="backslashreplace")))


async def open_far_end(plan: BridgePlan, context: ssl.SSLContext, host: str, port: int) -> FarEnd:
    try:
        async with asyncio.timeout(plan.seconds):
            if plan.command:
                return await _run_command(plan.command, host, port)
            return await _connect(plan, context, host, port)
    except TimeoutError:
        raise NoWay("no answer in time") from None
    except ssl.SSLError as error:
        where = "TLS to the web server" if plan.websocket else "TLS to the proxy"
        raise NoWay(f"{where}: {failure_words.of_error(error)}") from None
    except OSError as error:
        known = failure_words.OF_SOCKETS.get(error.errno or 0)  # asyncio has a text of its own
        raise NoWay(known or failure_words.of_error(error)) from None


# -- TLS to a proxy


def proxy_context(ca_pem: str) -> ssl.SSLContext:
    """TLS to a proxy, whose certificate a CA must vouch for: one of these, or of the system's for ""."""
    context = ssl.create_default_context(cadata=ca_pem or None)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _connect(plan: BridgePlan, context: ssl.SSLContext, host: str, port: int) -> FarEnd:
    url = plan.websocket
    if url is None:
        assert plan.proxy is not None
        return FarEnd(*await _through_proxy(plan, plan.proxy, context, host, port))
    name = url.host if url.scheme == "wss" else None
    if plan.proxy is None:
        reader, writer = await _dial(plan, url.host, url.port, context if name else None)
        first = b""
    else:
        reader, writer, first = await _through_proxy(plan, plan.proxy, context, url.host, url.port)
        if name:
            await writer.start_tls(context, server_hostname=name)
    try:
        return await _open_websocket(reader, writer, first, WebSocket(url))
    except BaseException:
        writer.close()
        raise


async def _dial(plan: BridgePlan, host: str, port: int, context: ssl.SSLContext | None) -> Streams:
    name = host if context is not None else None

    async def to(dialed: str) -> Streams:
        return await asyncio.open_connection(
            *(dialed, port),
            ssl=context,
            server_hostname=name,
            happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
            limit=CHUNK_BYTES,
        )

    try:
        reader, writer = await to(host)
    except socket.gaierror:
        if not plan.asks_around:
            raise
        found = await asyncio.to_thread(look_up_around, host, port, uplink_servers())
        if not found:
            raise
        reader, writer = await to(found[0].host)
    configure(writer.get_extra_info("socket"), plan.timeout, plan.notsent_lowat)
    return reader, writer


async def _through_proxy(
    plan: BridgePlan, proxy: Proxy, context: ssl.SSLContext, host: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Also the bytes that came behind the proxy's answer."""
    has_tls = proxy.scheme == "https"
    reader, writer = await _dial(plan, proxy.host, proxy.port, context if has_tls else None)
    try:
        approach = make_approach(proxy._replace(scheme="http") if has_tls else proxy, host, port)
        writer.write(approach.begin())
        while True:
            data = await reader.read(CHUNK_BYTES)
            if not data:
                raise NoWay(approach.closed())
            step = approach.feed(data)
            writer.write(step.send)
            if step.failure:
                raise NoWay(step.failure)
            if step.done:
                return reader, writer, data[step.used :]
    except BaseException:
        writer.close()
        raise


async def _open_websocket(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, websocket: WebSocket
) -> FarEnd:
    writer.write(websocket.begin())
    data = first
    while True:
        got = websocket.receive(data) if data else Received()
        if got.failure:
            raise NoWay(got.failure)
        if got.is_open:
            return WebSocketEnd(reader, writer, websocket, got.data)
        data = await reader.read(CHUNK_BYTES)
        if not data:
            raise NoWay(WEB_SERVER_CLOSED)


# -- a command


async def _run_command(command: Sequence[str], host: str, port: int) -> FarEnd:
    argv = [expand(word, host, port) for word in command]
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=CHUNK_BYTES,
            env={"PATH": PATH, "LANG": LANG},
            cwd="/",
            start_new_session=True,
            preexec_fn=_end_with_the_bridge,
        )
    except OSError as error:
        raise NoWay(f"proxy_command cannot be started: {argv[0]}: {error.strerror}") from None
    far_end = CommandEnd(process)
    if failure := await far_end.ended_early():
        await far_end.close()
        raise NoWay(failure)
    return far_end


def expand(word: str, host: str, port: int) -> str:
    """%h, %p and %% of a word, as ssh_config(5) has them."""
    pieces = {"h": host, "p": str(port), "%": "%"}
    found = word.split("%")
    text, rest = found[0], iter(found[1:])
    for piece in rest:
        if not piece:  # %%
            text += "%" + next(rest, "")
        else:
            text += pieces.get(piece[0], "%" + piece[0]) + piece[1:]
    return text


def _end_with_the_bridge() -> None:
    """In the child, before exec: no signal is blocked, as in the bridge, and SIGKILL comes when the bridge dies."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    privileges.prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
