"""A join under way: the key of the invitation is exchanged, in as many attempts as it takes, and the join is finished.

    complete(client, pending, config, until)    after an error nothing is left that was not there, or all that another
                                                attempt needs

`pipeline.contact.first_contact` says how one attempt has ended, `joined_client` has the files.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import LocalError

if TYPE_CHECKING:
    from pipeline.cli.joined_client import JoinedClient, Pending
    from pipeline.config import Config
    from pipeline.contact.first_contact import FirstContactError, Server

PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between attempts, the last one again and again
OPEN_ATTEMPTS = 3  # at each server that ends the connection behind our proof: it may have died just then


def complete(client: JoinedClient, pending: Pending, config: Config, until: float) -> None:
    """Exchange the key, unless that is done, and finish. After an error nothing is left that was not there, or all
    that another attempt needs."""
    from pipeline.contact.first_contact import FirstContactError, Server

    if not client.has_key:
        try:
            pin = pending.line.pin if pending.line.others else b""
            name = _exchange(client, pending, Server.all_of(config, pending.line.key, pin), until)
        except FirstContactError as error:
            end = "" if str(error).endswith("?") else "."
            raise LocalError(f"{error}{end} {_what_is_left(client, pending)}") from None
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


def _exchange(client: JoinedClient, pending: Pending, servers: Sequence[Server], until: float) -> str:
    """Keep the new key. The name at the server, "" if the key is the old one. FirstContactError after all attempts.

    The servers are asked in turn. One that cannot have made the invitation is left out, and one that has often ended
    the connection behind our proof. The word of a server that knows the invitation is the last.
    """
    from pipeline.contact import first_contact
    from pipeline.contact.first_contact import FirstContactError

    asked = list(servers)
    opened: Counter[str] = Counter()
    said: dict[str, FirstContactError] = {}
    rounds = 0
    while True:
        for server in list(asked):
            was_open, pending.is_open = pending.is_open, True  # whatever ends this
            try:
                found = first_contact.exchange(server, pending.line.key, pending.private)
            except FirstContactError as error:
                pending.is_open = (was_open or error.is_open) and not error.is_settled
                if error.is_settled:
                    raise _failure({server.text: error}) from None
                said[server.text] = error
                opened[server.text] += error.is_open
                if error.is_final or opened[server.text] >= OPEN_ATTEMPTS:
                    asked.remove(server)
                continue
            client.keep_key(found.key)
            return found.name
        rounds += 1
        pause = PAUSES[min(rounds, len(PAUSES)) - 1]
        if not asked or time.monotonic() + pause > until:
            raise _failure(said)
        if rounds == 1:
            print(f"{_failure(said)}; trying again", file=sys.stderr)
        time.sleep(pause)


def _failure(said: Mapping[str, FirstContactError]) -> FirstContactError:
    """The words of the servers as one error."""
    from pipeline.contact.first_contact import FirstContactError

    return FirstContactError("; ".join(f"{server}: {error}" for server, error in said.items()))
