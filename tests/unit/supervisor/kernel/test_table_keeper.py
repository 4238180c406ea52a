"""The keeper of a table of ours: when it looks at its table and puts it back. With nft: tests/netns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.policy.put_back import PERIOD_NS, PUT_BACK_MAX, REST_NS
from pipeline.supervisor.kernel import table_keeper
from pipeline.supervisor.kernel.table_keeper import SETTLE_NS, TableKeeper

TICK = 100_000_000
OURS, THEIRS = b"..tunnel-one\0..", b"..tunnel-one-more\0.."


class Firewall:
    """Stands for a table of ours and for the kernel's news."""

    table = "tunnel-one"
    setting = "mss_clamp"

    def __init__(self) -> None:
        self.text = ""
        self.trouble = ""
        self.looks = 0
        self.news: list[bytes | OSError] = []
        self.opened = self.closed = False

    def install(self) -> str:
        if not self.trouble:
            self.text = "rules"
        return self.trouble

    def remove(self) -> str:
        self.text = ""
        return self.trouble

    def listing(self) -> str:
        self.looks += 1
        return self.text

    def recv(self, size: int) -> bytes:
        if not self.news:
            raise BlockingIOError
        found = self.news.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    def close(self) -> None:
        self.closed = True

    def flush(self) -> None:
        """Others remove every table."""
        self.text = ""
        self.news.append(OURS)


class Kept:
    """A keeper at a clock that the test moves."""

    def __init__(self, firewall: Firewall) -> None:
        self.firewall = firewall
        self.keeper = TableKeeper(firewall)
        self.now = 1_000 * REST_NS

    def run(self, ns: int) -> None:
        end = self.now + ns
        while self.now < end:
            self.now += TICK
            self.keeper.tick(self.now)


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch) -> Firewall:
    made = Firewall()

    def opened() -> Firewall:
        made.opened = True
        return made

    monkeypatch.setattr(table_keeper, "_open", opened)
    return made


@pytest.fixture
def kept(firewall: Firewall) -> Iterator[Kept]:
    made = Kept(firewall)
    yield made
    made.keeper.close()
    assert firewall.text == "" and firewall.closed is firewall.opened


def test_a_table_that_others_have_removed_is_put_back_when_they_have_had_a_moment(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    assert kept.keeper.apply(True) == []
    kept.firewall.flush()
    kept.run(SETTLE_NS)
    assert kept.firewall.text == ""
    kept.run(TICK)
    assert kept.firewall.text == "rules" and caplog.text.count("put back table inet tunnel-one") == 1


def test_news_that_go_on_put_off_no_look_and_many_are_one_look(kept: Kept) -> None:
    kept.keeper.apply(True)
    looks = kept.firewall.looks
    for _ in range(3):
        kept.firewall.flush()
        kept.run(SETTLE_NS // 2 // TICK * TICK)
    assert kept.firewall.looks == looks + 1 and kept.firewall.text == "rules"


@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_looked_at_while_others_change_tables_of_their_own_or_no_clamp_is_wanted(
    kept: Kept, wanted: bool
) -> None:
    kept.keeper.apply(wanted)
    looks = kept.firewall.looks
    for _ in range(20):
        kept.firewall.news += [THEIRS if wanted else OURS]
        kept.run(SETTLE_NS)
    assert kept.firewall.looks == looks


def test_more_news_than_the_kernel_keeps_call_for_a_look(kept: Kept) -> None:
    kept.keeper.apply(True)
    kept.firewall.text = ""
    kept.firewall.news = [THEIRS, OSError(105, "No buffer space available"), THEIRS]
    kept.run(SETTLE_NS + TICK)
    assert kept.firewall.text == "rules"


def test_a_table_that_is_as_it_was_is_left_alone(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.keeper.apply(True)
    kept.firewall.news.append(OURS)
    kept.run(2 * SETTLE_NS)
    assert caplog.text == ""


def test_others_that_remove_it_again_and_again_have_their_way_for_a_while_or_until_a_reload(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.keeper.apply(True)
    for _ in range(3 * PUT_BACK_MAX):
        kept.firewall.flush()
        kept.run(SETTLE_NS + TICK)
    assert kept.firewall.text == "" and caplog.text.count("again and again") == 1
    kept.run(REST_NS)
    assert kept.firewall.text == "rules"
    kept.run(2 * PERIOD_NS)
    for _ in range(PUT_BACK_MAX + 1):
        kept.firewall.flush()
        kept.run(SETTLE_NS + TICK)
    assert kept.firewall.text == ""
    kept.keeper.apply(True)
    assert kept.firewall.text == "rules"


def test_a_clamp_that_cannot_be_is_said_once_and_not_tried_again_until_a_reload(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.firewall.trouble = "mss_clamp: nft is missing"
    assert kept.keeper.apply(True) == ["mss_clamp: nft is missing"]
    kept.firewall.news.append(OURS)
    kept.run(10 * SETTLE_NS)
    assert caplog.messages == ["mss_clamp: nft is missing"]
    kept.firewall.trouble = ""
    assert kept.keeper.apply(True) == [] and kept.firewall.text == "rules"


def test_what_keeps_it_from_being_put_back_is_said(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.keeper.apply(True)
    kept.firewall.flush()
    kept.firewall.trouble = "mss_clamp: nft is missing"
    kept.run(SETTLE_NS + TICK)
    assert caplog.messages == ["mss_clamp: nft is missing"]
    kept.firewall.trouble = ""
