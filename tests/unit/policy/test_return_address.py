"""Where datagrams for a peer go while its address changes, and while others pretend that it does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.return_address import (
    AMPLIFICATION,
    CHALLENGE_NS,
    CHALLENGES,
    CHANGES,
    CHANGES_NS,
    KNOWN_NS,
    Address,
    Change,
    ReturnAddress,
)

HOME, MOBILE, ELSEWHERE = (Address(host, 4000) for host in ("192.0.2.1", "198.51.100.1", "203.0.113.1"))
OTHER_PORT, THIRD_PORT = HOME._replace(port=4001), HOME._replace(port=4002)
SIZE = 60
BEGIN = 10**12


class Peer:
    """The server's view of a peer that sends a probe from somewhere, and answers challenges or does not."""

    def __init__(self, *proved: Address) -> None:
        self.back = ReturnAddress()
        self.now = BEGIN
        self.count = 0
        for address in proved:
            self.probe(address)
            assert self.answer() is Change.HOST
            self.now += CHANGES_NS

    def probe(self, source: Address, size: int = SIZE) -> Change:
        self.count += 1
        return self.back.heard(source, self.count, size, self.now)

    def challenge(self) -> Address | None:
        return self.back.challenge(SIZE, self.now)

    def answer(self) -> Change:
        asked = self.challenge()
        assert asked
        return self.back.proved(asked, self.now)


def test_nothing_goes_anywhere_before_an_address_is_proved() -> None:
    peer = Peer()
    assert peer.back.address is None and peer.challenge() is None
    assert peer.probe(HOME) is Change.NONE
    assert peer.back.address is None
    assert peer.answer() is Change.HOST
    assert peer.back.address == HOME


def test_a_peer_that_roams_is_followed_once_the_new_address_is_proved() -> None:
    peer = Peer(HOME)
    assert peer.probe(MOBILE) is Change.NONE
    assert peer.back.address == HOME
    assert peer.answer() is Change.HOST
    assert peer.back.address == MOBILE and peer.challenge() is None


def test_an_address_that_does_not_answer_is_never_used_and_gets_three_challenges() -> None:
    peer = Peer(HOME)
    peer.probe(ELSEWHERE, 2000)
    sent = 0
    for _ in range(100):
        sent += peer.challenge() is not None
        peer.now += CHALLENGE_NS
    assert sent == CHALLENGES
    assert peer.back.address == HOME
    assert peer.back.proved(ELSEWHERE, peer.now) is Change.NONE


def test_an_older_datagram_from_elsewhere_changes_nothing() -> None:
    peer = Peer(HOME)
    assert peer.back.heard(ELSEWHERE, peer.count, SIZE, peer.now) is Change.NONE
    assert peer.challenge() is None


def test_a_newer_datagram_from_the_present_address_ends_the_doubt() -> None:
    peer = Peer(HOME)
    peer.probe(ELSEWHERE)
    peer.probe(HOME)
    assert peer.challenge() is None and peer.back.address == HOME


def test_an_answer_about_one_address_proves_no_other() -> None:
    peer = Peer(HOME)
    peer.probe(MOBILE)
    peer.challenge()
    peer.probe(ELSEWHERE)
    assert peer.back.proved(MOBILE, peer.now) is Change.NONE
    assert peer.back.address == HOME


# -- a NAT that gives another port


def test_another_port_of_the_present_host_is_used_at_once_and_challenged() -> None:
    peer = Peer(HOME)
    assert peer.probe(OTHER_PORT) is Change.PORT
    assert peer.back.address == OTHER_PORT
    assert peer.challenge() == OTHER_PORT
    assert peer.back.proved(OTHER_PORT, peer.now) is Change.NONE
    assert peer.back.address == OTHER_PORT and peer.challenge() is None


def test_a_port_that_does_not_answer_is_left_for_the_one_before() -> None:
    peer = Peer(HOME)
    peer.probe(OTHER_PORT)
    for _ in range(CHALLENGES + 1):
        peer.challenge()
        peer.now += CHALLENGE_NS
    assert peer.back.address == HOME


def test_while_a_port_is_not_proved_a_third_one_is_not_used_at_once() -> None:
    peer = Peer(HOME)
    peer.probe(OTHER_PORT)
    assert peer.probe(THIRD_PORT) is Change.NONE
    assert peer.back.address == OTHER_PORT
    assert peer.answer() is Change.PORT
    assert peer.back.address == THIRD_PORT


# -- between two networks


