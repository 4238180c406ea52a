"""How the supervisor starts a process of its own program: by fork and exec, with few variables, watched by a pidfd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection

INHERITED_VARIABLES = (
    *("LANG", "LC_", "TZ", "PATH", "LD_", "PYTHON", "GLIBC_", "MALLOC_"),
    *("OPENSSL_", "SSL_CERT_", "RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES", "JOURNAL_STREAM"),
)
"""Beginnings of the environment variables that a process gets. Others may be secrets of the service's, or ways to its
service manager."""


def spawn(module: str, words: Collection[str], fds: Collection[int]) -> tuple[subprocess.Popen[bytes], int]:
    """Run a module in a new process that inherits these descriptors. The process, and a pidfd to notice its death.

    OSError if it cannot be made; nothing is left then.
    """
    popen = subprocess.Popen(
        [sys.executable, "-I", "-m", module, *words],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name.startswith(INHERITED_VARIABLES)},
    )
    try:
        return popen, os.pidfd_open(popen.pid)
    except OSError:
        popen.kill()
        popen.wait()
        raise
