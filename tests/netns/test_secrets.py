"""Where secrets are while real instances run: in the process that needs them, and in no other, no log and no status."""

from __future__ import annotations

import base64
import json
import re
import signal
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.credentials import invitation, keys
from tests.harness.process_memory import forms_of, found_in
from tests.netns.harness.hub import Hub, established, reaches
from tests.netns.harness.instance import Instance, command
from tests.netns.harness.secret_tables import table_bytes
from tests.netns.harness.telling_client import telling, told
from tests.reference import key_schedule
from tests.reference.key_schedule import TO_CLIENT, TO_SERVER
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab

DEBUG = {"log_level": "debug", "fec": "on"}
ALL = 8


def secret_forms(keys_by_name: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}, {form}": value for name, key in keys_by_name.items() for form, value in forms_of(key).items()}


def holders(instance: Instance, wanted: dict[str, bytes]) -> dict[str, set[str]]:
    """The processes of an instance that hold any of these, with what they hold."""
    eventually(lambda: instance.wait_for_spares("tcp", "fec", "tun"), 60.0, "a spare of each kind")
    pids = instance.pids()
    assert {name.split("-")[0] for name in pids} >= {"supervisor", "tcp", "fec", "tun", "spare tcp"}
    found = {name: found_in(pid, wanted) for name, pid in pids.items()}
    return {name: held for name, held in found.items() if held}


class Site:
    """A hub with two peers: one has joined by an invitation, one has its key in a file that the hub has too."""

    def __init__(self, stack: ExitStack, lab: Lab, directory: Path) -> None:
        self.file = directory / "filed.key"
        keys.write_secret(self.file, keys.generate().encode())
        peers = [{"name": "filed", "key_file": str(self.file)}]
        self.hub = stack.enter_context(Hub(lab, directory, peers=peers, **DEBUG))
        self.told = directory / "told"
        self.joined = self.hub.join(lab["one"], "joined", wrap=telling(self.told), **DEBUG)
        self.filed = stack.enter_context(
            Instance(
                lab["two"],
                {
                    "mode": "client",
                    "remote_addr": self.hub.server.config["public_addr"],
                    "key_file": str(self.file),
                    "tunnel_addr": "auto",
                    "reconnect_max": 0.5,
                    **DEBUG,
                },
                directory,
            )
        )
        self.filed.wait_until_connected(ALL)

    @property
    def keys(self) -> dict[str, bytes]:
        return {
            "filed": keys.read_key(self.file, "key_file"),
            "joined": invitation.decode(self.joined.invitation).key,
        }

    def is_connected(self) -> bool:
        """Each client has all its connections, and reaches the hub. A handshake may have secrets that no worker has."""
        return all(
            established(client) == ALL and reaches(client.node, "10.99.0.1", count=1, seconds=0.5)
            for client in (self.joined, self.filed)
        )

    @property
    def instances(self) -> tuple[Instance, ...]:
        return self.hub.server, self.joined, self.filed

    def expect_keys_with_supervisors_alone(self) -> None:
        wanted = secret_forms(self.keys) | {"invitation": self.joined.invitation.encode()}
        server = holders(self.hub.server, wanted)
        assert set(server) == {"supervisor"}
        assert server["supervisor"] >= {"filed, bytes", "joined, bytes"}, "the search finds nothing at all"
        for client, name in ((self.joined, "joined"), (self.filed, "filed")):
            found = holders(client, wanted)
            assert set(found) == {"supervisor"}
            assert f"{name}, bytes" in found["supervisor"]

    def sealing(self) -> dict[str, dict[str, bytes]]:
        """The secrets of the session of `joined` and of its latest connection, by the workers that may have them."""
        sessions, connections = told(self.told)
        root, context = sessions[-1]
        secrets = {"root": root, "header root": key_schedule.expand(root, b"tunnel headers" + context)}
        block_keys = {}
        for way in (TO_SERVER, TO_CLIENT):
            block_keys[f"block key {way.decode()}"] = next(key_schedule.block_keys(root, context, way))
            secrets[f"secret {way.decode()}"] = next(key_schedule.block_secrets(root, context, way))
        headers = {f"headers {number}": secret for number, secret in enumerate(connections[-1].secrets)}
        return {"tun": block_keys, "tcp": headers, "none": secrets}

    def expect_sealing_secrets_where_they_belong(self) -> None:
        """At both ends of the session of `joined`; the other client has none of them."""
        sealing = self.sealing()
        wanted = secret_forms({name: secret for secrets in sealing.values() for name, secret in secrets.items()})
        for instance in (self.hub.server, self.joined):
            found = {
                process.split("-")[0]: {name.rpartition(", ")[0] for name in held}
                for process, held in holders(instance, wanted).items()
            }
            assert found.keys() == {"supervisor", "tun", "tcp"}
            for worker in ("tun", "tcp"):
                assert found[worker] == set(sealing[worker])
        assert holders(self.filed, wanted) == {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(names=("hub", "one", "two")))
        yield Site(stack, lab, tmp_path_factory.mktemp("secrets"))


