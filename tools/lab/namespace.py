"""A network namespace that a process of its own holds open, and the ways into it.

The namespace has no name. It exists as long as its holder, and the holder ends with this process. It dies by
PR_SET_PDEATHSIG when the thread that started it ends, and it reads end-of-file from its pipe when this process ends.
So a kill -9 of this process leaves nothing. Every process started here gets that death signal too: start it from a
thread that ends no earlier than the lab, usually the main one.

    run, popen      a command inside; the process is inside when popen returns
    socket, inside  a socket, or anything else, made inside by this process: a thread enters and ends
    close           SIGTERM to the processes started here and to all others that live inside, then SIGKILL, by pid
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket as sockets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.runtime.privileges import PR_SET_PDEATHSIG, prctl

CLONE_NEWNET = 0x40000000  # linux/sched.h
TERM_SECONDS = 5.0
"""Time that a child gets between SIGTERM and SIGKILL: enough for a tunnel to drain and stop."""

POLL_SECONDS = 0.02

LIBC = ctypes.CDLL(None, use_errno=True)
Result = TypeVar("Result")


class LabError(RuntimeError):
    """The lab cannot be built or used in this way; the text says why and what to do."""


def die_with_parent(netns: int | None = None, sign: int = signal.SIGKILL) -> Callable[[], None]:
    """For preexec_fn: the child gets `sign` when the thread that starts it ends. It starts in `netns`."""
    parent = os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, sign)
        if os.getppid() != parent:
            os._exit(1)
        if netns is not None:
            _enter(netns)

    return prepare


def _enter(netns: int) -> None:
    """Move the calling thread, and no other, into a network namespace."""
    if LIBC.setns(netns, CLONE_NEWNET) != 0:
        raise LabError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}; run as root")


def inside(netns: int, action: Callable[[], Result]) -> Result:
    """Run `action` in a thread of its own that has entered the network namespace.

    Sockets and devices that it opens belong there for good. A process that it starts dies with the thread.
    """

    def work() -> Result:
        _enter(netns)
        return action()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(work).result()


@contextmanager
def signals_held_off() -> Iterator[None]:
    """SIGINT and SIGTERM that the program handles take effect at the end of the block.

    Needed around a fork, because an exception that a handler raises there is lost (Python runs its fork hooks), and
    around a closing.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for handled, handler in before.items():
            signal.signal(handled, handler)
    for missed in received:
        signal.raise_signal(missed)


def stop(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    """SIGTERM to all that still run, SIGKILL to those that have not ended `seconds` later; all are reaped."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Namespace:
    """See the head of this file. `name` is for messages only."""

    def __init__(self, name: str, term_seconds: float = TERM_SECONDS) -> None:
        self.name = name
        self.started: list[subprocess.Popen] = []
        """Processes started by popen that are not known to have ended."""
        self._term_seconds = term_seconds
        with signals_held_off():
            self._holder = subprocess.Popen(
                ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"],
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=die_with_parent(),
            )
        self.pid = self._holder.pid
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._pipes = self._holder.stdin, self._holder.stdout
        if not self._holder.stdout.readline():
            self._end_holder()
            raise LabError(f"cannot create a network namespace for {name!r}; run as root (CAP_SYS_ADMIN)")
        self.netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def popen(self, argv: Sequence[object], *, death_signal: int = signal.SIGKILL, **options: Any) -> subprocess.Popen:
        """subprocess.Popen inside. The lab ends the process as it closes, and `death_signal` if we are killed."""
        self.started = [process for process in self.started if process.poll() is None]
        with signals_held_off():
            process = self._start(argv, options, death_signal)
            self.started.append(process)
        return process

    def run(
        self,
        argv: Sequence[object],
        *,
        check: bool = True,
        timeout: float | None = 60,
        input: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess:
        """subprocess.run inside, with captured text output; a failure's message holds the output of the command."""
        streams = {
            "stdin": subprocess.DEVNULL if input is None else subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        words = [str(word) for word in argv]
        with signals_held_off():
            process = self._start(words, {**streams, **options})
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise LabError(
                f"{' '.join(words)} in {self.name!r}: exit status {process.returncode}: {(err or out or '').strip()}"
            )
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def inside(self, action: Callable[[], Result]) -> Result:
        """Run `action` in a thread that has entered this namespace; see the function `inside`."""
        return inside(self.netns, action)

    def socket(
        self, family: int = sockets.AF_INET, kind: int = sockets.SOCK_STREAM, protocol: int = 0
    ) -> sockets.socket:
        """A socket of this namespace, for use by this process."""
        return self.inside(lambda: sockets.socket(family, kind, protocol))

    def free_port(self, kind: int = sockets.SOCK_STREAM) -> int:
        """A port that is free inside at this moment."""
        with self.socket(kind=kind) as probe:
            probe.bind(("", 0))
            return probe.getsockname()[1]

    def sysctl(self, *settings: str) -> None:
        """Settings of this namespace, each as in net.ipv4.ip_forward=1."""
        self.run(["sysctl", "-qw", *settings])

    def devices(self) -> list[str]:
        """Names of all network devices inside."""
        lines = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()[2:]
        return [line.partition(":")[0].strip() for line in lines]

    def processes(self) -> list[int]:
        """Pids of all processes inside, without the holder."""
        ours = os.fstat(self.netns).st_ino
        found = []
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            try:
                if pid != self.pid and os.stat(f"/proc/{pid}/ns/net").st_ino == ours:
                    found.append(pid)
            except OSError:
                continue  # it has ended meanwhile
        return found

    def close(self) -> None:
        """End everything inside, then the namespace. To be called once."""
        stop(self.started, self._term_seconds)
        self._end_strays()
        self._end_holder()
        os.close(self.netns)

    def _end_strays(self) -> None:
        """End the processes that a command inside has left running."""
        deadline = time.monotonic() + self._term_seconds
        sign: int = signal.SIGTERM
        while strays := self.processes():
            for pid in strays:
                try:
                    os.kill(pid, sign)
                except ProcessLookupError:
                    continue  # it has ended meanwhile
            if time.monotonic() > deadline:
                sign = signal.SIGKILL
            time.sleep(POLL_SECONDS)

    def _end_holder(self) -> None:
        self._holder.kill()
        self._holder.wait()
        for pipe in self._pipes:
            pipe.close()

    def _start(
        self, argv: Sequence[object], options: dict[str, Any], death_signal: int = signal.SIGKILL
    ) -> subprocess.Popen:
        words = [str(word) for word in argv]
        return subprocess.Popen(words, preexec_fn=die_with_parent(self.netns, death_signal), **options)
