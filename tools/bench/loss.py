"""The loss lab: how loss, and the end of a connection, change the traffic in the tunnel. python -m tools.bench.loss

Every configuration gets an emulated link of its own (tools/bench/loss_testbed.py). The client's end sends:

    ping      50 echoes a second, alone
    alone     the light stream: 50 packets a second of 200 bytes, and nothing else
    beside    the light stream beside one TCP bulk transfer in its direction

The first two load nothing, so all configurations run them at once. Beside a bulk transfer, as many configurations run
at a time as --at-once says. The links lose nothing until the tunnels are connected. Then all meet equal losses (one
seed).

Beside the bulk transfer the processor time of both ends is counted, for each GB that has arrived. Spares are among
their processes.

Meanwhile this process wakes every few ms and notes its own lateness. A process of the tunnel had to wait as long for a
core, whatever the link did. The emulator has real-time priority and counts its own lateness.

In the scenarios "cut" and "black-hole" the links lose nothing. EVENT_AFTER_SECONDS into the stream, the event hits the
connection of the tunnel that has sent most during it. The measurement goes on until traffic flows again. `alone` and
`beside` get a tunnel each.

Results and their table are in tools/bench/loss_report.py, the plot is in tools/bench/loss_plot.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from pipeline.config.schema import Config
from tools.bench import loss_plot
from tools.bench.command import run_command
from tools.bench.loss_report import (
    Cell,
    Configuration,
    LossResult,
    Scenario,
    Stream,
    gap_ms,
    mbit,
    of_arrivals,
    of_pings,
    table,
)
from tools.bench.loss_testbed import Testbed, open_testbed
from tools.bench.machine import machine
from tools.lab import congestion
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.waiting import Overdue
from tools.load.flows import Echoes, TcpFlow, UdpFlow
from tools.load.generators import Sample

RATE_MBIT, ONE_WAY_MS = 50.0, 20.0
LOSSES_PERCENT = (0.5, 1.0, 2.0, 5.0)
BURST = 4.0
"""Mean length of a loss in the bursty scenarios, in segments: a millisecond of a full link."""

FADE_MS = 4.0
"""Mean length of a loss in the scenario of a path that fades: it takes whatever is sent meanwhile."""

REORDER_MS = 5.0
"""So much longer a segment is under way that others overtake: twenty segments of a full link."""

SCENARIOS = (
    Scenario(name="loss-0"),
    *(
        Scenario(name=f"{kind}-{loss:g}", loss_percent=loss, burst=burst)
        for kind, burst in (("random", 1.0), ("burst", BURST))
        for loss in LOSSES_PERCENT
    ),
    Scenario(name="fade-2", loss_percent=2.0, burst_ms=FADE_MS),
    Scenario(name="cut", event="cut"),
    Scenario(name="black-hole", event="black-hole"),
)
NAMED_SCENARIOS = (
    *(Scenario(name=f"random-{loss:g}", loss_percent=loss) for loss in (10.0, 20.0)),
    Scenario(name="reorder-5", reorder_percent=5.0),
)
"""They are measured only if they are asked for."""

CONFIGURATIONS = (
    Configuration("bare", None),
    Configuration("one", ("connections=1", "fec=off")),
    Configuration("five", ("connections=5", "fec=off")),
    Configuration("five-fec", ("connections=5", "fec=on")),
    Configuration("auto", ("fec=auto",)),
    Configuration("udp", ("carrier=udp", "encryption=tls"), in_datagrams=True),
)
CARRIERS = get_args(get_type_hints(Config)["carrier"])
NAMED_CONFIGURATIONS = tuple(
    Configuration(carrier, (f"carrier={carrier}", "encryption=tls"), in_datagrams=carrier != "tcp")
    for carrier in ("tcp", "faketcp")
    if carrier in CARRIERS
)
"""They are measured only if they are asked for. `tcp` is `auto` with the encryption that datagrams need."""

LIGHT_RATE, LIGHT_BYTES = 50.0, 200
WARM_UP_SECONDS = 3.0
"""From the bulk transfer's first byte to the stream beside it: slow start is over."""

EVENT_AFTER_SECONDS = 1.0
FLOWING_SECONDS = 0.5
"""Traffic flows when the last arrival is younger than this."""

WATCH_SECONDS = 50.0
"""So long traffic has to flow again: by default a connection is dead after 30 s of silence, then it is dialled
anew."""

PATIENCE_SECONDS = 3.0
"""For what was sent last: several retransmission timeouts of the carrier."""

BARE_PATIENCE_SECONDS = 0.5
"""Nothing repeats what the bare link lost, and its queue is empty by then."""

