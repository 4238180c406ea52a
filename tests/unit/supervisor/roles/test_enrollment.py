"""Invitations at a server: used once, exchanged for a key, expired. Peers that are disabled, past their time, or leave.

The server is a real role on a real state directory. Clients are keys and public values, as `join` has them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.credentials import invitation, key_exchange, keys
from pipeline.errors import ConfigError, LocalError
from pipeline.peers import peer_file
from pipeline.system import hang_guard
from pipeline.wire import auth, messages
from pipeline.wire.messages import Done, Refused, Welcome
from tests.harness.hub import CERTIFICATE_HASH, hello
from tests.harness.running_server import Running
from tests.support import eventually

NOW = 1_800_000_000
DAY = 86400
WEEK = 7 * DAY


class Clock:
    """The wall clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        monkeypatch.setattr("time.time", lambda: float(self.now))


class Machine:
    """A machine that has a line, and joins with it."""

    def __init__(self, server: Running, key: bytes) -> None:
        self.server, self.key = server, key
        self.private = key_exchange.new_private()

    def ask(self, key: bytes, **wanted: Any) -> messages.Message | None:
        """The answer to a HELLO that is proved with this key."""
        frame = hello(key, 1)._replace(**wanted).frame()
        challenge = messages.Challenge(b"c" * 32).frame()
        transcript = auth.transcript(frame, challenge, CERTIFICATE_HASH)
        answer = self.server.role.answer_request(
            {
                "lane": 0,
                "serial": 7,
                "hello": frame.hex(),
                "challenge": challenge.hex(),
                "proof": auth.client_proof(key, transcript).hex(),
                "certificate": "",
                "hash": CERTIFICATE_HASH.hex(),
            }
        )
        assert answer is not None and "frame" in answer
        found = bytes.fromhex(answer["frame"])
        if not found:
            return None
        message = messages.decode(found)
        assert not isinstance(message, Done) or auth.done_proved(key, transcript, found)
        return message

    def exchange(self) -> messages.Message | None:
        return self.ask(self.key, exchange=key_exchange.public_of(self.private))

    def join(self) -> tuple[str, bytes]:
        """Its name at the server, and its new key."""
        done = self.exchange()
        assert isinstance(done, Done), done
        public = key_exchange.public_of(self.private)
        return done.name, key_exchange.new_key(
            self.key, self.private, client_public=public, server_public=done.exchange
        )

    def refusal(self) -> int:
        answer = self.exchange()
        assert isinstance(answer, Refused), answer
        return answer.reason

    def may_connect(self, key: bytes) -> bool:
        return isinstance(self.ask(key), Welcome)

    def reason(self, key: bytes) -> int:
        answer = self.ask(key)
        return answer.reason if isinstance(answer, Refused) else 0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def tick(running: Running) -> None:
    running.role._client_watch = cast(Any, SimpleNamespace(tick=lambda *_, **__: None))
    for _ in range(3):
        running.role.tick(0)


def start_again(running: Running) -> None:
    running.start()
    tick(running)


def peer(running: Running, name: str) -> dict[str, Any]:
    return next(row for row in running.command("peers")["peers"] if row["name"] == name)


# -- one machine


def test_a_machine_that_joins_gets_a_key_that_the_line_does_not_have(running: Running) -> None:
    line = running.invite("ann")
    assert peer(running, "ann")["state"] == "invited"
    ann = Machine(running, line)
    name, key = ann.join()
    assert name == "ann" and key != line and ann.may_connect(key)
    assert (peer(running, "ann")["state"], peer(running, "ann")["invitation"]) == ("away", "used")
    assert key.hex() not in json.dumps(running.command("peers"))
    start_again(running)
    assert ann.may_connect(key)


def test_a_second_machine_is_told_that_the_line_has_been_used_and_the_log_names_the_peer(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    line = running.invite("ann")
    _, key = Machine(running, line).join()
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "tunnel"):
            assert Machine(running, line).refusal() == messages.INVITATION_USED
        assert Machine(running, line).reason(line) == messages.INVITATION_USED, "with or without an exchange"
        assert "peer ann: its invitation is refused: this invitation has been used" in caplog.text
        caplog.clear()
        start_again(running)
    assert Machine(running, line).may_connect(key)


