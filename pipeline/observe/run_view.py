"""The shared memory of a running instance, attached read-only: found by the instance's name, and by nothing else.

    attach(name, owner)     the view of the run whose supervisor is alive; NotRunning, LocalError
    RunView                 overview, plan, scoreboard, peer table, rings, event log
    RunView.has_ended       attach anew: the instance has ended, or has made its memory anew under other names

Nothing is asked of a process. So it works while workers or the supervisor are stopped (SIGSTOP), hang or are replaced.

Rights. All segments have mode 0600 and belong to the supervisor's user; an observer runs as that user, or as root with
`owner`. A process that is to run without rights attaches first and drops them then, as workers do: mappings stay. After
has_ended it cannot attach again, and has to be started anew by somebody who can.

Everybody may make names in /dev/shm. Only those of the owner count.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress
from typing import Any

from pipeline.errors import LocalError, NotRunning
from pipeline.observe import overview_text
from pipeline.observe.process_stat import read_process
from pipeline.runtime.assignment import FORMAT
from pipeline.runtime.plan import Plan
from pipeline.runtime.topology import OVERVIEW, name_prefix
from pipeline.shm import event_log, layout, overview, peer_table, ring, scoreboard, segment
from pipeline.shm.segment import SHM_DIRECTORY

FOREIGN = "runs another version of this program: stop it and start it again"


class RunView:
    """Everything about one run that can be read. `about`: the overview as data; read_overview() renews it."""

    def __init__(self, found: overview.Overview, about: dict[str, Any], owner: int) -> None:
        self.overview = found
        self.about = about
        self._count = -1
        self.plan = plan = Plan.from_json(json.dumps(about["plan"]))
        peers = plan.peer_table
        self._attached: list[Any] = []
        try:
            self.scoreboard = self._keep(scoreboard.observe(plan.scoreboard, len(plan.workers), owner))
            self.peer_table = self._keep(
                peer_table.observe(
                    peers.segment, peers.capacity, plan.lanes, peers.status_rows, owner, plan.settings.datagrams
                )
            )
            self.event_log: event_log.EventLog = self._keep(event_log.attach(plan.event_log, owner))
            self.rings = {
                each.name: self._keep(ring.observe(each.segment, each.members, each.slots, each.slot_bytes, owner))
                for each in plan.rings
            }
        except BaseException:
            self._close_attached()
            raise

    def _keep(self, attached: Any) -> Any:
        self._attached.append(attached)
        return attached

    def read_overview(self) -> dict[str, Any]:
        """The overview of this moment. Cheap while it is unchanged."""
        count = self.overview.count
        if count != self._count:
            self.about = overview_text.parse(self.overview.read())
            self._count = count
        return self.about

    @property
    def has_ended(self) -> bool:
        """Whether this memory is in use no more; also when the supervisor was killed."""
        return self.overview.has_ended or not is_alive(self.about)

    def close(self) -> None:
        self._close_attached()
        self.overview.close()

    def _close_attached(self) -> None:
        while self._attached:
            self._attached.pop().close()


def attach(name: str, owner: int | None = None) -> RunView:
    """Attach to the run of an instance. `owner`: the supervisor's user, None for our own.

    NotRunning if there is none, LocalError if it is of another version, or changes right now.
    """
    user = os.geteuid() if owner is None else owner
    found = _names(name, user)
    for each in found:
        with suppress(FileNotFoundError):
            if segment.layout_version(each) != layout.LAYOUT_VERSION:
                raise LocalError(f'instance "{name}" {FOREIGN}')
            if view := _attach_one(name, each, user):
                return view
    dead = ": its last supervisor died" if found else ""
    raise NotRunning(f'instance "{name}" does not run{dead}')


def _names(name: str, owner: int) -> list[str]:
    """Names of overviews of this instance that belong to the owner, the youngest first."""
    pattern = re.compile(re.escape(name_prefix(name)) + rf"[0-9a-f]{{8}}@{OVERVIEW}(?:\.[0-9a-f]+)?")
    dated = []
    try:
        entries = os.listdir(SHM_DIRECTORY)
    except OSError as error:
        raise LocalError(f"{SHM_DIRECTORY}: {error.strerror}") from None
    for entry in entries:
        if pattern.fullmatch(entry):
            with suppress(OSError):
                status = os.lstat(os.path.join(SHM_DIRECTORY, entry))
                if stat.S_ISREG(status.st_mode) and status.st_uid == owner:
                    dated.append((status.st_mtime_ns, f"/{entry}"))
    return [entry for _, entry in sorted(dated, reverse=True)]


def _attach_one(instance: str, name: str, owner: int) -> RunView | None:
    """None if this memory is in use no more, or not yet. LocalError if the instance is of another version."""
    try:
        found = overview.attach(name, owner)
    except LocalError:
        return None  # it was removed at this moment
    view = None
    try:
        about = overview_text.parse(found.read())
        if found.has_ended or not about or not is_alive(about):
            return None
        if about["format"] != FORMAT.decode():
            raise LocalError(f'instance "{instance}" {FOREIGN}')
        with suppress(LocalError):  # the rest was removed at this moment
            view = RunView(found, about, owner)
        return view
    finally:
        if view is None:
            found.close()


def is_alive(about: dict[str, Any]) -> bool:
    """Whether the supervisor of an overview is alive: a process with its pid that began when it began."""
    process = read_process(about["pid"])
    if process is not None:
        return process.state not in ("dead", "zombie") and process.began == about["began"]
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # /proc hides it from us (hidepid)
    return True
