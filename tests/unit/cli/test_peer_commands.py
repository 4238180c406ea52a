"""The commands around keys, certificates and peers, as they are typed; a server answers at a real control socket."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from pipeline import config
from pipeline.cli import joined_client
from pipeline.cli.invitation_line import overrides, read_invitation
from pipeline.cli.main import main
from pipeline.cli.moments import show_moment
from pipeline.cli.peer_table import render
from pipeline.credentials import certificates
from pipeline.credentials.invitation import Invitation, encode
from pipeline.credentials.keys import parse, read_key, write_secret
from pipeline.errors import ConfigError
from pipeline.supervisor import instance
from pipeline.supervisor.control.control_socket import ControlServer
from tests.support import eventually

INVITATION = Invitation("vpn.example.org:9000", bytes(range(32)), "ab" * 32, "alice")
LINE = encode(INVITATION)

ALICE = {
    "name": "alice",
    "state": "connected",
    "addresses": ["10.0.0.2", "fd00::2"],
    "allowed": [],
    "rate_mbit": 0.0,
    "bulk_rate_mbit": 0.0,
    "endpoint": "192.0.2.7:40000",
    "connections": 5,
    "sent_bytes": 20,
    "received_bytes": 1_500_000,
    "dropped": 3,
    "session_seconds": 184.2,
}
BOB = {
    "name": "bob",
    "state": "away",
    "addresses": [],
    "allowed": ["10.1.0.0/16"],
    "rate_mbit": 5.0,
    "bulk_rate_mbit": 0.0,
    "endpoint": "",
    "connections": 0,
    "sent_bytes": 0,
    "received_bytes": 0,
    "dropped": 0,
    "session_seconds": None,
}
UNGIVEN = {
    "bulk_rate_mbit": None,
    "quota_gb": None,
    "groups": [],
    "may_reach": None,
    "expires": None,
    "uses": 1,
    "until": 0,
    "again": False,
}
PEERS = {"ok": True, "schema_version": 2, "peers": [ALICE, BOB]}

Result = tuple[int, str, str]
"""Exit status, standard output, standard error."""


class Server:
    """An instance that has one answer for every request, and remembers the requests."""

    def __init__(self, name: str) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {"ok": True}
        self._instance = instance.Instance(name)
        self._instance.acquire()
        self._selector = selectors.DefaultSelector()
        self._control = ControlServer(self._instance.socket_path, self._answer, self._selector)
        self._end, end = os.pipe()
        self._selector.register(self._end, selectors.EVENT_READ)
        self._writer = end
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        return self.answer

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._end:
                    return
                key.data()

    def close(self) -> None:
        os.write(self._writer, b"\n")
        self._thread.join()
        self._control.close()
        self._selector.close()
        os.close(self._end)
        os.close(self._writer)
        self._instance.release()


Run = Callable[..., Result]


@pytest.fixture
def run_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No instance runs but ours. Short: the path of a socket has 107 bytes, unix(7)."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setattr(instance, "RUN_DIRECTORY", Path(directory) / "run")
        yield


@pytest.fixture
def server(run_directory: None) -> Iterator[Server]:
    started = Server("hub")
    yield started
    started.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line."""

    def run_command(*words: str | Path) -> Result:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out, err

    return run_command


# -- genkey


def test_a_new_key_is_printed_each_time(run: Run) -> None:
    status, first, _ = run("genkey")
    assert status == 0 and len(parse(first)) == 32 and first.count("\n") == 1
    assert run("genkey")[1] != first


def test_a_key_goes_into_a_new_file_of_its_owner_and_not_to_the_screen(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert run("genkey", path) == (0, "", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = read_key(path, "key")
    status, out, err = run("genkey", path)
    assert (status, out) == (1, "") and f"{path} exists already and is not overwritten" in err
    assert read_key(path, "key") == key


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False)])
def test_a_key_redirected_to_a_file_that_others_can_read_is_warned_of(tmp_path: Path, mode: int, warned: bool) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    with path.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli.main", "genkey"],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert ("chmod 600" in done.stderr) is warned and len(parse(path.read_text())) == 32


# -- gen-cert


