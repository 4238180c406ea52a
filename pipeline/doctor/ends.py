"""The instance itself and its two ends: whether it works, what it notes, and settings of the ends that do not fit."""

from __future__ import annotations

from typing import Any

from pipeline.config import RELOAD, changes
from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.log import printable
from pipeline.observe.process_stat import HALTED
from pipeline.observe.sentence import DOCTOR, describe
from pipeline.supervisor.instance import find_instances
from pipeline.version import NAME, VERSION

DEATHS_NOTE = 3
MUCH_LOSS = (500, 0.05), (30, 0.15)
"""Segments that were sent, and the share of them that was sent again: of few, many."""
LISTED_MAX = 5
LOG = "Look into the log of the instance."
PAGES = (
    ("server ", "servers.md"),
    ("SRV records ", "servers.md"),
    ("none of systemd-resolved, NetworkManager and resolvconf ", "full-tunnel.md"),
)
"""How notes of an instance begin that are explained elsewhere than most."""


def instance(subject: Subject) -> list[Finding]:
    snapshot = subject.snapshot
    if snapshot is None:
        return judge_dead([name for name in find_instances().dead if subject.name in ("", name)])
    return [judge_health(snapshot), *judge_workers(snapshot), *judge_loss(subject.established)]


def judge_dead(names: list[str]) -> list[Finding]:
    """`names`: of instances that left their files behind."""
    return [
        problem(
            f"{name} does not run: its supervisor was killed, and nothing has started it again",
            f"Start it, such as with `{NAME} up {name}`: that removes what is left. `dmesg` says whether the system's "
            "memory was short. A service of systemd is started again by itself.",
        )
        for name in names
    ]


def judge_health(snapshot: dict[str, Any]) -> Finding:
    health = describe(snapshot)
    if not health.works:
        return problem(health.sentence, health.advice.replace(DOCTOR, "") or LOG)
    advice = health.advice.replace(DOCTOR, "").strip()
    return note(health.sentence, advice) if advice else ok(health.sentence)


def judge_workers(snapshot: dict[str, Any]) -> list[Finding]:
    found = [
        note(f"{row['name']} has died {row['deaths']} times, and was started again", LOG)
        for row in snapshot["workers"]
        if row.get("deaths", 0) >= DEATHS_NOTE
    ]
    found += [
        problem(
            f"{row['name']} is {row['process']}: somebody has stopped it", f"Let it go on: kill -CONT {row['pid']}."
        )
        for row in snapshot["workers"]
        if row.get("process") in HALTED
    ]
    supervisor = snapshot.get("supervisor", {}).get("state", "running")
    if supervisor != "running":
        text = f"the supervisor is {supervisor}: packets pass, but nothing is restarted and no command is answered"
        found.append(problem(text, f"Let it go on (kill -CONT {snapshot['pid']}), or start the instance again."))
    if failures := snapshot.get("supervisor_failures", 0):
        found.append(note(f"the supervisor has survived {failures} failures of its own", LOG))
    return found


def judge_loss(rows: list[dict[str, Any]]) -> list[Finding]:
    """Of the connections that stand. A black hole on the way back to the other end looks like this, too."""
    resent, sent = (sum(row.get(name, 0) for row in rows) for name in ("resent_segments", "sent_segments"))
    if not any(sent >= segments and resent >= share * sent for segments, share in MUCH_LOSS):
        return []
    text = f"{100 * resent / sent:.0f} % of the segments to the other end were sent again: the path loses much"
    cure = "Run the doctor at the other end, too: it looks for a black hole. Else ask the network's operator."
    return [note(text, cure)]


def unapplied(subject: Subject) -> list[Finding]:
    if subject.on_disk is None or subject.config is None:
        return []
    return judge_unapplied([(name, RELOAD[name]) for name in changes(subject.config, subject.on_disk)])


def judge_unapplied(changed: list[tuple[str, str]]) -> list[Finding]:
    """`changed`: settings that differ in the file, and how each can be applied: live or restart."""
    if not changed:
        return []
    text = f"the file has other values than the instance for {', '.join(name for name, _ in changed)}"
    needs_restart = [name for name, how in changed if how == "restart"]
    if needs_restart:
        return [note(text, f"Start the instance again to apply {', '.join(needs_restart)}.")]
    return [note(text, "Apply them: tunnel-supervisor reload.")]


def notes(subject: Subject) -> list[Finding]:
    """All that the instance itself notes. Each note has its cure in it."""
    if subject.snapshot is None:
        return []
    return [judge_note(text) for text in subject.snapshot.get("notes", [])]


def judge_note(text: str) -> Finding:
    page = next((page for words, page in PAGES if text.startswith(words)), "network.md")
    return note(text, f"See docs/{page}.")


# -- what the ends know of each other


def versions(subject: Subject) -> list[Finding]:
    if subject.snapshot is None:
        return []
    ends = [("the server", (subject.snapshot.get("server") or {}).get("version", ""))]
    ends += [(f"peer {printable(peer['name'])}", peer.get("version", "")) for peer in subject.peers or ()]
    return judge_versions(subject.snapshot.get("version", ""), VERSION, ends)


def judge_versions(running: str, on_disk: str, ends: list[tuple[str, str]]) -> list[Finding]:
    """`ends`: the other ends, and their versions; "" where one does not tell it."""
    found = []
    if running != on_disk:
        text = f"this instance runs {running or 'an older version'}, the program on disk is {on_disk}"
        found.append(note(text, "restart --rolling renews the workers, a restart of the service the supervisor too."))
    others = [f"{name} runs {version}" for name, version in ends if version and version != running]
    if others:
        more = f" and {len(others) - LISTED_MAX} more" if len(others) > LISTED_MAX else ""
        text = f"{', '.join(others[:LISTED_MAX])}{more}, this end runs {running or 'an older version'}"
        found.append(note(text, "They work together; upgrade the older one when it suits you."))
    return found or [ok(f"version {running}, as on disk")]


def settings(subject: Subject) -> list[Finding]:
    """The settings of both ends that should be equal, as far as a handshake tells them."""
    config, snapshot = subject.config, subject.snapshot
    if config is None or snapshot is None or config.compat:
        return []
    server = snapshot.get("server") or {}
    ends = [("the server", server.get("mtu", 0), server.get("fec"))]
    ends += [(f"peer {printable(peer['name'])}", peer.get("mtu", 0), peer.get("fec")) for peer in subject.peers or ()]
    return judge_settings(config.mtu, config.fec, [end for end in ends if end[1]])


def judge_settings(mtu: int, fec: str, ends: list[tuple[str, int, bool | None]]) -> list[Finding]:
    """`ends`: the other ends, their MTU, and whether they have fec."""
    found = []
    for name, other, has_fec in ends:
        if other != mtu:
            text = f"mtu is {mtu} here and {other} at {name}: the ends disagree about the longest packet"
            found.append(note(text, f"Set mtu to {min(mtu, other)} at both ends."))
        if has_fec is False and fec != "off":
            text = f'fec is "{fec}" here and off at {name}: nothing is coded'
            found.append(note(text, "Set fec at both ends, or at neither."))
        if has_fec and fec == "off":
            found.append(
                note(f"fec is off here and on at {name}: nothing is coded", "Set fec at both ends, or neither.")
            )
    return found or ([ok("mtu and fec of both ends agree")] if ends else [])
