"""The commands in the documents for people: what a reader types, on which machine, and what the reader sees.

A block of Markdown that is fenced as `console` holds commands. Each begins with the name of a machine and `#` (as root)
or `$`. The lines below it, if there are any, are all that it prints; `...` stands for the rest of a line or for any
lines.

    ```console
    server# tunnel-supervisor invite laptop
    tunnel1.eyJ...
    laptop# tunnel-supervisor join -
    paste the line that `invite` has printed:
    tunnel1.eyJ...
    connected to vpn.example.org as laptop, address 10.83.47.2
    ```

The invitation below a `join -` is typed: the last one that was printed. `^C` ends a command that goes on for ever. A
comment `# exit status 3` says that a command fails. A command goes on behind a backslash, and up to the end of a
here-document.

A block that is fenced as `json HOST NAME` has settings, which the reader writes into the configuration of that
instance. Blocks in other languages, and indented ones, show things that nobody types.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"json ([a-z0-9-]+) ([a-z0-9-]+)")
PROMPT = re.compile(r"([a-z][a-z0-9-]*)([#$]) (\S.*)")
HERE_DOCUMENT = re.compile(r"<<'?([A-Z]+)'?")
EXIT_STATUS = re.compile(r"# exit status (\d+)$")
JOIN = re.compile(r" (--)?join -( |$)")
INVITATION = "tunnel1."
INTERRUPT = "^C"
REST = "..."

TYPED = ("README.md", "docs/tutorial.md", "docs/how-to.md", "docs/troubleshooting.md")
"""The documents whose commands are typed."""

NOT_RUN = {
    r"apt-get (install|remove|purge) ": "tests/netns/test_packages.py installs, upgrades, removes and purges",
    r"tools/run demo": "it makes namespaces of its own; tests/unit/tools has its parts",
    r"podman run ": "it needs an image, which needs an index of Python packages",
    r"tools/package": "it needs an index of Python packages: tests/netns/test_packages.py",
}
"""Commands that do not run here, and why."""

UNITS = "B|kB|MB|GB|ms|us|s|m|min|h|d|days?|[kMG]?bit/s|%"
NUMBER = re.compile(rf"\d[\d.:,]*(?: ?(?:{UNITS})(?![A-Za-z]))?(?:\d+[smh])*", re.ASCII)
ANY_NUMBER = NUMBER.pattern


class Block(NamedTuple):
    """A fenced block; `line`: of its fence, from 1; `language`: all that stands behind it."""

    document: str
    line: int
    language: str
    text: str


class Typed(NamedTuple):
    """One command. `shown`: the lines below it."""

    document: str
    line: int
    host: str
    command: str
    shown: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}: {self.command.splitlines()[0]}"

    @property
    def exit_status(self) -> int:
        found = EXIT_STATUS.search(self.command.splitlines()[0])
        return int(found[1]) if found else 0

    @property
    def is_interrupted(self) -> bool:
        return INTERRUPT in self.shown

    @property
    def reads_invitation(self) -> bool:
        return JOIN.search(self.command) is not None

    @property
    def before_interrupt(self) -> tuple[str, ...]:
        """The lines after which the reader presses Ctrl-C."""
        return self.shown[: self.shown.index(INTERRUPT)]


def reason_not_to_run(command: Typed) -> str:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command.command)), "")


class Settings(NamedTuple):
    """What a reader writes into the configuration of an instance."""

    place: str
    host: str
    instance: str
    values: dict[str, Any]


def steps(path: Path, root: Path) -> list[Typed | Settings]:
    """All that a reader of a document does."""
    found: list[Typed | Settings] = []
    for block in blocks(path, root):
        setting = SETTING.fullmatch(block.language)
        if block.language == "console":
            found += typed(block)
        elif setting is not None:
            values = json.loads(f"{{{block.text}}}")
            found.append(Settings(f"{block.document}:{block.line}", setting[1], setting[2], values))
    return found


def blocks(path: Path, root: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(str(path.relative_to(root)), text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in FENCE.finditer(text)
    ]


def typed(block: Block) -> list[Typed]:
    """The commands of a console block. ValueError if its first line is none."""
    found: list[Typed] = []
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        begun = PROMPT.fullmatch(lines[at])
        if begun is None:
            raise ValueError(f"{block.document}:{block.line + 1 + at}: expected a prompt, found {lines[at]!r}")
        first, command = at, [begun[3]]
        end = HERE_DOCUMENT.search(begun[3])
        at += 1
        while (end and command[-1] != end[1]) or command[-1].endswith("\\"):
            command.append(lines[at])
            at += 1
        shown = []
        while at < len(lines) and PROMPT.fullmatch(lines[at]) is None:
            shown.append(lines[at])
            at += 1
        found.append(Typed(block.document, block.line + 1 + first, begun[1], "\n".join(command), tuple(shown)))
    return found


def has_shape(shown: tuple[str, ...], printed: list[str]) -> bool:
    """Whether a command printed what the document shows: the same words, whatever the numbers and the gaps."""
    lines = [line.rstrip() for line in printed if line.strip()]
    return _fits([line for line in shown if line.strip()], lines)


def _fits(shown: list[str], printed: list[str]) -> bool:
    if not shown:
        return not printed
    if shown[0].strip() == REST:
        return any(_fits(shown[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    return bool(printed) and _like(shown[0]).fullmatch(printed[0].strip()) is not None and _fits(shown[1:], printed[1:])


def _like(shown: str) -> re.Pattern[str]:
    """What a line may be whose numbers differ."""
    pattern, at = "", 0
    text = shown.strip()
    for number in NUMBER.finditer(text):
        pattern += _words(text[at : number.start()]) + f"(?:{ANY_NUMBER})"
        at = number.end()
    return re.compile(pattern + _words(text[at:]))


def _words(text: str) -> str:
    parts = [re.sub(r"(\\ )+", r"\\s+", re.escape(part)) for part in text.split(REST)]
    return ".*".join(parts)
