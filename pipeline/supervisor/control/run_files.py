"""The instance's files under /run, which others may remove while it runs: tmpfiles, a clean-up, an administrator.

Without the lock file a second supervisor of this name would start and take what belongs to this one. Without the
socket no command reaches this one. So both are looked at each second, and made again.
"""

from __future__ import annotations

from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.supervisor.control.control_socket import ControlServer
from pipeline.supervisor.instance import Instance

CHECK_NS = 1_000_000_000


class RunFiles:
    """`check(now)`: call often."""

    def __init__(self, instance: Instance, control: ControlServer) -> None:
        self._instance = instance
        self._control = control
        self._next_check_ns = 0
        self._trouble = ""

    def check(self, now: int) -> None:
        """Make missing files again. A file that cannot be made is an error in the log, once."""
        if now < self._next_check_ns:
            return
        self._next_check_ns = now + CHECK_NS
        try:
            if self._instance.hold_place():
                LOG.warning("%s was removed: made again", self._instance.lock_path)
            if not self._instance.socket_path.exists():
                self._control.listen_again()
                LOG.warning("%s was removed: made again", self._instance.socket_path)
            self._trouble = ""
        except (LocalError, OSError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                LOG.error("%s", error)
