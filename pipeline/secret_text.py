"""Secrets in texts for people: a key or an invitation that stands where a file name or a number should be.

A message quotes what is wrong, and ends in a log, in a chat, in a report of a fault. So no message shows what looks
like one of our secrets: a key as `genkey` prints it, also without its "=", an invitation, the private key of a
certificate.
"""

from __future__ import annotations

import re

INVITATION_PREFIX = "tunnel1."  # the digit is the version of the form
CONCEALED = "(a secret, not shown)"

_SECRET = (
    rf"{re.escape(INVITATION_PREFIX)}[\w-]{{40,}}"
    r"|(?<![\w+/])[A-Za-z0-9+/]{43}="
    r"|(?<![\w+/.-])(?=[a-z0-9+/]*[A-Z])(?=[A-Za-z+/]*[0-9])[A-Za-z0-9+/]{43}(?![\w+/.-])"  # and no path
    r"|-----BEGIN [A-Z ]*PRIVATE KEY.*"
)


def conceal(text: str) -> str:
    """The text without secrets."""
    return re.sub(_SECRET, CONCEALED, text, flags=re.DOTALL | re.ASCII)  # compiled when it is needed: workers never do