START_SECONDS, PHASE_SECONDS, DEAD_SECONDS = 1.0, 1.5, 45.0
"""For the estimate. Until a tunnel stands; until the load of a phase has come and gone; until a black-holed connection
without FEC is replaced and the bulk transfer behind it finds out."""

WAKE_SECONDS = 0.005
BULK_SECONDS = 24 * 3600.0

Item = TypeVar("Item")
Named = TypeVar("Named", bound=Scenario | Configuration)


class Lossy:
    """One run over the scenarios and configurations of `result`, which it fills."""

    def __init__(self, options: argparse.Namespace, result: LossResult) -> None:
        self._options = options
        self._result = result
        self._overrides = {one.name: one.overrides for one in result.configurations}
        self._link = LinkSpec(
            delay_ms=ONE_WAY_MS,
            rate_mbit=RATE_MBIT,
            queue_packets=None,
            queue_bytes=result.queue_bytes,
            seed=options.seed,
        )
        self._began = time.monotonic()

    def run(self) -> None:
        """Run all scenarios. A failure in one costs the others nothing, even a tunnel that does not stop."""
        for number, scenario in enumerate(self._result.scenarios, start=1):
            passed = time.monotonic() - self._began
            _say(f"{passed:4.0f} s  {number}/{len(self._result.scenarios)}  {scenario.name}")
            cells = [
                Cell(scenario=scenario.name, configuration=one.name)
                for one in fitting(self._result.configurations, scenario)
            ]
            self._result.cells += cells
            try:
                if scenario.event:
                    self._run_event(scenario, cells)
                else:
                    self._run_loss(scenario, cells)
            except (LabError, Overdue) as error:
                for cell in cells:
                    cell.error = cell.error or str(error)
        self._result.took_seconds = time.monotonic() - self._began

    def _run_loss(self, scenario: Scenario, cells: list[Cell]) -> None:
        with self._testbeds(scenario, cells) as testbeds:
            self._ping(testbeds)
            self._stream(testbeds, beside=False)
            for group in _groups(testbeds, self._options.at_once):
                self._stream(group, beside=True)
            _note(testbeds)

    def _run_event(self, scenario: Scenario, cells: list[Cell]) -> None:
        with self._testbeds(scenario, cells) as testbeds:
            self._stream(testbeds, beside=False, event=scenario.event)
        for group in _groups([cell for cell in cells if not cell.error], self._options.at_once):
            with self._testbeds(scenario, group) as testbeds:
                self._stream(testbeds, beside=True, event=scenario.event)
                _note(testbeds)

    @contextmanager
    def _testbeds(self, scenario: Scenario, cells: Sequence[Cell]) -> Iterator[list[Testbed]]:
        with ExitStack() as stack:
            testbeds = []
            for cell in cells:
                own = self._overrides[cell.configuration]
                overrides = None if own is None else [*own, *self._options.set]
                try:
                    testbeds.append(
                        stack.enter_context(
                            open_testbed(
                                cell, self._link, overrides, self._result.left_behind, self._options.congestion
                            )
                        )
                    )
                except (LabError, Overdue) as error:
                    cell.error = str(error)
            lossy = msgspec.structs.replace(
                self._link,
                loss_percent=scenario.loss_percent,
                burst=scenario.burst,
                burst_ms=scenario.burst_ms,
                reorder_percent=scenario.reorder_percent,
                reorder_ms=REORDER_MS,
            )
            for testbed in testbeds:
                testbed.lab.link.change(lossy)
            yield testbeds

    def _ping(self, testbeds: Sequence[Testbed]) -> None:
        echoes = {}
        for testbed in _working(testbeds):
            with testbed.step():
                echoes[testbed] = Echoes(
                    testbed.source,
                    testbed.address,
                    count=round(self._options.seconds * LIGHT_RATE),
                    interval=1 / LIGHT_RATE,
                    timeout=_patience(testbed),
                )
        pause = _pass(time.monotonic() + self._options.seconds)
        for testbed, echo in echoes.items():
            with testbed.step():
                testbed.cell.ping = of_pings(echo.finish())
                testbed.cell.ping_pause_ms = pause

    def _stream(self, testbeds: Sequence[Testbed], *, beside: bool, event: str = "") -> None:
        """The light stream over all of `testbeds` at once, alone or each beside a bulk transfer of its own."""
        with ExitStack() as flows:
            bulks = self._start_bulks(flows, testbeds) if beside else {}
            lights = _start_lights(flows, testbeds)
            before = {testbed: testbed.cpu_seconds() for testbed in bulks if not event}
            times, pause = self._watch(bulks, lights, event)
            used = _growth(before)
            resumed = {
                testbed: not event or _flow([lights[testbed], *([bulks[testbed]] if beside else [])])
                for testbed in _working(lights)
            }
            for testbed in _working(lights):
                with testbed.step():
                    lights[testbed].end()
            for testbed in _working(lights):
                lights[testbed].wait_for_all(times[-1] / 1e9 + _patience(testbed))
                stream = _found(lights[testbed], bulks.get(testbed), times)
                stream.resumed, stream.pause_ms = resumed[testbed], pause
                if used.get(testbed) and stream.bulk_mbit:
                    gigabytes = stream.bulk_mbit / 8e3 * (times[-1] - times[0]) / 1e9
                    stream.server_cpu, stream.client_cpu = (each / gigabytes for each in used[testbed])
                if beside:
                    testbed.cell.beside = stream
                else:
                    testbed.cell.alone = stream

    def _start_bulks(self, flows: ExitStack, testbeds: Sequence[Testbed]) -> dict[Testbed, TcpFlow]:
        bulks = {}
        for testbed in _working(testbeds):
            with testbed.step():
                bulks[testbed] = flows.enter_context(
                    TcpFlow(testbed.source, testbed.sink, testbed.address, seconds=BULK_SECONDS)
                )
                bulks[testbed].wait_for_bytes()
        time.sleep(WARM_UP_SECONDS)
        return bulks

    def _watch(
        self, bulks: dict[Testbed, TcpFlow], lights: dict[Testbed, UdpFlow], event: str
    ) -> tuple[tuple[int, int, int], float]:
        """Let it run. When it began, what the gaps count from (the event, if any), and when it ended, in monotonic
        ns; the longest pause."""
        begin = since = time.monotonic_ns()
        pauses = []
        if event:
            pauses.append(_pass(begin / 1e9 + EVENT_AFTER_SECONDS))
            since = time.monotonic_ns()
            for testbed in _working(lights):
                with testbed.step():
                    testbed.strike(event)
        pauses.append(_pass(begin / 1e9 + self._options.seconds))
        if event:
            while not _flow([*bulks.values(), *lights.values()]) and (
                time.monotonic_ns() - since < WATCH_SECONDS * 1e9
            ):
                pauses.append(_pass(time.monotonic() + FLOWING_SECONDS / 2))
        return (begin, since, time.monotonic_ns()), max(pauses)


