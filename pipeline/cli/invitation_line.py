"""The line that `invite` has printed, as `join` and `start --join` get it.

    read_invitation(text)      from the command line, standard input or a file
    overrides(invitation)      the settings that follow from it

No secret stays on a command line: a line that a user puts there is moved to standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.credentials.invitation import Invitation

STANDARD_INPUT = 0
MOVED = "invitation"  # the name of the memory to which a line on the command line is moved


def read_invitation(text: str, standard_input: int = STANDARD_INPUT) -> Invitation:
    """The invitation of `--join`: the line itself, "-" for a line on standard input, "@FILE" for a line in a file.

    Every user can read a command line: a line that stands there is moved to standard input, by starting again.
    """
    from pipeline.credentials.invitation import LINE_LENGTH_MAX, decode, decode_bytes

    if text == "-":
        was_moved = _is_moved(standard_input)
        if os.isatty(standard_input):
            print("paste the line that `invite` has printed:", file=sys.stderr)
        with open(standard_input, "rb", buffering=0, closefd=False) as file:
            line = file.readline(LINE_LENGTH_MAX + 1)
        empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(empty, standard_input)  # a file with a secret stays open no longer than it takes to read it
        os.close(empty)
        if was_moved:
            print(
                "note: other users could read the invitation on the command line, and can still read it on that of a "
                "program under which this one runs, such as sudo: write - or @FILE in its place",
                file=sys.stderr,
            )
        return decode_bytes(line)
    if text.startswith("@"):
        from pipeline.credentials.keys import read_secret

        return decode_bytes(read_secret(text[1:], "invitation"))
    invitation = decode(text)
    _hide(text)
    return invitation


def _is_moved(standard_input: int) -> bool:
    """Whether _hide() has put the line there."""
    try:
        return os.readlink(f"/proc/self/fd/{standard_input}").startswith(f"/memfd:{MOVED}")
    except OSError:  # no /proc, or not for us
        return False


def _hide(line: str) -> None:
    argv = [word.replace(line, "-") for word in sys.orig_argv]
    if argv == sys.orig_argv:
        return  # main() was called by a program, not by a command line
    fd = os.memfd_create(MOVED)
    os.write(fd, "".join(line.split()).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, STANDARD_INPUT)
    os.execv(sys.executable, argv)


def overrides(invitation: Invitation) -> list[str]:
    """The settings that follow from the invitation. Its key is not among them: there is no setting for a key."""
    return [f"{name}={json.dumps(value)}" for name, value in {"mode": "client", **invitation.settings}.items()]
