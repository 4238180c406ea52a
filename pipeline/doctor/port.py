"""The port of a server that does not run yet: whether it is free, and who has it."""

from __future__ import annotations

import psutil

from pipeline.doctor.finding import Finding, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import PermissionDenied, TunnelError
from pipeline.supervisor.kernel.listener import listen


def port(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.is_server or subject.runs:
        return []
    endpoint = config.listen_endpoint
    try:
        listen(endpoint).close()
    except PermissionDenied as error:
        return [problem(str(error), "Run as root, or choose a port above 1023.")]
    except TunnelError as error:
        return [judge_port(config.local_addr, str(error), _owners(endpoint.port))]
    return [ok(f"{config.local_addr} is free")]


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


def judge_port(address: str, why: str, owners: list[str]) -> Finding:
    if owners:
        return problem(
            f"{address} is taken by {', '.join(owners)}", "Stop that program, or set another port in local_addr."
        )
    return problem(why, "Set an address of this machine and a free port in local_addr.")
