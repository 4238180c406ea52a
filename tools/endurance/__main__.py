"""`tools/soak`: mixed traffic through a hub and two clients for hours, and a random fault every few seconds.

Each fault must be over within RETURN_SECONDS: every flow runs again, unaltered. A run that is repeated with its seed
draws its faults in the same order. The exit status is 1 if anything went wrong or grew; the report says what.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tools.bench.command import Log, progress, run_command
from tools.bench.machine import machine
from tools.endurance.faults import FAULTS, Fault, draws, select
from tools.endurance.report import Report, Struck, table
from tools.endurance.samples import Sample, held, log_bytes, shm_names
from tools.endurance.site import CLIENT_ADDRESSES, HUB_ADDRESSES, Site, open_site
from tools.endurance.traffic import Probe, Stream, Traffic
from tools.lab.namespace import LabError
from tools.lab.waiting import Overdue, until
from tools.load.quantiles import quantile

RETURN_SECONDS = 90.0
"""After 30 s without a link, a TCP connection inside waits up to as long for its next repetition."""

RUNS_SECONDS = 0.5
"""A flow runs if it has received something within this time, and does so for SETTLE_SECONDS."""

SETTLE_SECONDS = 1.0
SAMPLE_SECONDS = 10.0
STREAM_MBIT = 40.0


class Run:
    """One run: traffic, faults, samples."""

    def __init__(self, options: argparse.Namespace, site: Site, log: Log) -> None:
        self._options = options
        self._site = site
        self._log = log
        self._rng = random.Random(options.seed)
        self._faults = draws(select(options.only), self._rng, options.times)
        self._began = time.monotonic()
        self._next_sample = 0.0
        self._traffic: list[Traffic] = []
        self.report = Report(machine(), 0.0, options.seed, [], [], [], {}, 0)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def run(self) -> None:
        """Until the time is over, or something goes wrong that a further fault would hide."""
        with ExitStack() as stack:
            for traffic in _flows(self._site):
                self._traffic.append(stack.enter_context(traffic))
            for fault in self._faults:
                if self._seconds >= self._options.seconds or self.report.problems:
                    break
                self._rest()
                if not self.report.problems:
                    self._strike(fault)
            self.report.flows = {traffic.name: traffic.received for traffic in self._traffic}
        self.report.seconds = self._seconds
        workers = [each for name in ("hub", "two") for each in self._site.instances[name].running()["workers"]]
        self.report.restarts = sum(worker["restarts"] for worker in workers)

    def _rest(self) -> None:
        """Let the traffic run; a sample, if it is time."""
        for traffic in self._traffic:
            if isinstance(traffic, Probe):
                traffic.round_trips_ms.clear()
        time.sleep(self._options.every)
        self._note_errors()
        if self._seconds >= self._next_sample:
            self._next_sample = self._seconds + SAMPLE_SECONDS
            self.report.samples.append(self._sample())

    def _sample(self) -> Sample:
        trips = [trip for each in self._traffic if isinstance(each, Probe) for trip in each.round_trips_ms] or [0.0]
        return Sample(
            self._seconds,
            held(self._site),
            shm_names(self._site),
            log_bytes(self._site),
            quantile(trips, 0.5),
            quantile(trips, 0.99),
        )

    def _strike(self, fault: Fault) -> None:
        at = self._seconds
        self._log(f"{at:.0f} s: {fault.name}")
        for traffic in self._traffic:
            traffic.mark()
        try:
            fault.strike(self._site, self._rng)
            until(self._all_run, f"all flows after: {fault.name}", RETURN_SECONDS, every=0.05)
            self._site.wait_until_connected("hub")
            self._site.wait_until_connected("one")
        except (LabError, Overdue) as error:
            self.report.problems.append(f"at {at:.0f} s, {fault.name}: {error}{self._silent()}")
        silences = {traffic.name: round(traffic.silence_ms(), 1) for traffic in self._traffic}
        self.report.struck.append(Struck(round(at, 1), fault.name, silences))
        self._note_errors()

    def _all_run(self) -> bool:
        """Every flow has run for SETTLE_SECONDS, or one has failed."""
        if any(traffic.error for traffic in self._traffic):
            return True
        until_ns = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until_ns:
            if any(traffic.present_silence() > RUNS_SECONDS for traffic in self._traffic):
                return False
            time.sleep(0.02)
        return True

    def _silent(self) -> str:
        silent = [each.name for each in self._traffic if each.present_silence() > RUNS_SECONDS]
        return f"; silent: {', '.join(silent)}" if silent else ""

    def _note_errors(self) -> None:
        known = set(self.report.problems)
        self.report.problems += [each.error for each in self._traffic if each.error and each.error not in known]


def _flows(site: Site) -> list[Traffic]:
    """Streams both ways, IPv4 and IPv6; probes from each client to the hub and from client to client."""
    hub, one, two = (site.node(name) for name in ("hub", "one", "two"))
    hub4, hub6 = HUB_ADDRESSES
    (one4, one6), (two4, _) = CLIENT_ADDRESSES["one"], CLIENT_ADDRESSES["two"]
    return [
        Stream("stream one-hub", one, hub, hub4, STREAM_MBIT),
        Stream("stream hub-one, IPv6", hub, one, one6, STREAM_MBIT),
        Stream("stream two-one", two, one, one4, STREAM_MBIT),
        Probe("probe one-hub, IPv6", one, hub, hub6),
        Probe("probe one-two", one, two, two4),
        Probe("probe two-hub", two, hub, hub4),
    ]


def measure(options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="tunnel-soak-") as directory, progress(options) as log:
        with open_site(Path(directory), {"lanes": options.lanes, "fec": options.fec}) as site:
            run = Run(options, site, log)
            try:
                run.run()
            finally:
                if run.report.problems:
                    for name, instance in site.instances.items():
                        print(f"--- {name}\n{instance.end_of_log()}", file=sys.stderr)
        run.report.problems += [f"left behind: {each}" for each in site.left_behind]
        return run.report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=1.0, metavar="N", help="how long (%(default)s)")
    parser.add_argument("--seconds", type=float, metavar="N", help="how long, instead of --hours")
    parser.add_argument("--times", type=int, default=0, metavar="N", help="end once each fault has been done so often")
    parser.add_argument("--every", type=float, default=4.0, metavar="S", help="rest between two faults (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of faults (%(default)s)")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[], help="faults whose names contain TEXT; may be repeated"
    )
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--fec", choices=("off", "auto", "on"), default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON, with every fault and every sample")
    options = parser.parse_args(argv)
    if not select(options.only):
        parser.error(f"--only: no such fault; there are: {', '.join(fault.name for fault in FAULTS)}")
    if options.seconds is None:
        options.seconds = options.hours * 3600
    return run_command("soak", options, measure, table)


if __name__ == "__main__":
    sys.exit(main())
