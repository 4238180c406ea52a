"""The commands about the peers of a running server: `peers`, `peers disable`, `enable` and `quota`, `revoke`.

{"command": "peers"}                                              -> {"ok": true, "schema_version", "peers": [
    {"name", "state", "addresses", "allowed", "rate_mbit", "bulk_rate_mbit", "endpoint", "connections",
     "sent_bytes", "received_bytes", "dropped", "session_seconds", "version", "mtu", "fec",
     "encryption", "sent_epoch", "received_epoch", "quota_bytes", "quota_used_bytes", "quota_state", "groups",
     "may_reach", "may_reach_count", "refused_packets", "problem", "until", "invitation", "invitation_expires",
     "invitation_uses_left"}]}
    state: "connected" or "away"; an away peer has endpoint "" and session_seconds null
    "invited", "expired": no machine has become this peer yet, or none in time; "disabled"; "ended": past `until`
    "broken": it cannot connect, since its file cannot be used; problem: of its file, "" for none
    sent_bytes, received_bytes, dropped (packets): since the session began
    encryption: the suite of its session, "TLS" with compat, or "none"; sent_epoch, received_epoch: of that session
    may_reach: the first targets that it may reach, those of its groups included; null: everything
    may_reach_count: targets; refused_packets: that they do not allow, since the start
    quota_bytes: in a month, received and sent together, 0 for no quota; quota_state: open, slowed or stopped
    until: UNIX time from which it is excluded, 0 for none
    invitation: "" for none, "open", "expired", "used", or "kept" (its key is the peer's)
{"command": "disable", "name"}                                    -> {"ok": true, "name"}
{"command": "enable", "name", "until"}      until: as above; null leaves it as it is
{"command": "quota", "name", "used_bytes"}                 -> {"ok": true, "name", "used_bytes", "quota_bytes"}
    so much counts as used in the month of its quota; the account stays as it is
{"command": "revoke", "name"}                                     -> {"ok": true, "name", "problems", "invitation"}
    problems: of the files of other peers. The connections end even if the answer is an error
    invitation: {"name", "uses_left"} of the one for several machines that it had joined with; null if none is open
{"command": "withdraw", "name"}                                   -> {"ok": true, "name", "problems", "stays"}
    its invitation alone ends; stays: the peer does, since a machine has become it
any of them                                                       -> {"ok": false, "error": ...}
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.cli import peer_table, traffic_commands
from pipeline.cli.control_request import send_command
from pipeline.cli.moments import parse_moment
from pipeline.errors import LocalError, NotRunning, UsageError

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand, AddOptions

ACTIONS = ("disable", "enable", "quota")
USED_MAX = 1e9  # GB


def add_commands(command: AddCommand, add_instance: AddOptions) -> None:
    peers = command("peers", _peers, "list the peers of a running instance, or change one of them")
    peers.add_argument(
        "action",
        metavar="NAME, or disable, enable, quota",
        nargs="?",
        help="NAME: that peer alone, with what it may reach; disable: end the session of a peer until it is enabled "
        "again; quota: say how much of it is used",
    )
    peers.add_argument("peer", metavar="NAME", nargs="?", default="", help="the peer's name")
    peers.add_argument("--until", metavar="WHEN", help='with enable: another end of its time, "never" for none')
    peers.add_argument(
        "--used", metavar="GB", type=float, help="with quota: so much counts as used in this month; 0 gives all back"
    )
    peers.add_argument("--json", action="store_true", help="print JSON, with schema_version")
    traffic_commands.add_options(peers)

    revoke = command("revoke", _revoke, "remove a peer that `invite` added, and end its session")
    revoke.add_argument("peer", metavar="NAME", help="the peer's name")
    revoke.add_argument(
        "--invitation", action="store_true", help="end its invitation alone: the machines that have joined stay"
    )
    for sub in (peers, revoke):
        add_instance(sub)


def _peers(arguments: argparse.Namespace) -> int:
    only = ""
    if arguments.action not in (None, *ACTIONS) and not arguments.peer:
        only, arguments.action = arguments.action, None
    if bool(arguments.action) is not bool(arguments.peer) or arguments.action not in (None, *ACTIONS):
        raise UsageError("expected nothing, or: disable NAME, or: enable NAME, or: quota NAME --used GB, or: NAME")
    if arguments.until and arguments.action != "enable":
        raise UsageError("--until is only valid with enable")
    if (arguments.used is not None) is not (arguments.action == "quota"):
        raise UsageError("quota needs --used GB, and nothing else has it")
    if arguments.action == "quota":
        return _set_used(arguments)
    if arguments.action:
        return _change_peer(arguments)
    if traffic_commands.is_asked_for(arguments):
        return traffic_commands.show(arguments)
    answer = send_command(arguments, {"command": "peers"})
    if only:
        answer["peers"] = [peer for peer in answer["peers"] if peer["name"] == only]
        if not answer["peers"]:
            raise LocalError(f'no peer "{only}"; `peers` lists them')
    print(json.dumps(answer) if arguments.json else peer_table.render(answer["peers"], in_full=bool(only)))
    return 0


def _change_peer(arguments: argparse.Namespace) -> int:
    request: dict[str, Any] = {"command": arguments.action, "name": arguments.peer}
    if arguments.action == "enable":
        request["until"] = parse_moment(arguments.until, "--until", time.time()) if arguments.until else None
    send_command(arguments, request)
    print(f"{arguments.action}d: {arguments.peer}")
    return 0


def _set_used(arguments: argparse.Namespace) -> int:
    from pipeline.observe.sentence import amount
    from pipeline.policy.quota import BYTES_PER_GB

    if not 0 <= arguments.used <= USED_MAX:
        raise UsageError(f"--used: given {arguments.used:g}, expected 0 to {USED_MAX:g} GB")
    size = int(arguments.used * BYTES_PER_GB)
    answer = send_command(arguments, {"command": "quota", "name": arguments.peer, "used_bytes": size})
    print(f"quota: {arguments.peer}: {amount(size)} of {amount(answer['quota_bytes'])} used in this month")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    name = arguments.peer
    try:
        answer = send_command(arguments, {"command": "withdraw" if arguments.invitation else "revoke", "name": name})
    except NotRunning as error:
        if arguments.invitation:
            raise
        raise NotRunning(
            f"{error}. Before its next start, remove peers/{name}.json in its state_dir to keep the peer out"
        ) from None
    print(f"revoked: {f'the invitation of {name}, which stays' if answer.get('stays') else name}")
    for note in (*answer.get("problems", ()), *_notes_on_invitation(name, answer.get("invitation"))):
        print(f"note: {note}", file=sys.stderr)
    return 0


def _notes_on_invitation(name: str, invitation: dict[str, Any] | None) -> list[str]:
    """The consequence for the machines that may still join with an invitation for several."""
    if invitation is None:  # so it is with an instance of an older version, too
        return []
    owner, left = invitation["name"], invitation["uses_left"]
    machines = f"{left} machines" if left > 1 else "one machine"
    if owner == name:
        return [f"its invitation has ended with it, for {machines} more; those that have joined stay"]
    note = f"the line of {owner} still lets machines join, this one too: it is good for {machines} more"
    return [f"{note}. `revoke {owner} --invitation` ends the invitation alone"]
