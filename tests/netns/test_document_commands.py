"""Every command in the documents for people is typed, in the order of the document, on hosts as a reader has them.

What a command prints must be what the document shows below it (tests/harness/typed_commands.py). A command that cannot
run here is in a table with the reason, beside the code that finds the commands.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness.typed_commands import INVITATION, REST, Settings, Typed, has_shape, reason_not_to_run, steps
from tests.netns.harness.own_host import CONTROL_C, HOME, Host, Said
from tests.support import ROOT
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, Node, add_veth_pair

CONFIGURATIONS = "/etc/tunnel-supervisor"
NETWORK, NETWORK6 = "10.83.47", "fd83:4712:0001"
"""Of the tunnel, in the documents. `invite` draws another one at random."""

NEW = "198.51.100.7"
"""Address of the new machine, in the documents."""

PROGRAMS = ("bash", "curl", "nft", "nsenter", "ping", "setpriv", "setsid", "tar")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

TUTORIAL = "docs/tutorial.md"
TOP, PASTE = "tunnel-supervisor top", "paste the line"
COPIED = re.compile(r"scp (\S+) (\S+):")
LOOK = re.compile(r"ping|curl|(sleep \d+; )?tunnel-supervisor (status|peers( --\w+)?|events|doctor)( |$)")
"""A person who looks at something too early looks again."""

SETTLE_SECONDS = 20.0
AGAIN_SECONDS = 0.3

NAMES = ("server", "laptop", "branch", "pc1", "pc2", "new")
BEHIND = {"branch": ("printer", "office", "192.168.10"), "server": ("nas", "lan", "192.168.20")}
"""By gateway: the host, the gateway's device, the network."""


class Reader:
    """A person who goes through a document, with a terminal on each of its hosts."""

    def __init__(self, hosts: Mapping[str, Host], addresses: Mapping[str, str]) -> None:
        self.hosts = hosts
        self._invitation = ""
        self._names = {NEW: addresses["new"]}  # in the document, and here

    def follow(self, document: str, *, until: str = "") -> None:
        """Do all that it says, or all before the first command that begins with `until`."""
        for step in steps(ROOT / document, ROOT):
            if isinstance(step, Settings):
                self._write(step)
            elif until and step.command.startswith(until):
                return
            elif not reason_not_to_run(step):
                self._follow(step)

    def _write(self, settings: Settings) -> None:
        path = self.hosts[settings.host].path(f"{CONFIGURATIONS}/{settings.instance}/config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | settings.values))

    def _follow(self, command: Typed) -> None:
        host = self.hosts[command.host]
        if command.command == "reboot":
            host.reboot()
            return
        if copied := COPIED.fullmatch(command.command):
            self.hosts[copied[2]].path(f"{HOME}/{copied[1]}").write_bytes(host.path(f"{HOME}/{copied[1]}").read_bytes())
            return
        patience = SETTLE_SECONDS
        while True:
            said = self._type(host, command)
            if said.exit_status == command.exit_status and has_shape(command.shown or (REST,), said.lines):
                break
            patience -= AGAIN_SECONDS
            assert patience > 0 and LOOK.match(command.command), _difference(command, said)
            threading.Event().wait(AGAIN_SECONDS)
        self._learn(said)

    def _type(self, host: Host, command: Typed) -> Said:
        words = command.command
        for here, there in self._names.items():
            words = words.replace(here, there)
        if words == TOP:
            return host.type(words, lambda screen: "pipeline" in screen, "q")
        if command.reads_invitation:
            return host.type(words, lambda screen: PASTE in screen, self._invitation + "\n")
        if command.is_interrupted:
            return host.type(words, lambda screen: has_shape(command.before_interrupt, screen.splitlines()), CONTROL_C)
        return host.type(words)

    def _learn(self, said: Said) -> None:
        for line in said.lines:
            if line.startswith(INVITATION):
                self._invitation = line
        path = self.hosts["server"].path(f"{CONFIGURATIONS}/hub/config.json")
        if NETWORK not in self._names and path.exists():
            four, six = json.loads(path.read_text())["tunnel_addr"]
            self._names |= {NETWORK: four.rpartition(".")[0], NETWORK6: six.partition("::")[0]}


def _difference(command: Typed, said: Said) -> str:
    shown = "\n".join(command.shown)
    return (
        f"{command.place}\n-- shown (exit status {command.exit_status})\n{shown}\n"
        f"-- printed ({said.exit_status})\n{said.screen}"
    )


@contextmanager
def reading(*documents: str) -> Iterator[Reader]:
    """A reader with the hosts of these documents. Behind the branch is a printer, behind the server a NAS."""
    used = {step.host for document in documents for step in steps(ROOT / document, ROOT)}
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(names=NAMES))
        known = {"vpn.example.org": lab["server"].address}
        behind = [_add_host_behind(stack, lab[gateway], *other) for gateway, other in BEHIND.items()]
        nodes = [node for node in (*lab, *behind) if node.name in used]
        hosts = {node.name: stack.enter_context(Host(node, known)) for node in nodes}
        yield Reader(hosts, {node.name: node.address for node in lab})


def _add_host_behind(stack: ExitStack, gateway: Node, name: str, device: str, network: str) -> Namespace:
    host = Namespace(name)
    stack.callback(host.close)
    add_veth_pair(gateway, device, host)
    gateway.ip(f"link set {device} up", f"address add {network}.1/24 dev {device}")
    commands = "link set lo up", "link set link0 up", f"address add {network}.7/24 dev link0"
    host.run(["ip", "-batch", "-"], input="\n".join([*commands, f"route add default via {network}.1", ""]))
    return host


@pytest.mark.parametrize("document", ["README.md", TUTORIAL])
def test_a_document_can_be_followed_from_nothing(document: str) -> None:
    with reading(document) as reader:
        reader.follow(document)


@pytest.mark.parametrize("document", ["docs/how-to.md", "docs/troubleshooting.md"])
def test_a_document_can_be_followed_where_the_first_part_of_the_tutorial_ends(document: str) -> None:
    with reading(document) as reader:
        reader.follow(TUTORIAL, until="ping")
        reader.follow(document)
