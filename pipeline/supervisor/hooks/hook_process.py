"""One run of a hook: a process in a session of its own, its output as lines of the log, a limit on its time.

The supervisor waits for nothing here: a pidfd says when the process has ended, and its output is read as it comes. The
run is over when the process has ended, even if another one holds its output open. A process that it has left in the
background goes on; its output is read and thrown away, so that it does not end of a full or a closed pipe.

After its time, the process group gets SIGTERM, and KILL_NS later SIGKILL. Another session, such as a daemon's, is left
alone. The group's number is ours as long as the process is not reaped.

The process inherits nothing of ours: no descriptor, no environment, no ignored or blocked signal, no umask, neither our
limit of descriptors nor our protection from the memory killer.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.credentials import ownership
from pipeline.log import LOG
from pipeline.plain_text import escaped
from pipeline.supervisor.processes.precedence import Precedence

KILL_NS = 1_000_000_000
READ_BYTES = 1 << 16
QUICK_BYTES = (
    1 << 20
)  # of output that are read at once; a command that writes more waits, and takes no core from packets
SLOW_READS = 16  # a tick from then on
LINES_MAX = 100  # of one run in the log
LINE_LENGTH_MAX = 500
UMASK = 0o022
USUAL_DESCRIPTORS = 1024  # the soft limit of Linux and systemd: programs may close each possible one, or use select(2)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LANG = "C.UTF-8"


class Output:
    """The lines of one run, for the log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._lines = 0

    def add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)
        if len(self._rest) > LINE_LENGTH_MAX:  # the rest of an endless line is no line of its own
            self._say(self._rest)
            self._rest = b""

    def end(self) -> None:
        if self._rest:
            self._say(self._rest)
        if self._lines > LINES_MAX:
            LOG.info("hook %s: %d more lines of its output are not shown", self._name, self._lines - LINES_MAX)

    def _say(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= LINES_MAX:
            text = line[:LINE_LENGTH_MAX].decode(errors="backslashreplace").rstrip("\r")
            LOG.info("hook %s: %s", self._name, escaped(text))


class HookProcess:
    """OSError if it cannot be started. `ended` is called once, when the process has ended and was reaped; it gets its
    exit status, and the output, non-blocking, that another process holds open, -1 if none does."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        variables: Mapping[str, str],
        selector: selectors.BaseSelector,
        precedence: Precedence,
        ended: Callable[[HookProcess, int, int], object],
    ) -> None:
        self.name = name
        self._selector = selector
        self._ended = ended
        self._began_ns = time.monotonic_ns()
        self._signalled = 0  # the last signal that it got
        self._size = 0  # of its output so far
        self.failure = ""  # how it has failed, once it has ended; "" if it has not
        self._output = Output(name)
        _require_trusted(argv[0])
        self._pipe, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(theirs, True)
            with _plain_surroundings():
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=subprocess.STDOUT,
                    env={"PATH": PATH, "LANG": LANG, **variables},
                    cwd="/",
                    start_new_session=True,
                    umask=UMASK,
                )
            try:
                self._pidfd = os.pidfd_open(self._popen.pid)
            except OSError:
                self._popen.kill()
                self._popen.wait()
                raise
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(theirs)
        precedence.set_foreign(self._popen.pid)
        selector.register(self._pidfd, selectors.EVENT_READ, self.reap)
        selector.register(self._pipe, selectors.EVENT_READ, self._read_some)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def tick(self, now: int, timeout_ns: int) -> None:
        """End it if its time is over. Call about ten times a second."""
        if self._size > QUICK_BYTES and self._pipe >= 0:
            self._read_all(SLOW_READS)
        late = now - self._began_ns - timeout_ns
        if late > 0 and not self._signalled:
            text = "hook %s: still running after %g s: it is ended, with its process group"
            LOG.error(text, self.name, timeout_ns / 1e9)
            self.send(signal.SIGTERM)
        elif late > KILL_NS and self._signalled != signal.SIGKILL:
            self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send a signal to the whole group."""
        self._signalled = number
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def _read_some(self) -> None:
        self._read_all(1)
        if self._size > QUICK_BYTES and self._pipe >= 0:
            self._selector.unregister(self._pipe)

    def _read_all(self, most: int) -> None:
        """Read so often at most."""
        with suppress(BlockingIOError):
            for _ in range(most):
                data = os.read(self._pipe, READ_BYTES)
                if not data:
                    self._leave_output()
                    os.close(self._pipe)
                    self._pipe = -1
                    return
                self._size += len(data)
                self._output.add(data)

    def _leave_output(self) -> None:
        if self._pipe in self._selector.get_map():
            self._selector.unregister(self._pipe)

    def reap(self, seconds: float | None = None) -> None:
        """Wait for its end; subprocess.TimeoutExpired if it has not ended within so many seconds."""
        status = self._popen.wait(seconds)
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        if self._pipe >= 0:
            self._read_all(SLOW_READS)  # as much as a pipe holds: all that the process itself has written
        self._output.end()
        self._report(status)
        if self._pipe >= 0:
            self._leave_output()
        left_open, self._pipe = self._pipe, -1
        self._ended(self, status, left_open)

    def _report(self, status: int) -> None:
        seconds = (time.monotonic_ns() - self._began_ns) / 1e9
        if status == 0:
            LOG.debug("hook %s: done after %.1f s", self.name, seconds)
            return
        how = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
        self.failure = f"{how} after {seconds:.1f} s"
        LOG.warning("hook %s: %s", self.name, self.failure)


def _require_trusted(program: str) -> None:
    """OSError if another user could change the program, or if its file system does not answer."""
    if exposure := ownership.find_exposure(Path(program)):
        raise OSError(exposure)


@contextmanager
def _plain_surroundings() -> Iterator[None]:
    """Signals and limits as a program expects them, for the moment in which a process is started.

    exec(2) resets a signal that is handled, and leaves one alone that is ignored.
    """
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda number, frame: None)
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL_DESCRIPTORS, limits[1]), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
