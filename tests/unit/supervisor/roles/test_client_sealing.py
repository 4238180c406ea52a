"""A client's sealed session: which answers of a server begin one, go on with it, or are refused, and why."""

from __future__ import annotations

import gc
import os
import secrets
import ssl
from collections.abc import Iterator

import pytest

from pipeline.config import parse
from pipeline.credentials import certificates
from pipeline.observe.sentence import DOCTOR, describe
from pipeline.runtime.plan import Reserve
from pipeline.runtime.supervisor_channel import Seal
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305, SUITES
from pipeline.sealing.session import NO_HASH, KeyShare, Offer, SealedSession, answer_key_share, answer_offer, hash_of
from pipeline.shm import peer_table, segment
from pipeline.shm.datagram_secrets import DatagramSecretTable, DatagramServer
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.supervisor.roles.client_role import ClientRole
from pipeline.supervisor.roles.client_sealing import (
    FOREIGN_CERTIFICATE,
    FOREIGN_SESSION,
    KEEP_USED_NS,
    NO_KEY_SHARE,
    OLD_KEY_SHARE,
    USED_OFFER,
    ClientSealing,
    preferred_suite,
)
from pipeline.transport.settings import TlsMaterial
from pipeline.wire.handshake import Cause, ClientHandshake, Failed
from pipeline.wire.messages import VERSION, Welcome
from tests.harness.hub import hello
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.snapshots import snapshot
from tests.unit.sealing.test_session import LOW_ORDER

KEY, NOW = b"k" * 32, 1_000_000_000
CLIENT_ID, SESSION = 5, 6
OWN, OTHER = (certificates.make_self_signed(name) for name in ("own", "other"))