def test_a_line_of_which_nothing_is_proved_learns_nothing(running: Running) -> None:
    running.invite("ann")
    assert Machine(running, bytes(range(32))).exchange() is None


def test_an_exchange_that_was_cut_off_is_answered_again_with_the_same_key(running: Running) -> None:
    line = running.invite("ann")
    ann, other = Machine(running, line), Machine(running, line)
    first = ann.join()
    assert ann.join() == first and other.refusal() == messages.INVITATION_USED
    start_again(running)
    assert ann.join() == first and ann.may_connect(first[1])
    assert ann.join() == first, "and after the new key has been used as well"


def test_the_session_of_the_line_ends_when_its_key_is_exchanged(running: Running) -> None:
    """`start --join` has used it before."""
    line = running.invite("ann")
    session = running.connect(line)
    tick(running)
    assert peer(running, "ann")["invitation"] == "kept"
    name, key = Machine(running, line).join()
    assert name == "ann" and not running.hub.is_current(session)
    assert Machine(running, line).may_connect(key) and Machine(running, line).refusal() == messages.INVITATION_USED


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
def test_a_public_value_that_makes_no_key_costs_no_invitation(running: Running, public: bytes) -> None:
    line = running.invite("ann")
    assert Machine(running, line).ask(line, exchange=public) is None
    assert Machine(running, line).join()[0] == "ann"


def test_a_peer_that_an_older_version_has_invited_can_join(running: Running) -> None:
    line = running.invite("ann")
    (running.peers / "ann.json").write_text(json.dumps({"key": keys.base64.b64encode(line).decode()}))
    start_again(running)
    assert Machine(running, line).may_connect(line)
    name, key = Machine(running, line).join()
    assert name == "ann" and Machine(running, line).may_connect(key)
    assert Machine(running, line).refusal() == messages.INVITATION_USED


def test_a_peer_of_the_configuration_is_welcomed_and_keeps_its_key(running: Running) -> None:
    file = running.state / "cfg.key"
    keys.write_secret(file, keys.generate().encode())
    running.reload(peers=[{"name": "cfg", "key_file": str(file)}])
    key = keys.read_key(file, "")
    assert isinstance(Machine(running, key).exchange(), Welcome)
    assert isinstance(Machine(running, key).ask(key, leaves=True), Done) and Machine(running, key).may_connect(key)


# -- a disk that is full, or hangs


