"""The DNS servers of this machine, while everything goes into the tunnel: a server that is asked hears where we go.

    NameServers.use(servers)    let this machine ask these alone, and "" or why it cannot be done here
    NameServers.restore()       as before
    remove_remains(...)         after a kill

Others manage /etc/resolv.conf, and we ask the one that does: systemd-resolved (`resolvectl`), where that file names its
stub, or `resolvconf`. Nobody's file is written by us. The settings that resolved has for the device go with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.log import LOG
from pipeline.policy.kernel_entries import IPAddress
from pipeline.supervisor.kernel.nft import SBIN_DIRECTORIES
from pipeline.transport.uplink_names import BY_RESOLVCONF, OF_TUNNELS, RESOLV_CONF, servers_in

STUBS = {"127.0.0.53", "127.0.0.54"}  # systemd-resolved(8)
COMMAND_SECONDS = 5.0
RESOLVED, RESOLVCONF = "resolvectl", "resolvconf"


def tool(resolv_conf: str, link: str, programs: Iterable[str]) -> str:
    """Which program sets DNS servers on this machine, "" if none does. `link`: where /etc/resolv.conf leads."""
    servers = set(servers_in(resolv_conf))
    if RESOLVED in programs and (servers & STUBS or "/systemd/resolve/" in link):
        return RESOLVED
    if RESOLVCONF in programs:
        return RESOLVCONF
    return ""


class NameServers:
    def __init__(self, tun_name: str, instance_name: str) -> None:
        self._tun_name = tun_name
        self._record = _record(instance_name)
        self._tool = ""  # that has been used

    def use(self, servers: Sequence[IPAddress]) -> str:
        listed = ", ".join(map(str, servers))
        found = tool(_read(RESOLV_CONF), os.path.realpath(RESOLV_CONF), _programs())
        if not found:
            return (
                "this machine has neither systemd-resolved nor resolvconf, so its DNS servers stay as they are; "
                f"in {RESOLV_CONF}, by hand: nameserver {servers[0]}"
            )
        why = self._use_resolved(servers) if found == RESOLVED else self._use_resolvconf(servers)
        if why:
            return f"the DNS servers {listed} cannot be set: {why}"
        if not self._tool:
            LOG.info("DNS servers: %s, set by %s", listed, found)
        self._tool = found
        return ""

    def _use_resolved(self, servers: Sequence[IPAddress]) -> str:
        tun = self._tun_name
        for words in (
            [RESOLVED, "dns", tun, *map(str, servers)],
            [RESOLVED, "domain", tun, "~."],  # all names are looked up there, whatever other devices have
            [RESOLVED, "default-route", tun, "yes"],
        ):
            if why := _run(words):
                return why
        _run([RESOLVED, "flush-caches"])
        return ""

    def _use_resolvconf(self, servers: Sequence[IPAddress]) -> str:
        lines = "".join(f"nameserver {server}\n" for server in servers)
        return _run([RESOLVCONF, "-a", self._record, "-m", "0", "-x"], lines)

    def restore(self) -> None:
        used, self._tool = self._tool, ""
        why = ""
        if used == RESOLVED:
            why = _run([RESOLVED, "revert", self._tun_name])
        elif used == RESOLVCONF:
            why = _run([RESOLVCONF, "-d", self._record, "-f"])
        if why:
            LOG.warning("the DNS servers cannot be set back: %s", why)


def remove_remains(instance_name: str) -> None:
    record = _record(instance_name)
    if any((place / record).exists() for place in BY_RESOLVCONF):
        _run([RESOLVCONF, "-d", record, "-f"])


def _record(instance_name: str) -> str:
    """By this prefix resolvconf prefers records of tunnels (interface-order)."""
    return f"{OF_TUNNELS}tunnel-{instance_name}"


def _programs() -> list[str]:
    return [name for name in (RESOLVED, RESOLVCONF) if shutil.which(name, path=_path())]


def _path() -> str:
    return os.pathsep.join([*os.get_exec_path(), *SBIN_DIRECTORIES])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _run(words: Sequence[str], text: str = "") -> str:
    """Why the command has failed; "" if it has not."""
    environment = {**os.environ, "PATH": _path()}
    try:
        done = subprocess.run(
            words, input=text, text=True, capture_output=True, timeout=COMMAND_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{words[0]} has not ended within {COMMAND_SECONDS:g} s"
    except OSError as error:
        return f"{words[0]}: {error.strerror}"
    if done.returncode:
        return f"{words[0]}: {done.stderr.strip().partition(chr(10))[0] or f'exit status {done.returncode}'}"
    return ""
