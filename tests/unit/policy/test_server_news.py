"""Log lines about the server: how few there are, and what they say. Time is simulated."""

from __future__ import annotations

import pytest

from pipeline.policy.server_news import KINDS_MAX, SECOND, SUMMARY_MAX_NS, ServerNews

NO_ROUTE = "no route"
TOTAL = 8
STEP = SECOND // 10


class Log:
    """The news of one server, on a clock of its own; `lines` have gone into the log."""

    def __init__(self, host: str = "hub.test") -> None:
        self.news = ServerNews(f"server {host} port 9000", host, TOTAL)
        self.now = 1000 * SECOND
        self.lines: list[str] = []

    def run(self, seconds: float) -> Log:
        for _ in range(round(seconds * 10)):
            self.lines += [
                f"{level} {text.removeprefix('server hub.test port 9000: ')}"
                for level, text in self.news.lines(self.now)
            ]
            self.now += STEP
        return self

    def connect(self, count: int = TOTAL, address: str = "192.0.2.1:9000") -> None:
        for _ in range(count):
            self.news.established(address, self.now)

    def lose(self, count: int = TOTAL, why: str = "closed by the peer") -> None:
        for _ in range(count):
            self.news.ended(why, self.now)

    def fail(self, why: str = "refused") -> None:
        self.news.failed({"192.0.2.1": why}, "", self.now)


@pytest.fixture
def log() -> Log:
    return Log()


def test_the_first_connections_are_one_line_as_soon_as_all_are_there(log: Log) -> None:
    log.connect(3)
    assert log.run(0.1).lines == []
    log.connect(5)
    assert log.run(0.1).lines == ["info 8 of 8 connections to 192.0.2.1:9000 established"]
    assert log.run(1000).lines[1:] == []


def test_connections_that_do_not_all_come_are_said_after_a_moment(log: Log) -> None:
    log.connect(3)
    assert log.run(2).lines == ["info 3 of 8 connections to 192.0.2.1:9000 established"]


def test_a_wave_of_reconnects_is_one_line(log: Log) -> None:
    log.connect()
    log.run(100).lines.clear()
    log.lose(5)
    log.lose(3, "connection reset")
    log.connect()
    (line,) = log.run(3).lines
    assert line == (
        "info 8 connections ended: closed by the peer (5), connection reset (3); "
        "8 of 8 connections to 192.0.2.1:9000 established"
    )


def test_an_outage_is_three_lines_its_end_its_reason_and_its_length(log: Log) -> None:
    log.connect()
    log.run(100).lines.clear()
    log.lose()
    for _ in range(20):
        log.fail()
        log.run(1)
    log.connect()
    assert log.run(3).lines == [
        "warning 192.0.2.1: refused; trying again until it succeeds",
        "info 8 connections ended: closed by the peer; none is left, dialing again",
        "info 8 of 8 connections to 192.0.2.1:9000 established, after 20 failed attempts in 20 s",
    ]


def test_each_reason_is_said_once_although_reasons_alternate(log: Log) -> None:
    for number in range(59):
        log.fail(["refused", "reset", "no TLS"][number % 3])
        log.run(1)
    assert [line.split(":")[1].split(";")[0] for line in log.lines] == [" refused", " reset", " no TLS"]


def test_after_a_minute_comes_a_summary_and_then_ever_more_seldom(log: Log) -> None:
    for _ in range(24 * 60):
        log.fail()
        log.run(60)
    first, *summaries = log.lines
    assert first == "warning 192.0.2.1: refused; trying again until it succeeds"
    assert summaries[0] == "warning still out of reach: 2 failed attempts in 60 s, last: 192.0.2.1: refused"
    assert len(summaries) < 24 * 3600 * SECOND / SUMMARY_MAX_NS + 8


def test_a_server_with_a_new_reason_each_time_does_not_fill_the_log(log: Log) -> None:
    for number in range(1000):
        log.fail(f"reason {number}")
        log.run(0.1)
    assert len(log.lines) == KINDS_MAX + 1


def test_after_many_reasons_a_new_one_is_said_once_the_server_was_back(log: Log) -> None:
    for number in range(KINDS_MAX):
        log.fail(f"reason {number}")
    log.connect()
    log.run(1).lines.clear()
    log.lose()
    log.fail("another")
    assert "warning 192.0.2.1: another; trying again until it succeeds" in log.run(3).lines


def test_three_addresses_with_one_reason_are_all_listed(log: Log) -> None:
    log.news.failed({f"192.0.2.{number}": "refused" for number in range(3)}, "", log.now)
    assert log.run(0.1).lines == ["warning 192.0.2.0, 192.0.2.1, 192.0.2.2: refused; trying again until it succeeds"]