def test_a_server_that_cannot_record_the_new_key_does_not_give_it_and_the_line_stays_good(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = running.invite("ann")
    ann, other = Machine(running, line), Machine(running, line)

    def full(*_: object) -> None:
        raise LocalError("ann.json cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(peer_file, "update", full)
        assert ann.refusal() == messages.NOT_RECORDED and other.refusal() == messages.NOT_RECORDED
        start_again(running)
        assert ann.refusal() == messages.NOT_RECORDED
    name, key = ann.join()
    assert name == "ann" and ann.may_connect(key) and other.refusal() == messages.INVITATION_USED


def test_a_write_that_may_have_happened_is_finished_before_another_machine_has_its_turn(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write takes effect although it is reported as failed, as on a disk that answers too late."""
    line = running.invite("ann")
    ann, other = Machine(running, line), Machine(running, line)
    write = peer_file.update

    def late(state: Path, written: peer_file.InvitedPeer, *more: Any) -> None:
        write(state, written, *more)
        raise LocalError("no answer within 2 s")

    with monkeypatch.context() as patch:
        patch.setattr(peer_file, "update", late)
        assert ann.refusal() == messages.NOT_RECORDED
    assert other.refusal() == messages.INVITATION_USED
    _, key = ann.join()
    start_again(running)
    assert ann.may_connect(key) and other.refusal() == messages.INVITATION_USED


@pytest.mark.parametrize("then", ["expires", "is disabled and enabled", "is invited again", "is kept"])
def test_nothing_else_is_written_over_a_new_key_that_may_be_in_the_file(
    running: Running, monkeypatch: pytest.MonkeyPatch, clock: Clock, then: str
) -> None:
    line = running.invite("ann")
    ann = Machine(running, line)
    if then == "is kept":
        assert ann.may_connect(line)
    write = peer_file.update

    def late(state: Path, written: peer_file.InvitedPeer, *more: Any) -> None:
        write(state, written, *more)
        raise LocalError("no answer within 2 s")

    with monkeypatch.context() as patch:
        patch.setattr(peer_file, "update", late)
        assert ann.refusal() == messages.NOT_RECORDED
        tick(running)
        if then == "is invited again":
            assert "its file cannot be written" in running.refused(
                "invite", name="ann", allowed=[], rate_mbit=None, again=True
            )
    match then:
        case "expires":
            clock.now += 2 * WEEK
        case "is disabled and enabled":
            assert running.command("disable", name="ann")["ok"]
            assert running.command("enable", name="ann", until=NOW + DAY)["ok"]
        case "is invited again":
            running.invite("ann", again=True)
    tick(running)
    start_again(running)
    if then == "is invited again":
        assert running.states() == {"ann": "away"}, "the machine with the new key is the peer until another one comes"
    else:
        _, key = ann.join()
        assert ann.may_connect(key) and Machine(running, line).refusal() == messages.INVITATION_USED


def test_a_peer_that_is_revoked_while_its_file_is_written_late_stays_out(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes the new file only after the revocation."""
    line = running.invite("ann")
    write, may_write, written = keys.write_secret, threading.Event(), threading.Event()

    def late(*arguments: Any, **options: Any) -> None:
        may_write.wait(10)
        write(*arguments, **options)
        assert (running.peers / "ann.json").exists()
        written.set()

    with monkeypatch.context() as patch:
        patch.setattr(keys, "write_secret", late)
        patch.setattr(hang_guard, "ANSWER_SECONDS", 0.05)
        assert Machine(running, line).refusal() == messages.NOT_RECORDED
    assert running.command("revoke", name="ann")["ok"] and not (running.peers / "ann.json").exists()
    may_write.set()
    assert written.wait(10)
    eventually(lambda: not (running.peers / "ann.json").exists(), what="the late write is undone")
    start_again(running)
    assert Machine(running, line).refusal() == messages.INVITATION_REVOKED


# -- several machines


def test_each_machine_of_an_invitation_for_several_is_a_peer_of_its_own(running: Running) -> None:
    line = running.invite("lab", uses=3)
    machines = [Machine(running, line) for _ in range(4)]
    assert machines[0].reason(line) == messages.NEEDS_JOIN
    joined = [machine.join() for machine in machines[:3]]
    assert [name for name, _ in joined] == ["lab", "lab-2", "lab-3"] and len({key for _, key in joined}) == 3
    assert machines[3].refusal() == messages.INVITATION_USED
    start_again(running)
    assert [machine.join() for machine in machines[:3]] == joined and machines[3].refusal() == messages.INVITATION_USED
    assert all(machines[0].may_connect(key) for _, key in joined)


def test_a_machine_that_is_revoked_or_leaves_gives_no_use_back(running: Running) -> None:
    line = running.invite("lab", uses=3)
    joined = [Machine(running, line).join() for _ in range(2)]
    assert running.command("revoke", name="lab-2")["ok"]
    assert not Machine(running, line).may_connect(joined[1][1])
    assert peer(running, "lab")["invitation_uses_left"] == 1
    assert isinstance(Machine(running, line).ask(joined[0][1], leaves=True), Done)
    assert peer(running, "lab")["state"] == "invited" and peer(running, "lab")["invitation_uses_left"] == 1
    start_again(running)
    name, key = Machine(running, line).join()
    assert name not in ("lab", "lab-2") or name == "lab-2", name
    assert Machine(running, line).may_connect(key) and Machine(running, line).refusal() == messages.INVITATION_USED


def test_a_name_that_is_taken_is_left_out(running: Running) -> None:
    running.invite("lab-2")
    (running.peers / "lab-3.json").write_text("not read yet")
    line = running.invite("lab", uses=2)
    assert [Machine(running, line).join()[0] for _ in range(2)] == ["lab", "lab-4"]


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"uses": 2, "allowed": ["10.7.0.0/16"]}, "one network"),
        ({"uses": 1001}, "<= 1000"),
        ({"uses": -1}, ">= 1"),
        ({"uses": "2"}, "Expected `int`"),
        ({"name": "x" * 32, "uses": 2}, "expected 1 to 32"),
        ({"expires": NOW - 1}, "past"),
        ({"until": NOW - 1}, "past"),
        ({"until": "tomorrow"}, "Expected `int`"),
        ({"expires": 1 << 60}, "<= 253402300799"),
    ],
    ids=str,
)
def test_an_invitation_that_makes_no_sense_is_refused(
    running: Running, clock: Clock, wanted: dict[str, Any], text: str
) -> None:
    assert text in running.refused("invite", **{"name": "lab", "allowed": [], "rate_mbit": None, **wanted})
    assert running.states() == {}


