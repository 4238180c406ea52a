"""The keeper of a table of ours: when it looks at its table and puts it back. With nft: tests/netns."""

from __future__ import annotations

import selectors
import socket
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

    def __init__(self, firewall: Firewall, *, is_guard: bool = False) -> None:
        self.firewall = firewall
        self.keeper = TableKeeper(firewall, is_guard=is_guard)
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


@pytest.fixture
def guard(firewall: Firewall) -> Iterator[Kept]:
    made = Kept(firewall, is_guard=True)
    yield made
    made.keeper.close()


def test_a_table_that_others_have_removed_is_put_back_when_they_have_had_a_moment(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    assert kept.keeper.apply(True) == []
    kept.firewall.flush()
    kept.run(SETTLE_NS)
    assert kept.firewall.text == ""
    kept.run(TICK)
    assert kept.firewall.text == "rules" and caplog.text.count("put back table inet tunnel-one") == 1


def test_a_guard_is_put_back_at_once(guard: Kept) -> None:
    guard.keeper.apply(True)
    guard.firewall.flush()
    guard.run(TICK)
    assert guard.firewall.text == "rules" and guard.keeper.is_in_place


def test_a_guard_is_never_given_up_and_its_removal_is_not_told_for_ever(
    guard: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    guard.keeper.apply(True)
    for _ in range(4 * PUT_BACK_MAX):
        guard.firewall.flush()
        guard.run(SETTLE_NS + TICK)
        assert guard.firewall.text == "rules"
    assert caplog.text.count("again and again: it comes back half a second late") == 1
    assert len(caplog.messages) == 2 + PUT_BACK_MAX
    guard.firewall.flush()
    guard.run(TICK)
    assert guard.firewall.text == ""
    guard.run(REST_NS)
    guard.firewall.flush()
    guard.run(TICK)
    assert guard.firewall.text == "rules"


def test_news_wake_the_supervisor_and_are_not_lost_when_it_hears_them_before_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The news are those of a socket pair."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    monkeypatch.setattr(table_keeper, "_open", lambda: ours)
    firewall, selector = Firewall(), selectors.DefaultSelector()
    keeper = TableKeeper(firewall, is_guard=True, selector=selector)
    keeper.apply(True)
    firewall.text = ""
    kernel.send(OURS)
    ((key, _),) = selector.select(0)
    key.data()
    assert selector.select(0) == []
    keeper.tick(REST_NS)
    assert firewall.text == "rules"
    keeper.close()
    assert not selector.get_map()
    selector.close()
    kernel.close()


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


def test_a_table_is_in_place_from_its_installation_to_the_news_of_its_end(kept: Kept) -> None:
    assert not kept.keeper.is_in_place
    kept.keeper.apply(True)
    kept.run(TICK)
    assert kept.keeper.is_in_place
    kept.firewall.flush()
    kept.run(TICK)
    assert not kept.keeper.is_in_place, "before it is put back"
    kept.run(SETTLE_NS)
    assert kept.firewall.text == "rules" and kept.keeper.is_in_place
    kept.run(2 * SETTLE_NS)
    assert kept.keeper.is_in_place
    kept.keeper.apply(False)
    assert not kept.keeper.is_in_place


def test_news_that_have_changed_nothing_are_seen_to_have_changed_nothing(kept: Kept) -> None:
    kept.keeper.apply(True)
    kept.firewall.news.append(OURS)
    kept.run(2 * SETTLE_NS)
    assert kept.keeper.is_in_place


def test_a_table_that_cannot_be_installed_is_not_in_place(kept: Kept) -> None:
    kept.firewall.trouble = "mss_clamp: nft is missing"
    kept.keeper.apply(True)
    assert kept.keeper.has_failed and not kept.keeper.is_in_place
    kept.firewall.trouble = ""
    kept.keeper.apply(True)
    assert kept.keeper.is_in_place and not kept.keeper.has_failed
