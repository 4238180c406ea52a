"""The parts of an instance, made in order. Each that leaves a trace says at once how it is removed.

`clean_up` gets these calls. They are made in reverse order at the end, and also if a later part cannot be made.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import NamedTuple

from pipeline import log
from pipeline.config import Config
from pipeline.events import Event
from pipeline.log import LOG
from pipeline.supervisor.commands.certificate_watch import CertificateWatch
from pipeline.supervisor.commands.commands import Commands
from pipeline.supervisor.commands.departure import Departure
from pipeline.supervisor.commands.reloader import Reloader
from pipeline.supervisor.control import sd_notify
from pipeline.supervisor.control.control_socket import ControlServer
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.control.gathered_peers import GatheredPeers
from pipeline.supervisor.control.instance_facts import InstanceFacts
from pipeline.supervisor.control.publisher import Publisher
from pipeline.supervisor.control.run_files import RunFiles
from pipeline.supervisor.control.sd_notify import Watchdog
from pipeline.supervisor.control.service_status import ServiceStatus
from pipeline.supervisor.hooks.facts import facts_of
from pipeline.supervisor.hooks.hooks import Hooks
from pipeline.supervisor.instance import Instance
from pipeline.supervisor.kernel.entries import KernelEntries
from pipeline.supervisor.memory_keeper import MemoryKeeper
from pipeline.supervisor.processes.bridge import Bridge
from pipeline.supervisor.processes.exporter import Exporter
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.processes.process import raise_descriptor_limit
from pipeline.supervisor.processes.web_socket_bridge import WebSocketBridge
from pipeline.supervisor.processes.workforce import Workforce
from pipeline.supervisor.roles.client_role import ClientRole
from pipeline.supervisor.roles.server_role import ServerRole
from pipeline.supervisor.run.datagram_memory import DatagramMemory
from pipeline.supervisor.run.reach_memory import ReachMemory
from pipeline.supervisor.run.run import Run
from pipeline.supervisor.run.seal_memory import SealMemory
from pipeline.supervisor.run.worker_account import Account, account_beside, choose_account

ALWAYS, UNTIL_STOP, RUNNING = range(3)
"""When a care is taken: in each turn, until the instance is to stop, or only while all workers run."""

CleanUp = Callable[[Callable[[], object]], object]


class Care(NamedTuple):
    """A part that looks at the clock once a turn. `what`: in the log, if it fails. `tick` gets CLOCK_MONOTONIC ns."""

    what: str
    when: int
    tick: Callable[[int], object]


class Parts(NamedTuple):
    """The parts that the loop of the supervisor has a word with. `cares` are in the order of their turns."""

    run: Run
    memory: MemoryKeeper
    entries: KernelEntries
    workforce: Workforce
    hooks: Hooks
    reloader: Reloader
    departure: Departure
    cares: list[Care]


def set_up(
    config: Config,
    reread: Callable[[], Config],
    key: bytes,
    events: Events,
    selector: selectors.BaseSelector,
    clean_up: CleanUp,
) -> Parts:
    """TunnelError says what is missing. `reread`, `key`: see Supervisor."""
    raise_descriptor_limit()
    precedence = Precedence()
    clean_up(precedence.restore_own)
    precedence.protect()
    instance = Instance(config.name)
    instance.acquire()
    clean_up(instance.release)
    choice = choose_account(config.user, is_client=config.mode == "client")
    LOG.info("%s", choice.text)
    exporter = Exporter(account_beside(choice.account), selector, precedence, events.record)
    exporter.prepare(config)
    role = ServerRole(config, events) if config.mode == "server" else ClientRole(config, key, events)
    entries = KernelEntries(config, _own_id(choice.account), selector)
    clean_up(entries.close)
    run = Run(choice.account, entries.device, role)
    clean_up(run.close)
    if config.encryption == "tls" and not config.compat:
        run.seal_memory = SealMemory(role.capacity, config.lanes)
        clean_up(run.seal_memory.close)
        if entries.datagrams.kinds:
            run.datagram_memory = DatagramMemory(role.capacity, config.lanes)
            clean_up(run.datagram_memory.close)
        secrets_of_datagrams = run.datagram_memory.secrets if run.datagram_memory is not None else None
        role.use_keys(run.seal_memory.keys, secrets_of_datagrams, entries.datagrams)
    if isinstance(role, ServerRole) and entries.reach is not None:
        run.reach_memory = ReachMemory(config.lanes)
        clean_up(run.reach_memory.close)
        role.use_reach(entries.reach, run.reach_memory)
    bridge = Bridge(choice.account, selector, precedence, events.record)
    clean_up(bridge.close)
    run.way_of = bridge.way_of
    web_sockets = WebSocketBridge(account_beside(choice.account), selector, precedence, events.record)
    clean_up(web_sockets.close)
    web_sockets.prepare(config)
    run.bridge_token = web_sockets.token
    run.write_plan(config)
    memory = MemoryKeeper(run, role.accountant.settle, events.record)
    clean_up(memory.end)
    memory.lend(lambda current: events.use(current.event_log))
    clean_up(events.finish)
    memory.lend(lambda current: role.start(current.peer_table, entries.device))
    clean_up(role.accountant.close)

    def facts(event: Event) -> dict[str, str]:
        return facts_of(event, run.config, role, entries.device, memory.current.peer_table, time.monotonic_ns())

    hooks = Hooks(selector, precedence, facts, events.record)
    clean_up(hooks.close)
    hooks.configure(config)
    workforce = Workforce(
        run, entries, role.answer_request, selector, precedence, events.record, lambda: web_sockets.inner
    )
    clean_up(workforce.close)
    role.tell_workers = workforce.workers.channels.send_to_all
    bridge.apply()
    web_sockets.apply()
    exporter.configure_prepared()
    clean_up(exporter.close)
    memory.lend(lambda current: exporter.renew())
    peers = GatheredPeers(role)
    facts_about = InstanceFacts(run, workforce, role, entries, exporter, bridge, web_sockets, hooks.status)
    publisher = Publisher(run, facts_about, peers)
    memory.lend(publisher.use)
    for subscriber in (publisher.handle, hooks.handle, sd_notify.handle):
        events.subscribe(subscriber)
    companions = exporter, bridge, web_sockets
    reloader = Reloader(reread, run, role, entries, workforce, *companions, hooks, publisher.publish_now, events.record)
    departure = Departure(run, role, workforce, workforce.workers.channels.send_to_all)
    commands = Commands(run, workforce, role, publisher, reloader, departure)
    control = ControlServer(instance.socket_path, commands.answer, selector, commands.take_back)
    clean_up(control.close)
    service_status = ServiceStatus()
    cares = [
        Care("the care for the kernel's entries", UNTIL_STOP, entries.tick),
        Care("the care for the run directory", UNTIL_STOP, RunFiles(instance, control).check),
        Care("the care for the peers", UNTIL_STOP, role.tick),
        Care("the care for the certificate", RUNNING, CertificateWatch(lambda: run.config, reloader.renew).tick),
        Care("the news of the role", UNTIL_STOP, workforce.follow_role),
        Care("the planned stop", UNTIL_STOP, departure.tick),
        Care("the rolling restart", UNTIL_STOP, workforce.tick_rolling),
        Care("the care for spares", UNTIL_STOP, workforce.tick_spares),
        Care("the care for the bridge", UNTIL_STOP, bridge.tick),
        Care("the care for WebSockets", UNTIL_STOP, web_sockets.tick),
        Care("the care for the exporter", RUNNING, exporter.tick),
        Care("the counts of events", ALWAYS, events.tick),
        Care("the overview", ALWAYS, publisher.tick),  # before the hooks, whose programs may look at it
        Care("the hooks", ALWAYS, hooks.tick),
        Care("the log", ALWAYS, lambda now: log.tick()),
        Care("the watchdog", RUNNING, Watchdog().feed),
        Care("the status line", RUNNING, lambda now: service_status.tick(memory.current, role.status, now)),
    ]
    entries.stays_shut = True  # an orderly stop says otherwise
    return Parts(run, memory, entries, workforce, hooks, reloader, departure, cares)


def _own_id(account: Account | None) -> int | None:
    """The user id of the workers, if they have another than the supervisor."""
    return account.uid if account is not None else None