# -- the clock


def test_an_invitation_expires_after_a_week_or_when_it_says(running: Running, clock: Clock) -> None:
    lines = {name: running.invite(name, expires=end) for name, end in (("ann", None), ("bob", NOW + DAY), ("cyd", 0))}
    clock.now += DAY
    assert Machine(running, lines["bob"]).refusal() == messages.INVITATION_EXPIRED
    assert Machine(running, lines["bob"]).reason(lines["bob"]) == messages.INVITATION_EXPIRED
    tick(running)
    assert running.states() == {"ann": "invited", "bob": "expired", "cyd": "invited"}
    clock.now += WEEK - DAY
    assert Machine(running, lines["ann"]).refusal() == messages.INVITATION_EXPIRED
    clock.now += 1000 * DAY
    assert Machine(running, lines["cyd"]).join()[0] == "cyd"


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_set_back_revives_no_invitation(running: Running, clock: Clock, restart: bool) -> None:
    used, expired = running.invite("ann"), running.invite("bob", expires=NOW + DAY)
    _, key = Machine(running, used).join()
    clock.now += 2 * DAY
    tick(running)
    clock.now -= 1000 * DAY
    if restart:
        start_again(running)
    assert Machine(running, used).refusal() == messages.INVITATION_USED
    assert Machine(running, expired).refusal() == messages.INVITATION_EXPIRED
    assert Machine(running, used).may_connect(key)


def test_a_peer_that_has_joined_does_not_end_with_its_invitation(running: Running, clock: Clock) -> None:
    joined, kept = running.invite("ann"), running.invite("bob")
    _, key = Machine(running, joined).join()
    assert Machine(running, kept).may_connect(kept)
    clock.now += 1000 * DAY
    tick(running)
    start_again(running)
    machine = Machine(running, kept)
    assert machine.may_connect(key) and machine.may_connect(kept)
    assert running.states() == {"ann": "away", "bob": "away"}


def test_a_peer_is_out_at_the_end_of_its_time_and_back_with_another_end(running: Running, clock: Clock) -> None:
    line = running.invite("ann", until=NOW + DAY)
    _, key = Machine(running, line).join()
    session = running.connect(key)
    clock.now += DAY
    tick(running)
    assert not running.hub.is_current(session) and running.states() == {"ann": "ended"}
    answer = Machine(running, line).ask(key)
    assert isinstance(answer, Refused) and "has ended on 2027-01-16" in answer.text
    assert "give another --until" in running.refused("enable", name="ann", until=None)
    assert running.command("enable", name="ann", until=clock.now + DAY)["ok"]
    assert Machine(running, line).may_connect(key)
    start_again(running)
    assert Machine(running, line).may_connect(key) and peer(running, "ann")["until"] == clock.now + DAY