def test_addresses_with_one_reason_are_listed_together_and_a_few_of_many_suffice(log: Log) -> None:
    log.news.failed({f"192.0.2.{number}": "refused" for number in range(20)} | {"fd99::1": "no answer"}, "", log.now)
    (line,) = log.run(0.1).lines
    assert line.startswith("warning 192.0.2.0, 192.0.2.1, 192.0.2.2 and 17 more: refused; fd99::1: no answer; trying")


def test_an_address_that_the_configuration_names_is_not_said_twice() -> None:
    log = Log("192.0.2.1")
    log.fail()
    assert log.run(0.1).lines == ["warning server 192.0.2.1 port 9000: refused; trying again until it succeeds"]


def test_a_name_without_an_address_has_its_reason(log: Log) -> None:
    log.news.failed({}, "the name is unknown", log.now)
    assert log.run(0.1).lines == ["warning the name is unknown; trying again until it succeeds"]


def test_attempts_that_fail_beside_connections_are_said_only_if_that_lasts(log: Log) -> None:
    log.connect(5)
    log.fail("too many")
    assert log.run(5).lines == ["info 5 of 8 connections to 192.0.2.1:9000 established"]
    log.lines.clear()
    assert log.run(6).lines == ["warning only 5 of 8 connections: 1 failed attempt in 10 s, last: 192.0.2.1: too many"]


def test_a_connection_that_ends_beside_others_brings_no_summary_near(log: Log) -> None:
    log.connect()
    for _ in range(600):
        log.fail()
        log.now += 60 * SECOND
        log.run(0.1)
    log.lines.clear()
    log.lose(1)
    assert [line for line in log.run(70).lines if line.startswith("warning")] == []


def test_connections_that_all_stand_and_cannot_be_replaced_are_called_so(log: Log) -> None:
    log.connect()
    log.run(1).lines.clear()
    log.fail("no route")
    (line,) = log.run(11).lines
    assert line.startswith("warning 8 of 8 connections stand, but cannot be replaced: 1 failed attempt in 10 s")


def test_when_the_last_connection_ends_trouble_is_said_again_soon(log: Log) -> None:
    log.connect(5)
    for _ in range(1000):
        log.fail("too many")
        log.run(10)
    log.lose(5)
    log.run(3).lines.clear()
    log.run(60)
    assert [line.split(":")[0] for line in log.lines] == ["warning still out of reach"]


def test_a_link_that_flaps_for_an_hour_is_few_lines(log: Log) -> None:
    for _ in range(1800):
        log.connect()
        log.run(1)
        log.lose()
        log.fail()
        log.run(1)
    assert len(log.lines) < 160  # less than three a minute


def test_an_address_that_does_not_work_is_said_once_until_it_works(log: Log) -> None:
    for _ in range(3):
        log.news.fell_back({"fd99::1": "no answer"}, "192.0.2.1", frozenset({NO_ROUTE}))
    log.news.fell_back({}, "fd99::1", frozenset())
    log.news.fell_back({"fd99::1": "no answer"}, "192.0.2.1", frozenset({NO_ROUTE}))
    assert log.run(0.1).lines == ["warning fd99::1 does not work (no answer), using 192.0.2.1"] * 2


def test_an_address_of_a_family_that_the_machine_lacks_is_no_news(log: Log) -> None:
    log.news.fell_back({"fd99::1": NO_ROUTE}, "192.0.2.1", frozenset({NO_ROUTE}))
    assert [line.split()[0] for line in log.run(0.1).lines] == ["debug"]


# -- for `status`


def test_what_is_wrong_now_is_the_last_failure_and_since_when(log: Log) -> None:
    assert log.news.present.reason == ""
    began = log.now
    log.fail()
    log.run(5)
    log.fail("no answer")
    assert log.news.present == ("192.0.2.1: no answer", 2, began)


def test_nothing_is_wrong_once_all_connections_stand_however_long_their_wave_is_gathered(log: Log) -> None:
    log.connect()
    log.run(10)
    log.lose()
    log.fail()
    log.run(2)
    log.connect()
    assert log.news.present == ("", 0, 0)


def test_a_connection_that_has_ended_is_what_is_wrong_until_an_attempt_fails(log: Log) -> None:
    log.connect()
    log.lose(1, "connection reset")
    assert log.news.present == ("connection reset", 0, 0)
    log.fail("refused")
    assert log.news.present[:2] == ("192.0.2.1: refused", 1)


def test_connections_that_stand_and_cannot_be_replaced_are_wrong(log: Log) -> None:
    log.connect()
    log.run(2)
    log.fail("no route")
    assert log.news.present[:2] == ("192.0.2.1: no route", 1)
