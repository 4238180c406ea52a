"""`tunnel-supervisor bench exporter`: what the exporter costs beside a hub of so many peers: processor time and memory.

The hub is its shared memory alone, made here, with all peers connected and counters that count. The exporter is the
real process, started as the supervisor starts it. It is left alone, scraped, and watched by a page, one after the
other. Its memory is the largest proportional size that was seen; here two processes share what many share in a hub. The
part of it that the process has written itself depends on no other process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.config import parse
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.observe.overview_text import compose
from pipeline.observe.process_stat import read_process
from pipeline.peers.peer_status import PeerRow
from pipeline.runtime import topology
from pipeline.runtime.assignment import FORMAT
from pipeline.shm import layout
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.supervisor.processes.companion import CompanionProcess
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.supervisor.run.worker_settings import worker_settings
from pipeline.version import VERSION
from tools.bench.command import progress, run_command
from tools.bench.machine import Machine, machine
from tools.bench.measure import proportional_bytes, written_bytes
from tools.lab.waiting import until

SCHEMA_VERSION = 1
CONNECTIONS = 8  # of a peer, as far as the table of connections has room
SCRAPE_SECONDS = 15.0
MANY_PEERS = 500  # from here on a page asks for the peers more seldom
PEERS_SECONDS, PEERS_SECONDS_MANY = 2.0, 5.0
MEGABYTE = 1e6


class Offloads:
    """Of a device that there is not."""

    offloads = accepted = 0


class MadeHub:
    """The shared memory of a hub whose peers are all connected. `tick` lets its counters count."""

    def __init__(self, peers: int) -> None:
        self.name = f"bench-{os.getpid()}"
        config = parse({"mode": "server", "encryption": "none", "insecure": True, "tunnel_addr": "10.64.0.1/10",
                        "max_clients": peers})  # fmt: skip
        settings = worker_settings(config, TlsSettings(None, b"", b""), Offloads(), 0, None)
        self.plan = topology.build_plan(
            self.name, secrets.token_hex(4), "server", 1, 4, layout.PAGE, settings, max(1, peers)
        )
        self.memory = SharedMemory(self.plan)
        self._connect(peers)
        rows = [
            PeerRow(
                f"peer-{peer:05}", (f"10.64.{peer >> 8}.{peer & 255}",), peer=peer, since_ns=time.monotonic_ns(),
                version=VERSION, mtu=1400, fec=True,
            )
            for peer in range(peers)
        ]  # fmt: skip
        overview = self.memory.overview
        about = self._about()
        texts = [msgspec.json.encode(row.as_dict()).decode() for row in rows]
        overview.publish(compose(about, self.plan.to_json(), texts, overview.room))
        self.tick()

    def _connect(self, peers: int) -> None:
        table, now = self.memory.peer_table, time.monotonic_ns()
        for peer in range(peers):
            table.links[0][peer * layout.RECORD_WORDS + layout.LINK_ESTABLISHED] = CONNECTIONS
            table.write_record(layout.FIRST_PEER_HANDLE + peer, 0)
        for row in range(min(table.status_rows, peers * CONNECTIONS)):
            peer = row // CONNECTIONS
            address = f"198.51.{peer >> 8}.{peer & 255}:{40000 + row}"
            status = ConnectionStatus(
                "established", address, 0, row, 10**9 + row, 10**9, now, now, 20_000 + row, row % 2, peer, row, 10**6
            )
            table.write_status_row(0, row, status)

    def _about(self) -> dict[str, object]:
        own = read_process(os.getpid())
        workers = {
            each.name: {"pid": os.getpid(), "state": "running", "restarts": 0, "cores": []}
            for each in self.plan.workers
        }
        return {
            "format": FORMAT.decode(),
            "version": VERSION,
            "pid": os.getpid(),
            "began": own.began if own else 0,
            "state": "running",
            "started_ns": time.monotonic_ns(),
            "failures": 0,
            "workers": workers,
            "spares": [],
            "rolling": {"left": [], "error": ""},
            "device": {"name": "tun0", "notes": [], "left_out": []},
            "server": None,
            "notes": [],
        }

    def tick(self) -> None:
        now = time.monotonic_ns()
        self.memory.overview.beat(now)
        for page in self.memory.scoreboard.pages:
            for duty in layout.DUTIES:
                page.heartbeat(duty)[0] = now
            for number in range(layout.COUNTERS_MAX):
                page.counters[number] += 1000


class Case(msgspec.Struct):
    """`cpu_ms`: processor time a minute. `memory`: bytes, the most that was seen; `written`: without pages of files."""

    peers: int
    looked: str
    cpu_ms: float
    memory: int
    written: int


class ExporterResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    seconds: float
    cases: list[Case] = []

    @property
    def failed(self) -> bool:
        return False


class Page:
    """A browser with the page open: what it asks for, and when."""

    def __init__(self, ask: Callable[[str], None], peers: int) -> None:
        self._ask = ask
        self._pause = PEERS_SECONDS_MANY if peers > MANY_PEERS else PEERS_SECONDS
        self._peers_due = 0.0
        ask("/")
        ask("/api/history?span=minutes")

    def __call__(self, now: float) -> None:
        self._ask("/api/present")
        if now >= self._peers_due:
            self._ask("/api/peers")
            self._peers_due = now + self._pause - 0.2


@contextmanager
def exporter(hub: MadeHub, peers_max: int) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Its pid, and a function that gets a path from it over one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plan = {
            "name": hub.name,
            "account": None,
            "token": "",
            "peers_max": peers_max,
            "log_level": "info",
            "log_format": "text",
        }
        process = CompanionProcess("pipeline.exporter", listener, json.dumps(plan))
        browser = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=30)

        def ask(path: str) -> None:
            browser.request("GET", path, headers={"Accept-Encoding": "gzip"})
            answer = browser.getresponse()
            answer.read()
            assert answer.status == 200, (path, answer.status)

        try:
            until(process.read_reports, "the exporter's first sign of life")
            yield process.pid, ask
        finally:
            browser.close()
            process.kill()
            process.reap()


def cpu_ms(pid: int) -> float:
    """Processor time of a process so far (schedstat: nanoseconds; /proc/PID/stat has ticks of 10 ms)."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


