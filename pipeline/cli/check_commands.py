"""The commands that look for what is wrong: in a configuration, on this machine, with an instance.

check            a configuration, its files, and whether this machine could start it; --offline: the configuration;
                 --explain: whether a peer may reach something
explain          one setting
schema           of the configuration file
doctor           everything, with a cure for each finding; exit status 1 if there is a problem
support-bundle   an archive for somebody who helps, without secrets
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import NotRunning, PermissionDenied, TunnelError, UsageError

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand, AddOptions
    from pipeline.config import Config
    from pipeline.config.setting import Setting
    from pipeline.doctor.examination import Findings
    from pipeline.doctor.subject import Subject
    from pipeline.supervisor.instance import Instance

ANSWER_SECONDS = 2.0  # of a supervisor that may hang
LITMUS_SECONDS = 10.0
LITMUS_SECONDS_MAX = 86_400.0
ELSEWHERE = ("name", "proxy", "uplinks")  # findings about what may change before a start, or after it
NEAR_MAX = 3  # names that an unknown one may have meant


def add_commands(command: AddCommand, add_instance: AddOptions, add_set: AddOptions) -> None:
    check = command("check", _check, "print the effective configuration, or everything that is wrong with it")
    check.add_argument("file", metavar="FILE", nargs="?")
    add_set(check)
    check.add_argument(
        "--offline", action="store_true", help="look at the configuration alone: no file, no port, no device, no name"
    )

    check.add_argument(
        "--explain",
        nargs=2,
        metavar=("PEER", "TARGET"),
        help="say whether PEER may reach TARGET, such as 192.168.10.5:443, and by which rule: as FILE says, or as the "
        "running instance has it",
    )
    add_instance(check)

    explain = command("explain", _explain, "print what a setting means, accepts and defaults to")
    explain.add_argument("setting", metavar="SETTING", help="its name; of a peer's as well, as in peers.allowed")

    command("schema", _schema, "print the JSON schema of the configuration")

    doctor = command("doctor", _doctor, "look for what is wrong, and say what to do about it")
    add_instance(doctor)
    doctor.add_argument("-v", "--verbose", action="store_true", help="say what is right, too")
    doctor.add_argument("--json", action="store_true", help="print JSON, with schema_version")
    doctor.add_argument(
        "--litmus",
        metavar="SECONDS",
        type=float,
        nargs="?",
        const=LITMUS_SECONDS,
        help=f"test for so long, {LITMUS_SECONDS:g} by default, whether processors keep the order of loads and stores",
    )

    bundle = command("support-bundle", _support_bundle, "write an archive for somebody who helps, without secrets")
    bundle.add_argument("file", metavar="FILE", nargs="?", help="a new .tar.gz file, mode 0600")
    add_instance(bundle)
    bundle.add_argument("--anonymous", action="store_true", help="put words in place of addresses and names")


# -- a configuration


def _check(arguments: argparse.Namespace) -> int:
    from pipeline import config
    from pipeline.credentials import ownership

    if arguments.explain:
        from pipeline.cli.reach_explanation import explain_reach

        return explain_reach(arguments, *arguments.explain)
    if arguments.config or arguments.name:
        raise UsageError("--config and --name are only valid with --explain; without it, give FILE alone")
    checked = config.load(arguments.file, arguments.set)
    notes = config.find_warnings(checked)
    if not arguments.offline:
        ownership.check_source(checked, arguments.file)
    if arguments.file and not arguments.offline and (exposure := ownership.find_exposure(Path(arguments.file))):
        notes.insert(0, f"configuration: {exposure}")
    findings = [] if arguments.offline else _look_before_a_start(checked, notes)
    print(config.to_json(checked))
    for text in notes:
        print(f"note: {text}", file=sys.stderr)
    for name, finding in findings:
        if finding.cure:
            said = "note" if finding.level == "note" or name in ELSEWHERE else "problem"
            print(f"{said}: {finding.text}. {finding.cure}", file=sys.stderr)
    return int(any(finding.level == "problem" and name not in ELSEWHERE for name, finding in findings))


def _look_before_a_start(checked: Config, notes: list[str]) -> Findings:
    """Whether this machine could start it. ConfigError has every problem in any file."""
    from pipeline.cli.observed import read_snapshot
    from pipeline.credentials import ownership
    from pipeline.doctor import examination, file_check, files
    from pipeline.doctor.subject import Subject
    from pipeline.supervisor.instance import Instance

    ownership.check(checked)
    with files.quiet_log():
        notes += file_check.check_files(checked)
    checks = [check for check in examination.CHECKS if check.start]
    subject = Subject(checked.name, checked)
    try:
        snapshot = read_snapshot(Instance(checked.name))
        subject = subject._replace(snapshot=snapshot)
    except NotRunning:
        pass
    except PermissionDenied:  # it may run, and have its port
        checks = [check for check in checks if not check.network]
    except TunnelError:
        pass
    return examination.examine(subject, checks)


def _explain(arguments: argparse.Namespace) -> int:
    from pipeline.config.peer import PEER_SETTINGS
    from pipeline.config.reference import explain
    from pipeline.config.schema import SETTINGS

    name = arguments.setting.replace("[", ".").replace("]", "")
    first, _, second = name.partition(".")
    of_a_peer = second.rpartition(".")[2] if first == "peers" and second else ""
    known: dict[str, Setting] = PEER_SETTINGS if of_a_peer else SETTINGS
    wanted = of_a_peer or name
    if wanted not in known and wanted in PEER_SETTINGS:
        known = PEER_SETTINGS
    if wanted not in known:
        near = difflib.get_close_matches(wanted, SETTINGS | PEER_SETTINGS, NEAR_MAX)
        means = f": {' or '.join(near)}?" if near else "; docs/configuration.md has them all"
        raise UsageError(f"no setting {wanted}{means}")
    print(explain(known[wanted], of_a_peer=known is PEER_SETTINGS))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from pipeline import config

    schema = config.json_schema()
    print(schema if isinstance(schema, str) else json.dumps(schema, indent=2))
    return 0


# -- an instance


def _doctor(arguments: argparse.Namespace) -> int:
    from pipeline.doctor import ordering, report
    from pipeline.doctor.examination import examine, worst

    seconds: float | None = arguments.litmus
    if seconds is not None and not 0 < seconds <= LITMUS_SECONDS_MAX:
        raise UsageError(f"--litmus: given {seconds:g}, expected at most {LITMUS_SECONDS_MAX:g} seconds, above 0")
    subject = _find_subject(arguments)
    findings: Findings = []
    if seconds is not None:  # before the threads of the examination: both processors are its own then
        findings = [(report.LITMUS, finding) for finding in ordering.run_litmus(seconds)]
    findings += examine(subject)
    if arguments.json:
        print(json.dumps({"name": subject.name, "runs": subject.runs} | report.as_data(findings)))
    else:
        print(f"{_described(subject)}\n\n{report.as_text(findings, everything=arguments.verbose)}")
    return int(worst(findings) == "problem")


def _described(subject: Subject) -> str:
    if subject.runs:
        return f'instance "{subject.name}", which runs'
    if subject.config is not None:
        return f'instance "{subject.name}", which does not run'
    return "this machine; with --config FILE or --name NAME also an instance that does not run"


def _support_bundle(arguments: argparse.Namespace) -> int:
    from pipeline.doctor.bundle import write_bundle
    from pipeline.doctor.examination import examine

    subject = _find_subject(arguments)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    path = Path(arguments.file or f"tunnel-supervisor-{subject.name or 'machine'}-{stamp}.tar.gz")
    members = write_bundle(path, subject, examine(subject), anonymous=arguments.anonymous)
    print(f"{path}: {', '.join(members)}")
    kept = (
        "Addresses and names are masked."
        if arguments.anonymous
        else "It has addresses and names; --anonymous masks them."
    )
    print(f"note: it holds no key and no invitation. {kept} Look into it before you give it away", file=sys.stderr)
    return 0


def _find_subject(arguments: argparse.Namespace) -> Subject:
    """The instance of the command line, running or not. Without one: that which runs, else that which is configured,
    else this machine."""
    from pipeline import config
    from pipeline.cli.joined_client import CONFIG, ETC, configured_names
    from pipeline.doctor.subject import Subject
    from pipeline.supervisor.instance import Instance, find_instances

    if arguments.config:
        given = config.load(arguments.config)
        return _with_answers(Subject(given.name, given, on_disk=given), Instance(given.name))
    if not arguments.name and not find_instances().running:
        names = configured_names()
        if len(names) != 1:
            return Subject()
        arguments.name = names[0]
    which: Instance = arguments.instance(arguments)
    file = ETC / which.name / CONFIG  # of a client that has joined, and of a service
    on_disk = config.load(str(file)) if file.exists() else None
    found = _with_answers(Subject(which.name, on_disk, on_disk=on_disk), which)
    if found.config is None and not found.runs:
        raise NotRunning(f'instance "{which.name}" does not run, and there is no {file}: give --config FILE')
    return found


def _with_answers(subject: Subject, which: Instance) -> Subject:
    """The subject with all that a running instance tells of itself. An older one, or one whose supervisor hangs, tells
    less."""
    from pipeline import config
    from pipeline.cli.observed import read_events, read_snapshot
    from pipeline.supervisor.control import control_socket

    try:
        subject = subject._replace(snapshot=read_snapshot(which), events=tuple(read_events(which)))
    except NotRunning:
        return subject
    try:
        used = control_socket.send_request(which, {"command": "configuration"}, ANSWER_SECONDS)
        return subject._replace(config=config.parse(used["configuration"])) if used.get("ok") else subject
    except TunnelError:  # what was given is all that is known
        return subject
