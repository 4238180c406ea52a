"""The names of peers in DNS: which peer has which label, and the hosts file that says so (hosts(5)).

    a label       the name of a peer in lower case; each character beside letters, digits and "-" becomes "-", and none
                  of these stays at an end (RFC 1123, 2.1)
    the hub       has its label before any peer
    one label     is that of the peer whose very name it is. Of several peers that only come to it by such a change,
                  none has it: an answer must never lead to another peer than the one that was meant

So the names of a peer depend on no order, and the name of one peer changes that of another in a clash alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LABEL_MAX = 63  # RFC 1035, 2.3.4
_NOT_IN_LABELS = re.compile("[^a-z0-9-]")


class PeerNames(NamedTuple):
    """`addresses`: by label. `notes`: a sentence about each peer that has no label."""

    addresses: dict[str, Sequence[str]]
    notes: list[str]


def label_of(name: str) -> str:
    """The label of a peer; "" if nothing is left of its name."""
    return _NOT_IN_LABELS.sub("-", name.lower()).strip("-")[:LABEL_MAX].rstrip("-")


def assign(own: str, own_addresses: Sequence[str], peers: Mapping[str, Sequence[str]]) -> PeerNames:
    """The labels of a hub whose name is `own`, and of its peers, by their names."""
    found = {label_of(own): own_addresses} if label_of(own) else {}
    notes = []
    claims: dict[str, list[str]] = {}
    for name in sorted(peers):
        claims.setdefault(label_of(name), []).append(name)
    for label, names in claims.items():
        if not label:
            notes += [f'peer "{name}" has no name in DNS: its name has neither letter nor digit' for name in names]
            continue
        owner = label if label in names else names[0] if len(names) == 1 else ""
        if label in found:
            owner, other = "", "this server"
        else:
            other = f'peer "{owner}"' if owner else "several peers"
        if owner:
            found[label] = peers[owner]
        notes += [
            f'peer "{name}" has no name in DNS: "{label}" is that of {other}; give one of them another name'
            for name in names
            if name != owner
        ]
    return PeerNames(found, notes)


def hosts_text(instance: str, domain: str, addresses: Mapping[str, Sequence[str]]) -> str:
    """The hosts file: a line for each address."""
    lines = [f"# Names of the peers of tunnel-supervisor, instance {instance}. It replaces and removes this file."]
    lines += [f"{address}\t{label}.{domain}" for label, of_label in sorted(addresses.items()) for address in of_label]
    return "\n".join(lines) + "\n"
