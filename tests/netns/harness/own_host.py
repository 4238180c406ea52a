"""A host of a person: a node of a lab with files of its own, on which commands are typed at a terminal.

    with Host(node, {"vpn.example.org": "10.77.0.1"}) as host:
        said = host.type("tunnel-supervisor status")        its exit status, and what stands on the screen
        host.reboot()                                       without a warning; then the instances that are up come back

It has its own /etc (a copy), /run, /var/lib, /var/log and /dev/shm, and an empty home directory. The program is
installed as a service. In place of systemd there is the least that the commands of its users need (`SYSTEMCTL`); tests
with a real one are in test_packages.py.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.support import ROOT, eventually
from tools.instance import EXECUTABLE
from tools.lab.namespace import Namespace

HOME = "/run/home"
PREPARE = f"""
set -e
mount --make-rprivate /
for place in /var/lib /var/log /run /dev/shm; do mount -t tmpfs host $place; done
mount -t sysfs host /sys
mkdir -p {HOME} /run/bin /run/etc
cp -a /etc/. /run/etc
mount --bind /run/etc /etc
rm -rf /etc/tunnel-supervisor
ln -s "$1" /run/bin/tunnel-supervisor
printf '127.0.0.1 localhost\\n%s' "$2" > /etc/hosts
printf '%s' "$3" > /run/bin/systemctl
printf '#!/bin/sh\\ncat /var/log/services\\n' > /run/bin/journalctl
chmod +x /run/bin/*
mkdir -p /run/systemd/system
echo
exec cat
"""
UNIT = "/etc/systemd/system/tunnel-supervisor@.service"
SYSTEMCTL = f"""#!/bin/bash
# systemctl VERB [--now] [--quiet] tunnel-supervisor@NAME
for word; do case $word in tunnel-supervisor@*) name=${{word#*@}} name=${{name%.service}} ;; esac; done
enabled=/etc/systemd/enabled
mkdir -p $enabled
runs() {{ tunnel-supervisor status --name "$1" >/dev/null 2>&1; [ $? -le 1 ]; }}
start() {{
    runs "$1" && return
    cd /
    env -i PATH="$PATH" setsid tunnel-supervisor start --config "/etc/tunnel-supervisor/$1/config.json" \\
        </dev/null >>/var/log/services 2>&1 &
    until runs "$1"; do kill -0 $! || exit 1; done
}}
stop() {{ ! runs "$1" || tunnel-supervisor stop --name "$1"; }}
case $1 in
    cat) exec cat {UNIT} ;;
    is-enabled) [ -e "$enabled/$name" ] ;;
    enable) touch "$enabled/$name" && if [ "$2" = --now ]; then start "$name"; fi ;;
    disable) rm -f "$enabled/$name" && if [ "$2" = --now ]; then stop "$name"; fi ;;
    start) start "$name" ;;
    stop) stop "$name" ;;
    restart) stop "$name" && start "$name" ;;
    reload) tunnel-supervisor reload --name "$name" >/dev/null ;;
    status) tunnel-supervisor status --name "$name" ;;
    boot) for name in $(ls $enabled); do start "$name"; done ;;
    list-units) for name in $(ls $enabled); do runs "$name" && echo "tunnel-supervisor@$name.service"; done; true ;;
    daemon-reload | is-system-running) ;;
    *) echo "systemctl $1: not on this host" >&2; exit 1 ;;
esac
"""
ENVIRONMENT = {"HOME": HOME, "TERM": "xterm", "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")  # ECMA-48
CONTROL_C = "\x03"
TYPED_SECONDS = 40.0


class Said(NamedTuple):
    exit_status: int
    screen: str

    @property
    def lines(self) -> list[str]:
        return self.screen.splitlines()


class Host:
    """See the head of this file."""

    def __init__(self, node: Namespace, names: Mapping[str, str]) -> None:
        self.node = node
        hosts = "".join(f"{address} {name}\n" for name, address in names.items())
        self._holder = node.popen(
            ["unshare", "--mount", "--", "sh", "-c", PREPARE, "prepare", EXECUTABLE, hosts, SYSTEMCTL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n", f"no files of its own for {node.name}"
        said = self.type("tunnel-supervisor install-service")
        assert said.exit_status == 0, said.screen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGTERM)
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe is not None
            pipe.close()

    def type(self, command: str, until: Callable[[str], bool] | None = None, then: str = "") -> Said:
        """Type a command; and then more, as soon as `until` is true of the screen."""
        master, slave = pty.openpty()
        path = f"/run/bin:{os.environ['PATH']}"
        words = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "setsid", "--ctty", "--wait", "bash", "-c"]
        try:
            process = self.node.popen(
                [*words, f"stty cols 120 rows 40; cd {HOME}; {command}"],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**ENVIRONMENT, "PATH": path},
                cwd=ROOT,
            )
        finally:
            os.close(slave)
        try:
            screen = self._watch(master, process, until, then, time.monotonic() + TYPED_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
            os.close(master)
        return Said(process.wait(), screen)

    def reboot(self) -> None:
        """Every process is killed at once. Then the instances start that were up."""
        self._end(signal.SIGKILL)
        said = self.type("rm -rf /run/tunnel-supervisor /dev/shm/*; systemctl boot")
        assert said.exit_status == 0, said.screen

    def path(self, path: str) -> Path:
        """A path of this host, as this process can open it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def _watch(
        self,
        master: int,
        process: subprocess.Popen[bytes],
        until: Callable[[str], bool] | None,
        then: str,
        deadline: float,
    ) -> str:
        """The screen when the process has ended. Processes that it has started may go on, and hold the terminal."""
        seen, typed = b"", False
        while True:
            ended = process.poll() is not None
            if select.select([master], [], [], 0.0 if ended else 0.05)[0]:
                with suppress(OSError):  # EIO: nobody has the terminal any more
                    more = os.read(master, 65536)
                    seen += more
                    if more:
                        continue
            screen = ESCAPES.sub("", seen.decode(errors="replace").replace("\r", ""))
            if ended:
                return screen
            if until is not None and not typed and until(screen):
                typed = True
                os.write(master, then.encode())
            assert time.monotonic() < deadline, f"it has not ended:\n{screen}"

    def _end(self, sign: int) -> None:
        """End all processes but the holder: those in its mount namespace."""
        own = os.stat(f"/proc/{self._holder.pid}/ns/mnt").st_ino

        def processes() -> list[int]:
            found = []
            for pid in self.node.processes():
                with suppress(OSError):
                    if pid != self._holder.pid and os.stat(f"/proc/{pid}/ns/mnt").st_ino == own:
                        found.append(pid)
            return found

        def have_ended() -> bool:
            return not processes()

        for pid in processes():
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        eventually(have_ended, 15.0, f"the processes of {self.node.name} ended")
