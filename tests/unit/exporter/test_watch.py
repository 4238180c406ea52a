"""The watch reads little while nobody looks, everything from the first look on, and rests again a minute later."""

from __future__ import annotations

import json

from pipeline.cli.top.tables import TRAFFIC
from pipeline.counters import ID
from pipeline.errors import NotRunning
from pipeline.exporter.__main__ import rehearse
from pipeline.exporter.access import Access
from pipeline.exporter.history import REST_SECONDS
from pipeline.exporter.reading import Snapshot
from pipeline.exporter.request import Request
from pipeline.exporter.server import Answer
from pipeline.exporter.site import Site
from pipeline.exporter.watch import FOLLOWED_SECONDS, PASSING, WORK, Watch
from pipeline.runtime.topology import RINGS, START_ORDER
from tests.harness.snapshots import Source, counters, peer, snapshot, worker

START = 120_000.5
RATE = 1000  # bytes a second


class Exporter:
    """A watch and its site under a clock of their own; a worker of the kind `sender` sends RATE all the time."""

    def __init__(self, sender: str = "tcp") -> None:
        self._sender = sender
        self.now = START
        self.is_gone = False
        self.source = Source(self._read)
        self.watch = Watch(self.source, lambda: self.now)
        self.site = Site(self.watch, Access(b""), 200)

    def _read(self) -> Snapshot:
        if self.is_gone:
            raise NotRunning("it does not run")
        sent = counters(self._sender, bytes_sent=int(RATE * (self.now - START)))
        workers = [worker(f"{self._sender}-0", counters=sent), worker("tun-0")]
        return snapshot(mode="server", peers=[peer("one")], taken_ns=int(1e9 * self.now), workers=workers)

    def let_pass(self, seconds: float) -> None:
        """As the process does it: it sleeps until the next glance is due."""
        end = self.now + seconds
        while True:
            left = self.watch.seconds_left
            if left > 0 and self.now + left > end:
                break
            self.now += max(0.0, left)
            self.watch.tick()
        self.now = end

    def ask(self, path: str) -> Answer:
        path, _, query = path.partition("?")
        answer = self.site.answer(Request("GET", path, query, 1, {"host": "localhost"}), "127.0.0.1")
        assert answer.status == 200
        return answer

    def graph(self, series: str) -> list[float | None]:
        found: list[float | None] = json.loads(self.ask("/api/history?span=minutes").body)["series"][series]
        return found


def test_while_nobody_looks_there_are_few_glances_and_nothing_else_is_read() -> None:
    made = Exporter()
    made.let_pass(600)
    assert made.source.glances == 600 / REST_SECONDS + 1
    assert (made.source.outlines, made.source.listings) == (0, 0)


def test_a_rehearsal_of_all_answers_is_no_look() -> None:
    made = Exporter()
    rehearse(made.site, "")
    before = made.source.glances
    made.let_pass(600)
    assert made.source.glances == before + 600 / REST_SECONDS


def test_the_graphs_of_the_time_in_which_nobody_looked_are_whole() -> None:
    made = Exporter()
    made.let_pass(400)
    assert made.graph("sent")[-380:] == [RATE] * 380
    assert set(made.graph("rtt")[-380:]) == {0.025}
    made.let_pass(200)
    assert made.graph("sent")[-580:] == [RATE] * 580


def test_the_first_look_gets_everything_of_this_moment() -> None:
    made = Exporter()
    made.let_pass(REST_SECONDS * 10 + 7.3)
    present = json.loads(made.ask("/api/present").body)
    assert present["totals"]["tcp.bytes_sent"] == int(RATE * (made.now - START))
    assert present["workers"][0]["out"] == [RATE, 0.0]
    assert present["point"]["sent"] == RATE
    assert b"tunnel_peer_connected" in made.ask("/metrics").body
    assert len(json.loads(made.ask("/api/peers").body)["rows"]) == 1