def test_keys_are_with_the_supervisors_and_with_no_worker_and_no_spare(site: Site) -> None:
    site.expect_keys_with_supervisors_alone()


@pytest.mark.slow
def test_successors_and_replacements_of_workers_hold_no_key_and_are_connected(site: Site) -> None:
    site.joined.wait_until_replaced("tcp-0", site.joined.signal_worker("tcp-0", signal.SIGKILL))
    done = site.filed.command("restart", "--rolling")
    assert done.returncode == 0, done.stderr
    eventually(site.is_connected, 20, "both clients reach the hub")
    site.expect_keys_with_supervisors_alone()
    site.expect_sealing_secrets_where_they_belong()


def test_the_private_key_of_the_certificate_is_with_the_supervisor_and_the_tcp_workers(site: Site) -> None:
    """OpenSSL signs with it in each handshake, so the tcp workers of the server need it; nobody else does."""
    pem = (Path(site.hub.server.config["state_dir"]) / "server.key").read_text()
    lines = pem.splitlines()[1:-1]
    scalar = next(iter(re.findall(rb"\x02\x01\x01\x04\x20(.{32})", base64.b64decode("".join(lines)), re.DOTALL)))
    wanted = {"PEM": lines[1].encode(), **forms_of(scalar)}
    found = holders(site.hub.server, wanted)
    assert {name.split("-")[0] for name in found} == {"supervisor", "tcp"}
    assert all("PEM" in held for held in found.values())
    for client in (site.joined, site.filed):
        assert holders(client, wanted) == {}


def test_block_keys_and_secrets_of_headers_are_with_the_workers_that_need_them_until_the_session_ends(
    site: Site,
) -> None:
    """A tun worker may have remains of them until it ends."""
    server = site.hub.server
    eventually(site.is_connected, 20, "both clients reach the hub")
    site.expect_sealing_secrets_where_they_belong()
    block_keys = site.sealing()["tun"]
    assert all(key in table_bytes(server) for key in block_keys.values())
    assert server.ask({"command": "disable", "name": "joined"})["ok"]
    try:
        assert not any(key in table_bytes(server) for key in block_keys.values())
        assert server.command("restart", "--rolling", "tun-0").returncode == 0
        assert found_in(server.worker_pids()["tun-0"], block_keys) == set()
    finally:
        assert server.ask({"command": "enable", "name": "joined"})["ok"]
    eventually(site.is_connected, 20, "both clients reach the hub")
    assert site.sealing()["tun"] != block_keys


def test_a_new_key_is_used_after_a_reload_and_workers_hold_neither_key(site: Site) -> None:
    old = keys.read_key(site.file, "key_file")
    keys.write_secret(site.file, keys.generate().encode(), replace=True)
    before = site.filed.counter("tcp.connections_established")
    for instance in (site.hub.server, site.filed):
        done = instance.command("reload")
        assert done.returncode == 0, done.stderr
    site.filed.wait_until_connected(before + ALL)
    eventually(site.is_connected, 20, "both clients reach the hub with the new key")
    site.expect_keys_with_supervisors_alone()
    assert set(holders(site.filed, forms_of(old))) <= {"supervisor"}


def test_no_log_no_status_and_no_list_of_peers_has_a_secret(site: Site) -> None:
    """At the level debug, and after commands that fail."""
    for words in ("invite joined", "revoke nobody", "restart x"):
        assert site.hub.server.command(*words.split()).returncode != 0
    hidden = secret_forms(site.keys) | {"invitation": site.joined.invitation.encode()}
    pem = (Path(site.hub.server.config["state_dir"]) / "server.key").read_text()
    hidden["private key"] = pem.splitlines()[1].encode()
    for instance in site.instances:
        shown = [instance.log.encode(), json.dumps(instance.status()).encode()]
        for words in ("status", "status --json", "peers", "peers --json", "reload"):
            done = instance.command(*words.split())
            shown += [done.stdout.encode(), done.stderr.encode()]
        checked = command("check", instance.file)
        shown += [checked.stdout.encode(), checked.stderr.encode()]
        assert "debug" in instance.log
        assert [name for name, secret in hidden.items() for text in shown if secret in text] == []


