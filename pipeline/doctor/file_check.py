"""The files that a configuration names, read as a start or a reload reads them; nothing is made and nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import Config
from pipeline.credentials import certificates, metrics_token, tls_settings
from pipeline.credentials.certificates import CertificatePair
from pipeline.credentials.state_dir import SERVER_CERTIFICATE, SERVER_KEY
from pipeline.errors import ConfigError, Problem
from pipeline.peers import registry
from pipeline.peers.shut_out import ShutOut


def check_files(config: Config) -> list[str]:
    """Notes about what could not be looked at. ConfigError has every problem in any file."""
    notes, problems = [], []
    directory = Path(config.state_dir)
    is_closed = os.path.lexists(directory) and not os.access(directory, os.R_OK | os.X_OK)
    if config.mode == "server" and is_closed:
        notes.append(f"{directory} is closed to this user: its certificate and its peers are not checked.")
    try:
        tls_settings.load(config, lambda: _own_certificate(config, directory))
    except ConfigError as error:
        problems += error.problems
    try:
        metrics_token.load(config)
    except ConfigError as error:
        problems += error.problems
    if config.mode == "server" and not config.compat:
        problems += _problems_of_peers(config, is_closed)
    notes += [
        f"on.{event}: {argv[0]} is no program that can be run."
        for event, argv in config.on.items()
        if not (os.path.isfile(argv[0]) and os.access(argv[0], os.X_OK))
    ]
    if problems:
        raise ConfigError(problems)
    return notes


def _own_certificate(config: Config, directory: Path) -> CertificatePair:
    """The server's own, or one like that which its first start would make."""
    certificate = directory / SERVER_CERTIFICATE
    if not os.path.lexists(certificate):
        return certificates.make_self_signed(config.name)
    return certificates.read_pair(certificate, directory / SERVER_KEY, "server certificate")


def _problems_of_peers(config: Config, is_closed: bool) -> list[Problem]:
    if is_closed:
        return []
    try:
        problems = [problem for _, problem in registry.load(config).broken]
    except ConfigError as error:
        problems = error.problems
    try:
        ShutOut(Path(config.state_dir))
    except ConfigError as error:
        problems += error.problems
    return problems
