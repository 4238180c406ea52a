"""The order in which other processes see our loads and stores of shared memory; docs/memory-order.md has the argument.

    REORDERS     False on x86-64, which keeps all orders that we need but that of a store and a later load
    fence()      everything that this thread has loaded and stored before it comes before what it does after it
    release      decorator of a function that stores last: everything before the call comes before what it stores

On x86-64 `fence` does nothing and `release` gives back the function itself, so an order that the machine keeps costs
nothing. Elsewhere a fence is atomic_thread_fence (C11, 7.17.4) of libatomic, a library of the C compiler; the C library
has none. It is called with the interpreter's lock held: to give that back would take longer than the fence.

A store and a later load are ordered by `doorbell` alone, on every machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Final, NamedTuple, NoReturn, ParamSpec, TypeVar

from pipeline.errors import LocalError

P = ParamSpec("P")
T = TypeVar("T")


class Machine(NamedTuple):
    """One on which the program runs: its ioctl and option numbers are those of asm-generic as well."""

    title: str
    reorders: bool  # it needs fences
    is_beta: bool = False  # it has been tested under emulation alone


MACHINES = {"x86_64": Machine("x86-64", reorders=False), "aarch64": Machine("arm64", reorders=True, is_beta=True)}
"""By the name that uname(2) has for them."""

HERE: Final = MACHINES.get(os.uname().machine)
REORDERS: Final = HERE is None or HERE.reorders

ADDRESS_BITS = 64
LIBATOMIC = "libatomic.so.1"  # since GCC 4.7; its fences since GCC 4.9
_SEQ_CST = 5  # memory_order_seq_cst, stdatomic.h


def find_refusal() -> str:
    """Why the rings do not work on this machine, for people; "" if they do."""
    return judge_machine(
        os.uname().machine, sys.maxsize.bit_length() + 1, sys.byteorder, has_fence=fence is not _no_fence
    )


def find_caution() -> str:
    """A warning about this machine, for people; "" if there is none."""
    if HERE is None or not HERE.is_beta:
        return ""
    return f"this machine is {HERE.title}, which is beta: the program has been tested on an emulated one alone"


def judge_machine(name: str, address_bits: int, byte_order: str, *, has_fence: bool) -> str:
    """Why the rings do not work on such a machine, for people; "" if they do. `address_bits`: of the interpreter."""
    titles = " or ".join(f"{machine.title}" for machine in MACHINES.values())
    if name not in MACHINES:
        return f"this machine is {name or 'of an unknown kind'}: tunnel-supervisor needs {titles}"
    if address_bits != ADDRESS_BITS or byte_order != "little":
        kind = f"for {address_bits} bits, {byte_order} endian"
        return (
            f"this machine is {name}, but its Python is {kind}: processes share words of 64 bits, little endian. "
            "Install the 64-bit system"
        )
    if not has_fence:
        return (
            f"this machine is {name}, which needs fences between processes, and {LIBATOMIC} is missing: "
            "install it (apt-get install libatomic1)"
        )
    return ""


def nothing() -> None:
    """The fence of a machine that needs none."""


def _no_fence() -> NoReturn:
    raise LocalError(find_refusal())


def _thread_fence() -> Callable[[], object]:
    """atomic_thread_fence(memory_order_seq_cst)"""
    try:
        library: Any = ctypes.PyDLL(LIBATOMIC)
        call = library.atomic_thread_fence
    except (OSError, AttributeError):
        return _no_fence
    call.restype = None
    return partial(call, ctypes.c_int(_SEQ_CST))


fence: Final[Callable[[], object]] = _thread_fence() if REORDERS else nothing


def release(store: Callable[P, T]) -> Callable[P, T]:
    """See the head of this file."""
    if not REORDERS:
        return store

    @wraps(store)
    def fenced(*arguments: P.args, **named: P.kwargs) -> T:
        fence()
        return store(*arguments, **named)

    return fenced
