"""Processes that give up their rights as a worker does: the rights that remain, and the traces that they leave."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.supervisor.run.free_id import RANGES, find_free_id, ids_in_use
from pipeline.supervisor.run.worker_account import PREFERRED_USER, choose_account
from tests.netns.harness.instance import NOBODY
from tests.support import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changes user ids and capabilities")

USER = 65534
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

BEGIN = f"""
import ctypes, json, os, resource, signal, socket, subprocess, sys, threading, time
from pipeline.runtime import privileges, worker
from pipeline.supervisor.run.worker_account import choose_account

def threads():
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{{thread}}/status") as file:
            fields = (line.partition(":") for line in file)
            yield {{name: value.split() for name, _, value in fields}}

def refused(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return error.errno
    return 0

def say(what):
    print(json.dumps(what), flush=True)

USER = ({USER}, {USER})
"""

IN_CONTAINER = r"""
import ctypes, os, sys
(ours, theirs), (go, mapped) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        os._exit(1)
    os.write(theirs, b"x")
    os.read(go, 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
os.close(theirs)
if os.read(ours, 1):
    for table in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{table}", "w") as file:
            file.write("0 0 1\n1 100000 65535")
    os.write(mapped, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Root of a rootless container: ids 0 to 65535, and no others."""


def process(code: str, wrap: Sequence[str] = (), status: int = 0, environment: dict[str, str] | None = None) -> Any:
    """The report of a fresh interpreter, isolated as a worker's, about itself; it must end with this status."""
    said = subprocess.run(
        [*wrap, sys.executable, "-I", "-c", BEGIN + code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | (environment or {}),
        cwd="/",
    )
    assert said.returncode == status, said.stderr
    return json.loads(said.stdout or "null")


def nothing_left(status: dict[str, list[str]], user: int) -> bool:
    return (
        status["Uid"] == status["Gid"] == [str(user)] * 4
        and status["NoNewPrivs"] == ["1"]
        and all(int(status[name][0], 16) == 0 for name in CAPABILITIES)
    )


# -- what is left


def test_a_process_that_has_dropped_its_rights_has_none() -> None:
    (status,) = process("privileges.restrict(); privileges.drop(USER); say(list(threads()))")
    assert nothing_left(status, USER) and status["Groups"] == []


def test_every_thread_that_a_library_has_started_loses_them_too() -> None:
    found = process(
        """
privileges.restrict()
import numpy
privileges.drop(USER)
say(list(threads()))
""",
        environment={"OPENBLAS_NUM_THREADS": "4"},
    )
    if len(found) == 1:
        pytest.skip("this numpy starts no threads")
    assert all(nothing_left(status, USER) for status in found)


def test_a_thread_that_was_there_before_the_restriction_is_found_and_named() -> None:
    assert "NoNewPrivs '0' of thread" in process("""
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
privileges.restrict()
try:
    privileges.drop(USER)
except Exception as error:
    say(str(error))
""")


def test_a_process_that_stays_root_has_no_capability_either() -> None:
    (status,) = process("privileges.restrict(); privileges.drop(None); say(list(threads()))")
    assert nothing_left(status, 0)


def test_a_process_of_an_ordinary_user_gives_up_the_capabilities_that_it_was_given() -> None:
    before, after = process(
        """
(before,) = threads()
privileges.restrict(); privileges.drop(None)
say([before, *threads()])
""",
        wrap=NOBODY,
    )
    assert int(before["CapEff"][0], 16) and int(before["CapAmb"][0], 16)
    assert after["NoNewPrivs"] == ["1"] and after["Uid"] == [str(USER)] * 4
    assert all(int(after[name][0], 16) == 0 for name in CAPABILITIES if name != "CapBnd")  # that takes CAP_SETPCAP


def test_there_is_no_way_back() -> None:
    assert 0 not in process("""
privileges.restrict(); privileges.drop(USER)
say([refused(os.setuid, 0), refused(os.setgid, 0), refused(os.setgroups, [0]), refused(os.kill, os.getppid(), 0),
     refused(open, "/etc/shadow"), refused(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
     refused(os.nice, -1)])
""")


def test_a_program_that_would_give_root_gives_nothing() -> None:
    """A copy of `cat` with the set-user-ID bit, and a file that root alone may read."""
    with tempfile.TemporaryDirectory() as directory:
        if os.statvfs(directory).f_flag & os.ST_NOSUID:
            pytest.skip(f"{directory} is mounted with nosuid")
        os.chmod(directory, 0o755)
        secret, reader = Path(directory, "secret"), Path(directory, "cat")
        secret.touch(0o600)
        secret.write_text("secret")
        shutil.copy("/bin/cat", reader)
        reader.chmod(0o4755)
        read = f'say(subprocess.run(["{reader}", "{secret}"], capture_output=True, text=True).stdout)'
        assert process(f"os.setresuid({USER}, {USER}, {USER}); {read}") == "secret"
        assert process(f"privileges.restrict(); privileges.drop(USER); {read}") == ""


# -- traces, and their owner


@pytest.mark.parametrize("account", ["USER", "None"])
def test_a_process_that_aborts_leaves_no_core_dump(account: str) -> None:
    running = subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-c",
            BEGIN
            + f"""
privileges.restrict(); privileges.drop({account}); say(0); time.sleep(60)
""",
        ],
        stdout=subprocess.PIPE,
        cwd="/",
        preexec_fn=allow_core_dumps,
    )
    with running:
        assert running.stdout.readline() == b"0\n"
        limit = next(line for line in Path(f"/proc/{running.pid}/limits").read_text().splitlines() if "core" in line)
        assert limit.split()[4:6] == ["0", "0"]
        os.kill(running.pid, signal.SIGABRT)
        _, status, _ = os.wait4(running.pid, 0)
        running.returncode = -signal.SIGABRT
        assert os.WTERMSIG(status) == signal.SIGABRT and not os.WCOREDUMP(status)


def allow_core_dumps() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_process_of_nobody_cannot_be_inspected_by_another_process_of_nobody() -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-c",
            BEGIN
            + """
privileges.restrict(); privileges.drop(USER); say(0); time.sleep(60)
""",
        ],
        stdout=subprocess.PIPE,
        cwd="/",
    ) as running:
        try:
            assert running.stdout.readline() == b"0\n"
            for name in ("environ", "mem", "fd"):
                assert os.stat(f"/proc/{running.pid}/{name}").st_uid == 0
            looking = subprocess.run(
                [
                    "setpriv",
                    f"--reuid={USER}",
                    f"--regid={USER}",
                    "--clear-groups",
                    "cat",
                    f"/proc/{running.pid}/environ",
                ],
                capture_output=True,
            )
            assert looking.returncode == 1 and b"Permission denied" in looking.stderr
        finally:
            running.kill()


def test_a_process_has_no_terminal_to_type_into() -> None:
    """Under a terminal of its own, which a child has until it restricts itself."""
    child = (
        BEGIN
        + """
before = refused(open, "/dev/tty")
privileges.restrict()
say([before, refused(open, "/dev/tty")])
"""
    )
    assert process(f"""
_, terminal = os.openpty()
out = os.dup(1)
os.login_tty(terminal)
said = subprocess.run([sys.executable, "-I", "-c", {child!r}], stdout=subprocess.PIPE, text=True).stdout
os.dup2(out, 1)
say(json.loads(said))
""") == [0, errno.ENXIO]


# -- the parent's death


def test_a_process_that_has_dropped_its_rights_still_follows_its_parent() -> None:
    ends, theirs = socket.socketpair()
    child = (
        BEGIN
        + f"""
privileges.restrict(); worker.bind_to_parent(os.getppid())
privileges.drop(USER); worker.bind_to_parent(os.getppid())
os.write({theirs.fileno()}, b"ready"); time.sleep(60)
"""
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import subprocess, sys
subprocess.run([sys.executable, "-I", "-c", {child!r}], pass_fds=[{theirs.fileno()}], cwd="/")
""",
        ],
        pass_fds=[theirs.fileno()],
    )
    with parent, ends:
        theirs.close()
        ends.settimeout(20)
        assert ends.recv(5) == b"ready"
        parent.kill()
        assert ends.recv(1) == b""  # the last holder of the other end has gone


def test_a_change_of_user_makes_the_kernel_forget_the_parent() -> None:
    """So a worker asks for the signal twice."""
    assert process("""
def follows():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)  # PR_GET_PDEATHSIG
    return number.value
