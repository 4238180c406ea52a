"""Moments as people type and read them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pipeline.cli.moments import parse_moment, show_left, show_moment
from pipeline.errors import UsageError

NOW = 1_800_000_000.5


@pytest.fixture
def zone() -> Iterator[None]:
    """Far from UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XST-5:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("24h", 86400), ("7d", 604800), ("2w", 1209600), ("1m", 60)]
)
def test_a_duration_counts_from_now(text: str, seconds: int) -> None:
    assert parse_moment(text, "--expires", NOW) == int(NOW) + seconds


def test_never_is_never() -> None:
    assert parse_moment("never", "--expires", NOW) == 0


def test_a_date_is_its_first_moment_in_local_time_unless_it_has_a_zone(zone: None) -> None:
    assert parse_moment("2027-06-01", "--until", NOW) == 1_811_788_200
    assert show_moment(1_811_788_200) == "2027-06-01 00:00 XST"
    assert parse_moment("2027-06-01T18:00", "--until", NOW) == 1_811_788_200 + 18 * 3600
    assert parse_moment("2027-06-01T00:00Z", "--until", NOW) == 1_811_788_200 + 19800
    assert parse_moment("2027-06-01T00:00+02:00", "--until", NOW) == 1_811_788_200 + 19800 - 7200


@pytest.mark.parametrize("text", ["", "soon", "7", "7y", "-1h", "1.5h", "99999999h", "2027-13-01", "01/02/2027", "٣d"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r'--until: given .*expected a duration such as "30m"'):
        parse_moment(text, "--until", NOW)


@pytest.mark.parametrize("text", ["2020-01-01", "1970-01-01", "0h", "1900-01-01T00:00Z"])
def test_a_moment_that_is_past_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is past"):
        parse_moment(text, "--until", NOW)


def test_what_is_left_has_two_units() -> None:
    assert [show_left(each) for each in (-5, 59, 3599, 86399, 86400, 700000)] == [
        *("0h00m", "0h00m", "0h59m", "23h59m", "1d00h", "8d02h")
    ]
