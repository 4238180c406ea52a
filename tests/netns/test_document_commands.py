"""Every command in the documents for people is typed, in the order of the document, on hosts as a reader has them.

What a command prints must be what the document shows below it (tests/harness/typed_commands.py). A command that cannot
run here is in NOT_RUN with the reason.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.harness.typed_commands import INVITATION, Typed, blocks, has_shape, typed
from tests.netns.harness.own_host import CONTROL_C, Host, Said
from tests.support import ROOT
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, add_veth_pair

HUB_CONFIG = "/etc/tunnel-supervisor/hub/config.json"
NETWORK, NETWORK6 = "10.83.47", "fd83:4712:0001"
"""Of the tunnel, in the documents. `invite` draws another one at random."""

TOP, PASTE = "tunnel-supervisor top", "paste the line"
PRINTER = "192.168.10.7"
SETTLE_SECONDS = 20.0
AGAIN_SECONDS = 0.3

NOT_RUN = {
    r"apt-get install ./|dpkg -i|apt-get (remove|purge)": "tests/netns/test_packages.py installs, upgrades and purges",
    r"tools/package": "it needs an index of Python packages: tests/netns/test_packages.py",
}
"""Commands that do not run here, and why."""


def reason_not_to_run(command: Typed) -> str:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command.command)), "")


class Reader:
    """A person who goes through a document, with a terminal on each of its hosts."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts = hosts
        self._invitation = ""
        self._names: dict[str, str] = {}  # in the document, and here

    def follow(self, commands: Sequence[Typed]) -> None:
        for command in commands:
            if not reason_not_to_run(command):
                self._follow(command)

    def _follow(self, command: Typed) -> None:
        host = self.hosts[command.host]
        if command.command == "reboot":
            host.reboot()
            return
        deadline = SETTLE_SECONDS
        while True:
            said = self._type(host, command)
            right = said.exit_status == command.exit_status and (
                not command.shown or has_shape(command.shown, said.lines)
            )
            if right:
                break
            deadline -= AGAIN_SECONDS
            assert deadline > 0 and self._may_look_again(command), _difference(command, said)
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

    def _may_look_again(self, command: Typed) -> bool:
        """A person who looks at something too early looks again."""
        return (
            re.match(r"ping|curl|tunnel-supervisor (status|peers( --\w+)?|events|doctor)( |$)", command.command)
            is not None
        )

    def _learn(self, said: Said) -> None:
        for line in said.lines:
            if line.startswith(INVITATION):
                self._invitation = line
        path = self.hosts["server"].path(HUB_CONFIG)
        if not self._names and path.exists():
            four, six = json.loads(path.read_text())["tunnel_addr"]
            self._names = {NETWORK: four.rpartition(".")[0], NETWORK6: six.partition("::")[0]}


def _difference(command: Typed, said: Said) -> str:
    shown = "\n".join(command.shown)
    return (
        f"{command.place}\n-- shown (exit status {command.exit_status})\n{shown}\n"
        f"-- printed ({said.exit_status})\n{said.screen}"
    )


def commands_of(name: str) -> list[Typed]:
    found = [block for block in blocks(ROOT / name, ROOT) if block.language == "console"]
    return [command for block in found for command in typed(block)]


@pytest.fixture
def reader() -> Iterator[Reader]:
    names = ("server", "laptop", "branch", "pc1", "pc2")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(names=names))
        printer = Namespace("printer")
        stack.callback(printer.close)
        add_veth_pair(lab["branch"], "office", printer)
        lab["branch"].ip("link set office up", "address add 192.168.10.1/24 dev office")
        printer.run(
            ["ip", "-batch", "-"],
            input=f"link set link0 up\naddress add {PRINTER}/24 dev link0\nroute add default via 192.168.10.1\n",
        )
        known = {"vpn.example.org": lab["server"].address}
        yield Reader({node.name: stack.enter_context(Host(node, known)) for node in lab})


@pytest.mark.timeout(240)
def test_the_tutorial_can_be_followed(reader: Reader) -> None:
    reader.follow(commands_of("docs/tutorial.md"))