def der(pair: certificates.CertificatePair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


def hello_frame(key_share: bytes, session: int = SESSION) -> bytes:
    return hello(b"", key_share=key_share)._replace(nonce=bytes(32), session=session).frame()


class Client:
    """A client's sealing with a key table and a peer table of its own, and servers that answer its offer."""

    def __init__(self) -> None:
        self.keys, self._fd = KeyTable.create(1)
        self.secrets, self._secrets_fd = DatagramSecretTable.create(1)
        self.table = self._table()
        self.sealing = ClientSealing(self.keys, self.secrets)
        self.sealing.start(self.table, NOW)
        self.settings = WORKER_SETTINGS._replace(client_id=CLIENT_ID, session=SESSION)
        self.first = self.sealing.key_share  # that a HELLO of these tests has, unless they say otherwise
        self.now = NOW

    @staticmethod
    def _table() -> peer_table.PeerTable:
        return peer_table.create(f"/tunnel@sealtest@{secrets.token_hex(4)}@peer-table", 1, 1, 4)

    def show(self, pem: str) -> None:
        """The client has this certificate."""
        self.settings = self.settings._replace(tls=TlsMaterial(pem, "", "", "1.3", ""))

    def server(self, offer: KeyShare | None = None, key: bytes = KEY, session: int = SESSION) -> SealedSession:
        """A server that has just begun the session of this client, or of another offer."""
        offer = offer or KeyShare.of_client(self.sealing.key_share)
        assert offer is not None
        return answer_offer(offer, AES_256_GCM, key, CLIENT_ID, session)

    def take(
        self, key_share: bytes, welcome: bytes = b"welcome", offered: bytes = b"", session: int = SESSION
    ) -> tuple[Seal | None, str]:
        """A WELCOME comes for a HELLO that has `offered`."""
        request = {
            "serial": 7,
            "server": "192.0.2.1",
            "hello": hello_frame(offered or self.first, session).hex(),
            **{name: name.encode().hex() for name in ("challenge", "hash")},
            "welcome": welcome.hex(),
        }
        return self.sealing.take(request, key_share, KEY, self.settings, self.now)

    def connect(self, server: SealedSession, welcome: bytes = b"welcome", offered: bytes = b"") -> int:
        """A WELCOME of this server comes: the peer handle of the session that both ends are in then."""
        offered = offered or bytes([preferred_suite()]) + server.context.client_key_share
        seal, why = self.take(answer_key_share(server, b"").pack(), welcome, offered)
        assert not why and seal is not None
        theirs = server.connection_secrets(hello_frame(offered), b"challenge", welcome, b"hash")
        assert (seal["suite"], seal["send"], seal["receive"]) == (
            theirs.suite,
            theirs.receive.hex(),
            theirs.send.hex(),
        )
        handle = self.table.peer_handle(0)
        keys = self.keys.read(handle)
        assert keys is not None and (keys.send, keys.open_now) == (server.keys().open_now, server.keys().send)
        return handle

    def refusal(self, key_share: bytes) -> str:
        """The reason against an answer, which changes nothing."""
        before = self.state()
        seal, why = self.take(key_share)
        assert seal is None and self.state() == before
        return why

    def state(self) -> tuple[object, ...]:
        handle = self.table.peer_handle(0)
        return handle, self.keys.version(handle), self.sealing.session

    def close_table(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()

    def close(self) -> None:
        self.close_table()
        for table, fd in ((self.keys, self._fd), (self.secrets, self._secrets_fd)):
            table.close()
            os.close(fd)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


# -- sessions


def test_before_an_answer_there_is_a_peer_and_no_key(client: Client) -> None:
    assert client.sealing.session is None and client.table.peer_handle(0) == FIRST_PEER_HANDLE
    assert client.keys.read(FIRST_PEER_HANDLE) is None


def test_the_connections_of_one_session_keep_its_keys_and_have_secrets_of_their_own(client: Client) -> None:
    server = client.server()
    first = client.connect(server)
    before = client.state()
    assert client.connect(server, b"another welcome") == first == FIRST_PEER_HANDLE
    assert client.state() == before
    one, other = (client.take(answer_key_share(server, b"").pack(), each)[0] for each in (b"1", b"2"))
    assert one is not None and other is not None and one["send"] != other["send"]


def test_a_session_goes_on_in_its_epochs_whatever_connections_come(client: Client) -> None:
    server = client.server()
    client.connect(server)
    for session, begin in ((client.sealing.session, server.open_next), (server, client.sealing.session.open_next)):
        session.send_next()
        begin()
    handle = client.table.peer_handle(0)
    client.take(answer_key_share(server, b"").pack())
    assert client.sealing.session.send_epoch == 1 and client.table.peer_handle(0) == handle


def test_a_server_that_was_started_again_brings_another_session_and_the_keys_of_before_are_gone(client: Client) -> None:
    handles, keys = [], []
    for _ in range(4):
        handles.append(client.connect(client.server()))
        keys.append(client.keys.read(handles[-1]))
        assert not any(client.keys.read(each) for each in handles[:-1])
    assert handles == [FIRST_PEER_HANDLE * number for number in range(1, 5)]
    assert len({key for each in keys for key in (each.send, each.open_now, each.open_after)}) == 12


def test_new_shared_memory_has_the_session_of_before_with_its_handle(client: Client) -> None:
    client.connect(client.server())
    server = client.server()
    handle = client.connect(server)
    client.close_table()
    client.table = client._table()
    client.sealing.start(client.table, NOW)
    assert client.connect(server) == handle == 2 * FIRST_PEER_HANDLE


# -- several servers


RESERVE = Reserve("b", 9000, 99, [], False)


def in_reserve(client: Client) -> tuple[SealedSession, int]:
    """A client that is at one server has a session with another one: that session, and its peer handle."""
    client.connect(client.server())
    client.settings = client.settings._replace(reserve=RESERVE)
    client.sealing.follow(client.settings, NOW)
    before = client.state()
    other = client.server(session=RESERVE.session)
    offered = bytes([preferred_suite()]) + other.context.client_key_share
    seal, why = client.take(answer_key_share(other, b"").pack(), b"hello", offered, RESERVE.session)
    assert seal is not None and not why and client.state() == before, "nothing goes there yet"
    return other, seal["peer_handle"]


def test_a_session_in_reserve_changes_nothing_until_it_is_the_present_one(client: Client) -> None:
    other, handle = in_reserve(client)
    assert handle != client.table.peer_handle(0) and client.keys.read(handle) is None
    client.settings = client.settings._replace(session=RESERVE.session, reserve=None)
    client.sealing.follow(client.settings, NOW)
    assert client.table.peer_handle(0) == handle
    keys = client.keys.read(handle)
    assert keys is not None and (keys.send, keys.open_now) == (other.keys().open_now, other.keys().send)
    before = client.state()
    client.sealing.follow(client.settings, NOW)
    assert client.state() == before


def test_connections_of_a_session_in_reserve_have_its_peer_handle(client: Client) -> None:
    other, handle = in_reserve(client)
    offered = bytes([preferred_suite()]) + other.context.client_key_share
    again, _ = client.take(answer_key_share(other, b"").pack(), b"more", offered, RESERVE.session)
    assert again is not None and again["peer_handle"] == handle


def test_a_server_that_the_client_has_left_begins_no_session_any_more(client: Client) -> None:
    in_reserve(client)
    client.settings = client.settings._replace(session=RESERVE.session, reserve=None)
    client.sealing.follow(client.settings, NOW)
    assert client.refusal(answer_key_share(client.server(), b"").pack()) == FOREIGN_SESSION


# -- datagrams


SERVER, ELSEWHERE = DatagramServer.at("192.0.2.1", 443), DatagramServer.at("fe80::1", 443, 3)


def test_a_session_has_secrets_of_datagrams_while_its_server_takes_them_and_where_it_is(client: Client) -> None:
    server = client.server()
    handle = client.connect(server)
    assert client.secrets.read_index(0) is None
    for place in (SERVER, ELSEWHERE):
        client.sealing.use_datagrams(SESSION, place)
        found = client.secrets.read(handle)
        theirs = server.datagram_secrets()
        assert (found.suite, found.send, found.receive) == (theirs.suite, theirs.receive, theirs.send)
        assert (found.host, found.port, found.scope, found.fake_tcp_port) == place
    version = client.secrets.version(handle)
    client.sealing.use_datagrams(SESSION, ELSEWHERE)
    assert client.secrets.version(handle) == version
    client.sealing.use_datagrams(SESSION, None)
    assert client.secrets.read_index(0) is None


def test_another_session_has_no_datagrams_before_its_server_says_so(client: Client) -> None:
    client.connect(client.server())
    client.sealing.use_datagrams(SESSION, SERVER)
    handle = client.connect(client.server())
    assert client.secrets.read_index(0) is None
    client.sealing.use_datagrams(SESSION, SERVER)
    assert client.secrets.read(handle) is not None


def test_secrets_of_a_session_in_reserve_are_there_once_it_is_the_present_one(client: Client) -> None:
    other, handle = in_reserve(client)
    client.sealing.use_datagrams(SESSION, SERVER)
    before = client.secrets.read_index(0)
    client.sealing.use_datagrams(RESERVE.session, ELSEWHERE)
    assert client.secrets.read_index(0) == before
    client.settings = client.settings._replace(session=RESERVE.session, reserve=None)
    client.sealing.follow(client.settings, NOW)
    found = client.secrets.read(handle)
    assert found.send == other.datagram_secrets().receive and found.host == ELSEWHERE.host


def test_in_other_memory_a_session_goes_on_with_its_datagrams(client: Client) -> None:
    handle = client.connect(client.server())
    client.sealing.use_datagrams(SESSION, SERVER)
    before = client.secrets.read(handle)
    client.close_table()
    client.table = client._table()
    client.sealing.start(client.table, NOW)
    assert client.secrets.read(handle) == before
    client.sealing.use_datagrams(SESSION, None)
    assert client.secrets.read_index(0) is None


# -- offers


def test_the_first_answer_uses_an_offer_up_and_later_connections_of_the_session_bring_the_next_one(
    client: Client,
) -> None:
    server = client.server()
    handle = client.connect(server)
    following = client.sealing.key_share
    assert (
        following != client.first and client.sealing.is_offered(following) and client.sealing.is_offered(client.first)
    )
    assert client.connect(server, offered=following) == handle and client.sealing.key_share == following
    again = client.server()
    assert again.context.client_key_share == following[1:]
    assert client.connect(again) != handle and client.sealing.key_share not in (client.first, following)


def test_an_offer_that_is_used_up_serves_handshakes_under_way_for_a_minute_and_is_forgotten_then(
    client: Client,
) -> None:
    client.connect(client.server())
    late, too_late = (client.server(KeyShare.of_client(client.first)) for _ in range(2))
    client.now += KEEP_USED_NS - 1
    client.sealing.tick(client.now)
    last = client.connect(late)
    client.now += 1
    client.sealing.tick(client.now)
    assert not client.sealing.is_offered(client.first)
    assert client.refusal(answer_key_share(too_late, b"").pack()) == USED_OFFER
    assert client.connect(late) == last  # no private value is needed for that
    alive = [each for each in gc.get_objects() if isinstance(each, Offer) and each.key_share.pack() == client.first]
    assert not alive


def test_a_key_share_that_is_none_of_ours_begins_no_session(client: Client) -> None:
    foreign = Offer(AES_256_GCM).key_share
    assert not client.sealing.is_offered(foreign.pack())
    answer = answer_key_share(client.server(foreign), b"").pack()
    assert client.take(answer, offered=foreign.pack()) == (None, USED_OFFER)


# -- answers that are none


def test_an_answer_that_comes_twice_is_of_one_session(client: Client) -> None:
    answer = answer_key_share(client.server(), b"").pack()
    once = client.take(answer)
    before = client.state()
    assert client.take(answer) == once and client.state() == before


def test_a_late_answer_of_a_server_that_was_replaced_is_refused(client: Client) -> None:
    servers = [client.server() for _ in range(3)]
    for server in servers:
        client.connect(server)
    for server in servers[:2]:
        assert client.refusal(answer_key_share(server, b"").pack()) == OLD_KEY_SHARE
    client.connect(servers[2])


def test_an_answer_to_another_offer_gives_keys_that_nobody_else_has_and_the_genuine_one_replaces_it(
    client: Client,
) -> None:
    foreign = client.server(Offer(AES_256_GCM).key_share)
    seal, why = client.take(answer_key_share(foreign, b"").pack())
    assert seal is not None and not why  # with a key, no proof fits it: the prover has refused it before
    theirs = foreign.connection_secrets(hello_frame(client.first), b"challenge", b"welcome", b"hash")
    assert seal["send"] != theirs.receive.hex() and seal["receive"] != theirs.send.hex()
    keys = client.keys.read(FIRST_PEER_HANDLE)
    assert keys is not None and keys.send != foreign.keys().open_now and keys.open_now != foreign.keys().send
    assert client.connect(client.server()) == 2 * FIRST_PEER_HANDLE


def test_a_server_with_another_key_has_other_secrets(client: Client) -> None:
    server = client.server(key=b"x" * 32)
    seal, _ = client.take(answer_key_share(server, b"").pack())
    theirs = server.connection_secrets(hello_frame(client.first), b"challenge", b"welcome", b"hash")
    assert seal is not None and seal["send"] != theirs.receive.hex()


@pytest.mark.parametrize("established", [False, True])
def test_what_is_no_key_share_is_refused(client: Client, established: bool) -> None:
    server = client.server()
    if established:
        client.connect(server)
    good = answer_key_share(server, b"").pack()
    offered = client.sealing.key_share
    for wrong in (b"", bytes(len(good)), good[:-1], good + b"x", b"\0" + good[1:], b"\3" + good[1:], offered):
        assert client.refusal(wrong) == NO_KEY_SHARE
    for point in LOW_ORDER:
        assert "low order" in client.refusal(KeyShare(AES_256_GCM, point, bytes(32), NO_HASH).pack())
    client.connect(server)


def test_a_share_of_low_order_does_not_count_as_seen(client: Client) -> None:
    wrong = KeyShare(CHACHA20_POLY1305, bytes(32), bytes(32), NO_HASH).pack()
    assert client.refusal(wrong) == client.refusal(wrong) != OLD_KEY_SHARE


# -- the certificate that the server was shown


CHAIN = f"a comment\n{OWN.certificate.decode()}{OTHER.certificate.decode()}"


@pytest.mark.parametrize(
    ("own", "shown", "expected"),
    [
        ("", b"", ""),
        ("", der(OTHER), FOREIGN_CERTIFICATE),  # somebody in between has one
        (CHAIN, der(OWN), ""),
        (CHAIN, der(OTHER), FOREIGN_CERTIFICATE),
        (CHAIN, b"", ""),  # the server has asked for none
    ],
    ids=["none", "of another", "own", "another", "not asked for"],
)
def test_a_server_that_was_shown_another_certificate_is_not_believed(
    client: Client, own: str, shown: bytes, expected: str
) -> None:
    client.show(own)
    answer = answer_key_share(client.server(), shown)
    assert answer.client_hash == hash_of(shown)
    if expected:
        assert client.refusal(answer.pack()) == expected
    else:
        assert client.take(answer.pack())[1] == ""


def test_without_tls_settings_no_certificate_is_ours(client: Client) -> None:
    assert client.settings.tls is None
    assert client.refusal(answer_key_share(client.server(), der(OWN)).pack()) == FOREIGN_CERTIFICATE


@pytest.mark.parametrize("why", [NO_KEY_SHARE, FOREIGN_CERTIFICATE, OLD_KEY_SHARE, USED_OFFER])
def test_a_user_reads_in_status_why_the_client_does_not_connect_and_what_to_do(why: str) -> None:
    handshake = ClientHandshake(hello(b"", key_share=b"\1" + b"p" * 32), b"")
    handshake.begin(b"certificate")
    handshake.feed(Welcome(VERSION, 0, 1400, 0).frame())
    (failed,) = handshake.judge(why)
    assert isinstance(failed, Failed) and failed.cause is Cause.DISTRUSTED
    server = {"host": "vpn.example.org", "port": 443, "connections": 0, "connections_wanted": 8}
    server |= {"trouble": [failed.reason], "failed_attempts": 3, "trouble_seconds": 9.0}
    health = describe(snapshot(server=server, connections=[]))
    assert (
        why in health.sentence and health.advice not in ("", DOCTOR) and "certificates and at the" not in health.advice
    )


def test_the_row_of_the_server_has_the_suite_and_the_epochs_of_the_session(client: Client) -> None:
    role = ClientRole(parse({"mode": "client", "remote_addr": "192.0.2.1:9000", "tls_skip_verify": True}))
    role._sealing = client.sealing
    version = role.peers_version
    server = client.server()
    client.connect(server)
    (row,) = role.peer_rows()
    assert (row.encryption, row.sent_epoch, row.received_epoch) == (SUITES[AES_256_GCM], 0, 0)
    before = role.peers_version
    assert before != version
    client.sealing.session.open_next()
    (row,) = role.peer_rows()
    assert row.received_epoch == 1 and role.peers_version != before


COMPAT = {"compat": True, "tunnel_addr": "10.0.0.2/24"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"encryption": "none"}, "none"), (COMPAT, "none"), (COMPAT | {"encryption": "tls"}, "TLS")],
)
def test_without_sealing_the_row_says_tls_or_none(settings: dict[str, object], expected: str) -> None:
    given = {"mode": "client", "remote_addr": "192.0.2.1:9000", **settings}
    if expected == "TLS":
        given["tls_skip_verify"] = True
    (row,) = ClientRole(parse(given)).peer_rows()
    assert row.encryption == expected


def test_the_offer_names_the_suite_that_this_machine_prefers(client: Client) -> None:
    offer = KeyShare.of_client(client.sealing.key_share)
    assert offer is not None and offer.suite == preferred_suite()
    assert ClientSealing(client.keys).key_share != client.sealing.key_share