def test_a_ca_and_its_certificates_are_files_for_their_owner_alone_and_belong_together(
    run: Run, tmp_path: Path
) -> None:
    pki = tmp_path / "pki"
    for words, name in (
        (["--ca", "Our CA"], "ca"),
        (["--server", "vpn.example.org", "--address", "192.0.2.1", "--address=vpn"], "vpn.example.org"),
        (["--client", "alice"], "alice"),
    ):
        status, out, err = run("gen-cert", pki, *words)
        assert (status, err) == (0, "")
        pair = certificates.read_pair(pki / f"{name}.crt", pki / f"{name}.key", name)
        assert certificates.fingerprint(pair.certificate) in out and out.startswith(f"{pki}/{name}.crt: ")
    assert certificates.describe((pki / "vpn.example.org.crt").read_bytes()).names == ("vpn.example.org", "vpn")
    assert certificates.describe((pki / "alice.crt").read_bytes()).names == ("alice",)
    assert {stat.S_IMODE(path.stat().st_mode) for path in pki.iterdir()} == {0o600}
    assert stat.S_IMODE(pki.stat().st_mode) == 0o700
    ca, alice = (x509.load_pem_x509_certificate((pki / f"{name}.crt").read_bytes()) for name in ("ca", "alice"))
    alice.verify_directly_issued_by(ca)


def test_no_certificate_is_made_twice(run: Run, tmp_path: Path) -> None:
    for words in (["--ca", "Our CA"], ["--client", "alice"]):
        assert run("gen-cert", tmp_path, *words)[0] == 0
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        status, out, err = run("gen-cert", tmp_path, *words)
        assert (status, out) == (1, "") and "not overwritten" in err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_key_whose_certificate_cannot_be_written_is_not_left_behind(run: Run, tmp_path: Path) -> None:
    assert run("gen-cert", tmp_path, "--ca", "Our CA")[0] == 0
    (tmp_path / "alice.crt").touch()
    assert run("gen-cert", tmp_path, "--client", "alice")[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice.crt", "ca.crt", "ca.key"]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--client", "alice"], 78, "ca.crt: CA: cannot be read: No such file"),
        (["--client", "ca"], 2, 'the name "ca" is reserved for'),
        (["--server", "../vpn"], 78, "expected 1 to 32"),
        (["--client", ""], 78, "expected 1 to 32"),
        (["--ca", ""], 78, "1 to 64 printable characters"),
        (["--client", "alice", "--address", "192.0.2.1"], 2, "--address is only valid with --server"),
        (["--server", "vpn", "--address", "192.0.2.1:9000"], 2, "--address: expected"),
    ],
)
def test_an_impossible_certificate_is_refused(
    run: Run, tmp_path: Path, words: list[str], status: int, text: str
) -> None:
    exit_status, out, err = run("gen-cert", tmp_path, *words)
    assert (exit_status, out) == (status, "") and text in err
    assert not os.listdir(tmp_path)


# -- invite, peers, revoke


def test_an_invitation_is_requested_and_its_line_printed(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "line": LINE, "server": INVITATION.server, "certificate": False}
    status, out, err = run(
        "invite",
        "alice",
        "--address",
        "vpn.example.org",
        "--allow",
        "10.1.0.0/16",
        "--allow",
        "fd01::/48",
        "--allow",
        "10.2.0.0/16",
        "--rate",
        "20",
        "--bulk-rate",
        "0.5",
    )
    assert (status, out) == (0, LINE + "\n")
    assert "alice" in err and INVITATION.server in err and LINE not in err and "certificate" not in err
    assert server.requests == [
        {
            "command": "invite",
            "name": "alice",
            "server": "vpn.example.org",
            "allowed": ["10.1.0.0/16", "fd01::/48", "10.2.0.0/16"],
            "rate_mbit": 20,
            **UNGIVEN,
            "bulk_rate_mbit": 0.5,
        }
    ]