def measure_case(hub: MadeHub, peers: int, looked: str, seconds: float, peers_max: int) -> Case:
    """One case, with an exporter of its own. Times count from the first look on."""
    with exporter(hub, peers_max) as (pid, ask):
        look: Callable[[float], None]
        pause = 1.0
        match looked:
            case "unlooked":
                look = lambda now: None  # noqa: E731
            case "scraped":
                look, pause = (lambda now: ask("/metrics")), SCRAPE_SECONDS
            case _:
                look = Page(ask, peers)
        before, began, due, memory, written = cpu_ms(pid), time.monotonic(), 0.0, 0, 0
        while (now := time.monotonic()) < began + seconds:
            hub.tick()
            if now >= due:
                due = now + pause
                look(now)
                memory, written = max(memory, proportional_bytes(pid)), max(written, written_bytes(pid))
            time.sleep(max(0.0, min(due, now + 1.0, began + seconds) - time.monotonic()))
        used = (cpu_ms(pid) - before) * 60 / seconds
        return Case(peers, looked, used, max(memory, proportional_bytes(pid)), max(written, written_bytes(pid)))


LOOKED = ("unlooked", "scraped", "page")


def run(options: argparse.Namespace) -> ExporterResult:
    result = ExporterResult(machine=machine(), seconds=options.seconds)
    with progress(options) as log:
        for peers in options.peers:
            hub = MadeHub(peers)
            try:
                for looked in options.only or LOOKED:
                    log(f"{peers} peers, {looked}")
                    result.cases.append(measure_case(hub, peers, looked, options.seconds, options.metrics_peers))
            finally:
                hub.memory.close()
    return result


def table(result: ExporterResult) -> str:
    lines = [
        f"{result.machine}; {result.seconds:g} s each",
        "",
        f"{'peers':>6}  {'':<10}{'CPU ms a minute':>16}{'MB':>8}{'written':>9}",
    ]
    for each in result.cases:
        megabytes = f"{each.memory / MEGABYTE:>8.1f}{each.written / MEGABYTE:>9.1f}"
        lines.append(f"{each.peers:>6}  {each.looked:<10}{each.cpu_ms:>16.0f}{megabytes}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    return run_command("bench exporter", _parser().parse_args(argv), run, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench exporter", description="Measure what the exporter costs beside a hub."
    )
    parser.add_argument(
        "--peers", type=int, nargs="+", default=[1, 100, 4096], metavar="N", help="peers of the hub (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="length of each case (%(default)s)")
    parser.add_argument("--only", choices=LOOKED, action="append", help="this case alone; may be repeated")
    parser.add_argument(
        "--metrics-peers", type=int, default=200, metavar="N", help="peers with metrics of their own (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser
