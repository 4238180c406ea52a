"""A hub whose disk is full, read-only or hangs, whose files are anything but files, and which has no descriptor left.

Its state directory is on a small tmpfs of its own. Two clients are connected, and one more comes and goes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.credentials import keys
from tests.harness.hanging import hanging
from tests.harness.no_descriptors import no_descriptor_left
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import PLAIN, Client, Hub, established, reaches
from tests.netns.harness.instance import Instance, command, server_config
from tests.support import eventually
from tools.lab.network import Lab

OUT_SECONDS = 2.0
RELOAD = {"command": "reload"}


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("files") / "disk") as made:
        yield made


@pytest.fixture(scope="module")
def hub(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    directory = tmp_path_factory.mktemp("hub")
    settings = {"state_dir": str(disk / "state"), "accounting": False}  # its open file would keep the disk writable
    with Lab(names=("hub", "one", "two")) as lab, Hub(lab, directory, **settings) as made:
        made.join(lab["one"], **PLAIN)
        yield made


@pytest.fixture
def vic(hub: Hub) -> Iterator[Client]:
    """A client that is to be revoked."""
    with ExitStack() as stack:
        client = Client(hub.lab["two"], hub.invite("vic"), hub.directory, **PLAIN)
        stack.enter_context(client)
        client.wait_until_joined()
        yield client
    hub.server.command("revoke", "vic")


def turned_away(hub: Hub) -> int:
    """Connections that were refused: with the reason, or because the hub does not know the key any more."""
    return hub.server.counter("tcp.connections_refused") + hub.server.counter("tcp.closed_proof_wrong")


def out(hub: Hub, client: Client) -> None:
    """The client has no connection, and gets none, though it tries."""
    eventually(lambda: not established(client), OUT_SECONDS, "it is out")
    before = turned_away(hub)
    eventually(lambda: turned_away(hub) > before, what="it tries again")
    assert not established(client) and hub.peers().get("vic", {"state": "away"})["state"] == "away"


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        filler.unlink()


def peer_files(disk: Path) -> list[str]:
    return sorted(os.listdir(disk / "state" / "peers"))


@pytest.mark.alone
def test_on_a_read_only_disk_a_revoked_peer_is_out_and_the_command_says_that_it_comes_back(
    hub: Hub, vic: Client, disk: Path
) -> None:
    with Flow(hub["one"], hub.server) as flow:
        with read_only(disk):
            said = hub.server.command("revoke", "vic")
            assert said.returncode == 1 and said.stdout == ""
            assert "ends now, but comes back after a restart unless its file is removed" in said.stderr
            assert "Read-only file system" in said.stderr and "Traceback" not in said.stderr
            out(hub, vic)
            assert hub.server.command("reload").returncode == 0
            out(hub, vic)
            assert hub.server.command("invite", "new").returncode == 1 and "new" not in hub.peers()
        assert hub.server.command("revoke", "vic").returncode == 0
        assert peer_files(disk) == ["one.json"]
        flow.wait_for(100_000)


@pytest.mark.alone
def test_on_a_full_disk_a_peer_is_revoked_and_none_is_half_invited(hub: Hub, vic: Client, disk: Path) -> None:
    with full(disk):
        before = peer_files(disk)
        said = hub.server.command("invite", "new")
        assert said.returncode == 1 and "No space left on device" in said.stderr
        assert "new" not in hub.peers() and peer_files(disk) == before
        assert hub.server.command("revoke", "vic").returncode == 0
        out(hub, vic)
    assert peer_files(disk) == ["one.json"] and reaches(hub["one"].node, hub.server.address)


@pytest.mark.alone
def test_a_peer_is_revoked_while_other_files_are_broken_and_their_names_are_said(
    hub: Hub, vic: Client, disk: Path
) -> None:
    other = disk / "state" / "peers" / "other.json"
    os.mkfifo(other, 0o600)
    try:
        said = hub.server.command("revoke", "vic")
        assert (said.returncode, said.stdout) == (0, "revoked: vic\n") and str(other) in said.stderr
        out(hub, vic)
        said = hub.server.command("reload")
        assert said.returncode == 1 and f"{other}: peer: expected a regular file, found a FIFO" in said.stderr
        assert hub.peers()["other"]["state"] == "broken"
        assert str(other) in hub.server.command("peers").stdout
    finally:
        other.unlink()
    assert hub.server.command("reload").returncode == 0 and "other" not in hub.peers()


@pytest.mark.alone
def test_a_key_that_a_reload_replaces_ends_the_connections_of_the_old_one_alone(
    hub: Hub, vic: Client, disk: Path
) -> None:
    file = disk / "state" / "peers" / "vic.json"
    lost = hub["one"].counter("tcp.connections_lost")
    file.write_text(json.dumps({"key": keys.generate()}))
    assert hub.server.command("reload").returncode == 0
    out(hub, vic)
    assert hub["one"].counter("tcp.connections_lost") == lost


@pytest.mark.alone
def test_a_file_system_that_hangs_stops_nothing_and_a_revoked_peer_is_out(hub: Hub, vic: Client, disk: Path) -> None:
    with Flow(hub["one"], hub.server) as flow, hanging(disk / "state" / "peers"):
        said = hub.server.command("revoke", "vic")
        assert said.returncode == 1 and "no answer within 2 s" in said.stderr
        out(hub, vic)
        flow.wait_for(100_000)
        said = hub.server.command("invite", "new")
        assert said.returncode == 1 and "new.json cannot be written: no answer within 2 s" in said.stderr
        assert "new" not in hub.peers()
        refused = "reload refused, the old configuration goes on: "
        before = hub.server.log.count(refused)
        hub.server.signal(signal.SIGHUP)
        eventually(lambda: hub.server.log.count(refused) > before, 20.0, "the reload refused")
        assert hub.server.is_running()
        flow.wait_for(100_000)
    hub.server.command("revoke", "vic")
    eventually(lambda: peer_files(disk) == ["one.json"])


@pytest.mark.alone
def test_without_a_free_descriptor_every_command_gets_an_answer_and_a_peer_is_revoked(hub: Hub, vic: Client) -> None:
    pid = hub.server.process.pid
    with Flow(hub["one"], hub.server) as flow:
        with no_descriptor_left(pid):
            assert hub.server.running()["state"] == "running"
            for request in (RELOAD, {"command": "peers"}, {"command": "invite", "name": "new", "allowed": []}):
                assert "ok" in hub.server.ask(request)
            assert hub.server.ask({"command": "revoke", "name": "vic"}) is not None
            out(hub, vic)
            hub.server.signal(signal.SIGHUP)
            assert hub.server.running()["state"] == "running"
            flow.wait_for(100_000)
        assert hub.server.command("reload").returncode == 0
        flow.wait_for(100_000)
    hub.server.command("revoke", "new")


@pytest.mark.parametrize("place", ["fifo", "directory", "device", "socket", "zeros", "huge"])
def test_anything_in_place_of_a_file_is_refused_at_a_reload_and_the_instance_goes_on(
    hub: Hub, disk: Path, place: str
) -> None:
    paths = [hub.server.file, disk / "state" / "server.crt", disk / "state" / "server.key"]
    for path in paths:
        before = path.read_bytes()
        path.unlink()
        try:
            put(path, place)
            for _ in range(2):
                said = hub.server.command("reload")
                assert said.returncode == 1 and str(path) in said.stderr and "Traceback" not in said.stderr
            assert hub.server.is_running()
        finally:
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(before)
            path.chmod(0o600)
    assert hub.server.command("reload").returncode == 0 and hub.server.running()["supervisor_failures"] == 0
    assert reaches(hub["one"].node, hub.server.address)


def put(path: Path, place: str) -> None:
    match place:
        case "fifo":
            os.mkfifo(path, 0o600)
        case "directory":
            path.mkdir(0o700)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            os.mknod(path, 0o140600)
        case "zeros":
            path.write_bytes(bytes(2000))
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
    if place in ("zeros", "huge"):
        path.chmod(0o600)


def test_invitations_revocations_and_reloads_at_once_leave_each_peer_whole_or_gone(hub: Hub, disk: Path) -> None:
    def ask(request: dict[str, Any]) -> tuple[str, bool]:
        return request["command"], hub.server.ask(request)["ok"]

    with ThreadPoolExecutor(12) as pool:
        invite = {"command": "invite", "name": "same", "allowed": [], "rate_mbit": None}
        answers = list(pool.map(ask, [invite, RELOAD] * 12))
        assert answers.count(("invite", True)) == 1 and answers.count(("reload", True)) == 12
        assert peer_files(disk) == ["one.json", "same.json"]
        revoke = {"command": "revoke", "name": "same"}
        answers = list(pool.map(ask, [invite, revoke, RELOAD] * 12))
        assert answers.count(("revoke", True)) == 12 and answers.count(("reload", True)) == 12
    hub.server.ask(revoke)
    assert peer_files(disk) == ["one.json"] and set(hub.peers()) == {"one"}


def test_a_reload_while_a_worker_is_dead_reaches_its_successor(hub: Hub) -> None:
    pid = hub.server.signal_worker("tcp-0", signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    answers = [hub.server.ask(RELOAD) for _ in range(2)]
    assert [answer["ok"] for answer in answers] == [True, True]
    hub.server.wait_until_replaced("tcp-0", pid)
    eventually(lambda: reaches(hub["one"].node, hub.server.address, count=1, seconds=0.3), what="it is back")


def test_a_broken_peer_file_a_fifo_and_what_a_killed_write_left_keep_no_hub_from_starting(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path) as hub:
        hub.invite("ann")
        hub.server.stop()
        state = Path(hub.server.config["state_dir"])
        (state / "peers" / "bad.json").write_text('{"key": ')
        (state / "peers" / ".ann.json.0123abcd").write_text("half of a k")
        (state / "addresses.json").unlink(missing_ok=True)
        os.mkfifo(state / "addresses.json")
        checked = command("check", hub.server.file)
        assert checked.returncode == 78 and "bad.json" in checked.stderr
        again = hub.server.start_again()
        with again:
            again.wait_until_running()
            rows = {row["name"]: row["state"] for row in again.ask({"command": "peers"})["peers"]}
            assert rows == {"ann": "invited", "bad": "broken"}
            assert again.log.count("peer bad cannot connect") == 1 and not list((state / "peers").glob(".*"))
            for _ in range(100):
                again.signal(signal.SIGHUP)
            again.signal(signal.SIGTERM)  # which no storm of another signal hides
            assert again.wait() == 0


def test_a_certificate_and_its_key_that_are_renewed_in_two_steps_are_taken_once_both_are_there(
    hub: Hub, disk: Path
) -> None:
    from pipeline.credentials import certificates

    new = certificates.make_self_signed("renewed")
    paths = disk / "state" / "server.crt", disk / "state" / "server.key"
    before = [path.read_bytes() for path in paths]
    try:
        paths[0].write_bytes(new.certificate)
        said = hub.server.command("reload")
        assert said.returncode == 1 and "found another key" in said.stderr
        paths[1].write_bytes(new.key)
        assert hub.server.command("reload").returncode == 0
    finally:
        for path, content in zip(paths, before, strict=True):
            path.write_bytes(content)
        assert hub.server.command("reload").returncode == 0
    assert reaches(hub["one"].node, hub.server.address)


def test_a_standard_error_that_nobody_reads_holds_up_no_packet(tmp_path: Path) -> None:
    """A pipe to a program that hangs, or to a journal that was stopped."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    wrap = ["sh", "-c", f'exec "$@" 2>/proc/{os.getpid()}/fd/{writer}', "sh"]
    try:
        with Lab(names=("hub", "one")) as lab, Hub(lab, tmp_path, wrap=wrap, log_level="debug") as hub:
            client = hub.join(lab["one"], **PLAIN)
            with Flow(client, hub.server) as flow:
                flow.wait_for(1_000_000)
                pid = hub.server.signal_worker("tcp-0", signal.SIGKILL)
                hub.server.wait_until_replaced("tcp-0", pid)
                flow.wait_for(100_000)
            assert hub.server.command("reload").returncode == 0
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("encryption", ["tls", "none"])
def test_a_reload_for_which_descriptors_are_missing_is_applied_as_a_whole_or_not_at_all(
    encryption: str, tmp_path: Path
) -> None:
    """Files are read one at a time, but certificates and the new plan of the workers take several at once."""
    refused, applied = "reload refused, the old configuration goes on: ", "reloaded: max_handshakes"
    ends = set()
    with Lab() as lab, ExitStack() as stack:
        config = server_config(lab.nodes[0], encryption=encryption, state_dir=str(tmp_path / "state"))
        server = stack.enter_context(Instance(lab.nodes[0], config, tmp_path))
        server.wait_until_running()
        for free in range(1, 5):
            server.write(server.config | {"max_handshakes": 100 + free})
            before = [server.log.count(text) for text in (refused, applied)]
            with no_descriptor_left(server.process.pid, besides=free):
                server.signal(signal.SIGHUP)
                eventually(lambda: [server.log.count(text) for text in (refused, applied)] != before)
            was_refused = server.log.count(refused) > before[0]
            ends.add(was_refused)
            said = server.command("reload")
            assert said.stdout == f"changed: {'max_handshakes' if was_refused else 'nothing'}\n"
        assert ends == {True, False}
        assert server.running()["supervisor_failures"] == 0
