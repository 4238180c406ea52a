"""The wall clock is set back by an hour: no wait is longer for it.

No test may set the clock of the machine. A library in front of libc shows a clock that is an hour ahead, and the kernel
has the right one. So a process sees in the beginning of a wait what it would see before the step, and the wait itself
is one after the step.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.shm import doorbell
from tests.support import ROOT, eventually

STEP_SECONDS = 3600
WAIT_SECONDS = 0.2
PATIENCE_SECONDS = 20

CLOCK_AHEAD = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += STEP;
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = syscall(SYS_gettimeofday, now, zone);
    now->tv_sec += STEP;
    return result;
}
time_t time(time_t *now) {
    time_t seconds = syscall(SYS_time, 0) + STEP;
    if (now) *now = seconds;
    return seconds;
}
"""

WAIT = f"""
import secrets, time
from pipeline.shm import doorbell

name = f"/tunnel@clock@{{secrets.token_hex(4)}}@bell"
doorbell.create(name)
try:
    bell = doorbell.Doorbell(name, memoryview(bytearray(8)).cast("Q"), owner=True)
    began = time.monotonic()
    bell.wait(lambda: 0, {WAIT_SECONDS})
    print(time.time(), time.monotonic() - began)
finally:
    doorbell.unlink(name)
"""

FUTEX, FUTEX_CLOCK_REALTIME = 202, 256  # asm/unistd_64.h, linux/futex.h


@pytest.mark.skipif(shutil.which("cc") is None, reason="builds a library in front of libc")
def test_a_wait_lasts_as_long_as_it_should_when_the_wall_clock_is_set_back(tmp_path: Path) -> None:
    source, library = tmp_path / "clock_ahead.c", tmp_path / "clock_ahead.so"
    source.write_text(CLOCK_AHEAD)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DSTEP={STEP_SECONDS}", "-o", library, source], check=True)
    done = subprocess.run(
        [sys.executable, "-c", WAIT],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    shown, waited = map(float, done.stdout.split())
    assert shown > source.stat().st_mtime + STEP_SECONDS / 2, "the library has no effect"
    assert WAIT_SECONDS / 2 < waited < PATIENCE_SECONDS / 2


def test_the_kernel_waits_for_a_duty_by_the_monotonic_clock(tmp_path: Path) -> None:
    """Seen from outside, where there is no compiler: the system call in which the thread sleeps."""
    name = f"/tunnel@clock@{os.getpid():08x}@bell"
    doorbell.create(name)
    try:
        bell = doorbell.Doorbell(name, memoryview(bytearray(8)).cast("Q"), owner=True)
        thread = threading.Thread(target=lambda: bell.wait(lambda: 0, PATIENCE_SECONDS), daemon=True)
        thread.start()

        def futex_operation() -> int | None:
            number, _, operation = (Path(f"/proc/self/task/{thread.native_id}/syscall").read_text() + " 0 0").split()[
                :3
            ]
            return int(operation, 16) if number == str(FUTEX) else None

        try:
            operation = eventually(futex_operation)
            assert not operation & FUTEX_CLOCK_REALTIME
        finally:
            bell._semaphore.release()
            thread.join(PATIENCE_SECONDS)
        bell.close()
    finally:
        doorbell.unlink(name)
