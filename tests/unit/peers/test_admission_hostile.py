"""Admission under any bytes and any sequence of events: no peer ever gets what belongs to another."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.route_table import NO_PEER
from pipeline.peers.registry import KnownPeer
from pipeline.wire import auth, messages
from pipeline.wire.messages import Done, Hello, Refused, Welcome
from pipeline.wire.uplink import UPLINKS_MAX, Uplink
from tests.harness.hub import ANN, BOB, CERTIFICATE_HASH, KEYS, SILENCE, Answer, HubServer, known, request

# -- any message

U8, U16, U64 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, (1 << 64) - 1)
EDGES = st.sampled_from([0, 1, (1 << 63), (1 << 64) - 2, (1 << 64) - 1])
NEAR = st.sampled_from(
    [
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.255",
        "fd00::",
        "fd00::1",
        "fd00::2",
        "::ffff:10.0.0.2",
        "0.0.0.0",
        "224.0.0.1",
        "ff02::1",
    ]
).map(ip_address)
ANY_HELLO = st.builds(
    Hello,
    st.one_of(st.just(messages.VERSION), U8),
    U8,
    U16,
    U16,
    U16,
    U64,
    st.one_of(EDGES, U64),
    U8,
    U8,
    st.one_of(st.just(messages.AUTH_KEY), U8),
    st.just(auth.key_id(KEYS["ann"])),
    st.binary(min_size=32, max_size=32),
    st.lists(st.one_of(NEAR, st.ip_addresses()), max_size=8).map(tuple),
    st.sampled_from(["", "0.1.0"]),
    st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
    st.booleans(),
    lane=U8,
    knock=st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
    padding=st.binary(max_size=100),
    uplink=st.none() | st.builds(Uplink, st.integers(0, UPLINKS_MAX - 1), st.text(max_size=20), st.booleans()),
)


@given(st.lists(ANY_HELLO, min_size=1, max_size=5))
def test_a_peer_gets_an_answer_to_any_hello(hellos: list[Hello]) -> None:
    server = HubServer(ANN, BOB)
    try:
        bob = server.connect("bob", 1, "10.0.0.2")
        for sent in hellos:
            answer = Answer(server.admission.handle_hello(request(sent.frame(), KEYS["ann"])))
            if answer.message is None:
                assert sent.auth != messages.AUTH_KEY
            elif isinstance(answer.message, Refused):
                assert answer.reason in messages.REASONS
            elif isinstance(answer.message, Done):
                assert sent.version == messages.ASKS, "it asks whether it is known, and gets no session"
            else:
                assert server.is_current(answer)
            assert server.is_current(bob)
            assert server.handle_at("10.0.0.2") == bob.peer_handle
            assert server.handle_at("10.0.0.1") == NO_PEER
    finally:
        server.close()


@given(ANY_HELLO, st.binary(max_size=80), st.binary(max_size=40), st.binary(max_size=200))
def test_an_unauthenticated_client_never_gets_a_message(
    sent: Hello, challenge: bytes, mac: bytes, shown: bytes
) -> None:
    server = HubServer(ANN)
    try:
        before = server.state()
        asked = {
            "lane": 0,
            "serial": 1,
            "hello": sent.frame().hex(),
            "challenge": challenge.hex(),
            "proof": mac.hex(),
            "certificate": shown.hex(),
            "hash": CERTIFICATE_HASH.hex(),
        }
        assert Answer(server.admission.handle_hello(asked)).reason == SILENCE
        assert server.state() == before
    finally:
        server.close()


# -- any sequence of events

NAMES = ("ann", "bob", "cyd")
EVENTS = st.one_of(
    st.tuples(
        st.just("asks"),
        st.sampled_from(NAMES),
        st.integers(1, 2),
        st.sampled_from([(), ("10.0.0.2",), ("10.0.0.3",), ("10.0.0.3", "fd00::3")]),
    ),
    st.tuples(st.just("connects"), st.sampled_from(NAMES)),
    st.tuples(st.just("ends"), st.integers(0, 1)),
    st.tuples(
        st.just("configures"),
        st.sampled_from([(), ("bob",), NAMES, NAMES, ("ann=10.0.0.3", "bob", "cyd"), ("ann/10.1.0.0/16", "cyd")]),
    ),
)


def peer_of(text: str) -> KnownPeer:
    name, _, fixed = text.partition("=")
    name, _, allowed = name.partition("/")
    return known(name, *filter(None, [allowed]), fixed=filter(None, [fixed]))


@given(st.lists(EVENTS, min_size=5, max_size=25))
def test_the_peer_admitted_last_has_its_addresses_and_no_other_peer_has_them(events: list[tuple]) -> None:
    server = HubServer(*map(peer_of, NAMES), capacity=2)
    admitted: dict[str, Answer] = {}
    try:
        for what, *details in events:
            if what == "asks":
                name, number, requested = details
                answer = server.ask(name, number, *requested)
                if isinstance(answer.message, Welcome):
                    admitted[name] = answer
            elif what == "connects" and details[0] in admitted and server.is_current(admitted[details[0]]):
                server.set_connections(admitted[details[0]].peer, 1)
            elif what == "ends":
                server.disconnect(details[0])
            elif what == "configures":
                server.configure(*map(peer_of, details[0]))
            current = {name: answer for name, answer in admitted.items() if server.is_current(answer)}
            assert len({answer.peer_handle for answer in current.values()}) == len(current)
            if what == "asks" and name in current and isinstance(answer.message, Welcome):
                for interface in answer.addresses:
                    assert server.handle_at(interface.split("/")[0]) == answer.peer_handle
            for number in range(2, 5):
                assert server.handle_at(f"10.0.0.{number}") in (
                    NO_PEER,
                    *(answer.peer_handle for answer in current.values()),
                )
    finally:
        server.close()
