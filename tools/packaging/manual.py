"""The man page and the shell completion, made from the parser of the command itself.

Names of running instances are completed from their lock files: no Python starts while somebody types.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import shtab
from argparse_manpage.manpage import Manpage

from pipeline.supervisor.instance import RUN_DIRECTORY

SECTION = 8
SHELLS = {"bash": "usr/share/bash-completion/completions/{name}", "zsh": "usr/share/zsh/vendor-completions/_{name}"}

PREAMBLE = {
    "bash": f"""
_tunnel_instances() {{
  compgen -W "$(cd {RUN_DIRECTORY} 2>/dev/null && for lock in *.lock; do printf '%s ' "${{lock%.lock}}"; done)" -- "$1"
}}
""",
    "zsh": f"""
_tunnel_instances() {{
  local -a names=({RUN_DIRECTORY}/*.lock(N:t:r))
  compadd -a names
}}
""",
}
INSTANCES = {"bash": "_tunnel_instances", "zsh": "_tunnel_instances"}


def man_page(parser: argparse.ArgumentParser, version: str, epoch: int) -> str:
    """The man page in troff."""
    data = {
        "prog": parser.prog,
        "project_name": parser.prog,
        "version": version,
        "manual_section": SECTION,
        "manual_title": "tunnel-supervisor",
        "description": parser.description,
        "date": time.strftime("%Y-%m-%d", time.gmtime(epoch)),
        "format": "pretty",
    }
    return str(Manpage(parser, _data=data))


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script for a shell of SHELLS."""
    for each in _parsers(parser):
        for action in each._actions:
            if action.dest in ("config", "file"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.dest == "name":
                action.complete = INSTANCES  # type: ignore[attr-defined]
            elif action.dest in ("directory", "prefix"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell, preamble=PREAMBLE[shell])


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _parsers(each)
