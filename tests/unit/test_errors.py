"""The errors of this package, and what each means to the command."""

from __future__ import annotations

import subprocess
import sys

from pipeline.errors import ConfigError, LocalError, NotRunning, PermissionDenied
from tests.support import ROOT


def test_each_error_that_ends_the_command_has_its_exit_status() -> None:
    errors = (LocalError, NotRunning, PermissionDenied, ConfigError)
    assert [error.exit_status for error in errors] == [1, 3, 77, 78]


def test_errors_do_not_bring_msgspec_into_a_worker() -> None:
    code = "import sys, pipeline.errors; sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0
