"""The exporter of a real instance under traffic: its metrics for a scraper, and its page in a real browser.

PICTURES=docs/pictures saves screenshots there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.counters import COUNTERS
from pipeline.exporter.metrics import FAMILIES
from tests.harness.browser import Browser, needs_chromium
from tests.netns.harness.hub import Hub
from tests.netns.harness.instance import Instance, tunnel
from tests.support import eventually
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab, Node

PORT = 9100
EXPORTER_SECONDS = 60.0  # a busy machine gives it a tenth of what it gives others
HERE = f"http://127.0.0.1:{PORT}/"
LOSSY = LinkSpec(delay_ms=10, loss_percent=1, rate_mbit=200)
PHONE, DESKTOP = (390, 844), (1440, 900)
MEMORY_MAX = 25 << 20

CONTRAST = """
(() => {
  const rgb = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const linear = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (color) => .2126 * linear(color[0]) + .7152 * linear(color[1]) + .0722 * linear(color[2]);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgb(getComputedStyle(each).backgroundColor);
      if (color[3] > .99) return color;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const each of document.querySelectorAll("body *")) {
    const style = getComputedStyle(each), isSvg = each instanceof SVGElement;
    const speaks = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!speaks || !each.getClientRects().length || each.closest(".sr")) continue;
    const [a, b] = [light(rgb(isSvg ? style.fill : style.color)), light(ground(each))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const name = `${each.tagName}.${each.getAttribute("class")} ${each.textContent.trim().slice(0, 20)}`;
    if (ratio < 4.5) found[name] = ratio.toFixed(2);
  }
  return found;
})()
"""
"""Texts with less contrast than WCAG 2 asks for (AA, 4.5)."""

FOCUSED = """
(() => {
  const it = document.activeElement;
  return `${it.tagName} ${it.id || it.getAttribute("aria-label")?.split(",")[0] || it.innerText}`;
})()
"""


def get(node: Node, path: str, host: str = "127.0.0.1", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request from inside a node."""

    def ask() -> tuple[int, bytes]:
        connection = HTTPConnection(host, PORT, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return node.inside(ask)


def status_of(node: Node, path: str, host: str = "127.0.0.1", **headers: str) -> int:
    """0 while nobody listens."""
    try:
        return get(node, path, host, **headers)[0]
    except OSError:
        return 0


def sample(node: Node, name: str, **labels: str) -> float | None:
    """Of the metrics of this moment."""
    for family in text_string_to_metric_families(get(node, "/metrics")[1].decode()):
        for each in family.samples:
            if each.name == name and labels.items() <= each.labels.items():
                value: float = each.value
                return value
    return None


def exporter_pid(instance: Instance) -> int:
    """0 without one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pipeline.exporter" in words and str(instance.process.pid).encode() in words:
            return int(process.name)
    return 0


def private_bytes(pid: int) -> int:
    """The share of memory that is this process's (proc_pid_smaps(5))."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub and two clients over a link that loses packets; both clients ping it all the time."""
    directory = tmp_path_factory.mktemp("page")
    with (
        Lab(names=("hub", "laptop", "office"), link=LOSSY) as lab,
        Hub(lab, directory, fec="on", metrics_addr=PORT, heartbeat_timeout=60) as made,
    ):
        pings = []
        for name in ("laptop", "office"):
            client = made.join(lab[name], name, fec="on")
            words = ["ping", "-q", "-i", "0.005", "-s", "1200", made.server.address]
            pings.append(client.node.popen(words, stdout=subprocess.DEVNULL))
        eventually(lambda: status_of(made.node, "/ready") == 200, EXPORTER_SECONDS)
        eventually(lambda: sample(made.node, "tunnel_peers_connected") == 2)  # metrics are up to a second old
        yield made
        for each in pings:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def browser(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of the hub on a desktop."""
    with Browser(tmp_path_factory.mktemp("browser"), hub.node.popen) as made:
        made.size(*DESKTOP)
        made.open(HERE)
        made.wait_for("known.snapshot && known.snapshot.point.received > 10000 && known.peersBefore", 30)
        yield made


# -- metrics


def test_a_scrape_has_every_metric_and_they_are_those_of_the_instance(hub: Hub) -> None:
    text = get(hub.node, "/metrics")[1].decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {family.name for family in FAMILIES if family.kind != "info"} <= families
    eventually(lambda: sample(hub.node, "tunnel_peers_connected") == 2)
    eventually(lambda: sample(hub.node, "tunnel_peer_connected", peer="office") == 1)
    before = hub.server.counter("tun.packets_written")
    eventually(lambda: (sample(hub.node, "tunnel_tun_packets_written_total") or 0) > before)
    assert (sample(hub.node, "tunnel_round_trip_seconds") or 0) > 0.01
    assert (sample(hub.node, "tunnel_certificate_expiry_timestamp_seconds") or 0) > 1.8e9
    assert {counter.name for counter in COUNTERS} == set(hub.server.running()["counters"])


def test_the_exporter_has_no_rights_and_little_memory(hub: Hub) -> None:
    get(hub.node, "/metrics")
    pid = exporter_pid(hub.server)
    assert private_bytes(pid) < MEMORY_MAX
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
    workers = {Path(f"/proc/{each}").stat().st_uid for each in hub.server.worker_pids().values()}
    user = int(lines["Uid"].split()[0])
    assert user != 0
    assert user not in workers
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "/dev/shm" in line:
            assert line.split()[1] == "r--s"


def test_a_key_is_nowhere_in_the_exporter(hub: Hub) -> None:
    for path in ("/metrics", "/api/present", "/api/peers", "/"):
        body = get(hub.node, path)[1].decode()
        for client in hub.clients.values():
            assert client.invitation.split(".")[1][:20] not in body


# -- the page


@needs_chromium
@pytest.mark.slow
def test_the_page_shows_what_happens_and_asks_no_other_host(hub: Hub, browser: Browser) -> None:
    assert browser.run("document.getElementById('name').textContent") == hub.server.name
    assert browser.run("document.getElementById('state').textContent") == "running"
    browser.wait_for("document.querySelector('#tile-in .value').textContent.includes('bit/s')")
    nodes = browser.run("[...document.querySelectorAll('.node h3')].map((each) => each.innerText.trim()).sort()")
    assert nodes == sorted(hub.server.workers())
    pipes = browser.run("[...document.querySelectorAll('.pipe')].map((each) => each.title)")
    assert {title.split(":")[0] for title in pipes} == {
        f"ring {ring['name']}" for ring in hub.server.running()["rings"]
    }
    rows = browser.run("[...document.querySelectorAll('#peers-body tr')].map((each) => each.cells[0].innerText.trim())")
    assert rows == ["laptop", "office"]
    assert browser.run("document.querySelectorAll('#events li time').length") > 2
    for svg in range(browser.run("document.querySelectorAll('.chart svg').length")):
        assert (
            len(browser.run(f"document.querySelectorAll('.chart svg')[{svg}].querySelector('.ln').getAttribute('d')"))
            > 10
        )
    assert browser.errors == []
    hosts = {request.split("/")[2] for request in browser.requests if not request.startswith("data:")}
    assert hosts == {f"127.0.0.1:{PORT}"}


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, (820, 1180), PHONE], ids=["desktop", "tablet", "phone"])
def test_it_fits_and_can_be_read_at_any_width_light_and_dark(
    browser: Browser, size: tuple[int, int], scheme: str
) -> None:
    browser.prefer(prefers_color_scheme=scheme)
    browser.size(*size)
    browser.wait_for(f"innerWidth === {size[0]}")
    try:
        assert browser.run("document.documentElement.scrollWidth") <= size[0]
        assert browser.run(CONTRAST) == {}
        if pictures := os.environ.get("PICTURES"):
            take_picture(browser, Path(pictures) / f"page-{'phone' if size == PHONE else scheme}.png", size, scheme)
    finally:
        browser.prefer(prefers_color_scheme="light")
        browser.size(*DESKTOP)


def take_picture(browser: Browser, path: Path, size: tuple[int, int], scheme: str) -> None:
    if size == DESKTOP or (size == PHONE and scheme == "light"):
        browser.screenshot(path, whole=size == PHONE)


@needs_chromium
@pytest.mark.slow
def test_a_worker_that_is_stopped_is_shown_at_once_and_when_it_goes_on(hub: Hub, browser: Browser) -> None:
    pid = hub.server.signal_worker("fec-0", signal.SIGSTOP)
    try:
        browser.wait_for("document.querySelector('.node.bad h3')?.innerText.includes('fec-0')")
        assert "stopped" in browser.run("document.querySelector('.node.bad h3').innerText")
        assert "fec-0 is stopped" in browser.run("document.getElementById('alerts').innerText")
        assert sample(hub.node, "tunnel_worker_stopped", worker="fec-0") == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    browser.wait_for("!document.querySelector('.node.bad')")
    assert hub.server.restarts()["fec-0"] == 0


@needs_chromium
@pytest.mark.slow
def test_the_page_tells_the_truth_while_the_supervisor_stands_still(hub: Hub, browser: Browser) -> None:
    hub.server.signal(signal.SIGSTOP)
    try:
        browser.wait_for("document.getElementById('alerts').innerText.includes('The supervisor is stopped')")
        serial = browser.run("known.snapshot.serial")
        browser.wait_for(f"known.snapshot.serial > {serial} && known.snapshot.point.received > 10000")
    finally:
        hub.server.signal(signal.SIGCONT)
    browser.wait_for("document.getElementById('alerts').hidden")


@needs_chromium
@pytest.mark.slow
def test_keys_reach_everything_and_a_graph_tells_its_values(browser: Browser) -> None:
    browser.run("document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        browser.press("Tab")
        reached.add(browser.run(FOCUSED))
    assert {"svg Throughput", "svg Round trip", "BUTTON 24 h", "UL events"} <= reached
    browser.run("document.querySelectorAll('.chart svg')[0].focus()")
    browser.press("ArrowLeft")
    assert "bit/s" in browser.run("document.getElementById('tip').innerText")
    browser.run("document.activeElement.blur()")
    browser.run("[...document.querySelectorAll('#ranges button')].find((each) => each.textContent === '24 h').click()")
    browser.wait_for("known.history.day")
    browser.run(
        "[...document.querySelectorAll('#ranges button')].find((each) => each.textContent === '10 min').click()"
    )
    assert browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_a_page_without_its_exporter_says_so_and_recovers(hub: Hub, browser: Browser) -> None:
    browser.network(offline=True)
    browser.wait_for("document.getElementById('live').innerText.includes('no answer')")
    assert browser.run("document.body.classList.contains('stale')")
    browser.network(offline=False)
    browser.wait_for("document.getElementById('live').innerText === 'live'", 15)
    browser.errors.clear()  # the console names the requests that failed


# -- its life


def test_the_tunnel_does_not_notice_that_its_exporter_is_killed(hub: Hub) -> None:
    pid = exporter_pid(hub.server)
    restarts, established = hub.server.restarts(), hub.server.counter("tcp.connections_established")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: exporter_pid(hub.server) not in (0, pid), EXPORTER_SECONDS)
    eventually(lambda: status_of(hub.node, "/ready") == 200, EXPORTER_SECONDS)
    assert (hub.server.restarts(), hub.server.counter("tcp.connections_established")) == (restarts, established)
    assert hub.server.log.count("exporter died: signal 9") == 1
    kinds = [event["kind"] for event in hub.server.running()["events"]]
    assert kinds.count("exporter-died") == 1


def test_reloads_start_stop_and_move_it_and_a_taken_port_is_a_note(lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("a token of this test alone\n".replace(" ", "-"))
    with tunnel(lab, tmp_path, fec="off") as (server, _):
        assert exporter_pid(server) == 0
        reload(server, metrics_addr=PORT)
        eventually(lambda: status_of(server.node, "/healthz") == 200, EXPORTER_SECONDS)
        old = exporter_pid(server)
        reload(server, metrics_addr=f"0.0.0.0:{PORT}", metrics_token_file=str(token))
        eventually(lambda: status_of(server.node, "/metrics", server.node.address) == 401, EXPORTER_SECONDS)
        eventually(lambda: exporter_pid(server) not in (0, old), EXPORTER_SECONDS, what="another exporter alone")
        bearer = {"Authorization": f"Bearer {token.read_text().strip()}"}
        assert status_of(server.node, "/metrics", server.node.address, **bearer) == 200
        with server.node.socket(socket.AF_INET) as other:
            other.bind(("127.0.0.1", PORT + 1))
            other.listen()
            said = reload(server, metrics_addr=PORT + 1)
            assert "another program listens there" in said.stderr
            assert any("another program listens there" in note for note in server.running()["notes"])
        eventually(lambda: not server.running()["notes"])
        refused = reload(server, metrics_addr=f"0.0.0.0:{PORT}")
        assert refused.returncode != 0
        assert "metrics_token_file" in refused.stderr
        reload(server, metrics_addr="")
        eventually(lambda: exporter_pid(server) == 0, what="no exporter")
        assert set(server.restarts().values()) == {0}


@pytest.mark.slow
def test_an_address_in_the_tunnel_is_served_once_it_is_there_and_again_after_a_kill(lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("a-third-token-of-this-test")
    node, inside = lab.nodes[1], "10.99.0.2"
    settings = {"metrics_addr": f"{inside}:{PORT}", "metrics_token_file": str(token), "fec": "off"}
    with Hub(lab, tmp_path, fec="off") as made:
        client = made.join(node, "laptop", **settings)
        eventually(lambda: status_of(node, "/metrics", inside) == 401, EXPORTER_SECONDS)
        client.kill()
        eventually(lambda: status_of(node, "/healthz", inside) == 0, what="the exporter has gone with its supervisor")
        with client.start_again():
            eventually(lambda: status_of(node, "/metrics", inside) == 401, EXPORTER_SECONDS)


def reload(instance: Instance, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Write the configuration anew with these settings, those that are left out as at first, and reload."""
    instance.write({**instance.config, **settings})
    return instance.command("reload")


@needs_chromium
@pytest.mark.slow
def test_beyond_loopback_a_browser_signs_in_once(lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("another-token-of-this-test")
    node = lab.nodes[0]
    there = f"http://{node.address}:{PORT}/"
    settings = {"metrics_addr": f"{node.address}:{PORT}", "metrics_token_file": str(token)}
    with tunnel(lab, tmp_path, server=settings, fec="off"), Browser(tmp_path / "browser", node.popen) as browser:
        eventually(lambda: status_of(node, "/healthz", node.address) == 200, EXPORTER_SECONDS)
        browser.open(there)
        browser.wait_for("!document.getElementById('signin').hidden")
        sign_in(browser, "wrong-token-wrong-token")
        browser.wait_for("document.getElementById('signin-error').innerText.includes('wrong')")
        sign_in(browser, token.read_text())
        browser.wait_for("known.snapshot && document.getElementById('signin').hidden")
        widths = browser.wait_for(
            "((found) => found.length && found)([...document.querySelectorAll('.node')].map((it) => it.offsetWidth))"
        )
        assert len(widths) == 2 and min(widths) >= 150  # without FEC the picture is another one
        assert browser.run("document.cookie") == ""  # no script reads it
        browser.open(f"{there}?again")
        browser.wait_for("known.snapshot")
        browser.run("known.signedIn = true; document.getElementById('leave').click()")
        browser.wait_for("!document.getElementById('signin').hidden")


def sign_in(browser: Browser, token: str) -> None:
    browser.run(f"document.getElementById('token').value = {json.dumps(token)}")
    browser.run("document.querySelector('#signin form').requestSubmit()")
