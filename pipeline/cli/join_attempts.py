"""A join under way: the key of the invitation is exchanged, in as many attempts as it takes, and the join is finished.

    complete(client, pending, config, until)    after an error nothing is left that was not there, or all that another
                                                attempt needs

`pipeline.cli.first_contact` says how one attempt has ended, `joined_client` has the files.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pipeline.errors import LocalError

if TYPE_CHECKING:
    from pipeline.cli.first_contact import Server
    from pipeline.cli.joined_client import JoinedClient, Pending
    from pipeline.config import Config

PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between attempts, the last one again and again
OPEN_ATTEMPTS = 3  # at a server that ends the connection behind our proof: it may have died just then


def complete(client: JoinedClient, pending: Pending, config: Config, until: float) -> None:
    """Exchange the key, unless that is done, and finish. After an error nothing is left that was not there, or all
    that another attempt needs."""
    from pipeline.cli.first_contact import FirstContactError, Server

    if not client.has_key:
        try:
            name = _exchange(client, pending, Server.of(config, pending.line.key), until)
        except FirstContactError as error:
            end = "" if str(error).endswith("?") else "."
            raise LocalError(f"{config.remote_text}: {error}{end} {_what_is_left(client, pending)}") from None
        except KeyboardInterrupt:
            raise LocalError(f"interrupted. {_what_is_left(client, pending)}") from None
        except BaseException:
            _what_is_left(client, pending)
            raise
        if not name:
            print(
                "note: this server does not exchange keys: the key of the invitation stays in use, so the line is a "
                "secret for as long as that",
                file=sys.stderr,
            )
        elif name != pending.line.name:
            print(f"note: the server names this machine {name}", file=sys.stderr)
    client.finish(pending)


def _what_is_left(client: JoinedClient, pending: Pending) -> str:
    """Remove a failed join, unless the server may have done its part; and say what has become of it."""
    if not pending.is_open:
        client.remove()
        return "Nothing is left of this attempt"
    return (
        f"The invitation is kept, since the server may have seen it: `up {client.name}` or `join` with the same line "
        f"goes on, `leave {client.name}` gives up"
    )


def _exchange(client: JoinedClient, pending: Pending, server: Server, until: float) -> str:
    """Keep the new key. The name at the server, "" if the key is the old one. FirstContactError after all attempts."""
    from pipeline.cli import first_contact
    from pipeline.cli.first_contact import FirstContactError

    attempts = opened = 0
    while True:
        was_open, pending.is_open = pending.is_open, True  # whatever ends this
        try:
            found = first_contact.exchange(server, pending.line.key, pending.private)
        except FirstContactError as error:
            pending.is_open = (was_open or error.is_open) and not error.is_settled
            attempts += 1
            opened += error.is_open
            pause = PAUSES[min(attempts, len(PAUSES)) - 1]
            if error.is_final or opened >= OPEN_ATTEMPTS or time.monotonic() + pause > until:
                raise
            if attempts == 1:
                print(f"{server.config.remote_text}: {error}; trying again", file=sys.stderr)
            time.sleep(pause)
            continue
        client.keep_key(found.key)
        return found.name
