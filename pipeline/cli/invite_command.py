"""The command `invite`: a running server adds a peer, and the line that lets a machine join is printed.

    {"command": "invite", "name", "server", "allowed", "rate_mbit", "bulk_rate_mbit", "quota_gb", "groups",
     "may_reach", "expires", "uses", "until", "again"}
                            -> {"ok": true, "line", "server", "others", "file", "certificate", "expires", "uses",
                                "until", "guessed", "is_private", "remembered", "reaches"}
        server: "", HOST or HOST:PORT; in the answer, the HOST:PORT in the line
        others: further servers in the line; file: that of the peer
        rate_mbit, bulk_rate_mbit, quota_gb: null for the server's setting
        certificate: the server asks its clients for one as well
        expires, until: UNIX time, 0 for never; a null `expires` lets the server choose
        again: the peer exists, and another machine is to take its place
        groups: names; may_reach: targets, null for the server's setting
        reaches: a sentence about which other peers, and what else, the peer reaches
        guessed: nobody has said at which address clients reach the server; is_private: and it is of a private network

A line that cannot be printed is taken back, by the request of `revoke --invitation`: nobody has it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.cli.control_request import send_command
from pipeline.cli.moments import parse_moment, show_left, show_moment
from pipeline.cli.secret_output import STANDARD_OUTPUT, print_secret
from pipeline.errors import LocalError, UsageError

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand, AddOptions


def add_command(command: AddCommand, add_instance: AddOptions) -> None:
    invite = command("invite", _invite, "add a peer to a running server, and print its invitation")
    invite.add_argument("peer", metavar="NAME", help="a name for the peer")
    invite.add_argument(
        "--address",
        metavar="HOST[:PORT]",
        default="",
        help="the address at which clients reach this server, in place of public_addr",
    )
    invite.add_argument(
        "--allow",
        metavar="PREFIX",
        action="append",
        default=[],
        help="a network behind the peer, such as 10.1.0.0/16; may be given several times",
    )
    invite.add_argument("--rate", metavar="MBIT", type=float, help="limit in each direction, in Mbit/s; 0 for none")
    invite.add_argument(
        "--bulk-rate", metavar="MBIT", type=float, help="limit of the class bulk to the peer, in Mbit/s; 0 for none"
    )
    invite.add_argument(
        "--quota", metavar="GB", type=float, help="quota in a month, in GB of both directions; 0 for none"
    )
    invite.add_argument(
        "--group",
        metavar="GROUP",
        action="append",
        default=[],
        help="a group of the setting `groups`; may be given several times",
    )
    invite.add_argument(
        "--may-reach",
        metavar="TARGET",
        action="append",
        help='what the peer may reach, such as 192.168.10.0/24:443/tcp; several times for more, "" for nothing',
    )
    invite.add_argument(
        "--expires",
        metavar="WHEN",
        help='when the invitation dies if it is not used: "24h", a date, "never"; default: 7d',
    )
    invite.add_argument(
        "--uses", metavar="N", type=int, default=1, help="machines that may join with it: the peers NAME, NAME-2, ..."
    )
    invite.add_argument("--until", metavar="WHEN", help="when the peer itself is excluded")
    invite.add_argument(
        "--again",
        action="store_true",
        help="the peer exists: another machine is to take its place, such as a new laptop",
    )
    add_instance(invite)


def _invite(arguments: argparse.Namespace) -> int:
    from pipeline.cli import first_hub
    from pipeline.supervisor.control.control_socket import REQUEST_BYTES_MAX

    first_hub.make_if_first(arguments)
    now = time.time()
    request = {
        "command": "invite",
        "name": arguments.peer,
        "server": arguments.address,
        "allowed": arguments.allow,
        "rate_mbit": arguments.rate,
        "bulk_rate_mbit": arguments.bulk_rate,
        "quota_gb": arguments.quota,
        "groups": arguments.group,
        "may_reach": None if arguments.may_reach is None else [text for text in arguments.may_reach if text],
        "expires": None if arguments.expires is None else parse_moment(arguments.expires, "--expires", now),
        "uses": arguments.uses,
        "until": parse_moment(arguments.until, "--until", now) if arguments.until else 0,
        "again": arguments.again,
    }
    if len(json.dumps(request)) >= REQUEST_BYTES_MAX:
        raise UsageError(
            "too many networks or targets for one command: invite the peer without them, and write them into its file"
        )
    answer = send_command(arguments, request)
    try:
        print_secret(answer["line"])
    except OSError as error:  # a full disk, a pipe whose reader has gone: nobody has the line
        send_command(arguments, {"command": "withdraw", "name": arguments.peer})
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        raise LocalError(f"the line cannot be printed ({error.strerror}): the invitation is taken back") from None
    for note in _notes_on_invitation(arguments.peer, answer, now):
        print(f"note: {note}", file=sys.stderr)
    if answer["certificate"]:
        print(
            "note: the line alone is not enough: this server has tls_ca_file, so the client needs a certificate too. "
            "Make it with gen-cert --client; there: join - --set tls_cert_file=FILE --set tls_key_file=FILE",
            file=sys.stderr,
        )
    return 0


def _notes_on_invitation(peer: str, answer: dict[str, Any], now: float) -> list[str]:
    expires, uses, until = answer.get("expires", 0), answer.get("uses", 1), answer.get("until", 0)
    machines = f"the peers {peer}, {peer}-2, ..., {uses} machines in all" if uses > 1 else f"the peer {peer}"
    end = f"it is good until {show_moment(expires)} ({show_left(expires - now)})." if expires else "it never expires."
    others = answer.get("others") or []
    dialed = ", ".join([answer["server"], *others])
    notes = [
        f"the line is a secret: it makes its holder {machines}, which dials {dialed}",
        f"{end} On the client, give it to: tunnel-supervisor join -",
    ]
    if others:
        notes.append(
            f"only this server takes the line. When {peer} has joined, copy {answer['file']} to the directory peers in "
            "the state directory of the other servers, and reload them (docs/servers.md)"
        )
    if answer.get("reaches"):
        notes.append(answer["reaches"])
    if until:
        notes.append(f"the peer is excluded from {show_moment(until)} on")
    if answer.get("is_private"):
        notes.append(
            f"the address {answer['server']} was guessed, and only its own network reaches it: for clients outside, "
            "give --address HOST[:PORT], which is remembered"
        )
    elif answer.get("guessed"):
        notes.append(f"the address {answer['server']} was guessed: if clients use another one, give --address")
    if answer.get("remembered"):
        notes.append(f"{answer['server']} is remembered for the next invitations")
    return notes
