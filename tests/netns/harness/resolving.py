"""A machine whose names systemd-resolved looks up, or NetworkManager with files alone: the real ones, unpacked.

with Resolving(node, packages, directory) as machine:    with a D-Bus, and mounts of its own
    machine.start_resolved(), machine.start_network_manager()
    machine.run("resolvectl", "dns")                     a command there; `wrap`: the words in front of one
    machine.resolv_conf                                  its /etc/resolv.conf
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import eventually
from tools.lab.namespace import stop
from tools.lab.network import Node

PACKAGES = ["systemd-resolved", "network-manager", "libnm0", "libndp0", "libteamdctl0", "libmm-glib0", "libbluetooth3"]
PACKAGES += ["libjansson4"]
RESOLVED = "systemd-resolved/lib/systemd/systemd-resolved"
STUB = "/run/systemd/resolve/stub-resolv.conf"
BUS = "/run/dbus/system_bus_socket"
START_SECONDS = 20.0

MOUNTS = """
set -e
packages=$1 own=$2
mount -t tmpfs none "$own"
mkdir "$own/upper" "$own/work"
lower= etc=
for each in "$packages"/*/usr; do lower=$lower$each:; done
for each in "$packages"/*/etc; do etc=$etc$each:; done
mount -t overlay none -o "lowerdir=$lower/usr" /usr
mount -t overlay none -o "lowerdir=$etc/etc,upperdir=$own/upper,workdir=$own/work" /etc
mount -t sysfs -o ro none /sys
for place in dbus systemd NetworkManager; do mkdir -p /run/$place; mount -t tmpfs -o mode=0755 none /run/$place; done
mkdir -p /var/lib/NetworkManager; mount -t tmpfs none /var/lib/NetworkManager
getent group systemd-resolve >/dev/null || echo systemd-resolve:x:64990: >> /etc/group
getent passwd systemd-resolve >/dev/null || echo systemd-resolve:x:64990:64990::/:/usr/sbin/nologin >> /etc/passwd
install -d -o systemd-resolve -g systemd-resolve /run/systemd/resolve
rm -f /etc/resolv.conf
echo
exec dbus-daemon --system --nofork --nopidfile
"""
"""sysfs is read-only, as in a container: else NetworkManager waits for udev."""

NETWORK_MANAGER = """
[main]
plugins=keyfile
no-auto-default=*
dns={dns}
"""
CONNECTION = """
[connection]
id=lan
type=ethernet
interface-name={device}
[ipv4]
method=manual
address1={address}/24,{gateway}
dns={server}
[ipv6]
method=ignore
"""


class Resolving:
    def __init__(self, node: Node, packages: Path, directory: Path) -> None:
        self.node = node
        self._packages = packages
        own = directory / "own"
        own.mkdir()
        self._log = directory / "resolving.log"
        self._started: list[subprocess.Popen] = []
        words = ["unshare", "--mount", "sh", "-c", MOUNTS, "sh", packages, own]
        with self._log.open("wb") as log:
            self._bus = self.node.popen(words, stdout=subprocess.PIPE, stderr=log)
        assert self._bus.stdout is not None
        assert self._bus.stdout.readline() == b"\n", self._log.read_text()
        self.wrap = ["nsenter", f"--mount=/proc/{self._bus.pid}/ns/mnt", "--wd=/"]
        eventually(self.path(BUS).is_socket, START_SECONDS, "a D-Bus")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self._log.read_text(errors="replace")[-4000:])
        stop([*self._started, self._bus], 10)
        assert self._bus.stdout is not None
        self._bus.stdout.close()

    def path(self, path: str) -> Path:
        """A path of this machine, as this process can open it. A link there leads elsewhere here."""
        return Path(f"/proc/{self._bus.pid}/root{path}")

    def run(self, *words: str, check: bool = True) -> str:
        return str(self.node.run([*self.wrap, *words], check=check).stdout)

    @property
    def resolv_conf(self) -> str:
        return self.run("cat", "/etc/resolv.conf")

    def start_resolved(self, device: str, server: str) -> subprocess.Popen:
        """`server`: that of the network on this device, as DHCP would say it."""
        self.run("ln", "-sf", STUB, "/etc/resolv.conf")
        process = self._start(self._packages / RESOLVED)
        words = [*self.wrap, "resolvectl", "dns", device, server]
        eventually(lambda: self.node.run(words, check=False).returncode == 0, START_SECONDS, "systemd-resolved")
        return process

    def start_network_manager(
        self, device: str, address: str, gateway: str, server: str, dns: str = "default"
    ) -> subprocess.Popen:
        """`dns`: how it serves names (NetworkManager.conf(5))."""
        connection = CONNECTION.format(device=device, address=address, gateway=gateway, server=server)
        files = {
            "NetworkManager.conf": NETWORK_MANAGER.format(dns=dns),
            "system-connections/lan.nmconnection": connection,
        }
        for path, text in files.items():
            file = self.path(f"/etc/NetworkManager/{path}")
            file.write_text(text)
            file.chmod(0o600)
        process = self._start("NetworkManager", "--no-daemon")
        words = [*self.wrap, "nmcli", "connection", "up", "lan"]
        eventually(lambda: self.node.run(words, check=False).returncode == 0, START_SECONDS, "NetworkManager")
        return process

    def _start(self, *words: object) -> subprocess.Popen:
        with self._log.open("ab") as log:
            process = self.node.popen([*self.wrap, *words], stdout=log, stderr=log)
        self._started.append(process)
        return process
