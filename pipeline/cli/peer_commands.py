"""The commands about keys, certificates and peers, and the part of `start` that reads an invitation.

    genkey, gen-cert        write files; no instance is needed
    invite, peers, revoke   send a request to the control socket of a running server; so do `peers disable` and `enable`
    start --join            reads the line that `invite` has printed

    {"command": "invite", "name", "server", "allowed", "rate_mbit", "quota_gb", "expires", "uses", "until",
     "again"}
                            -> {"ok": true, "line", "server", "certificate", "expires", "uses", "until", "guessed",
                                "is_private", "remembered"}
        server: "", HOST or HOST:PORT; in the answer, the HOST:PORT in the line
        rate_mbit, quota_gb: null for the server's setting; certificate: the server asks its clients for one as well
        expires, until: UNIX time, 0 for never; a null `expires` lets the server choose
        again: the peer exists, and another machine is to take its place
        guessed: nobody has said at which address clients reach the server; is_private: and it is of a private network
    {"command": "withdraw", "name"}     -> {"ok": true, "name", "problems"}: take the invitation back
    {"command": "peers"}                                              -> {"ok": true, "schema_version", "peers": [
        {"name", "state", "addresses", "allowed", "rate_mbit", "endpoint", "connections", "sent_bytes",
         "received_bytes", "dropped", "session_seconds", "version", "mtu", "fec", "quota_bytes", "quota_used_bytes",
         "quota_state", "problem", "until", "invitation",
         "invitation_expires", "invitation_uses_left"}]}
        state: "connected" or "away"; an away peer has endpoint "" and session_seconds null
        "invited", "expired": no machine has become this peer yet, or none in time; "disabled"; "ended": past `until`
        "broken": it cannot connect, since its file cannot be used; problem: of its file, "" for none
        sent_bytes, received_bytes, dropped (packets): since the session began
        quota_bytes: in a month, received and sent together, 0 for no quota; quota_state: open, slowed or stopped
        until: UNIX time from which it is excluded, 0 for none
        invitation: "" for none, "open", "expired", "used", or "kept" (its key is the peer's)
    {"command": "disable", "name"}                                    -> {"ok": true, "name"}
    {"command": "enable", "name", "until"}      until: as above; null leaves it as it is
    {"command": "revoke", "name"}                                     -> {"ok": true, "name", "problems"}
        problems: of the files of other peers. The connections end even if the answer is an error
    any of them                                                       -> {"ok": false, "error": ...}

No secret is put on a command line; one that a user puts there is moved to standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import traffic_commands
from pipeline.cli.moments import parse_moment, show_left, show_moment
from pipeline.errors import LocalError, NotRunning, UsageError

if TYPE_CHECKING:
    from pipeline.credentials.certificates import CertificatePair
    from pipeline.credentials.invitation import Invitation

STANDARD_INPUT, STANDARD_OUTPUT = 0, 1
MOVED = "invitation"  # the name of the memory to which a line on the command line is moved
CA = "ca"  # the files of a CA are ca.crt and ca.key
PEER_COLUMNS = ("name", "state", "addresses", "endpoint", "connections", "received", "sent", "since")

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(command: AddCommand, add_instance: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the commands to the command line. After `add_instance`, `arguments.instance(arguments)` is the instance."""
    genkey = command("genkey", _genkey, "generate a key that a server and one client share")
    genkey.add_argument("file", metavar="FILE", nargs="?", help="a new file, mode 0600; without it, standard output")

    gen_cert = command("gen-cert", _gen_cert, "make a CA of your own, or a certificate that it signs")
    gen_cert.add_argument(
        "directory", metavar="DIR", help="the directory of ca.crt and ca.key; NAME.crt and NAME.key are written there"
    )
    which = gen_cert.add_mutually_exclusive_group(required=True)
    which.add_argument("--ca", metavar="NAME", help="make the CA; its certificate has this name")
    which.add_argument("--server", metavar="NAME", help="make the certificate of the server with this host name")
    which.add_argument("--client", metavar="NAME", help="make the certificate of the client with this name")
    gen_cert.add_argument(
        "--address",
        metavar="HOST",
        action="append",
        default=[],
        help="another host name or address of the server; may be given several times",
    )

    invite = command("invite", _invite, "add a peer to a running server, and print its invitation")
    invite.add_argument("peer", metavar="NAME", help="a name for the peer")
    invite.add_argument(
        "--address", metavar="HOST[:PORT]", default="", help="the address at which clients reach this server"
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
        "--quota", metavar="GB", type=float, help="quota in a month, in GB of both directions; 0 for none"
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

    peers = command("peers", _peers, "list the peers of a running instance, or disable or enable one of them")
    peers.add_argument(
        "action", nargs="?", choices=("disable", "enable"), help="end the session of a peer until it is enabled again"
    )
    peers.add_argument("peer", metavar="NAME", nargs="?", default="", help="the peer's name")
    peers.add_argument("--until", metavar="WHEN", help='with enable: another end of its time, "never" for none')
    peers.add_argument("--json", action="store_true", help="print JSON, with schema_version")
    traffic_commands.add_options(peers)

    revoke = command("revoke", _revoke, "remove a peer that `invite` added, and end its session")
    revoke.add_argument("peer", metavar="NAME", help="the peer's name")
    for sub in (invite, peers, revoke):
        add_instance(sub)


# -- start


def read_invitation(text: str, standard_input: int = STANDARD_INPUT) -> Invitation:
    """The invitation of `--join`: the line itself, "-" for a line on standard input, "@FILE" for a line in a file.

    Every user can read a command line: a line that stands there is moved to standard input, by starting again.
    """
    from pipeline.credentials.invitation import LINE_LENGTH_MAX, decode, decode_bytes

    if text == "-":
        was_moved = _is_moved(standard_input)
        if os.isatty(standard_input):
            print("paste the line that `invite` has printed:", file=sys.stderr)
        with open(standard_input, "rb", buffering=0, closefd=False) as file:
            line = file.readline(LINE_LENGTH_MAX + 1)
        empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(empty, standard_input)  # a file with a secret stays open no longer than it takes to read it
        os.close(empty)
        if was_moved:
            print(
                "note: other users could read the invitation on the command line, and can still read it on that of a "
                "program under which this one runs, such as sudo: write - or @FILE in its place",
                file=sys.stderr,
            )
        return decode_bytes(line)
    if text.startswith("@"):
        from pipeline.credentials.keys import read_secret

        return decode_bytes(read_secret(text[1:], "invitation"))
    invitation = decode(text)
    _hide(text)
    return invitation


def _is_moved(standard_input: int) -> bool:
    """Whether _hide() has put the line there."""
    try:
        return os.readlink(f"/proc/self/fd/{standard_input}").startswith(f"/memfd:{MOVED}")
    except OSError:  # no /proc, or not for us
        return False


def _hide(line: str) -> None:
    argv = [word.replace(line, "-") for word in sys.orig_argv]
    if argv == sys.orig_argv:
        return  # main() was called by a program, not by a command line
    fd = os.memfd_create(MOVED)
    os.write(fd, "".join(line.split()).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, STANDARD_INPUT)
    os.execv(sys.executable, argv)


def overrides(invitation: Invitation) -> list[str]:
    """The settings that follow from the invitation. Its key is not among them: there is no setting for a key."""
    return [
        f"{name}={json.dumps(value)}"
        for name, value in (
            ("mode", "client"),
            ("remote_addr", invitation.server),
            ("tls_fingerprint", invitation.fingerprint),
        )
    ]


# -- files


def _genkey(arguments: argparse.Namespace) -> int:
    from pipeline.credentials import keys

    key = keys.generate()
    if arguments.file is None:
        _print_secret(key)
    else:
        keys.write_secret(arguments.file, key.encode() + b"\n")
    return 0


def _gen_cert(arguments: argparse.Namespace) -> int:
    from pipeline.credentials import certificates

    directory = Path(arguments.directory)
    if arguments.address and arguments.server is None:
        raise UsageError("--address is only valid with --server")
    for host in arguments.address:
        _check_host(host)
    if arguments.ca is not None:
        _write_pair(directory, CA, certificates.make_ca(arguments.ca))
        return 0
    name = arguments.client if arguments.server is None else arguments.server
    _check_file_name(name)
    ca = certificates.read_pair(directory / f"{CA}.crt", directory / f"{CA}.key", "CA")
    pair = certificates.issue(ca, name, server=arguments.server is not None, hosts=arguments.address)
    _write_pair(directory, name, pair)
    return 0


def _check_host(host: str) -> None:
    from pipeline.config.values import check_host

    try:
        check_host(host)
    except ValueError as expected:
        raise UsageError(f"--address: expected {expected}, got {host!r}") from None


def _check_file_name(name: str) -> None:
    from pipeline.config.peer import check_peer_name

    check_peer_name(name)
    if name == CA:
        raise UsageError(f'the name "{CA}" is reserved for the files of the CA: choose another name')


def _write_pair(directory: Path, name: str, pair: CertificatePair) -> None:
    from pipeline.credentials import certificates, keys

    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    try:
        directory.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise keys.write_error(directory, error) from None
    keys.write_secret(key, pair.key)
    try:
        keys.write_secret(certificate, pair.certificate)
    except BaseException:
        key.unlink()
        raise
    described = certificates.describe(pair.certificate)
    print(f"{certificate}: SHA-256 {described.fingerprint}, valid until {described.not_after:%Y-%m-%d}")


# -- a running server


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
        "quota_gb": arguments.quota,
        "expires": None if arguments.expires is None else parse_moment(arguments.expires, "--expires", now),
        "uses": arguments.uses,
        "until": parse_moment(arguments.until, "--until", now) if arguments.until else 0,
        "again": arguments.again,
    }
    if len(json.dumps(request)) >= REQUEST_BYTES_MAX:
        raise UsageError(
            "too many networks for one command: invite the peer without them, and write them into its file"
        )
    answer = _send_command(arguments, request)
    try:
        _print_secret(answer["line"])
    except OSError as error:  # a full disk, a pipe whose reader has gone: nobody has the line
        _send_command(arguments, {"command": "withdraw", "name": arguments.peer})
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        raise LocalError(f"the line cannot be printed ({error.strerror}): the invitation is taken back") from None
    for note in _notes_on_invitation(arguments.peer, answer, now):
        print(f"note: {note}", file=sys.stderr)
    if answer["certificate"]:
        print(
            "note: the line alone is not enough: this server has tls_ca_file, so the client needs a certificate too. "
            "Make it with gen-cert --client, and set tls_cert_file and tls_key_file on the client",
            file=sys.stderr,
        )
    return 0


