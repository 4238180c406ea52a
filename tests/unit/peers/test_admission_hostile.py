"""The hub: whatever a peer or a stranger sends and whatever happens, nobody gets what is another's."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.route_table import NOBODY
from pipeline.peers.registry import KnownPeer
from pipeline.wire import auth, messages
from pipeline.wire.messages import Hello, Refused, Welcome
from tests.harness.hub import CERTIFICATE_HASH, KEYS, Answer, Server, known, request

ANN, BOB = known("ann"), known("bob")
SILENCE = 0


# -- whatever they send

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
)


@given(st.lists(ANY_HELLO, min_size=1, max_size=5))
def test_a_peer_is_answered_whatever_its_hello_says(greetings: list[Hello]) -> None:
    server = Server(ANN, BOB)
    try:
        bob = server.comes("bob", 1, "10.0.0.2")
        for greeting in greetings:
            answer = Answer(server.hub.answer(request(greeting.frame(), KEYS["ann"])))
            if answer.greeting is None:
                assert greeting.auth != messages.AUTH_KEY
            elif isinstance(answer.greeting, Refused):
                assert answer.reason in messages.REASONS
            else:
                assert server.is_current(answer)
            assert server.is_current(bob)
            assert server.whose("10.0.0.2") == bob.peer_handle
            assert server.whose("10.0.0.1") == NOBODY
    finally:
        server.close()


@given(ANY_HELLO, st.binary(max_size=80), st.binary(max_size=40), st.binary(max_size=200))
def test_a_stranger_is_answered_by_silence_whatever_he_sends(
    greeting: Hello, challenge: bytes, mac: bytes, shown: bytes
) -> None:
    server = Server(ANN)
    try:
        before = server.state()
        asked = {
            "serial": 1,
            "hello": greeting.frame().hex(),
            "challenge": challenge.hex(),
            "proof": mac.hex(),
            "certificate": shown.hex(),
            "hash": CERTIFICATE_HASH.hex(),
        }
        assert Answer(server.hub.answer(asked)).reason == SILENCE
        assert server.state() == before
    finally:
        server.close()


# -- whatever happens

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
def test_who_was_admitted_last_has_his_addresses_and_nobody_has_anothers(events: list[tuple]) -> None:
    server = Server(*map(peer_of, NAMES), capacity=2)
    admitted: dict[str, Answer] = {}
    try:
        for what, *details in events:
            if what == "asks":
                name, number, wishes = details
                answer = server.ask(name, number, *wishes)
                if isinstance(answer.greeting, Welcome):
                    admitted[name] = answer
            elif what == "connects" and details[0] in admitted and server.is_current(admitted[details[0]]):
                server.has_connections(admitted[details[0]].peer, 1)
            elif what == "ends":
                server.goes(details[0])
            elif what == "configures":
                server.configure(*map(peer_of, details[0]))
            current = {name: answer for name, answer in admitted.items() if server.is_current(answer)}
            assert len({answer.peer_handle for answer in current.values()}) == len(current)
            if what == "asks" and name in current and isinstance(answer.greeting, Welcome):
                for interface in answer.addresses:
                    assert server.whose(interface.split("/")[0]) == answer.peer_handle
            for number in range(2, 5):
                assert server.whose(f"10.0.0.{number}") in (
                    NOBODY,
                    *(answer.peer_handle for answer in current.values()),
                )
    finally:
        server.close()
