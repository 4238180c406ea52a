"""Inheritance from a careless parent: signals that are ignored or blocked, standard files that are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

SIGNALS = """
import signal, subprocess
from pipeline.system import inherited
inherited.use_usual_signals()
print(subprocess.run(["sh", "-c", "exit 3"]).returncode, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""
FILES = """
import os, sys
from pipeline.system import inherited
inherited.open_standard_files()
print("to nobody")
print(sys.stdin.read(), os.open("/", os.O_RDONLY) > 2, file=open("/proc/self/fd/9", "w"))
"""


def test_children_can_be_waited_for_and_no_signal_is_held_back_but_nohup_counts() -> None:
    def be_careless() -> None:
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    words = [sys.executable, "-c", SIGNALS]
    done = subprocess.run(words, preexec_fn=be_careless, capture_output=True, text=True, check=True)
    assert done.stdout == "3 set()\nTrue\n"


def test_a_file_that_is_opened_later_is_no_standard_file() -> None:
    reader, writer = os.pipe()

    def close_all() -> None:
        os.dup2(writer, 9)
        for number in range(3):
            os.close(number)

    subprocess.run([sys.executable, "-c", FILES], preexec_fn=close_all, pass_fds=[9, writer], check=True)
    os.close(writer)
    with open(reader) as said:
        assert said.read() == " True\n"
