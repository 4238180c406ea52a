"""A demonstration of the tunnel: python -m tools.demo, or tools/run demo. Needs root; leaves nothing behind.

It makes two namespaces with a link, and starts a server and a client, a ping, and a bulk transfer with a live display.
It kills each worker with kill -9 in the middle of the transfer, and prints a summary. Ctrl-C ends it at any time, just
as cleanly.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time

from pipeline.cli.status_text import verbose
from pipeline.errors import TunnelError
from pipeline.observe.sentence import amount
from tools.instance import RunningInstance
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.lab.waiting import Overdue
from tools.load.flows import TcpFlow, ping
from tools.tunnel_pair import TunnelPair

REFRESH_SECONDS = 0.5
BAR = 30
CLEAR_TO_END, HOME, CLEAR = "\x1b[J", "\x1b[H", "\x1b[2J"
COUNTED = (
    "tun.packets_read",
    "tun.packets_written",
    "tcp.bytes_sent",
    "tcp.bytes_received",
    "tcp.connections_established",
    "tcp.connections_lost",
)


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration. Exit status: 0, 1 if something did not work, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tunnel-supervisor demo", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the bulk transfer (default 12)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="emulate a link with this delay each way")
    parser.add_argument("--loss-percent", type=float, default=0.0, help="and this random loss each way")
    arguments = parser.parse_args(argv)
    emulated = arguments.delay_ms or arguments.loss_percent
    link = LinkSpec(delay_ms=arguments.delay_ms, loss_percent=arguments.loss_percent) if emulated else None
    if os.geteuid() != 0:
        print("demo: needs root: TUN devices and network namespaces are real", file=sys.stderr)
        return 77
    try:
        with Lab(link=link) as lab:
            return _show(lab, arguments.seconds)
    except (LabError, Overdue, TunnelError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything is gone again", file=sys.stderr)
        return 130


def _show(lab: Lab, seconds: float) -> int:
    server_node, client_node = lab.nodes
    print("two network namespaces, a link, a server and a client ...")
    with TunnelPair(server_node, client_node) as pair:
        direct = ping(client_node, server_node.address, count=20, interval=0.02)
        through = ping(client_node, pair.server.address, count=20, interval=0.02)
        print(
            f"ping: {_median(direct.rtts_ms):.2f} ms on the bare link, "
            f"{_median(through.rtts_ms):.2f} ms through the tunnel, {len(through.lost)} lost"
        )
        with TcpFlow(client_node, server_node, pair.server.address, seconds=seconds) as flow:
            killed = _transfer(pair, flow, seconds)
            survived = flow.alive
            sent, end = flow.finish(seconds + 10)
        print(
            f"\nTCP connection through the tunnel: {amount(end.bytes)} in {seconds:g} s, "
            f"{end.bytes * 8 / seconds / 1e9:.2f} Gbit/s, {'survived every kill' if survived else 'broke'}"
        )
        for name, at in killed:
            print(
                f"  kill -9 {name:<12} nothing arrived for {_gap(flow, at) * 1000:.0f} ms at most in the second after"
            )
        failed = not survived or end.bytes != sent.count
    print("stopped; " + ("nothing is left behind" if not pair.left_behind else f"left: {pair.left_behind}"))
    return 1 if failed or pair.left_behind else 0


def _transfer(pair: TunnelPair, flow: TcpFlow, seconds: float) -> list[tuple[str, int]]:
    """Show the transfer and kill one worker after the other. The names of the killed workers, and the times."""
    began = time.monotonic()
    victims = [(end, worker) for end in (pair.client, pair.server) for worker in _victims(end)]
    due = [began + seconds * (i + 1) / (len(victims) + 1) for i in range(len(victims))]
    killed: list[tuple[str, int]] = []
    said = ""
    display = _Display()
    while (now := time.monotonic()) < began + seconds - REFRESH_SECONDS and flow.alive:
        if due and now >= due[0]:
            due.pop(0)
            end, worker = victims.pop(0)
            os.kill(end.pids()[worker], signal.SIGKILL)
            side = "client" if end is pair.client else "server"
            killed.append((f"{side} {worker}", time.monotonic_ns()))
            said = f"kill -9 of the {side}'s {worker}"
        display.show(pair.client, flow, now - began, seconds, said)
        time.sleep(REFRESH_SECONDS)
    return killed


def _victims(end: RunningInstance) -> list[str]:
    """The workers of the first lane that every packet passes. On a machine with cores enough some are two processes."""
    return [each["name"] for each in end.running()["workers"] if each["lane"] == 0 and each["kind"] in ("tun", "tcp")]


def _gap(flow: TcpFlow, at: int) -> float:
    """The longest silence, in seconds, at the receiver within the second after `at`."""
    times = [at, *(s.time_ns for s in flow.samples if at <= s.time_ns <= at + 1_000_000_000), at + 1_000_000_000]
    return max(later - earlier for earlier, later in itertools.pairwise(times)) / 1e9


class _Display:
    """A screen that is drawn over on a terminal; a line at a time elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._before: tuple[float, int] | None = None
        if self._terminal:
            sys.stdout.write(CLEAR)

    def show(self, tunnel: RunningInstance, flow: TcpFlow, elapsed: float, seconds: float, said: str) -> None:
        received = flow.samples[-1].bytes if flow.samples else 0
        then, before = self._before or (0.0, 0)
        self._before = elapsed, received
        rate = (received - before) * 8 / max(elapsed - then, 0.001) / 1e9
        done = int(BAR * min(1.0, elapsed / seconds))
        line = f"[{'#' * done}{'.' * (BAR - done)}] {amount(received):>9}  {rate:6.2f} Gbit/s  {said}"
        if not self._terminal:
            print(line, flush=True)
            return
        status = tunnel.status()
        if status is not None:
            status["counters"] = {name: status["counters"][name] for name in COUNTED}
        sys.stdout.write(f"{HOME}{line}{CLEAR_TO_END}\n\n{verbose(status) if status else ''}\n")
        sys.stdout.flush()


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())
