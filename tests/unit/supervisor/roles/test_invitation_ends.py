"""Every end of an invitation, with its peers in every state: what the next machine with the line is answered.

A row is what has happened, in a few words, and the answer. Machines are numbered in the order in which they join; the
invitation is that of the peer "lab".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.peers import ended_invitations
from pipeline.wire import messages
from pipeline.wire.messages import Done, Refused
from tests.harness.running_server import Running
from tests.unit.supervisor.roles.test_enrollment import NOW, WEEK, Clock, Machine, peer, start_again, tick

USED, EXPIRED, REVOKED = messages.INVITATION_USED, messages.INVITATION_EXPIRED, messages.INVITATION_REVOKED
DISABLED = messages.SHUT_OUT
JOINS = 0


class Story:
    """An invitation, the machines that have joined with it, and their keys."""

    def __init__(self, running: Running, clock: Clock, uses: int) -> None:
        self.running, self.clock = running, clock
        self.line = running.invite("lab", uses=uses)
        self.machines: list[Machine] = []
        self.joined: list[tuple[str, bytes]] = []

    def join(self) -> None:
        machine = Machine(self.running, self.line)
        self.joined.append(machine.join())
        self.machines.append(machine)

    def leave(self, number: int) -> None:
        assert isinstance(self.machines[number - 1].ask(self.joined[number - 1][1], leaves=True), Done)

    def revoke(self, number: int = 0) -> None:
        """The peer that this machine has become, or the one that nobody has become yet."""
        name = self.joined[number - 1][0] if number else "lab"
        assert self.running.command("revoke", name=name)["ok"]

    def disable(self, number: int = 0) -> None:
        name = self.joined[number - 1][0] if number else "lab"
        assert self.running.command("disable", name=name)["ok"]

    def withdraw(self) -> None:
        assert self.running.command("withdraw", name="lab")["ok"]

    def expire(self) -> None:
        self.clock.now = NOW + WEEK + 1
        tick(self.running)

    def again(self) -> bytes:
        return self.running.invite("lab", again=True)

    def invite(self) -> bytes:
        return self.running.invite("lab")

    def replaced(self) -> None:
        """Another machine takes the place of the peer."""
        Machine(self.running, self.again()).join()

    def keep(self) -> None:
        """An older client, or `start --join`."""
        assert Machine(self.running, self.line).may_connect(self.line)
        tick(self.running)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


ENDS: list[tuple[int, str, int]] = [
    # for one machine
    (1, "", JOINS),
    (1, "join", USED),
    (1, "join, leave 1", USED),
    (1, "join, revoke 1", USED),
    (1, "join, disable 1", USED),
    (1, "join, leave 1, invite", USED),
    (1, "join, revoke 1, invite", USED),
    (1, "join, replaced", USED),
    (1, "join, again", USED),
    (1, "join, again, withdraw", USED),
    (1, "join, expire", USED),
    (1, "join, expire, revoke 1", USED),
    (1, "revoke", REVOKED),
    (1, "withdraw", REVOKED),
    (1, "revoke, invite", REVOKED),
    (1, "again", REVOKED),
    (1, "disable", DISABLED),
    (1, "disable, revoke", REVOKED),
    (1, "disable, again", REVOKED),
    (1, "expire", EXPIRED),
    (1, "expire, revoke", EXPIRED),
    (1, "expire, invite", EXPIRED),
    (1, "expire, again", EXPIRED),
    (1, "keep", JOINS),
    (1, "keep, revoke", REVOKED),
    (1, "keep, join", USED),
    (1, "keep, join, leave 1", USED),
    (1, "keep, expire", JOINS),
    # for three
    (3, "", JOINS),
    (3, "join", JOINS),
    (3, "join, join", JOINS),
    (3, "join, join, join", USED),
    (3, "join, leave 1", JOINS),
    (3, "join, leave 1, join", JOINS),
    (3, "join, leave 1, join, join", USED),
    (3, "join, leave 1, join, join, leave 2", USED),
    (3, "join, join, leave 2", JOINS),
    (3, "join, join, leave 1, leave 2", JOINS),
    (3, "join, join, revoke 2", JOINS),
    (3, "join, join, revoke 2, join", USED),
    (3, "join, join, revoke 2, leave 1", JOINS),
    (3, "join, join, join, leave 1", USED),
    (3, "join, join, join, leave 1, leave 2, leave 3", USED),
    (3, "join, join, join, revoke 1", USED),
    (3, "join, join, join, revoke 1, revoke 2, revoke 3", USED),
    (3, "revoke", REVOKED),
    (3, "withdraw", REVOKED),
    (3, "join, revoke 1", REVOKED),
    (3, "join, withdraw", REVOKED),
    (3, "join, withdraw, leave 1", REVOKED),
    (3, "join, join, revoke 1", REVOKED),
    (3, "join, join, revoke 1, leave 2", REVOKED),
    (3, "join, leave 1, revoke", REVOKED),
    (3, "join, revoke 1, invite", REVOKED),
    (3, "disable", DISABLED),
    (3, "join, disable 1", JOINS),
    (3, "join, join, disable 2", JOINS),
    (3, "join, disable 1, revoke 1", REVOKED),
    (3, "expire", EXPIRED),
    (3, "join, expire", EXPIRED),
    (3, "join, leave 1, expire", EXPIRED),
    (3, "join, expire, revoke 1", EXPIRED),
    (3, "join, join, expire, revoke 2", EXPIRED),
    (3, "join, join, join, expire", USED),
]


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "after a restart"])
@pytest.mark.parametrize(("uses", "happened", "answer"), ENDS, ids=[f"{row[0]}: {row[1] or '-'}" for row in ENDS])
def test_the_next_machine_joins_or_is_told_why_not(
    running: Running, clock: Clock, uses: int, happened: str, answer: int, restart: bool
) -> None:
    story = Story(running, clock, uses)
    for step in filter(None, happened.split(", ")):
        words = step.split()
        method: Callable[..., object] = getattr(story, words[0])
        method(*map(int, words[1:]))
    if restart:
        start_again(running)
    found = Machine(running, story.line).exchange()
    assert isinstance(found, Done | Refused), "silence is for lines that are unknown"
    assert (JOINS if isinstance(found, Done) else found.reason) == answer
    without_exchange = Machine(running, story.line).ask(story.line)
    assert without_exchange is not None, "an older client is told, too"


@pytest.mark.parametrize("happened", ["leave 1", "revoke 1", "withdraw", "expire", "disable 1", "join, leave 1"])
@pytest.mark.parametrize("restart", [False, True], ids=["at once", "after a restart"])
def test_a_machine_that_has_joined_and_does_not_know_so_yet_gets_the_same_answer(
    running: Running, clock: Clock, happened: str, restart: bool
) -> None:
    story = Story(running, clock, 3)
    story.join()
    story.join()
    for step in happened.split(", "):
        words = step.split()
        getattr(story, words[0])(*map(int, words[1:]))
    if restart:
        start_again(running)
    assert story.machines[1].join() == story.joined[1]
    assert story.machines[1].may_connect(story.joined[1][1])


def test_a_name_that_is_invited_again_is_not_taken_for_the_one_before(running: Running, clock: Clock) -> None:
    story = Story(running, clock, 1)
    story.join()
    story.leave(1)
    line = story.invite()
    assert Machine(running, story.line).refusal() == USED
    assert not isinstance(Machine(running, story.line).ask(story.line, leaves=True), Done)
    name, key = Machine(running, line).join()
    assert name == "lab" and Machine(running, line).may_connect(key)


def test_nobody_joins_when_the_time_of_the_peers_is_over(running: Running, clock: Clock) -> None:
    line = running.invite("lab", uses=3, until=NOW + 10)
    Machine(running, line).join()
    clock.now = NOW + 11
    tick(running)
    refused = Machine(running, line).exchange()
    assert isinstance(refused, Refused) and refused.reason == DISABLED and "has ended" in refused.text
    assert "lab-2" not in running.states()


def test_a_file_of_an_invitation_that_is_spent_goes_with_its_last_use(running: Running, clock: Clock) -> None:
    story = Story(running, clock, 2)
    story.join()
    story.leave(1)
    assert peer(running, "lab")["state"] == "invited"
    story.join()
    assert list(running.states()) == ["lab-2"] and not (running.peers / "lab.json").exists()


def test_a_revoke_says_what_becomes_of_the_invitation(running: Running, clock: Clock) -> None:
    story = Story(running, clock, 5)
    for _ in range(3):
        story.join()
    assert running.command("revoke", name="lab-2")["invitation"] == {"name": "lab", "uses_left": 2}
    assert running.command("revoke", name="lab")["invitation"] == {"name": "lab", "uses_left": 2}
    assert running.command("revoke", name="lab-3")["invitation"] is None


def test_the_invitation_alone_is_ended_and_its_machines_stay(running: Running, clock: Clock) -> None:
    story = Story(running, clock, 3)
    story.join()
    story.join()
    assert running.command("withdraw", name="lab")["stays"]
    assert Machine(running, story.line).refusal() == REVOKED
    assert all(Machine(running, story.line).may_connect(key) for _, key in story.joined)
    assert "no invitation that is open" in running.refused("withdraw", name="lab")
    assert "no invitation that is open" in running.refused("withdraw", name="lab-2")


def test_an_invitation_for_several_is_not_replaced_while_it_is_open(running: Running, clock: Clock) -> None:
    story = Story(running, clock, 3)
    story.join()
    assert "still good for 2 machines: end it first" in running.refused("invite", name="lab", allowed=[], again=True)
    story.withdraw()
    Machine(running, story.again()).join()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '[{"key": "x", "name": "lab", "end": "used"}]', "[[[["])
def test_a_damaged_file_of_ended_invitations_costs_its_words_alone(
    running: Running, clock: Clock, content: str
) -> None:
    story = Story(running, clock, 1)
    story.join()
    story.revoke(1)
    file = running.state / ended_invitations.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(content)
    start_again(running)
    assert Machine(running, story.line).exchange() is None
    line = story.invite()
    story.revoke()
    assert Machine(running, line).refusal() == REVOKED
    start_again(running)
    assert Machine(running, line).refusal() == REVOKED


def test_only_the_newest_ended_invitations_are_known(
    running: Running, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended_invitations, "ENDED_MAX", 2)
    lines = []
    for _ in range(3):
        lines.append(running.invite("lab"))
        assert running.command("revoke", name="lab")["ok"]
    for _ in range(2):
        assert Machine(running, lines[0]).exchange() is None
        assert [Machine(running, line).refusal() for line in lines[1:]] == [REVOKED, REVOKED]
        start_again(running)
