"""The contenders of `bench peers`: the bare link, this tunnel in four shapes, and other programs.

    Contender           a row: its name, the commands that it needs, and how it is opened between two nodes
    Contender.open      start both ends; the block begins when a ping has come back, and ends with nothing left
    running             processes of another program; each reads its configuration from a pipe
    OURS, BARE          other programs are in tools/bench/other_programs.py

Every contender gets new keys and ports that are free in the nodes. No key is ever in a file. Devices live in the nodes'
namespaces, and processes die with this one (tools/lab/namespace.py). So even `kill -9` of this process leaves nothing
of another program behind.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.version import VERSION
from tools.bench import peers_report
from tools.bench.programs import Programs
from tools.lab.namespace import LabError, stop
from tools.lab.network import Node
from tools.lab.waiting import Overdue, until
from tools.load.flows import ping
from tools.tunnel_pair import TunnelPair

READY_SECONDS = 20.0
PING_SECONDS = 0.5
STOP_SECONDS = 5.0
LOG_LINES = 8


@dataclass(frozen=True)
class Site:
    """Where a contender is opened. The client's node is the source of all traffic."""

    server: Node
    client: Node
    programs: Programs
    settings: Sequence[str] = ()
    """For both ends of this tunnel, "key=value"."""
    left_behind: list[str] = field(default_factory=list)
    """Names that a contender did not take with it."""


@dataclass(frozen=True)
class Opened:
    """A contender that works."""

    address: str
    """The server's, inside."""
    note: str = ""
    """What of several ways it took, such as a module of the kernel."""


@dataclass(frozen=True)
class Contender:
    name: str
    kind: str
    """One of tools.bench.peers_report."""
    title: str
    open: Callable[[Site], AbstractContextManager[Opened]]
    commands: tuple[str, ...] = ()
    """Of other programs: those that it starts (tools/bench/programs.py)."""
    version: Callable[[Programs], str] = lambda programs: ""


class Start(NamedTuple):
    """How a process of another program starts: where, its words, what it reads from standard input."""

    node: Node
    words: Sequence[object]
    configuration: str = ""
    wrap: Sequence[str] = ()
    """Words in front of the command."""


class Daemon(NamedTuple):
    """A process of another program. Its log is a file without a name."""

    name: str
    process: subprocess.Popen
    log_fd: int

    @property
    def log(self) -> str:
        end = os.fstat(self.log_fd).st_size
        return os.pread(self.log_fd, end, 0).decode(errors="replace")  # a seek would move the writer, too

    def end_of_log(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_LINES:])


def expect_running(daemons: Iterable[Daemon]) -> None:
    for daemon in daemons:
        if daemon.process.poll() is not None:
            raise LabError(f"{daemon.name} ended, exit status {daemon.process.returncode}: {daemon.end_of_log()}")


@contextmanager
def running(programs: Programs, *starts: Start) -> Iterator[list[Daemon]]:
    """A daemon for each; they are stopped at the end of the block, the last first."""
    daemons = []
    with ExitStack() as stack:
        for node, words, configuration, wrap in starts:
            program, *arguments = words
            log = stack.enter_context(tempfile.TemporaryFile())
            process = node.popen(
                [*wrap, *programs.argv(str(program)), *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=programs.environment(),
            )
            stack.callback(stop, [process], STOP_SECONDS)
            daemons.append(Daemon(f"{program} in {node.name!r}", process, log.fileno()))
            _give(process, configuration)
        yield daemons


def _give(process: subprocess.Popen, configuration: str) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(configuration.encode())
    except BrokenPipeError:
        pass  # it has ended: expect_running() says so, with its log


def wait_for_ping(site: Site, address: str, daemons: Sequence[Daemon] = ()) -> None:
    """Until an echo has come back through the tunnel. LabError with the logs if a process ends or the time does."""

    def answered() -> bool:
        expect_running(daemons)
        return not ping(site.client, address, count=1, timeout=PING_SECONDS).lost

    try:
        until(answered, f"a ping to {address} through the tunnel", READY_SECONDS)
    except Overdue as overdue:
        expect_running(daemons)
        raise LabError("\n".join([str(overdue), *(daemon.end_of_log() for daemon in daemons)])) from None


@contextmanager
def open_bare(site: Site) -> Iterator[Opened]:
    yield Opened(site.server.address)


def open_ours(*settings: str) -> Callable[[Site], AbstractContextManager[Opened]]:
    """This tunnel with these settings and `site.settings`; the later ones count."""

    @contextmanager
    def opened(site: Site) -> Iterator[Opened]:
        overrides = [*settings, *site.settings]
        pair = TunnelPair(site.server, site.client, overrides=overrides)
        try:
            with pair:
                if "spares=false" not in overrides:
                    for tunnel in pair.ends().values():
                        tunnel.wait_for_spares()  # their start takes a core for a second
                yield Opened(pair.server.address)
        finally:
            site.left_behind.extend(pair.left_behind)

    return opened


def our_version(programs: Programs) -> str:
    return VERSION


BARE = Contender("bare", peers_report.BARE, "bare link", open_bare)
OURS = tuple(
    Contender(name, peers_report.OURS, f"ours, {title}", open_ours(*settings), version=our_version)
    for name, title, settings in (
        ("plain", "plain", ("encryption=none",)),
        ("sealed", "sealed", ("encryption=tls",)),
        ("plain-fec", "plain, FEC on", ("encryption=none", "fec=on")),
        ("sealed-fec", "sealed, FEC on", ("encryption=tls", "fec=on")),
    )
)