def _start_lights(flows: ExitStack, testbeds: Sequence[Testbed]) -> dict[Testbed, UdpFlow]:
    lights = {}
    for testbed in _working(testbeds):
        with testbed.step():
            testbed.mark_sent()
            lights[testbed] = flows.enter_context(
                UdpFlow(testbed.source, testbed.sink, testbed.address, rate=LIGHT_RATE, size=LIGHT_BYTES)
            )
    return lights


def _growth(before: dict[Testbed, list[float]]) -> dict[Testbed, list[float]]:
    """The processor time of each end since then."""
    return {
        testbed: [now - then for now, then in zip(testbed.cpu_seconds(), of_before, strict=True)]
        for testbed, of_before in before.items()
        if testbed.works
    }


def _found(light: UdpFlow, bulk: TcpFlow | None, times: tuple[int, int, int]) -> Stream:
    """`times` as from Lossy._watch."""
    begin, since, end = times
    stream = Stream(
        light=of_arrivals(light.sent, list(light.arrivals)),
        light_gap_ms=gap_ms([Sample(one.time_ns, 0) for one in list(light.arrivals)], since, end),
    )
    if bulk is not None:
        samples = list(bulk.samples)
        stream.bulk_mbit = mbit(samples, begin, end)
        stream.bulk_gap_ms = gap_ms(samples, since, end)
        stream.bulk_survived = bulk.alive
    return stream


def _pass(until: float) -> float:
    """Let the traffic run until time.monotonic() is `until`; the worst lateness of our wake-ups, in ms."""
    worst = 0.0
    now = time.monotonic()
    while now < until:
        due = min(until, now + WAKE_SECONDS)
        time.sleep(due - now)
        now = time.monotonic()
        worst = max(worst, now - due)
    return worst * 1e3


def _flow(flows: Sequence[TcpFlow | UdpFlow]) -> bool:
    """Something has just arrived everywhere. A connection that has ended is not waited for."""
    for flow in flows:
        arrived = flow.samples if isinstance(flow, TcpFlow) else flow.arrivals
        silent = not arrived or time.monotonic_ns() - arrived[-1].time_ns > FLOWING_SECONDS * 1e9
        if silent and not (isinstance(flow, TcpFlow) and not flow.alive):
            return False
    return True


def _note(testbeds: Iterable[Testbed]) -> None:
    for testbed in _working(testbeds):
        with testbed.step():
            testbed.note()


def _working(testbeds: Iterable[Testbed]) -> list[Testbed]:
    return [testbed for testbed in testbeds if testbed.works]


