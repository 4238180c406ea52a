"""What an endurance run does to its site: a table of faults, each with its weight in the draw.

A fault returns once it has been done and, where that is up to us, undone. Whether the tunnel comes back is the business
of the caller. No fault touches client "two"; the hub's supervisor is never struck.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tools.endurance.site import Site
from tools.lab.network import INTERFACE
from tools.lab.waiting import until
from tools.tunnel_pair import CARRIER_PORT, TUN_NAME

STRUCK = ("hub", "one")
FLOOD_SECONDS, FLOOD_RATE = 2.0, 300
FROZEN_SECONDS = 3.0
REPLACED_SECONDS = 20.0
MOVED_ADDRESS = "10.77.0.201"


class Fault(NamedTuple):
    name: str
    weight: int
    strike: Callable[[Site, random.Random], None]


def _kill(site: Site, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _kill_one(kind: str, site: Site, rng: random.Random) -> None:
    _kill(site, [rng.choice(site.worker_pids(rng.choice(STRUCK), kind))])


def _kill_two(site: Site, rng: random.Random) -> None:
    _kill(site, rng.sample(site.worker_pids(rng.choice(STRUCK)), 2))


def _kill_three(site: Site, rng: random.Random) -> None:
    """Of both ends."""
    _kill(site, rng.sample([pid for name in STRUCK for pid in site.worker_pids(name)], 3))


def _kill_all(site: Site, rng: random.Random) -> None:
    _kill(site, site.worker_pids(rng.choice(STRUCK)))


def _pause_worker(site: Site, rng: random.Random) -> None:
    pid = rng.choice(site.worker_pids(rng.choice(STRUCK)))
    os.kill(pid, signal.SIGSTOP)
    time.sleep(rng.uniform(0.05, 0.8))
    os.kill(pid, signal.SIGCONT)


def _hang_worker(site: Site, rng: random.Random) -> None:
    name = rng.choice(STRUCK)
    pid = rng.choice(site.worker_pids(name))
    os.kill(pid, signal.SIGSTOP)
    until(lambda: pid not in site.worker_pids(name), f"the worker of {name} that hangs replaced", REPLACED_SECONDS)


def _freeze(site: Site, rng: random.Random) -> None:
    pids = list(site.instances["one"].pids().values())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def _end_instance(number: int, site: Site, rng: random.Random) -> None:
    process = site.instances["one"].process
    process.send_signal(number)
    process.wait(REPLACED_SECONDS)
    site.start("one")


def _command(words: tuple[str, ...], site: Site, rng: random.Random) -> None:
    site.command(rng.choice(STRUCK), *words)


def _cut_link(seconds: tuple[float, float], site: Site, rng: random.Random) -> None:
    node = site.node("one")
    site.lab.cut(node)
    time.sleep(rng.uniform(*seconds))
    site.lab.join(node)


def _cut_connections(site: Site, rng: random.Random) -> None:
    site.cut_connections("one")


def _move(site: Site, rng: random.Random) -> None:
    """The client's own address changes, and changes back at the next move."""
    node = site.node("one")
    both = {node.address, MOVED_ADDRESS}
    shown = node.run(["ip", "-4", "-o", "address", "show", "dev", INTERFACE]).stdout
    now = next(address for address in both if f" {address}/" in shown)
    (then,) = both - {now}
    node.ip(f"address del {now}/24 dev {INTERFACE}", f"address add {then}/24 dev {INTERFACE}")


def _ip(commands: tuple[str, ...], site: Site, rng: random.Random) -> None:
    site.node("one").ip(*commands)


def _flush_firewall(site: Site, rng: random.Random) -> None:
    site.node(rng.choice(STRUCK)).run(["nft", "flush", "ruleset"])


def _flood(site: Site, rng: random.Random) -> None:
    """Somebody opens connections that bring garbage."""
    hub = site.node("hub").address
    words = ["--rate", FLOOD_RATE, "--seconds", FLOOD_SECONDS]
    site.node("one").run([sys.executable, "-P", "-m", "tools.load.flood", hub, CARRIER_PORT, *words])


def _invite_and_revoke(site: Site, rng: random.Random) -> None:
    site.command("hub", "invite", "visitor", "--address", site.node("hub").address)
    site.command("hub", "revoke", "visitor")


def _storm_of_reloads(site: Site, rng: random.Random) -> None:
    process = site.instances["one"].process
    for _ in range(20):
        process.send_signal(signal.SIGHUP)


FAULTS = (
    *(Fault(f"kill -9 of a {kind} worker", 6, partial(_kill_one, kind)) for kind in ("tun", "fec", "tcp")),
    Fault("kill -9 of two workers", 3, _kill_two),
    Fault("kill -9 of three workers, of both ends", 2, _kill_three),
    Fault("kill -9 of all workers of an end", 2, _kill_all),
    Fault("SIGSTOP of a worker, up to 0.8 s", 3, _pause_worker),
    Fault("SIGSTOP of a worker, for good", 2, _hang_worker),
    Fault(f"SIGSTOP of a whole client, {FROZEN_SECONDS:g} s", 2, _freeze),
    Fault("kill -9 of a client's supervisor, start", 2, partial(_end_instance, signal.SIGKILL)),
    Fault("stop of a client, start", 2, partial(_end_instance, signal.SIGTERM)),
    Fault("restart of all workers", 1, partial(_command, ("restart",))),
    Fault("restart --rolling", 1, partial(_command, ("restart", "--rolling"))),
    Fault("reload", 2, partial(_command, ("reload",))),
    Fault("20 times SIGHUP", 1, _storm_of_reloads),
    Fault("link down, 1 to 4 s", 3, partial(_cut_link, (1.0, 4.0))),
    Fault("link down, 30 s", 1, partial(_cut_link, (30.0, 30.0))),
    Fault("all connections of a client cut", 3, _cut_connections),
    Fault("a client's address changes", 2, _move),
    Fault("addresses of the device flushed", 2, partial(_ip, (f"address flush dev {TUN_NAME}",))),
    Fault("device set down and up", 2, partial(_ip, (f"link set {TUN_NAME} down", f"link set {TUN_NAME} up"))),
    Fault("device deleted", 2, partial(_ip, (f"link delete {TUN_NAME}",))),
    Fault("firewall flushed", 1, _flush_firewall),
    Fault(f"{FLOOD_RATE} garbage connections a second", 1, _flood),
    Fault("a peer invited and revoked", 2, _invite_and_revoke),
)


def select(parts: Sequence[str]) -> list[Fault]:
    """The faults in whose names one of the parts occurs; all of them without parts."""
    return [fault for fault in FAULTS if not parts or any(part in fault.name for part in parts)]


def draws(faults: Sequence[Fault], rng: random.Random, times: int = 0) -> Iterator[Fault]:
    """One after the other: by weight and without end, or each so many times, in an order of chance."""
    if times:
        yield from rng.sample(faults, len(faults) * times, counts=[times] * len(faults))
        return
    while True:
        yield rng.choices(faults, [fault.weight for fault in faults])[0]
