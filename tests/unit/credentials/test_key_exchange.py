"""The exchange of an invitation's key for a new one."""

from __future__ import annotations

import pytest

from pipeline.credentials.key_exchange import new_key, new_private, public_of

KEY = bytes(range(32))
CLIENT, SERVER = bytes(range(1, 33)), bytes(range(2, 34))
PUBLIC = {"client_public": public_of(CLIENT), "server_public": public_of(SERVER)}


def test_both_ends_compute_one_key_and_the_old_key_and_both_values_are_in_it() -> None:
    made = new_key(KEY, CLIENT, **PUBLIC)
    assert len(made) == 32 and made == new_key(KEY, SERVER, **PUBLIC)
    others = {
        new_key(KEY[::-1], CLIENT, **PUBLIC),
        new_key(KEY, SERVER, **{**PUBLIC, "client_public": public_of(new_private())}),
        new_key(KEY, CLIENT, **{**PUBLIC, "server_public": public_of(new_private())}),
    }
    assert len(others | {made, KEY}) == 5


def test_a_private_value_is_new_each_time() -> None:
    assert new_private() != new_private() and len(new_private()) == 32


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
def test_a_value_that_would_make_the_key_known_to_everybody_is_refused(public: bytes) -> None:
    with pytest.raises(ValueError):
        new_key(KEY, SERVER, client_public=public, server_public=PUBLIC["server_public"])
