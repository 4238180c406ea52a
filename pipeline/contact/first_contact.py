"""A command asks a server, with a key, for a new key in place of an invitation's, or to be forgotten.

    exchange(server, key, private)    the new key, and the name of the peer that has it
    leave(server, key)                the server forgets the peer

One connection, one handshake (docs/wire.md), no tunnel. The key and the private value are in this process alone. The
server must show the pinned certificate and prove the key before anything that it says is believed; only a refusal is
not proved.

FirstContactError says how an attempt has ended:

    is_final      another attempt would end in the same way
    is_open       the server may have done what it was asked for
    is_settled    the server says that it has not, and never will
    reason        of a refusal; else 0
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
import time
from typing import NamedTuple

from pipeline.bridge.bridge import dial
from pipeline.bridge.far_end import NoWay, proxy_context
from pipeline.bridge.plan import BridgePlan
from pipeline.config import Config
from pipeline.config.values import Endpoint
from pipeline.credentials import key_exchange, tls_settings
from pipeline.errors import LocalError, PeerError
from pipeline.log import printable
from pipeline.supervisor.processes.bridge import plan_of
from pipeline.transport import approach, failure_words
from pipeline.transport.approach import ApproachFailed
from pipeline.transport.tls_context import TlsContext, context_of
from pipeline.wire import auth, framing, messages
from pipeline.wire.approach import Proxy
from pipeline.wire.messages import Challenge, Done, Hello, Message, Proof, Refused, Welcome

ADDRESS_DELAY = 0.25  # seconds before the next address of the server is tried beside the one before (RFC 8305)
SILENCE_SECONDS = 10.0  # how long the server may take for each step, as its handshake_timeout

REFUSAL_SECONDS = 0.02
"""A server near by has refused our certificate by then, with TLS 1.3 after our handshake. A write before its reason is
read finds the connection reset, and the reason is lost."""

SETTLING_REASONS = (
    messages.INVITATION_USED,
    messages.INVITATION_EXPIRED,
    messages.INVITATION_REVOKED,
    messages.NEEDS_JOIN,
)
ADDRESS_SECONDS = 3.0  # for each of several servers, until there is TLS: another one is to have its turn
FINAL_REASONS = (*SETTLING_REASONS, messages.WRONG_VERSION, messages.SHUT_OUT)

UNKNOWN = (
    "the server does not know this key: the peer was revoked or invited anew, the line was altered, or another server "
    "is at this address"
)
ANOTHER = (
    "it is another server than the one that has made the invitation, or that server has another certificate now: ask "
    "for another invitation"
)
NOT_THE_MAKER = "this server has not made the invitation, and the one that has must answer first"


class FirstContactError(LocalError):
    def __init__(
        self, text: str, *, is_final: bool = False, is_open: bool = False, is_settled: bool = False, reason: int = 0
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.is_final = is_final
        self.is_open = is_open
        self.is_settled = is_settled


class Exchanged(NamedTuple):
    """`name`: "" if the server does not exchange keys, since it is older, or has the key in its configuration."""

    key: bytes
    name: str


class Server(NamedTuple):
    """`config`: of the client whose server it is; `context`: TLS to it; `pin`: the hash of its certificate, if that is
    known. `proxy`: on the way there. `bridge`: the plan of one, where something must stay around the connection.
    `patience`: seconds for each of its answers."""

    config: Config
    endpoint: Endpoint
    context: TlsContext
    pin: bytes = b""
    proxy: Proxy | None = None
    bridge: BridgePlan | None = None
    patience: float = SILENCE_SECONDS

    @classmethod
    def all_of(cls, config: Config, key: bytes, pin: bytes = b"") -> list[Server]:
        """The servers of a client, the preferred one first. ConfigError if a file that a setting names cannot be used.

        `pin`: where the configuration has none.
        """
        loaded = tls_settings.load(config, key=key)
        if loaded.tls is None:
            raise LocalError('encryption is "none": there is no key')
        context, bridge = context_of(loaded.tls, server=False), plan_of(config, loaded, "", None)
        pin = config.server_certificate_hash or pin
        endpoints = config.remote_endpoints or (config.remote_endpoint,)
        return [cls(config, each, context, pin, loaded.proxy, bridge) for each in endpoints]

    @property
    def is_alone(self) -> bool:
        return not self.config.has_several_servers

    @property
    def text(self) -> str:
        return self.config.remote_text if self.is_alone else str(self.endpoint)


def exchange(server: Server, key: bytes, private: bytes) -> Exchanged:
    public = key_exchange.public_of(private)
    answer = _ask(server, key, exchange=public)
    if isinstance(answer, Welcome):
        return Exchanged(key, "")
    try:
        new = key_exchange.new_key(key, private, client_public=public, server_public=answer.exchange)
    except ValueError:
        raise FirstContactError("the server's public value makes no key", is_final=True) from None
    return Exchanged(new, answer.name)


def leave(server: Server, key: bytes) -> bool:
    """Whether the server has forgotten the peer: an older one does not."""
    return isinstance(_ask(server, key, leaves=True), Done)


def expect_known(server: Server, key: bytes) -> None:
    """FirstContactError unless the server proves that it knows this key. No session there begins or ends.

    An older server refuses the question, and does so only where it knows the key.
    """
    try:
        _ask(server, key, version=messages.ASKS)
    except FirstContactError as error:
        if error.reason != messages.WRONG_VERSION:
            raise


def _ask(
    server: Server, key: bytes, exchange: bytes = b"", leaves: bool = False, version: int = messages.VERSION
) -> Done | Welcome:
    hello = Hello(
        version=version,
        offloads=0,
        connection_index=0,
        connections=1,
        mtu=server.config.mtu,
        client_id=0,
        session=time.time_ns(),
        traffic_class=framing.BULK,
        features=0,
        auth=messages.AUTH_KEY,
        key_id=auth.key_id(key),
        nonce=secrets.token_bytes(messages.NONCE_BYTES),
        exchange=exchange,
        leaves=leaves,
    )
    return asyncio.run(_converse(server, key, hello))


async def _converse(server: Server, key: bytes, hello: Hello) -> Done | Welcome:
    carriers: list[asyncio.Future[None]] = []
    way = f"{server.config.way_text}: " if server.config.way_text else ""
    try:
        seconds = SILENCE_SECONDS if server.is_alone else ADDRESS_SECONDS
        reader, writer = await asyncio.wait_for(_connect(server, carriers), seconds)
    except (ApproachFailed, NoWay) as error:
        raise FirstContactError(way + printable(str(error).removeprefix(way))) from None
    except TimeoutError:
        raise FirstContactError(f"{way}no answer") from None
    except ssl.SSLError as error:
        raise FirstContactError(printable(failure_words.of_error(error)), is_final=True) from None
    except OSError as error:
        known = failure_words.OF_SOCKETS.get(error.errno or 0)  # asyncio has a text of its own
        raise FirstContactError(way + (known or printable(failure_words.of_error(error)))) from None
    try:
        return await _Conversation(reader, writer, server, key).ask(hello)
    finally:
        writer.transport.abort()
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)


async def _connect(
    server: Server, carriers: list[asyncio.Future[None]]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TLS to the server. `carriers`: gets what has to be cancelled in the end."""
    endpoint = server.endpoint
    name = server.config.tls_server_name or endpoint.host.partition("%")[0]
    if server.bridge is not None:
        sock, carrier = await dial(server.bridge, proxy_context(server.bridge.ca_pem), *endpoint)
        carriers.append(carrier)
    elif server.proxy is not None:
        sock = await asyncio.to_thread(approach.connect, server.proxy, *endpoint, SILENCE_SECONDS)
    else:
        return await asyncio.open_connection(
            *endpoint, ssl=server.context, server_hostname=name, happy_eyeballs_delay=ADDRESS_DELAY
        )
    sock.setblocking(False)
    return await asyncio.open_connection(sock=sock, ssl=server.context, server_hostname=name)


