"""The quotas of peers: who has which, what was used, what is told once."""

from __future__ import annotations

from datetime import date

from pipeline.peers.quotas import Quotas, gigabytes
from pipeline.policy.quota import UNLIMITED, Period, QuotaState, QuotaTerms

GB = 10**9
NOVEMBER = Period(date(2026, 11, 1), date(2026, 12, 1))
DECEMBER = Period(date(2026, 12, 1), date(2027, 1, 1))


def quotas(general: QuotaTerms = UNLIMITED, **own: QuotaTerms) -> Quotas:
    made = Quotas()
    made.configure(own, general)
    made.restart(NOVEMBER, {}, ())
    return made


def test_a_peer_has_its_own_quota_or_that_of_all_and_a_client_without_proof_has_none() -> None:
    made = quotas(QuotaTerms(5 * GB), ann=UNLIMITED, bob=QuotaTerms(GB))
    assert [made.terms(name).limit for name in ("ann", "bob", "cyd", "client:0123")] == [0, GB, 5 * GB, 0]


def test_a_peer_is_refused_with_its_quota_and_the_end_of_the_month_until_that_month_ends() -> None:
    made = quotas(bob=QuotaTerms(50 * GB))
    made.add({"bob": 50 * GB - 1})
    assert made.refusal("bob") == ""
    made.add({"bob": 1})
    assert made.refusal("bob") == "the quota of 50 GB is used up until 1 December (UTC)"
    made.restart(DECEMBER, {}, ())
    assert made.refusal("bob") == ""


def test_a_slowed_peer_has_the_lower_one_of_two_rates() -> None:
    made = quotas(bob=QuotaTerms(GB, "slow", 1000))
    assert made.rate("bob", 0) == 0
    made.add({"bob": GB})
    assert made.state("bob") is QuotaState.SLOWED and made.refusal("bob") == ""
    assert [made.rate("bob", rate) for rate in (0, 500, 5000)] == [1000, 500, 1000]


def test_each_mark_is_told_once_in_a_month_also_if_it_was_told_before_a_restart() -> None:
    made = quotas(bob=QuotaTerms(100))
    made.add({"bob": 85})
    assert made.take_marks() == [("bob", 80, 100)]
    made.add({"bob": 5})
    assert made.take_marks() == []
    made.add({"bob": 50})
    assert made.take_marks() == [("bob", 100, 100)]
    again = quotas(bob=QuotaTerms(100))
    again.restart(NOVEMBER, {"bob": 140}, {("bob", "80 % of 100"), ("bob", "100 % of 100")})
    assert again.take_marks() == []
    again.restart(DECEMBER, {"bob": 80}, ())
    assert again.take_marks() == [("bob", 80, 100)]


def test_of_two_marks_at_once_the_higher_one_is_told() -> None:
    made = quotas(bob=QuotaTerms(100))
    made.add({"bob": 300})
    assert made.take_marks() == [("bob", 100, 100)]
    made.restart(NOVEMBER, {"bob": 300}, ())  # the book's answer of the same month
    assert made.take_marks() == []


def test_another_quota_is_told_anew() -> None:
    made = quotas(bob=QuotaTerms(100))
    made.add({"bob": 100})
    made.take_marks()
    made.configure({"bob": QuotaTerms(200)}, UNLIMITED)
    assert made.state("bob") is QuotaState.OPEN
    made.add({"bob": 60})
    assert made.take_marks() == [("bob", 80, 200)]
    made.configure({"bob": QuotaTerms(100)}, UNLIMITED)
    assert made.take_marks() == []


def test_quotas_in_words() -> None:
    assert [gigabytes(size) for size in (50 * GB, 1500 * GB, GB // 2, 1000)] == [
        "50 GB",
        "1.5 TB",
        "500 MB",
        "0.001 MB",
    ]