def _groups(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _patience(testbed: Testbed) -> float:
    return BARE_PATIENCE_SECONDS if testbed.pair is None else PATIENCE_SECONDS


def _say(text: str) -> None:
    print(f"bench fec: {text}", file=sys.stderr, flush=True)


def fitting(configurations: Sequence[Configuration], scenario: Scenario) -> list[Configuration]:
    """The bare link has no connection of a tunnel that could be struck, and one that carries nothing is no loss."""
    return [one for one in configurations if not scenario.event or (one.overrides is not None and not one.in_datagrams)]


def about_seconds(result: LossResult, at_once: int) -> float:
    """How long it will take, on a machine that does nothing else."""
    total = 0.0
    for scenario in result.scenarios:
        ours = fitting(result.configurations, scenario)
        tunnels = sum(one.overrides is not None for one in ours)
        beside = len(_groups(ours, at_once)) * (WARM_UP_SECONDS + result.seconds + PHASE_SECONDS)
        if scenario.event:
            dead = DEAD_SECONDS if scenario.event == "black-hole" else 0.0
            slow = [one for one in ours if "fec=off" in (one.overrides or ())]
            total += 2 * tunnels * START_SECONDS + result.seconds + PHASE_SECONDS + beside
            total += dead * (bool(slow) + len(_groups(slow, at_once)))
        else:
            total += tunnels * START_SECONDS + 2 * (result.seconds + PHASE_SECONDS) + beside
    return total


def run(options: argparse.Namespace) -> LossResult:
    """Measure all that `options` choose. A configuration that does not work is in the result as such."""

    control = options.congestion or congestion.DEFAULT.read_text().strip()
    congestion.require(control)
    result = LossResult(
        machine=machine(),
        rate_mbit=RATE_MBIT,
        rtt_ms=2 * ONE_WAY_MS,
        queue_bytes=round(RATE_MBIT * 1e6 / 8 * options.queue_ms / 1e3),
        congestion=control,
        seconds=options.seconds,
        seed=options.seed,
        settings=options.set,
        scenarios=[],
        configurations=_chosen(options.only, CONFIGURATIONS, NAMED_CONFIGURATIONS),
    )
    result.scenarios = [
        one for one in _chosen(options.scenario, SCENARIOS, NAMED_SCENARIOS) if fitting(result.configurations, one)
    ]
    about = about_seconds(result, options.at_once)
    _say(
        f"{len(result.scenarios)} scenarios, {len(result.configurations)} configurations: about "
        + (f"{about / 60:.0f} minutes" if about >= 120 else f"{about:.0f} seconds")
    )
    Lossy(options, result).run()
    return result


def _chosen(names: list[str] | None, usual: Sequence[Named], named: Sequence[Named]) -> list[Named]:
    return [one for one in (*usual, *named) if one.name in names] if names else list(usual)


def main(argv: list[str]) -> int:
    return run_command("bench fec", _parser().parse_args(argv), _run_and_plot, table)


def _run_and_plot(options: argparse.Namespace) -> LossResult:
    if options.plot:
        loss_plot.require_matplotlib()
    result = run(options)
    if options.plot:
        loss_plot.plot(result, options.plot)
    return result


def _between(kind: type, least: float, most: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if not least <= (value := kind(text)) <= most:
            raise argparse.ArgumentTypeError(f"expected {least:g} to {most:g}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench fec",
        description=(
            "Measure delay and throughput of the tunnel over an emulated link that loses packets, and when a "
            "connection ends. All of it takes about 14 minutes."
        ),
    )
    parser.add_argument(
        "--seconds",
        type=_between(float, 1, 3600),
        default=3.0,
        metavar="N",
        help="length of each measurement (%(default)s); 12 are 600 packets, and 28 minutes in all",
    )
    parser.add_argument(
        "--only",
        choices=[one.name for one in (*CONFIGURATIONS, *NAMED_CONFIGURATIONS)],
        action="append",
        help="this configuration alone; may be repeated",
    )
    parser.add_argument(
        "--scenario",
        choices=[one.name for one in (*SCENARIOS, *NAMED_SCENARIOS)],
        action="append",
        help="this scenario alone; may be repeated",
    )
    parser.add_argument(
        "--queue-ms",
        type=_between(float, 1, 10_000),
        default=100.0,
        metavar="MS",
        help="what the link's queue holds, in time at its rate (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the losses (%(default)s)")
    parser.add_argument(
        "--congestion",
        default="",
        metavar="NAME",
        help="congestion control of both hosts: of the bulk transfer, and of the tunnel's connections unless their "
        "setting says otherwise (the machine's)",
    )
    parser.add_argument(
        "--at-once",
        type=_between(int, 1, 64),
        default=1,
        metavar="N",
        help="configurations under load at a time, for a machine with cores to spare (%(default)s)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both ends of every tunnel"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the result, as PNG, SVG or PDF; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