class _Conversation:
    """The handshake on one connection. `is_open`: the server may have done by now what HELLO asks for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Server, key: bytes) -> None:
        self._reader, self._writer = reader, writer
        self._server = server
        self._context = server.context
        self._key = key
        self._is_open = False

    async def ask(self, hello: Hello) -> Done | Welcome:
        await asyncio.sleep(REFUSAL_SECONDS)
        shown = await self._certificate_hash()
        hello = hello._replace(knock=self._knock(hello))
        self._writer.write(hello.frame())
        challenge, challenge_frame = await self._receive()
        if isinstance(challenge, Refused):
            raise self._refused(challenge)
        if not isinstance(challenge, Challenge):
            raise FirstContactError("the server proves nothing: it has no keys", is_final=True)
        transcript = auth.transcript(hello.frame(), challenge_frame, shown)
        self._is_open = True
        self._writer.write(Proof(auth.client_proof(self._key, transcript)).frame())
        answer, frame = await self._receive()
        match answer:
            case Refused():
                raise self._refused(answer)
            case Done() if auth.done_proved(self._key, transcript, frame):
                return answer
            case Welcome() if auth.server_proved(self._key, transcript, frame):
                return answer
        raise FirstContactError("the server has not proved that it has our key", is_final=True, is_open=True)

    def _knock(self, hello: Hello) -> bytes:
        binding = self._writer.get_extra_info("ssl_object").get_channel_binding("tls-unique")
        return auth.knock(auth.knock_key(self._key), hello.nonce, binding)

    async def _certificate_hash(self) -> bytes:
        channel = self._writer.get_extra_info("ssl_object")
        try:
            certificate = channel.getpeercert(binary_form=True)
        except ValueError:  # with TLS 1.3 the server refuses our certificate, or the lack of one, after our handshake
            await self._receive()
            raise FirstContactError(failure_words.ENDED_EARLY) from None
        if not self._context.accepts(channel.selected_alpn_protocol()):
            raise FirstContactError(failure_words.NO_TUNNEL, is_final=True)
        found = hashlib.sha256(certificate).digest()
        if self._server.pin and found != self._server.pin:
            raise FirstContactError(ANOTHER if self._server.is_alone else NOT_THE_MAKER, is_final=True)
        return found

    async def _receive(self) -> tuple[Message, bytes]:
        try:
            return await asyncio.wait_for(self._receive_frame(), self._server.patience)
        except TimeoutError:
            raise FirstContactError("the server does not answer", is_open=self._is_open) from None
        except asyncio.IncompleteReadError:
            text = UNKNOWN if self._is_open else failure_words.ENDED_EARLY
            raise FirstContactError(text, is_open=self._is_open) from None
        except ssl.SSLError as error:
            text = printable(failure_words.of_error(error))
            raise FirstContactError(text, is_final=True, is_open=self._is_open) from None
        except OSError as error:
            raise FirstContactError(printable(failure_words.of_error(error)), is_open=self._is_open) from None
        except PeerError as error:
            text = f"what answers there is no tunnel: {printable(str(error))}"
            raise FirstContactError(text, is_final=True, is_open=self._is_open) from None

    async def _receive_frame(self) -> tuple[Message, bytes]:
        head = await self._reader.readexactly(framing.LENGTH.size)
        (length,) = framing.LENGTH.unpack(head)
        if length > framing.WELCOME_LENGTH_LIMIT:
            raise PeerError(f"frame of {length} bytes")
        frame = head + await self._reader.readexactly(length)
        return messages.decode(frame), frame

    def _refused(self, refused: Refused) -> FirstContactError:
        """The server's words, or ours, which a later version may have changed there."""
        is_settled = refused.reason in SETTLING_REASONS
        text = messages.REASONS[refused.reason] if is_settled else refused.text
        return FirstContactError(
            printable(text),
            is_final=refused.reason in FINAL_REASONS,
            is_open=self._is_open and not is_settled,
            is_settled=is_settled,
            reason=refused.reason,
        )