# -- disabled


def test_a_disabled_peer_is_out_at_once_and_comes_back_as_it_was(running: Running) -> None:
    ann, bob = running.invite("ann"), running.invite("bob")
    of_ann, of_bob = running.connect(ann), running.connect(bob)
    for _ in range(2):
        assert running.command("disable", name="ann") == {"ok": True, "name": "ann"}
        assert not running.hub.is_current(of_ann) and running.hub.is_current(of_bob)
        assert Machine(running, ann).reason(ann) == messages.SHUT_OUT and running.states()["ann"] == "disabled"
    start_again(running)
    assert Machine(running, ann).refusal() == messages.SHUT_OUT
    running.reload()
    assert Machine(running, ann).reason(ann) == messages.SHUT_OUT
    addresses = peer(running, "ann")["addresses"]
    assert running.command("enable", name="ann", until=None)["ok"]
    assert running.connect(ann).addresses == [f"{addresses[0]}/24", f"{addresses[1]}/64"]


def test_a_disabled_peer_that_is_revoked_is_not_said_to_be_enabled(running: Running) -> None:
    kinds: list[str] = []
    running.role._events.subscribe(lambda event: kinds.append(event.kind.name))
    running.invite("ann")
    for command in ("disable", "enable", "disable", "revoke"):
        assert running.command(command, name="ann", until=None)["ok"]
    assert kinds == ["invited", "peer-disabled", "peer-enabled", "peer-disabled", "revoked"]


def test_a_refused_machine_is_named_by_its_address_as_people_write_it(running: Running) -> None:
    texts: list[str] = []
    running.role._events.subscribe(lambda event: texts.append(event.text))
    for host in ("::ffff:192.0.2.1", "2001:db8::1"):
        running.role.refused("ann", "it is disabled", host)
    assert texts == ["it is disabled (from 192.0.2.1)", "it is disabled (from 2001:db8::1)"]