def test_the_life_of_an_invitation_is_requested_and_said(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    more = {"expires": 1_800_086_400, "uses": 3, "until": 1_900_000_000, "guessed": True, "is_private": True}
    server.answer = {"ok": True, "line": LINE, "server": "10.0.0.9:9000", "certificate": False, **more}
    words = ["--expires", "24h", "--uses", "3", "--until", "2030-03-17T17:46:40Z", "--again"]
    status, out, err = run("invite", "lab", *words)
    (request,) = server.requests
    wanted = {"expires": 1_800_086_400, "uses": 3, "until": 1_900_000_000, "again": True}
    assert status == 0 and request == {**request, **wanted} and out == LINE + "\n"
    assert "the peers lab, lab-2, ..., 3 machines in all" in err and "(1d00h)" in err
    assert "10.0.0.9:9000 was guessed, and only its own network reaches it" in err
    assert f"excluded from {show_moment(1_900_000_000)}" in err
    server.answer |= {"expires": 0, "uses": 1, "until": 0, "guessed": False, "is_private": False, "remembered": True}
    _, _, err = run("invite", "lab", "--address", "vpn.example.org")
    assert "it never expires" in err and "is remembered for the next invitations" in err and "guessed" not in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["invite", "lab", "--expires", "soon"], "--expires: given 'soon'"),
        (["invite", "lab", "--until", "2001-01-01"], "--until: 2001-01-01 is past"),
        (["peers", "disable"], "expected nothing, or: disable NAME"),
        (["peers", "--until", "7d"], "--until is only valid with enable"),
        (["peers", "disable", "ann", "--until", "7d"], "--until is only valid with enable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_not_requested(run: Run, server: Server, words: list[str], text: str) -> None:
    status, out, err = run(*words)
    assert (status, out, server.requests) == (2, "", []) and text in err


def test_a_peer_is_disabled_and_enabled(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    server.answer = {"ok": True, "name": "ann"}
    assert run("peers", "disable", "ann") == (0, "disabled: ann\n", "")
    assert run("peers", "enable", "ann") == (0, "enabled: ann\n", "")
    assert (
        run("peers", "enable", "ann", "--until", "1d")[0] == run("peers", "enable", "ann", "--until", "never")[0] == 0
    )
    assert server.requests == [
        {"command": "disable", "name": "ann"},
        *({"command": "enable", "name": "ann", "until": until} for until in (None, 1_800_086_400, 0)),
    ]


def test_an_operator_says_how_much_of_a_quota_is_used(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "name": "ann", "used_bytes": 0, "quota_bytes": 50 * 10**9}
    assert run("peers", "quota", "ann", "--used", "1.5") == (
        0,
        "quota: ann: 1.5 GB of 50.0 GB used in this month\n",
        "",
    )
    assert server.requests == [{"command": "quota", "name": "ann", "used_bytes": 1_500_000_000}]


@pytest.mark.parametrize(
    "words",
    [
        ["quota", "ann"],
        ["quota", "--used", "1"],
        ["enable", "ann", "--used", "1"],
        ["--used", "1"],
        ["quota", "ann", "--used", "-1"],
        ["quota", "ann", "--used", "nan"],
        ["quota", "ann", "--used", "1", "--until", "1d"],
    ],
    ids=" ".join,
)
def test_a_quota_is_not_corrected_by_what_makes_no_sense(run: Run, server: Server, words: list[str]) -> None:
    assert run("peers", *words)[0] == 2 and server.requests == []


def test_a_revoke_says_what_becomes_of_an_invitation(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "name": "lab-2", "problems": [], "invitation": {"name": "lab", "uses_left": 3}}
    status, out, err = run("revoke", "lab-2")
    assert (status, out) == (0, "revoked: lab-2\n") and "is good for 3 machines more. `revoke lab --invitation`" in err
    assert "has ended with it, for 3 machines more" in run("revoke", "lab")[2]
    server.answer = {"ok": True, "name": "lab", "problems": [], "stays": True}
    assert run("revoke", "lab", "--invitation") == (0, "revoked: the invitation of lab, which stays\n", "")
    assert [request["command"] for request in server.requests] == ["revoke", "revoke", "withdraw"]


def test_what_ends_soon_stands_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    invited = {**BOB, "state": "invited", "invitation": "open", "invitation_expires": 1_800_090_000}
    rows = [
        {**invited, "invitation_uses_left": 1},
        {**invited, "name": "lab", "invitation_uses_left": 3, "invitation_expires": 0},
        {**BOB, "name": "old", "state": "ended", "until": 1_700_000_000, "invitation": "used"},
        {**ALICE, "until": 1_900_000_000},
    ]
    notes = render(rows).splitlines()[5:]
    assert notes[:2] == ["bob: its invitation is good for 1d01h", "lab: its invitation for 3 machines never expires"]
    assert notes[2].startswith("old: ended on 2023-11-1") and notes[3].startswith("alice: ends on 2030-03-1")


@pytest.mark.parametrize("words", [["--address", "192.0.2.1"], ["--address", "192.0.2.1", "--address", "vpn.test"]])
def test_the_directory_may_stand_behind_the_options(run: Run, tmp_path: Path, words: list[str]) -> None:
    assert run("gen-cert", "--ca", "Our CA", tmp_path)[0] == 0
    assert run("gen-cert", "--server", "hub.test", *words, tmp_path)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["ca.crt", "ca.key", "hub.test.crt", "hub.test.key"]


def test_the_name_of_a_peer_may_stand_behind_its_networks(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "line": LINE, "server": INVITATION.server, "certificate": False}
    assert run("invite", "--allow", "10.1.0.0/16", "--allow", "10.2.0.0/16", "alice")[0] == 0
    assert server.requests[0]["name"] == "alice" and server.requests[0]["allowed"] == ["10.1.0.0/16", "10.2.0.0/16"]


def test_a_note_says_if_the_server_asks_for_a_certificate_as_well(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "line": LINE, "server": INVITATION.server, "certificate": True}
    _, out, err = run("invite", "alice")
    assert out == LINE + "\n" and "tls_cert_file" in err


def test_options_that_are_not_given_are_left_to_the_server(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "line": LINE, "server": INVITATION.server, "certificate": False}
    assert run("invite", "alice")[0] == 0
    assert server.requests == [
        {"command": "invite", "name": "alice", "server": "", "allowed": [], "rate_mbit": None, **UNGIVEN}
    ]


@pytest.mark.parametrize(
    "words", [["invite", "alice"], ["revoke", "alice"], ["peers"], ["peers", "--json"]], ids=" ".join
)
def test_a_refusal_of_the_server_is_printed_with_its_reason(run: Run, server: Server, words: list[str]) -> None:
    server.answer = {"ok": False, "error": "not here"}
    assert run(*words) == (1, "", "tunnel-supervisor: not here\n")


def test_more_networks_than_a_request_holds_are_refused_before_it_is_sent(run: Run, server: Server) -> None:
    status, out, err = run("invite", "alice", *(f"--allow=10.{i}.0.0/16" for i in range(250)))
    assert (status, out, server.requests) == (2, "", []) and "into its file" in err


def test_peers_are_a_table_for_people(run: Run, server: Server) -> None:
    server.answer = PEERS
    status, out, _ = run("peers")
    assert status == 0 and server.requests == [{"command": "peers"}]
    assert out.splitlines() == [
        "name   state      addresses          endpoint         connections  received  sent  since",
        "alice  connected  10.0.0.2, fd00::2  192.0.2.7:40000  5            1.5 MB    20 B  3m04s ago",
        "bob    away       -                  -                0            0 B       0 B   -",
    ]


def test_peers_are_json_for_programs(run: Run, server: Server) -> None:
    server.answer = PEERS
    status, out, _ = run("peers", "--json")
    assert status == 0 and json.loads(out) == PEERS


def test_the_table_says_that_there_is_no_peer(run: Run, server: Server) -> None:
    server.answer = {"ok": True, "schema_version": 2, "peers": []}
    assert run("peers")[:2] == (0, "no peer\n")


def test_the_name_of_an_unauthenticated_client_is_escaped() -> None:
    text = render([{**ALICE, "name": "\x1b[2J\u202e\n"}])
    assert all(character.isprintable() or character == "\n" for character in text) and text.count("\n") == 1


def test_a_peer_is_revoked(run: Run, server: Server) -> None:
    assert run("revoke", "alice") == (0, "revoked: alice\n", "")
    assert server.requests == [{"command": "revoke", "name": "alice"}]


def test_an_instance_is_found_by_name_by_configuration_or_as_the_only_one(
    run: Run, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "hub.json"
    file.write_text(json.dumps({"mode": "server", "name": "hub"}))
    assert [run("revoke", "alice", *words)[0] for words in ([], ["--name", "hub"], ["--config", str(file)])] == [0] * 3
    assert len(server.requests) == 3
    assert run("peers", "--name", "other") == (3, "", 'tunnel-supervisor: instance "other" does not run\n')


@pytest.mark.parametrize("words", [["invite", "alice"], ["revoke", "alice"], ["peers"]], ids=" ".join)
def test_without_an_instance_no_request_is_sent(run: Run, run_directory: None, words: list[str]) -> None:
    status, out, err = run(*words)
    assert (status, out) == (3, "") and "no instance runs" in err


def test_where_no_instance_runs_those_that_could_be_started_are_named(
    run: Run, run_directory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined_client, "ETC", tmp_path / "etc")
    for name in ("office", "home", "empty"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    (tmp_path / "etc" / "file").touch()
    for name in ("office", "home"):
        (tmp_path / "etc" / name / "config.json").touch()
    text = "no instance runs on this machine; to start one: `tunnel-supervisor up home`, `tunnel-supervisor up office`"
    assert run("peers") == (3, "", f"tunnel-supervisor: {text}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["invite"],
        ["revoke"],
        ["gen-cert", "x"],
        ["gen-cert", "x", "--ca", "a", "--client", "b"],
        ["invite", "alice", "--rate", "fast"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_reported(run: Run, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


# -- start --join


def test_an_invitation_is_read_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    write_secret(tmp_path / "line", LINE.encode() + b"\n")
    assert read_invitation(LINE) == read_invitation(f"@{tmp_path}/line") == INVITATION


def test_an_invitation_in_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "line").write_text(LINE)
    (tmp_path / "line").chmod(0o644)
    with pytest.raises(ConfigError, match="other users can read or change it"):
        read_invitation(f"@{tmp_path}/line")


def test_an_invitation_on_standard_input_ends_with_its_line_and_the_input_is_closed() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, LINE.encode() + b"\nmore")
        assert read_invitation("-", reader) == INVITATION
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"more")
        assert os.read(reader, 1) == b""
        with pytest.raises(ConfigError, match="found 0 characters"):
            read_invitation("-", reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_an_invitation_makes_a_client_whose_configuration_holds_no_key() -> None:
    made = config.load(None, overrides(INVITATION))
    assert (made.mode, made.remote_addr, made.server_certificate_hash) == (
        "client",
        INVITATION.server,
        bytes.fromhex(INVITATION.fingerprint),
    )
    assert base64.b64encode(INVITATION.key).decode() not in config.to_json(made)


@pytest.mark.parametrize("words", [["--mode", "server"], ["--set", "mode=server"]], ids=" ".join)
def test_a_server_cannot_join(run: Run, words: list[str]) -> None:
    status, out, err = run("start", "--join", LINE, *words)
    assert (status, out) == (2, "") and "--join needs mode client" in err


def test_a_line_on_the_command_line_is_moved_off_it(tmp_path: Path) -> None:
    """A full pipe as standard error delays the end at the point where the error is printed."""
    file = tmp_path / "config"
    file.write_text("no JSON")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "start", "--join", LINE, "--config", file],
        stdin=subprocess.DEVNULL,
        stderr=writer,
    ) as process:
        os.close(writer)
        command_line = Path(f"/proc/{process.pid}/cmdline")
        words = [sys.executable, "-m", "pipeline.cli.main", "start", "--join", "-", "--config", str(file)]
        try:
            eventually(lambda: command_line.read_bytes().decode().split("\0")[:-1] == words)
            standard_input = Path(f"/proc/{process.pid}/fd/0")
            eventually(lambda: os.readlink(standard_input) == "/dev/null")
            with open(reader, "rb") as said:
                text = said.read()
            assert b"not JSON" in text and b"such as sudo: write - or @FILE in its place" in text
            assert LINE.encode() not in text
            assert process.wait(10) == 78
        finally:
            process.kill()


def test_no_command_leaves_a_core_dump() -> None:
    """They handle keys; prctl(2): 3 is PR_GET_DUMPABLE."""
    script = (
        "import ctypes, resource, sys; from pipeline.cli.main import main; sys.argv = ['', 'version']; "
        "main(); print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "(0, 0) 0"


# -- what is wrong besides


def test_a_line_that_cannot_be_printed_is_taken_back(server: Server) -> None:
    """`invite NAME > FILE` on a full disk, or into a pipe whose reader has gone."""
    server.answer = {"ok": True, "line": LINE, "server": "h:1", "certificate": False, "problems": []}
    script = (
        "import sys; from pathlib import Path; from pipeline.supervisor import instance; "
        f"instance.RUN_DIRECTORY = Path({str(instance.RUN_DIRECTORY)!r}); "
        "from pipeline.cli.main import main; sys.exit(main(['invite', 'alice']))"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("cannot be printed (No space left on device): the invitation is taken back\n")
    assert [request["command"] for request in server.requests] == ["invite", "withdraw"]


def test_problems_of_other_peers_are_told_by_revoke_and_end_a_reload_with_status_1(server: Server, run: Run) -> None:
    server.answer = {"ok": True, "name": "alice", "changed": ["routes"], "problems": ["/x/bob.json: expected text"]}
    assert run("revoke", "alice") == (0, "revoked: alice\n", "note: /x/bob.json: expected text\n")
    assert run("reload") == (1, "changed: routes\n", "tunnel-supervisor: /x/bob.json: expected text\n")
    server.answer = {
        "ok": True,
        "changed": [],
        "contents": ["tls_cert_file"],
        "peers": {"new": [f"p{n:02}" for n in range(12)], "changed": [], "removed": ["carl"]},
        "notes": ["tls_cert_file: connections from now on have it"],
    }
    new = ", ".join(f"p{n:02}" for n in range(10))
    told = f"new contents: tls_cert_file\nnew peers: {new} and 2 more\nremoved peers: carl\n"
    assert run("reload") == (0, told, "note: tls_cert_file: connections from now on have it\n")
    server.answer = {"ok": True, "name": "alice", "changed": []}  # of an older version
    assert run("revoke", "alice") == (0, "revoked: alice\n", "") and run("reload") == (0, "changed: nothing\n", "")


def test_a_peer_with_a_broken_file_is_shown_with_what_is_wrong(server: Server, run: Run) -> None:
    server.answer = {**PEERS, "peers": [ALICE, {**BOB, "state": "broken", "problem": "/x/bob.json: expected text"}]}
    status, out, _ = run("peers")
    assert status == 0 and "broken" in out and out.endswith("bob: /x/bob.json: expected text\n")


# -- check


def test_check_reads_every_file_that_a_start_reads_and_makes_none(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (tmp_path / "hub.json").write_text(
        json.dumps({"mode": "server", "state_dir": str(state), "peers": [{"name": "ann", "key_file": f"{tmp_path}/k"}]})
    )
    status, out, err = run("check", tmp_path / "hub.json")
    assert (status, out) == (78, "") and f"{tmp_path}/k: peers[0].key_file: cannot be read: No such file" in err
    run("genkey", tmp_path / "k")
    status, out, err = run("check", tmp_path / "hub.json")
    assert status == 0 and json.loads(out)["mode"] == "server" and not state.exists()
    (state / "peers").mkdir(parents=True)
    bob = state / "peers" / "bob.json"
    bob.write_text("{")
    bob.chmod(0o644)
    (state / "server.crt").write_text("nonsense")
    status, out, err = run("check", tmp_path / "hub.json")
    assert (status, out) == (78, "") and len(err.splitlines()) == 2
    assert f"{state}/server.crt: server certificate: expected a certificate" in err
    assert f"{bob}: peer: other users can read" in err


def test_check_of_a_client_reads_its_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short")
    (tmp_path / "key").chmod(0o600)
    words = ["--set", "mode=client", "--set", "remote_addr=h:1", "--set", f"key_file={tmp_path}/key"]
    status, _, err = run("check", *words)
    assert status == 78 and f"{tmp_path}/key: key_file: expected a key" in err


def test_a_peer_of_an_instance_that_does_not_run_is_kept_out_by_removing_its_file(
    run: Run, run_directory: None
) -> None:
    status, _, err = run("revoke", "alice", "--name", "hub")
    assert status == 3 and "Before its next start, remove peers/alice.json in its state_dir" in err