def written_forms(secret: bytes) -> set[bytes]:
    """The forms in which a secret may be written into a file."""
    coded = [base64.b64encode(secret).rstrip(b"="), base64.urlsafe_b64encode(secret).rstrip(b"=")]
    in_urls = [quote(each, safe=safe).encode() for each in coded for safe in ("", "/")]
    return {secret, secret.hex().encode(), secret.hex().upper().encode(), *coded, *in_urls}


def members(file: Path) -> dict[str, bytes]:
    """The members of an archive, by the names that they have in it."""
    with tarfile.open(file) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read()
            for member in archive.getmembers()
            if member.isfile() and member.mode == 0o600
        }


BUNDLED = {
    *("doctor.txt", "doctor.json", "version.json", "config.json", "status.json", "events.json", "log.txt"),
    *("sysctls.json", "network/addresses.json", "network/routes4.json"),
}


def plants_for(site: Site, instance: Instance) -> list[str]:
    """Secrets in forms that this instance can know: all that it has in files, and what looks like a secret."""
    if instance is not site.hub.server:
        key = site.keys["filed" if instance is site.filed else "joined"]
        return [site.joined.invitation, base64.b64encode(key).decode()]
    pem = (Path(site.hub.server.config["state_dir"]) / "server.key").read_text()
    written = (form.decode() for key in site.keys.values() for form in written_forms(key) - {key})
    return [site.joined.invitation, pem, *written]


def test_a_support_bundle_has_all_that_helps_and_no_secret_in_any_form(site: Site, tmp_path: Path) -> None:
    """Secrets are planted in the logs of the instances."""
    pem = (Path(site.hub.server.config["state_dir"]) / "server.key").read_text()
    hidden = {form for key in site.keys.values() for form in written_forms(key)}
    hidden |= {line.encode() for line in pem.splitlines()[1:-1] if len(line) > 24}
    hidden |= {site.joined.invitation.encode(), base64.urlsafe_b64encode(site.joined.invitation.encode())}
    for instance, words in ((site.hub.server, ["--anonymous"]), *((each, []) for each in site.instances)):
        plants = plants_for(site, instance)
        with instance._log.open("a") as log:
            log.writelines(f"planted {plant}\n" for plant in plants)
        file = tmp_path / f"{instance.name}{''.join(words)}.tar.gz"
        done = instance.node.run([EXECUTABLE, "support-bundle", file, "--name", instance.name, *words])
        assert file.stat().st_mode & 0o777 == 0o600
        found = members(file)
        assert set(found) >= BUNDLED and all(name in done.stdout for name in found)
        # the instance may have written over some of them: it keeps its own place in the file
        assert found["log.txt"].count(b"planted (a secret, not shown)") >= len(plants) // 2
        for name, content in {**found, "said": done.stdout.encode() + done.stderr.encode()}.items():
            assert [form for form in hidden if form in content] == [], name
            if words and name != "said":
                assert [host for host in ("10.77.0.", "fd77::", "10.99.0.", "02:77:") if host.encode() in content] == []
    again = instance.node.run([EXECUTABLE, "support-bundle", file, "--name", instance.name], check=False)
    assert again.returncode == 1 and "File exists" in again.stderr


def test_handshakes_wait_for_a_supervisor_that_was_stopped_for_a_while(site: Site) -> None:

    def connections() -> dict[str, int]:
        return {name: peer["connections"] for name, peer in site.hub.peers().items()}

    client = site.joined
    restarts = client.restarts()
    client.signal(signal.SIGSTOP)
    try:
        server = site.hub.server
        server.wait_until_replaced("tcp-0", server.signal_worker("tcp-0", signal.SIGKILL))
        eventually(lambda: connections() == {"filed": ALL, "joined": 0}, 20, "the other client is back")
        before = server.counter("tcp.closed_too_late")
        assert connections()["joined"] == 0, "nobody proves for it"
    finally:
        client.signal(signal.SIGCONT)
    eventually(site.is_connected, 20, "both clients reach the hub")
    assert server.counter("tcp.closed_too_late") == before, "it was back before its handshakes were too old"
    assert client.restarts() == restarts