def test_a_peer_that_comes_back_soon_is_followed_at_once_and_one_that_comes_back_late_is_challenged() -> None:
    peer = Peer(HOME, MOBILE)
    assert peer.probe(HOME) is Change.HOST
    assert peer.back.address == HOME and peer.challenge() is None
    peer.now += KNOWN_NS
    assert peer.probe(MOBILE) is Change.NONE
    assert peer.back.address == HOME and peer.challenge() == MOBILE


def test_addresses_change_five_times_in_ten_seconds_at_most_and_the_last_one_is_found_in_the_end() -> None:
    peer = Peer(HOME, MOBILE)
    moves = 0
    for turn in range(100):
        moves += peer.probe((HOME, MOBILE)[turn % 2]) is not Change.NONE
        peer.now += 1_000_000
    assert moves == CHANGES
    peer.now += CHANGES_NS
    peer.probe(HOME)
    peer.probe(MOBILE)
    assert peer.back.address == MOBILE


def test_a_peer_that_is_back_ends_the_doubt_about_a_third_address() -> None:
    peer = Peer(HOME, MOBILE)
    peer.probe(ELSEWHERE)
    assert peer.probe(HOME) is Change.HOST
    assert peer.challenge() is None


# -- no flood


def test_challenges_stay_within_three_times_the_bytes_that_came() -> None:
    peer = Peer(HOME)
    peer.probe(MOBILE, 50)
    assert peer.back.challenge(100, peer.now) == MOBILE
    peer.now += CHALLENGE_NS
    assert peer.back.challenge(51, peer.now) is None
    assert peer.back.challenge(50, peer.now) == MOBILE
    peer.now += CHALLENGE_NS
    assert peer.back.challenge(1, peer.now) is None
    peer.probe(MOBILE, 50)
    assert peer.back.challenge(150, peer.now) == MOBILE


Step = st.tuples(
    st.sampled_from([HOME, MOBILE, ELSEWHERE, OTHER_PORT]),
    st.integers(28, 1500),
    st.sampled_from(["probe", "old", "challenge", "answer"]),
    st.integers(0, CHALLENGE_NS),
)


@given(st.lists(Step, max_size=60))
def test_no_host_that_has_proved_nothing_gets_more_than_three_times_what_came_from_it(steps: list[tuple]) -> None:
    peer = Peer(HOME)
    received: dict[Address, int] = {}
    sent: dict[Address, int] = {}
    for source, size, kind, pause in steps:
        peer.now += pause
        match kind:
            case "probe":
                peer.probe(source, size)
            case "old":
                peer.back.heard(source, 0, size, peer.now)
        if kind in ("probe", "old"):
            received[source] = received.get(source, 0) + size
        if kind == "challenge":
            asked = peer.back.challenge(size, peer.now)
            if asked:
                sent[asked] = sent.get(asked, 0) + size
        if kind == "answer" and peer.back.may_answer(source, size):
            sent[source] = sent.get(source, 0) + size
        assert peer.back.address and peer.back.address.host == HOME.host
        for host in (MOBILE, ELSEWHERE):
            assert sent.get(host, 0) <= AMPLIFICATION * received.get(host, 0)


@given(st.lists(st.tuples(st.sampled_from([HOME, MOBILE, ELSEWHERE, OTHER_PORT]), st.booleans()), max_size=60))
def test_segments_go_to_the_first_host_or_to_one_that_was_proved(steps: list[tuple[Address, bool]]) -> None:
    peer = Peer(HOME)
    hosts = {HOME.host}
    for source, answers in steps:
        peer.probe(source)
        asked = peer.challenge()
        if asked and answers:
            hosts.add(asked.host)
            peer.back.proved(asked, peer.now)
        peer.now += CHALLENGE_NS
        assert peer.back.address and peer.back.address.host in hosts


def test_a_probe_from_an_address_that_is_not_proved_is_answered_within_the_limit() -> None:
    peer = Peer(HOME)
    peer.probe(MOBILE, 40)
    assert peer.back.may_answer(HOME, 10**6)
    assert peer.back.may_answer(MOBILE, 40) and peer.back.may_answer(MOBILE, 80)
    assert not peer.back.may_answer(MOBILE, 1)
    assert not peer.back.may_answer(ELSEWHERE, 1)


@pytest.mark.parametrize("rtt_ms", [0, 500])
def test_challenges_have_their_time(rtt_ms: int) -> None:
    peer = Peer(HOME)
    peer.probe(MOBILE, 1200)
    rtt = rtt_ms * 1_000_000
    assert peer.back.challenge(SIZE, peer.now, rtt) == MOBILE
    pause = max(CHALLENGE_NS, 2 * rtt)
    assert peer.back.challenge(SIZE, peer.now + pause - 1, rtt) is None
    assert peer.back.challenge(SIZE, peer.now + pause, rtt) == MOBILE
