"""The ports of an instance that does not run yet: whether they are free, and who has them."""

from __future__ import annotations

from contextlib import closing

import psutil

from pipeline.config import Config
from pipeline.config.values import Endpoint
from pipeline.doctor.finding import Finding, Level, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import PermissionDenied, TunnelError
from pipeline.policy.carrier_order import KINDS, Kind
from pipeline.supervisor.kernel.datagram_carriers import RIGHT_BY_SYSTEMD
from pipeline.supervisor.kernel.datagram_sockets import DatagramSockets
from pipeline.supervisor.kernel.fake_tcp_sockets import ServerFakeTcpSockets
from pipeline.supervisor.kernel.listener import listen
from pipeline.transport.address import format_address


def port(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or subject.runs:
        return []
    found = []
    if subject.is_server:
        found.append(_try("local_addr", config.local_addr, config.listen_endpoint))
        if found[0].level is Level.OK:
            found += [TRIALS[kind](config) for kind in KINDS[config.carrier]]
    if (metrics := config.metrics_endpoint) is not None:
        found.append(_try("metrics_addr", format_address((metrics.host, metrics.port)), metrics))
    return found


def _try(setting: str, address: str, endpoint: Endpoint) -> Finding:
    """Listen there for a moment."""
    try:
        listen(endpoint).close()
    except PermissionDenied:
        return problem(f"{setting}: this user may not listen on {address}", "Run as root, or choose a port above 1023.")
    except TunnelError as error:
        return judge_port(setting, address, str(error), _owners(endpoint.port))
    return ok(f"{address} is free")


def _try_datagrams(config: Config) -> Finding:
    """Have the sockets of datagrams on the port for a moment."""
    try:
        with closing(listen(config.listen_endpoint)) as listener, closing(DatagramSockets(config, listener)):
            return ok(f"{config.local_addr} is free for datagrams")
    except (TunnelError, OSError) as error:
        text = f"no datagrams on {config.local_addr}: {getattr(error, 'strerror', '') or error}"
        return _without(config, text, "Stop the program that has this UDP port, or set another port in local_addr")


def _try_fake_tcp(config: Config) -> Finding:
    """Have its sockets for a moment."""
    try:
        with closing(listen(config.listen_endpoint)) as listener:
            port = config.fake_tcp_port_beside(listener.getsockname()[1])
            ServerFakeTcpSockets(listener, port, config.lanes).close()
    except PermissionDenied as error:
        return _without(config, str(error), f"Run as root; {RIGHT_BY_SYSTEMD}")
    except TunnelError as error:
        return _without(config, str(error), "Set another port in fake_tcp_port")
    return ok(f"port {port} is free for fake TCP")


def _without(config: Config, text: str, cure: str) -> Finding:
    """A kind of datagrams cannot be had."""
    if config.carrier == "auto":
        return note(text, f"Blocks travel by the carriers that remain. {cure}.")
    return problem(text, f'{cure}, or carrier to "auto".')


TRIALS = {Kind.UDP: _try_datagrams, Kind.FAKE_TCP: _try_fake_tcp}


def _owners(number: int) -> list[str]:
    """The listeners on the port, as far as this user may know."""
    try:
        found = psutil.net_connections("tcp")
    except psutil.Error:
        return []
    pids = {each.pid for each in found if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr[1] == number}
    return sorted(f"{_name(pid)} (pid {pid})" for pid in pids if pid)


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process"


def judge_port(setting: str, address: str, why: str, owners: list[str]) -> Finding:
    if owners:
        text = f"{address} is taken by {', '.join(owners)}"
        return problem(text, f"Stop that program, or set another port in {setting}.")
    return problem(why.replace("local_addr", setting), f"Set an address of this machine and a free port in {setting}.")
