"""Every error that this package raises on purpose, and what each one means to the command.

    error             exit   whose fault, and what follows
    LocalError           1   ours: a contract of our own code is broken; the process ends
    UsageError           2   the caller's: the command needs to be told more
    SupervisorGone       1   the supervisor's: it has ended, and so does its worker
    NotRunning           3   nobody's: the instance that was asked for does not run
    PermissionDenied    77   the caller's: it lacks a right, and the text says which
    ConfigError         78   the configuration's: trying again cannot help, so nothing is restarted
    PeerError            -   a peer's: it sent nonsense; that connection ends, and nothing else does

Expected conditions are no errors: a full ring, an incomplete frame and an elapsed timeout are values.
A text names the thing, what was expected, what was found, and what to do.
"""

from typing import NamedTuple


class TunnelError(Exception):
    """Base of all of them; `exit_status` is the command's when one ends it."""

    exit_status = 1


class LocalError(TunnelError):
    """A contract between two parts of this program does not hold."""


class SupervisorGone(TunnelError):
    """A worker has lost its supervisor, without which it can decide nothing."""


class UsageError(TunnelError):
    """The command line does not say enough."""

    exit_status = 2


class NotRunning(TunnelError):
    """No such instance runs."""

    exit_status = 3


class PermissionDenied(TunnelError):
    """The operating system refused something that needs a right."""

    exit_status = 77


class PeerError(TunnelError):
    """A peer broke the protocol. Whoever serves the connection catches it there and counts it."""


class Problem(NamedTuple):
    """One thing that is wrong in a configuration."""

    path: str  # of the setting, such as tunnel_addr[1]; "" for the file as a whole
    text: str
    source: str = ""  # the file, or the command line

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.path, self.text) if part)


class ConfigError(TunnelError):
    """All problems of one configuration, at once."""

    exit_status = 78

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