def test_with_a_page_there_is_a_glance_a_second_until_it_has_been_closed_for_a_minute() -> None:
    made = Exporter()
    made.let_pass(100)
    for _ in range(30):
        made.ask("/api/present")
        made.let_pass(1)
    made.ask("/api/present")
    before = made.source.glances
    made.let_pass(FOLLOWED_SECONDS)
    assert made.source.glances == before + FOLLOWED_SECONDS
    made.let_pass(600)
    assert made.source.glances <= before + FOLLOWED_SECONDS + 600 / REST_SECONDS + 1
    assert made.graph("sent")[-580:] == [RATE] * 580


def test_a_scraper_costs_its_scrapes_alone() -> None:
    made = Exporter()
    for _ in range(40):
        made.let_pass(15)
        made.ask("/metrics")
    assert made.source.glances <= 600 / REST_SECONDS + 1 + 40
    assert (made.source.outlines, made.source.listings) == (40, 40)
    assert made.graph("sent")[-580:] == [RATE] * 580


def test_many_looks_in_a_second_are_one_reading() -> None:
    made = Exporter()
    made.let_pass(1)
    before = made.source.glances
    for _ in range(50):
        for path in ("/metrics", "/ready", "/api/present", "/api/peers"):
            made.ask(path)
    assert (made.source.glances, made.source.outlines, made.source.listings) == (before + 1, 1, 2)


def test_a_look_at_the_end_of_a_second_spoils_no_rate() -> None:
    """The glance that is due comes a moment later, and finds too little time for a rate."""
    made = Exporter()
    made.let_pass(20)
    for second in range(40):
        made.let_pass(0.55 + 0.01 * second)
        made.ask("/api/present")
        made.let_pass(0.45 - 0.01 * second)
    assert None not in made.graph("sent")[-58:]


def test_what_cannot_be_read_is_said_and_is_read_again_later() -> None:
    made = Exporter()
    made.let_pass(20)
    made.is_gone = True
    made.let_pass(REST_SECONDS)
    assert json.loads(made.ask("/api/present").body)["problem"] == "it does not run"
    assert json.loads(made.ask("/api/peers").body)["rows"] == []
    made.is_gone = False
    made.let_pass(1)
    assert "problem" not in json.loads(made.ask("/api/present").body)


def test_an_instance_that_ends_between_the_glance_and_the_rest_is_no_fault_of_the_program() -> None:
    made = Exporter()
    made.let_pass(20)
    made.source.end()
    answers = [made.site.answer(Request("GET", path, "", 1, {}), "127.0.0.1") for path in ("/api/peers", "/metrics")]
    assert [(each.status, b"does not run" in each.body) for each in answers] == [(503, True)] * 2


def test_after_a_sleep_of_the_machine_a_glance_is_due_at_once_and_the_graph_has_a_gap() -> None:
    made = Exporter()
    made.let_pass(60)
    made.now += 300
    assert made.watch.seconds_left <= 0
    made.let_pass(60)
    graph = made.graph("sent")
    assert None in graph[-360:-60] and graph[-50:] == [RATE] * 50


def test_every_kind_of_worker_and_of_ring_that_there_can_be_has_its_work() -> None:
    assert WORK.keys() == {kind for kinds in START_ORDER.values() for kind in kinds}
    assert PASSING.keys() == {kind for rings in RINGS.values() for kind in rings}
    assert TRAFFIC.keys() == WORK.keys()
    named = {name for ways in WORK.values() for way in ways for name in way if name}
    named |= {name for both in PASSING.values() for names in both for name in names}
    assert named <= ID.keys() | {"dgram.blocks_returned"}


def test_what_goes_in_datagrams_is_in_the_graphs_and_in_the_sums() -> None:
    made = Exporter(sender="dgram")
    made.let_pass(REST_SECONDS * 10 + 7.3)
    present = json.loads(made.ask("/api/present").body)
    assert present["totals"]["dgram.bytes_sent"] == int(RATE * (made.now - START))
    assert present["point"]["sent"] == RATE
    assert present["workers"][0]["out"] == [RATE, 0.0]