def test_a_peer_is_disabled_though_the_disk_is_full_and_that_is_said(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = running.invite("ann")
    session = running.connect(ann)

    def full(*_: object, **__: object) -> None:
        raise LocalError("disabled.json cannot be written: No space left on device")

    monkeypatch.setattr(keys, "write_secret", full)
    assert "comes back after a restart unless it is disabled again" in running.refused("disable", name="ann")
    assert not running.hub.is_current(session) and Machine(running, ann).reason(ann) == messages.SHUT_OUT


def test_a_peer_of_the_configuration_can_be_disabled_and_an_unknown_one_cannot(running: Running) -> None:
    file = running.state / "cfg.key"
    keys.write_secret(file, keys.generate().encode())
    running.reload(peers=[{"name": "cfg", "key_file": str(file)}])
    key = keys.read_key(file, "")
    assert running.command("disable", name="cfg")["ok"] and Machine(running, key).reason(key) == messages.SHUT_OUT
    assert 'no peer "eve"; known peers: cfg' in running.refused("disable", name="eve")


def test_a_name_that_is_invited_again_after_a_revoke_is_not_disabled(running: Running) -> None:
    running.invite("ann")
    running.command("disable", name="ann")
    running.command("revoke", name="ann")
    assert running.may_connect(running.invite("ann"))


def test_a_damaged_list_of_disabled_peers_keeps_the_server_from_starting(running: Running) -> None:
    for text in ("{", '{"a": 1}', "[1]"):
        (running.state / "disabled.json").write_text(text)
        with pytest.raises(ConfigError, match="names the peers that are disabled"):
            running.start()


# -- another machine in the place of a peer


def test_another_machine_takes_the_place_of_a_peer_with_its_addresses(running: Running) -> None:
    line = running.invite("ann", allowed=["10.7.0.0/16"])
    _, old = Machine(running, line).join()
    session = running.connect(old)
    assert "with --again" in running.refused("invite", name="ann", allowed=[], rate_mbit=None)
    again = running.invite("ann", again=True)
    assert running.hub.is_current(session) and Machine(running, line).may_connect(old)
    name, new = Machine(running, again).join()
    assert name == "ann" and not running.hub.is_current(session)
    assert Machine(running, again).may_connect(new) and Machine(running, again).reason(old) == 0
    assert peer(running, "ann")["allowed"] == ["10.7.0.0/16"]


def test_an_invitation_in_place_of_a_peer_is_taken_back_and_the_peer_stays(running: Running) -> None:
    line = running.invite("ann")
    _, key = Machine(running, line).join()
    again = running.invite("ann", again=True)
    running.role.take_back({"command": "invite", "name": "ann"})
    assert Machine(running, line).may_connect(key) and Machine(running, again).refusal() == messages.INVITATION_REVOKED
    start_again(running)
    assert Machine(running, line).may_connect(key)


def test_an_older_client_takes_the_place_of_a_peer_too(running: Running) -> None:
    _, old = Machine(running, running.invite("ann")).join()
    again = running.invite("ann", again=True)
    assert Machine(running, again).may_connect(again) and not Machine(running, again).may_connect(old)
    start_again(running)
    assert Machine(running, again).may_connect(again)


def test_an_expired_invitation_is_replaced_without_ado(running: Running, clock: Clock) -> None:
    old = running.invite("ann")
    clock.now += 2 * WEEK
    new = running.invite("ann")
    assert Machine(running, new).join()[0] == "ann"
    assert Machine(running, old).refusal() == messages.INVITATION_EXPIRED


# -- leaving


def test_a_peer_that_leaves_is_forgotten_and_its_name_is_free(running: Running) -> None:
    _, key = Machine(running, running.invite("ann")).join()
    other = running.connect(running.invite("bob"))
    answer = Machine(running, key).ask(key, leaves=True)
    assert isinstance(answer, Done) and not (running.peers / "ann.json").exists()
    assert running.hub.is_current(other) and Machine(running, key).ask(key) is None
    assert running.invite("ann")


def test_the_holder_of_a_used_line_cannot_make_a_peer_leave(running: Running) -> None:
    line = running.invite("ann")
    _, key = Machine(running, line).join()
    answer = Machine(running, line).ask(line, leaves=True)
    assert isinstance(answer, Refused) and Machine(running, line).may_connect(key)


# -- rates


def test_an_invitation_gives_a_rate_of_bulk_which_another_one_keeps_or_changes(running: Running) -> None:
    def invite(**wanted: object) -> float | None:
        running.command("invite", name="ann", allowed=[], rate_mbit=None, **wanted)
        return json.loads((running.peers / "ann.json").read_text()).get("bulk_rate_mbit")

    assert invite(bulk_rate_mbit=2) == 2
    assert invite(again=True) == 2
    assert invite(again=True, bulk_rate_mbit=0) == 0
    assert "Expected `float` >= 0" in running.refused("invite", name="b", allowed=[], rate_mbit=None, bulk_rate_mbit=-1)


# -- the address in the line


def test_an_address_that_was_given_once_is_remembered_and_a_guess_is_called_one(running: Running) -> None:
    def invite(name: str, server: str = "") -> dict[str, Any]:
        return running.command("invite", name=name, allowed=[], rate_mbit=None, server=server)

    assert invite("a")["server"] == "vpn.example.org:9000"
    assert not invite("b", "gw.example.org")["remembered"], "the configuration has one"
    running.settings["public_addr"] = ""
    running.settings["local_addr"] = "192.168.7.1:9000"
    running.start()
    first = invite("c")
    assert (first["server"], first["guessed"], first["is_private"]) == ("192.168.7.1:9000", True, True)
    assert invite("d", "gw.example.org:443")["remembered"]
    running.start()
    later = invite("e")
    assert (later["server"], later["guessed"], later["remembered"]) == ("gw.example.org:443", False, False)
    assert invitation.decode(later["line"]).server == "gw.example.org:443"
