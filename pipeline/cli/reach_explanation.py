"""`check --explain PEER TARGET`: whether a peer may reach something, and by which rule. Exit status 1 if it may not.

with FILE       as the files say, whether or not the server runs
without         as the running instance has it now
                {"command": "explain", "name", "target"}  -> {"ok": true, "may", "lines"}
"""

from __future__ import annotations

import argparse

from pipeline.cli.control_request import send_command
from pipeline.errors import UsageError


def explain_reach(arguments: argparse.Namespace, name: str, target: str) -> int:
    if arguments.file:
        may, lines = _of_files(arguments, name, target)
    else:
        answer = send_command(arguments, {"command": "explain", "name": name, "target": target})
        may, lines = answer["may"], answer["lines"]
    print("\n".join(lines))
    return int(not may)


def _of_files(arguments: argparse.Namespace, name: str, target: str) -> tuple[bool, list[str]]:
    from pipeline import config
    from pipeline.peers import reach_facts
    from pipeline.policy.reach import compile_policies

    loaded = config.load(arguments.file, arguments.set)
    if loaded.mode != "server":
        raise UsageError("--explain needs the configuration of a server: its peers have the rules")
    facts, terms = reach_facts.of_files(loaded), reach_facts.terms_of(loaded)
    found = reach_facts.explain(loaded, terms, facts, compile_policies(facts, terms), name, target)
    return found.may, found.lines
