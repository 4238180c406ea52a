"""The command `tune`: the plan of cores for a machine, what else to set there, and setting it.

tune                    the plan for this machine, with reasons, and what else to set
tune --apply            set that; what was there before is kept on disk
tune --revert           put back what was there before
tune --describe         this machine as JSON
tune --machine FILE     the plan for the machine that such a file describes
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, NotRunning, PermissionDenied, Problem, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.cli.command_line import AddCommand, AddOptions
    from pipeline.policy.machine import Machine
    from pipeline.tuning.plan import TuningPlan
    from pipeline.tuning.record import Outcome

MACHINE_BYTES_MAX = 1 << 22  # 4096 threads have half a megabyte


def add_command(command: AddCommand, add_instance: AddOptions, add_set: AddOptions) -> None:
    tune = command("tune", _tune, "print which cores to use on this machine and what else to set, and set it")
    add_instance(tune)
    add_set(tune)
    what = tune.add_mutually_exclusive_group()
    what.add_argument(
        "--apply", action="store_true", help="set what is worth setting, and record what was there before"
    )
    what.add_argument("--revert", action="store_true", help="put back what --apply has found")
    what.add_argument("--describe", action="store_true", help="print this machine as JSON, for --machine")
    what.add_argument(
        "--machine", metavar="FILE", help='plan for the machine that a file describes; "-": standard input'
    )
    tune.add_argument("--json", action="store_true", help="print the plan as JSON, with schema_version")


def _tune(arguments: argparse.Namespace) -> int:
    if arguments.revert:
        return _revert()
    if arguments.describe:
        from pipeline.policy.machine import to_json

        print(to_json(_this_machine(0)), end="")
        return 0
    plan = _plan(arguments)
    if arguments.apply:
        return _apply(plan)
    from pipeline.tuning.plan import as_data, as_text

    print(json.dumps(as_data(plan), indent=2) if arguments.json else as_text(plan))
    return 0


# -- the plan


def _plan(arguments: argparse.Namespace) -> TuningPlan:
    from pipeline import config
    from pipeline.tuning.plan import make_plan

    pid, running = (0, None) if arguments.machine or arguments.config else _running(arguments)
    machine = _described(arguments.machine) if arguments.machine else _this_machine(pid)
    if running is not None and not arguments.set:
        return make_plan(config.parse(running, machine=machine), machine)
    overrides = arguments.set if arguments.config else ["mode=server", *arguments.set]
    return make_plan(config.load(arguments.config, overrides, machine), machine)


def _running(arguments: argparse.Namespace) -> tuple[int, object]:
    """The pid and the configuration of the instance that is named, or of the only one; 0 and None for none."""
    from pipeline.supervisor.control import control_socket

    try:
        which = arguments.instance(arguments)
        return which.supervisor_pid(), control_socket.send_request(which, {"command": "configuration"})["configuration"]
    except (NotRunning, UsageError, PermissionDenied):
        if arguments.name:
            raise
        return 0, None  # none runs, or several, or others than root may not know


def _this_machine(pid: int) -> Machine:
    from pipeline.system import machine_reader
    from pipeline.tuning.advice import SETTINGS

    return machine_reader.read_machine(pid, SETTINGS)


def _described(path: str) -> Machine:
    from pipeline.policy.machine import from_json
    from pipeline.system import small_file

    text = sys.stdin.read(MACHINE_BYTES_MAX) if path == "-" else small_file.read_text(path, MACHINE_BYTES_MAX)
    try:
        return from_json(text)
    except ValueError as error:
        raise ConfigError([Problem("", f"not a machine as `tune --describe` prints it: {error}", path)]) from None


# -- setting


def _apply(plan: TuningPlan) -> int:
    from pipeline.config.schema import STATE_DIRECTORY
    from pipeline.tuning.record import Record

    if not plan.advice:
        print("nothing is to be set: all is as good or better already")
        return 0
    outcomes = Record(STATE_DIRECTORY).apply(plan.advice)
    names = {each.path: each.name for each in plan.advice}
    wanted = {each.path: " ".join(each.wanted.split()) for each in plan.advice}
    for outcome in outcomes:
        if not outcome.problem:
            print(f"{names[outcome.path]} = {wanted[outcome.path]}")
    if not all(outcome.problem for outcome in outcomes):
        print("it holds until this machine restarts; `tune --revert` takes it back")
    return _report(outcomes)


def _revert() -> int:
    from pipeline.config.schema import STATE_DIRECTORY
    from pipeline.tuning.record import Record

    outcomes = Record(STATE_DIRECTORY).revert()
    if not outcomes:
        print("nothing is to be put back: nothing was set since this machine was started")
    for outcome in outcomes:
        if not outcome.problem:
            print(f"{outcome.path}: put back")
    return _report(outcomes)


def _report(outcomes: Sequence[Outcome]) -> int:
    """1 if something is not as it should be."""
    failed = [each for each in outcomes if each.problem]
    for each in failed:
        print(f"tunnel-supervisor: {each.path}: {each.problem}", file=sys.stderr)
    return 1 if failed else 0
