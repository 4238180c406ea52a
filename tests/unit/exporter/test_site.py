"""The site: what is answered at each path and with which token, and what is in no answer."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from typing import Any

import pytest

from pipeline.errors import LocalError
from pipeline.exporter.access import Access
from pipeline.exporter.reading import Snapshot
from pipeline.exporter.request import Request
from pipeline.exporter.server import Answer
from pipeline.exporter.site import PAGE, Site
from pipeline.exporter.watch import Watch
from tests.harness.snapshots import Source, counters, peer, snapshot, worker

TOKEN = "a token that is long"


def site(shown: Snapshot | None = None, token: str = "") -> Site:
    """A site that has taken one snapshot."""

    watch = Watch(Source(lambda: shown))
    watch.tick()
    return Site(watch, Access(token.encode()), 200)


def ask(asked: Site, path: str, **headers: str) -> Answer:
    path, _, query = path.partition("?")
    return asked.answer(Request("GET", path, query, 1, {"host": "localhost", **headers}), "127.0.0.1")


def present(asked: Site) -> dict[str, Any]:
    return json.loads(ask(asked, "/api/present").body)


def test_it_is_alive_while_it_answers_and_ready_while_packets_can_pass() -> None:
    assert ask(site(snapshot()), "/healthz").status == 200
    assert (ask(site(snapshot()), "/ready").status, ask(site(snapshot()), "/ready").body) == (200, b"ready\n")
    assert ask(site(None), "/healthz").status == 200


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (None, "does not run"),
        (snapshot(state="starting"), "the instance is starting"),
        (snapshot(workers=[worker("tun-0", state="dead")]), "not running: tun-0"),
        (snapshot(peers_connected=0), "not connected to the server: dialing"),
        (snapshot(peers_connected=0, server={"trouble": ["no route to host"]}), "no route to host"),
    ],
)
def test_it_is_not_ready_with_the_reason(shown: Snapshot | None, reason: str) -> None:
    answer = ask(site(shown), "/ready")
    assert answer.status == 503
    assert reason in answer.body.decode()


def test_a_hub_without_clients_is_ready_for_them() -> None:
    assert ask(site(snapshot(mode="server", server=None, peers_connected=0)), "/ready").status == 200


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("text/plain", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0, text/plain", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=none", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=1.0.0; escaping=\x7f", "application/openmetrics-text"),
    ],
)
def test_metrics_come_in_the_format_that_a_scraper_asks_for(accept: str, kind: str) -> None:
    answer = ask(site(snapshot()), "/metrics", accept=accept)
    assert answer.status == 200
    assert answer.kind.startswith(kind)
    assert b"tunnel_ready 1.0" in answer.body
    assert (b"# EOF" in answer.body) is ("openmetrics" in kind)
    packed = ask(site(snapshot()), "/metrics", accept=accept, **{"accept-encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"tunnel_ready 1.0" in gzip.decompress(packed.body)


def test_without_a_snapshot_a_scrape_fails_and_the_page_says_why() -> None:
    assert ask(site(None), "/metrics").status == 503
    assert "does not run" in present(site(None))["problem"]


def test_the_present_has_what_moves_and_what_the_picture_is_made_of() -> None:
    readings = [
        snapshot(taken_ns=0, workers=[worker("tun-0", counters=counters("tun", bytes_read=0))]),
        snapshot(
            taken_ns=2_000_000_000,
            workers=[worker("tun-0", counters=counters("tun", bytes_read=3000, packets_read=4, dropped_no_peer=2))],
        ),
    ]
    watch = Watch(Source(lambda: readings.pop(0)))
    watch._take(1000.0)
    watch._take(1002.0)
    shown = json.loads(watch.present())
    assert shown["workers"][0]["out"] == [1500.0, 2.0]
    assert [(each["name"], each["count"], each["rate"]) for each in shown["drops"]] == [("tun.dropped_no_peer", 2, 1.0)]
    assert {each["name"] for each in shown["rings"]} == {"plain-0", "light-0", "coded-0", "inbound-0", "decoded-0"}
    assert shown["point"]["packets_out"] == 2.0


def test_a_ring_has_the_rate_of_what_passes_it() -> None:
    readings = [
        snapshot(taken_ns=0),
        snapshot(
            taken_ns=2_000_000_000,
            workers=[
                worker("tun-0", counters=counters("tun", blocks_filled=30)),
                worker("fec-0", counters=counters("fec", blocks_coded=20, blocks_whole=4, blocks_recovered_2=2)),
                worker("tcp-0", counters=counters("tcp", frames_received=8)),
            ],
        ),
    ]
    watch = Watch(Source(lambda: readings.pop(0)))
    watch._take(1000.0)
    watch._take(1002.0)
    passing = {ring["kind"]: ring["rate"] for ring in json.loads(watch.present())["rings"]}
    assert passing == {"plain": 5.0, "light": 0.0, "coded": 10.0, "inbound": 4.0, "decoded": 3.0}


def test_a_snapshot_that_fails_for_once_is_no_end() -> None:
    readings: list[Snapshot | None] = [snapshot(), None, snapshot()]

    def read() -> Snapshot:
        found = readings.pop(0)
        if found is None:
            raise LocalError("it changes right now")
        return found

    watch = Watch(Source(read))
    problems = []
    for second in range(3):
        watch._take(1000.0 + second)
        problems.append(json.loads(watch.present()).get("problem"))
    assert problems == [None, "it changes right now", None]


def test_peers_come_in_rows_and_a_history_in_columns() -> None:
    asked = site(snapshot(mode="server", peers=[peer("one"), peer("two", state="away")]))
    peers = json.loads(ask(asked, "/api/peers").body)
    assert [row[peers["columns"].index("name")] for row in peers["rows"]] == ["one", "two"]
    assert "10.0.0.2, fd00::2" in peers["rows"][0]
    for span in ("minutes", "day"):
        history = json.loads(ask(asked, f"/api/history?span={span}").body)
        assert {len(column) for column in history["series"].values()} == {history["points"]}
    assert ask(asked, "/api/history?span=century").status == 404
    assert ask(asked, "/api/nothing").status == 404


def test_an_answer_for_many_viewers_is_made_and_compressed_once() -> None:
    asked = site(snapshot(peers=[peer(f"p{number}") for number in range(100)]))
    gzipped = {"accept-encoding": "gzip"}
    assert ask(asked, "/api/peers", **gzipped).body is ask(asked, "/api/peers?x=1", **gzipped).body
    assert ask(asked, "/api/peers").body is ask(asked, "/api/peers").body


# -- the token


def test_with_a_token_only_the_empty_page_and_health_are_for_everybody() -> None:
    asked = site(snapshot(), TOKEN)
    open_to_all = {path for path in ("/", "/healthz", "/api/leave", *asked.paths) if ask(asked, path).status < 400}
    assert open_to_all == {"/", "/healthz", "/api/leave"}
    assert ask(asked, "/metrics").headers["WWW-Authenticate"].startswith("Bearer")
    given = {"authorization": f"Bearer {TOKEN}"}
    assert {ask(asked, path, **given).status for path in asked.paths} == {200, 204}


def test_a_browser_signs_in_once_and_signs_out() -> None:
    asked = site(snapshot(), TOKEN)
    cookie = ask(asked, "/api/session", authorization=f"Bearer {TOKEN}").headers["Set-Cookie"].partition(";")[0]
    assert ask(asked, "/api/present", cookie=cookie).status == 200
    left = ask(asked, "/api/leave").headers["Set-Cookie"]
    assert "Max-Age=0" in left
    assert "WWW-Authenticate" not in ask(asked, "/api/present", **{"sec-fetch-mode": "cors"}).headers


def test_the_token_is_in_no_answer() -> None:
    asked = site(snapshot(), TOKEN)
    for path in ("/", "/nothing", *asked.paths):
        for headers in ({}, {"authorization": f"Bearer {TOKEN}"}):
            answer = ask(asked, path, **headers)
            assert TOKEN.encode() not in answer.body
            assert TOKEN not in "".join(answer.headers.values())


# -- the page


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_what_is_in_it() -> None:
    asked = site(snapshot())
    page = ask(asked, "/").body
    assert page == PAGE.read_bytes()
    assert gzip.decompress(ask(asked, "/", **{"accept-encoding": "gzip"}).body) == page
    text = page.decode()
    assert set(re.findall(r"(?:https?:)?//[\w.]+", text)) == {"http://www.w3.org"}  # the name space of SVG
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    policy = asked.common["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    (script,) = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script).digest()).decode() in policy


def test_a_page_of_another_host_reads_nothing() -> None:
    asked = site(snapshot())
    for path in ("/", "/metrics", *asked.paths):
        assert ask(asked, path, host="attacker.example").status == 421
    assert "Access-Control-Allow-Origin" not in asked.common
