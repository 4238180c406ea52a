"""The help of the command itself: its commands in groups, each with one line, and examples.

Each command is in exactly one group; one that is in none comes last, under "other" (a test finds it).
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from typing import cast

WIDTH = 79
NAME_WIDTH = 16

GROUPS: dict[str, tuple[str, ...]] = {
    "a client for good": ("join", "up", "down", "leave"),
    "run it": ("start", "stop", "reload", "restart", "install-service"),
    "peers": ("invite", "peers", "revoke"),
    "see it": ("status", "top", "events", "doctor", "support-bundle"),
    "configuration": ("check", "explain", "schema"),
    "keys and files": ("genkey", "gen-cert"),
    "measure and tune": ("bench", "demo", "tune"),
    "help": ("help", "version"),
}

EXAMPLES = """examples:
  tunnel-supervisor start --mode server --tunnel 10.83.47.1/24   a server
  tunnel-supervisor invite laptop --address vpn.example.org      prints a line
  tunnel-supervisor join -             on the client: reads that line
  tunnel-supervisor status             is it connected, and how well?
  tunnel-supervisor doctor             what is wrong, and what to do about it
  tunnel-supervisor help restart       all about one command"""

EXIT_STATUS = """exit status:
  0 done   1 failed, or found something wrong   2 usage   3 not running
  77 no permission   78 configuration"""

DESCRIPTION = "A layer-3 tunnel: IP packets inside TCP connections."


def overview(texts: Mapping[str, str]) -> str:
    """The whole help. `texts`: the line of each command."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = GROUPS | {"other": tuple(name for name in texts if name not in grouped)}
    parts = [
        "usage: tunnel-supervisor COMMAND ...   or   tunnel-supervisor help COMMAND\n\n" + DESCRIPTION,
        *(
            "\n".join([f"{title}:", *(_row(name, texts[name]) for name in names if name in texts)])
            for title, names in groups.items()
            if any(name in texts for name in names)
        ),
        "options:\n" + _row("-h, --help", "this text") + "\n" + _row("-V, --version", "the version"),
        EXAMPLES,
        EXIT_STATUS,
    ]
    return "\n\n".join(parts) + "\n"


def _row(name: str, text: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {name.ljust(NAME_WIDTH)} ",
        subsequent_indent=" " * (NAME_WIDTH + 3),
        break_on_hyphens=False,
    )


def parsers_of(commands: argparse.Action) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name. `commands`: what add_subparsers() has returned."""
    return dict(cast("Mapping[str, argparse.ArgumentParser]", commands.choices))


def texts_of(commands: argparse.Action) -> dict[str, str]:
    """The line of each command, by name."""
    return {name: parser.description or "" for name, parser in parsers_of(commands).items()}