privileges.restrict(); worker.bind_to_parent(os.getppid())
before = follows()
privileges.drop(USER)
without = follows()
worker.bind_to_parent(os.getppid())
say([before, without, follows()])
""") == [signal.SIGKILL, 0, signal.SIGKILL]


# -- the account

OTHER = next(each.pw_name for each in pwd.getpwall() if each.pw_uid not in (0, USER))


def test_without_a_name_it_is_a_user_without_rights() -> None:
    choices = [choose_account(None), choose_account("")]
    if PREFERRED_USER in [each.pw_name for each in pwd.getpwall()]:
        assert {choice.account.name for choice in choices} == {PREFERRED_USER}
        return
    first, second = (choice.account for choice in choices)
    assert first.uid == first.gid and first.is_free
    assert first.uid != second.uid  # two instances have two
    assert choices[0].text == f"workers run as user {first.uid}, an id that nobody else has"


WITH_USER = """
mount --bind "$1" /etc/passwd
shift
exec "$@"
"""


def test_a_client_has_an_id_of_its_own_beside_a_user_tunnel_that_servers_share(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\ntunnel:x:990:990::/nonexistent:/usr/sbin/nologin\n")
    asked = "say([choose_account(None, is_client=each).account.name for each in (False, False, True, True)])"
    *servers, first, second = process(asked, wrap=["unshare", "--mount", "sh", "-c", WITH_USER, "sh", str(passwd)])
    assert servers == ["tunnel", "tunnel"]
    assert len({first, second, "tunnel"}) == 3


def test_a_free_id_has_no_account_and_no_process() -> None:
    number = find_free_id()
    assert any(number in each for each in RANGES) and number not in ids_in_use()
    with pytest.raises(KeyError):
        pwd.getpwuid(number)
    with pytest.raises(KeyError):
        grp.getgrgid(number)


def test_an_id_that_a_process_has_is_in_use() -> None:
    number = find_free_id()
    with subprocess.Popen(["setpriv", f"--reuid={number}", "cat"], stdin=subprocess.PIPE) as running:
        eventually(lambda: os.stat(f"/proc/{running.pid}").st_uid == number)
        assert number in ids_in_use()


def test_a_named_user_with_other_processes_is_said() -> None:
    with subprocess.Popen(["setpriv", f"--reuid={USER}", "cat"], stdin=subprocess.PIPE) as running:
        eventually(lambda: os.stat(f"/proc/{running.pid}").st_uid == USER)
        choice = choose_account(pwd.getpwuid(USER).pw_name)
    assert choice.account.uid == USER and "other processes here, which can stop and end them" in choice.text


def test_a_container_with_few_ids_has_a_free_one_among_them() -> None:
    few = [sys.executable, "-c", IN_CONTAINER]
    if subprocess.run([*few, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    uid, text = process("choice = choose_account(None); say([choice.account.uid, choice.text])", wrap=few)
    assert uid in RANGES[1] and text.startswith(f"workers run as user {uid}")


def test_a_user_that_is_named_is_used() -> None:
    for entry in pwd.getpwall():
        choice = choose_account(entry.pw_name)
        if entry.pw_uid == 0:
            assert choice.account is None and 'user says "root"' in choice.text
        else:
            assert choice.account == (entry.pw_uid, entry.pw_gid, entry.pw_name, False)


def test_a_user_that_does_not_exist_is_an_error_of_the_setting() -> None:
    name = f"x{secrets.token_hex(6)}"
    with pytest.raises(ConfigError) as caught:
        choose_account(name)
    assert [problem.path for problem in caught.value.problems] == ["user"]
    assert name in str(caught.value) and "useradd" in str(caught.value)


ASK = f"""
from pipeline.errors import PermissionDenied
text = choose_account(None).text
try:
    choose_account("{OTHER}")
except PermissionDenied as error:
    say([text, str(error)])
"""


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"], "CAP_SETUID"),
        (["setpriv", "--bounding-set=-kill", "--inh-caps=-kill"], "CAP_KILL"),
        (["unshare", "--user", "--map-root-user"], "this user namespace has no "),
    ],
    ids=["no-setuid", "no-kill", "user-namespace"],
)
def test_root_that_cannot_give_workers_another_user_says_why(wrap: list[str], text: str) -> None:
    if subprocess.run([*wrap, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    stay, refusal = process(ASK, wrap=wrap)
    assert stay.startswith("workers stay root: ") and text in stay
    assert refusal.startswith(f"user {OTHER}: ") and text in refusal


def test_under_an_ordinary_user_workers_keep_that_user() -> None:
    stay, refusal = process(ASK, wrap=NOBODY)
    assert stay.startswith("workers stay ")
    assert refusal.startswith(f"user {OTHER}: ") and "CAP_SETUID" in refusal and "start as root" in refusal
