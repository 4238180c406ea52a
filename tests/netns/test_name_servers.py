"""DNS servers set by the real resolvconf and openresolv, which are unpacked for the test and not installed.

The programs, and /etc and /run, are in mounts of a process of their own: this machine keeps its /etc/resolv.conf.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.harness.unpacked import unpack
from tests.support import ROOT

PACKAGES = ["openresolv", "resolvconf"]
LAN, TUNNEL = "192.168.1.1", "10.99.0.1"

MOUNTS = """
set -e
mount -t tmpfs none "$2"
mkdir "$2/upper" "$2/work"
mount -t overlay none -o "lowerdir=$1/sbin:/usr/sbin" /usr/sbin
mount -t overlay none -o "lowerdir=$1/lib:/usr/lib" /usr/lib
mount -t overlay none -o "lowerdir=$1/etc:/etc,upperdir=$2/upper,workdir=$2/work" /etc
mount -t tmpfs none /run
rm -rf /etc/resolv.conf /etc/resolvconf/update.d/unbound /etc/resolvconf/update.d/dnsmasq
if [ -d /etc/resolvconf/resolv.conf.d ]; then
    mkdir -p /run/resolvconf/interface && touch /run/resolvconf/enable-updates
    ln -s /run/resolvconf/resolv.conf /etc/resolv.conf
fi
echo "nameserver $3" | resolvconf -a eth0.dhcp
shift 3
exec "$@"
"""

PROGRAM = """
import json
from ipaddress import ip_address
from pipeline.supervisor.kernel import name_servers
from pipeline.transport.uplink_names import RESOLV_CONF, servers_in, uplink_servers
look = lambda: servers_in(RESOLV_CONF.read_text())
said = []
servers = name_servers.NameServers("tun0", "town")
for end in (servers.restore, lambda: name_servers.remove_remains("town")):
    said += [look(), servers.use([ip_address("10.99.0.1")]), look(), uplink_servers()]
    end()
print(json.dumps([*said, look()]))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("packages"), PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tunnels_dns_server_comes_first_and_goes_again_at_the_stop_or_after_a_kill(
    unpacked: Path, tmp_path: Path, package: str
) -> None:
    words = ["unshare", "--mount", "sh", "-c", MOUNTS, "sh", unpacked / package, tmp_path, LAN]
    done = subprocess.run(
        [*map(str, words), sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *rounds, last = json.loads(done.stdout)
    for before, refused, during, uplink in (rounds[:4], rounds[4:]):
        assert before == [LAN] and refused == "" and during[0] == TUNNEL
        assert uplink[0] == LAN  # for the name of the server
    assert last == [LAN]
