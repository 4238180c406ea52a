"""The errors that this program defines, with the exit status of the command that each ends.

    error             exit   cause and consequence
    LocalError           1   a contract of our own code, or of this machine, does not hold; the process ends
    SupervisorGone       1   the supervisor has ended; its worker ends
    UsageError           2   the command line is incomplete or contradicts itself
    NotRunning           3   the instance that the command names does not run
    PermissionDenied    77   the caller lacks a right; the text says which
    ConfigError         78   the configuration is wrong; a restart cannot help, so nothing is restarted
    PeerError            -   a peer has broken the protocol; its connection ends, and nothing else does

Expected conditions are values and no errors: a full ring, an incomplete frame, an elapsed timeout. A text names the
thing, what was expected, what was found, and what to do.
"""

from typing import NamedTuple

from pipeline.plain_text import escaped
from pipeline.secret_text import conceal


class TunnelError(Exception):
    """The base of all errors. `exit_status`: of a command that it ends."""

    exit_status = 1


class LocalError(TunnelError):
    """A contract between two parts of this program, or with this machine, does not hold."""


class SupervisorGone(TunnelError):
    """A worker has lost its supervisor, and cannot decide anything without it."""


class UsageError(TunnelError):
    """The command line is incomplete, or contradicts itself."""

    exit_status = 2


class NotRunning(TunnelError):
    """The instance does not run."""

    exit_status = 3


class PermissionDenied(TunnelError):
    """The operating system has refused something that needs a right."""

    exit_status = 77


class PeerError(TunnelError):
    """A peer has broken the protocol. The owner of its connection catches this, closes the connection and counts it."""


class Problem(NamedTuple):
    """One error in a configuration."""

    path: str  # of the setting, such as tunnel_addr[1]; "" for the file as a whole
    text: str
    source: str = ""  # the file or the command line that the setting is from

    def __str__(self) -> str:
        return conceal(": ".join(escaped(part) for part in (self.source, self.path, self.text) if part))


class ConfigError(TunnelError):
    """All problems of one configuration."""

    exit_status = 78

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
