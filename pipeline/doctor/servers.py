"""Several servers of a client, one by one: whether each answers, shows the right certificate, and knows this client.

Each is asked on a connection of its own, on which no session begins: an instance that runs is not disturbed.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline.config import Config
from pipeline.config.values import parse_endpoint
from pipeline.contact import first_contact
from pipeline.contact.first_contact import FirstContactError, Server
from pipeline.credentials import keys
from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import TunnelError

PATIENCE_SECONDS = 2.5
ASKED_MAX = 8

UNKNOWN = (
    "it does not know this client, or another server is at this address",
    "Copy the peer's file from a server that knows it, and reload (docs/servers.md); or give the peer this key there.",
)
ANOTHER = (
    "its certificate is not that of tls_fingerprint",
    "Take tls_fingerprint out of the configuration: the key proves each server.",
)
REFUSES = "Look at its log, and at the settings of TLS at both ends."
KNOWN_TROUBLES = {first_contact.UNKNOWN: UNKNOWN, first_contact.NOT_THE_MAKER: ANOTHER}


def servers(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not config.has_several_servers or not config.key_file or config.compat:
        return []  # a server alone is looked at elsewhere; without a key there is no question to ask
    if (subject.snapshot or {}).get("full_tunnel", {}).get("on"):
        return []  # what we send would go into the tunnel: only the workers go around it
    try:
        key = keys.read_key(config.key_file, "key_file")
        asked = _servers_of(config, subject, key)
    except TunnelError:
        return []  # `files` says it
    with ThreadPoolExecutor(len(asked) or 1) as pool:
        answers = pool.map(lambda server: _ask(server, key), asked)
        return judge({server.text: answer for server, answer in zip(asked, answers, strict=True)})


def _servers_of(config: Config, subject: Subject, key: bytes) -> list[Server]:
    """Those that the configuration names; with SRV records, those that a running instance knows."""
    found = Server.all_of(config, key)
    listed = ((subject.snapshot or {}).get("server") or {}).get("list") or []
    if listed:
        found = [found[0]._replace(endpoint=parse_endpoint(each["server"])) for each in listed]
    elif not config.remote_endpoints:
        return []
    return [each._replace(patience=PATIENCE_SECONDS) for each in found[:ASKED_MAX]]


def _ask(server: Server, key: bytes) -> FirstContactError | None:
    try:
        first_contact.expect_known(server, key)
    except FirstContactError as error:
        return error
    return None


def judge(answers: Mapping[str, FirstContactError | None]) -> list[Finding]:
    """A line for each server. One that is away is a problem where no other takes its place."""
    is_served = None in answers.values()
    return [_judge_one(server, answer, is_served) for server, answer in answers.items()]


def _judge_one(server: str, answer: FirstContactError | None, is_served: bool) -> Finding:
    if answer is None:
        return ok(f"server {server} answers with a good certificate, and knows this client")
    trouble, cure = KNOWN_TROUBLES.get(str(answer), (str(answer), ""))
    if cure or answer.is_final:
        return problem(f"server {server}: {trouble}", cure or REFUSES)
    away = note if is_served else problem
    return away(f"server {server}: {trouble}", "Look whether it runs, and for a firewall between.")
