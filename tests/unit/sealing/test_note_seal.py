"""The seal of notes: of one session and direction, and each note once."""

from __future__ import annotations

import pytest

from pipeline.errors import PeerError
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305
from pipeline.sealing.note_seal import WINDOW, NoteSeal
from pipeline.sealing.session import session_of_pair

ENDS = pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305])


def both(suite: int = AES_256_GCM) -> tuple[NoteSeal, NoteSeal]:
    secret = bytes(range(32))
    return session_of_pair(suite, 5, secret, 0).notes, session_of_pair(suite, 5, secret, 1).notes


@ENDS
def test_the_other_end_opens_a_note_once_and_in_any_order(suite: int) -> None:
    one, two = both(suite)
    sealed = [one.seal(b"%d" % number) for number in range(5)]
    assert [two.open(each) for each in reversed(sealed)] == [b"4", b"3", b"2", b"1", b"0"]
    assert [two.open(each) for each in sealed] == [None] * 5


def test_a_note_behind_the_window_is_not_opened() -> None:
    one, two = both()
    old = one.seal(b"old")
    for _ in range(WINDOW):
        latest = one.seal(b"new")
    assert two.open(latest) == b"new"
    assert two.open(old) is None


def test_what_the_other_end_has_not_sealed_is_refused() -> None:
    one, two = both()
    sealed = one.seal(b"note")
    for data in (b"", sealed[:-1], sealed[:10] + b"x" + sealed[11:], bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(PeerError):
            two.open(data)
    with pytest.raises(PeerError):
        one.open(sealed)
    assert two.open(sealed) == b"note"


def test_two_sides_of_a_pair_have_keys_that_fit_and_another_number_gives_others() -> None:
    one, two = (session_of_pair(AES_256_GCM, 5, bytes(32), side) for side in (0, 1))
    other = session_of_pair(AES_256_GCM, 6, bytes(32), 1)
    assert one.keys().send == two.keys().open_now != other.keys().open_now
    assert one.datagram_secrets().send == two.datagram_secrets().receive != other.datagram_secrets().receive
    assert one.keys().send != two.keys().send