def _notes_on_invitation(peer: str, answer: dict[str, Any], now: float) -> list[str]:
    expires, uses, until = answer.get("expires", 0), answer.get("uses", 1), answer.get("until", 0)
    machines = f"the peers {peer}, {peer}-2, ..., {uses} machines in all" if uses > 1 else f"the peer {peer}"
    end = f"It is good until {show_moment(expires)} ({show_left(expires - now)})." if expires else "It never expires."
    notes = [
        f"the line is a secret: it makes its holder {machines}, which dials {answer['server']}",
        f"{end} On the client, give it to: tunnel-supervisor join -",
    ]
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


def _peers(arguments: argparse.Namespace) -> int:
    if bool(arguments.action) is not bool(arguments.peer):
        raise UsageError("expected nothing, or: disable NAME, or: enable NAME")
    if arguments.action:
        return _change_peer(arguments)
    if arguments.until:
        raise UsageError("--until is only valid with enable")
    if traffic_commands.is_asked_for(arguments):
        return traffic_commands.show(arguments)
    answer = _send_command(arguments, {"command": "peers"})
    print(json.dumps(answer) if arguments.json else render(answer["peers"]))
    return 0


def render(peers: list[dict[str, Any]]) -> str:
    """A table of the peers, and notes below it. A name may come from an unauthenticated client: it is escaped."""
    from pipeline.cli.status_text import duration
    from pipeline.log import printable
    from pipeline.observe.sentence import amount

    if not peers:
        return "no peer"
    has_quotas = any(peer.get("quota_bytes") for peer in peers)
    rows: list[tuple[str, ...]] = [
        PEER_COLUMNS + ("quota",) * has_quotas,
        *(
            (
                printable(peer["name"]),
                peer["state"],
                ", ".join(peer["addresses"]) or "-",
                peer["endpoint"] or "-",
                str(peer["connections"]),
                amount(peer["received_bytes"]),
                amount(peer["sent_bytes"]),
                "-" if peer["session_seconds"] is None else f"{duration(peer['session_seconds'])} ago",
                *((_quota(peer),) if has_quotas else ()),
            )
            for peer in peers
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{printable(peer['name'])}: {note}" for peer in peers for note in _notes_on_peer(peer, time.time())]
    return "\n".join(table + notes)


def _notes_on_peer(peer: dict[str, Any], now: float) -> list[str]:
    """An instance of an older version says nothing of the life of a peer."""
    notes = [peer["problem"]] if peer.get("problem") else []
    if peer.get("invitation") == "open":
        uses, expires = peer["invitation_uses_left"], peer["invitation_expires"]
        machines = f" for {uses} machines" if uses > 1 else ""
        how_long = f"is good for {show_left(expires - now)}" if expires else "never expires"
        notes.append(f"its invitation{machines} {how_long}")
    if peer.get("until"):
        notes.append(f"{'ended' if peer['until'] <= now else 'ends'} on {show_moment(peer['until'])}")
    return notes


def _change_peer(arguments: argparse.Namespace) -> int:
    request: dict[str, Any] = {"command": arguments.action, "name": arguments.peer}
    if arguments.action == "enable":
        request["until"] = parse_moment(arguments.until, "--until", time.time()) if arguments.until else None
    elif arguments.until:
        raise UsageError("--until is only valid with enable")
    _send_command(arguments, request)
    print(f"{arguments.action}d: {arguments.peer}")
    return 0


def _quota(peer: dict[str, Any]) -> str:
    """How much is used of how much, and the consequence; an instance of an older version has no quotas."""
    from pipeline.observe.sentence import amount

    if not peer.get("quota_bytes"):
        return "-"
    used = f"{amount(peer['quota_used_bytes'])} of {amount(peer['quota_bytes'])}"
    return used if peer["quota_state"] == "open" else f"{used}, {peer['quota_state']}"


def _revoke(arguments: argparse.Namespace) -> int:
    try:
        answer = _send_command(arguments, {"command": "revoke", "name": arguments.peer})
    except NotRunning as error:
        raise NotRunning(
            f"{error}. Before its next start, remove peers/{arguments.peer}.json in its state_dir to keep the peer out"
        ) from None
    print(f"revoked: {arguments.peer}")
    for problem in answer.get("problems", ()):  # an instance of an older version has none
        print(f"note: {problem}", file=sys.stderr)
    return 0


def _send_command(arguments: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    from pipeline.supervisor.control import control_socket

    answer = control_socket.send_request(arguments.instance(arguments), request)
    if not answer["ok"]:
        raise LocalError(answer["error"])
    return answer


def _print_secret(line: str) -> None:
    print(line, flush=True)
    status = os.fstat(STANDARD_OUTPUT)
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        print("note: standard output is a file that other users can read: chmod 600 it", file=sys.stderr)
