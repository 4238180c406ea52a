"""The facts that rules of reach are made of: the peers that a server has, and what its configuration says.

facts_of(members)            each peer, with the addresses that it has, or had last
terms_of(config)             the rules of all clients and of groups
owners_of(config, facts)     which networks in the tunnel are whose; UNOWNED for those that no peer may use as a whole
of_files(config)             facts as the files of a server have them, while it does not run
explain(...)                 whether a peer may reach a target
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

from pipeline.config import Config
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import LocalError
from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.peers import registry
from pipeline.peers.address_assignment import UNOWNED
from pipeline.peers.membership import Member, Membership
from pipeline.policy import reach_words
from pipeline.policy.reach import PeerFacts, Policy, Terms
from pipeline.policy.reach_words import Asked, Explained
from pipeline.policy.targets import Network, hosts


def facts_of(members: Iterable[Member]) -> tuple[PeerFacts, ...]:
    return tuple(
        PeerFacts(
            each.policy.name,
            tuple(each.addresses),
            each.policy.allowed,
            each.policy.groups,
            each.policy.may_reach,
        )
        for each in members
    )


def terms_of(config: Config) -> Terms:
    own = tuple(interface.ip for interface in config.tunnel_interfaces)
    return Terms(config.may_reach, config.groups, own)


def owners_of(config: Config, facts: Sequence[PeerFacts]) -> list[tuple[Network, str]]:
    interfaces = config.tunnel_interfaces
    return [
        *((ip_network(interface.ip), UNOWNED) for interface in interfaces),
        *((address, each.name) for each in facts for address in hosts(each.addresses)),
        *((interface.network, UNOWNED) for interface in interfaces),
        *((network, each.name) for each in facts for network in each.allowed),
    ]


def of_files(config: Config) -> tuple[PeerFacts, ...]:
    """The peers of a configuration, and those that were invited, with the addresses that they had last."""
    remembered = StateDir(config.state_dir).load_addresses() if Path(config.state_dir).exists() else {}
    membership = Membership(config.tunnel_interfaces, config.max_clients, remembered)
    membership.configure(known.policy for known in registry.load(config).known)
    return facts_of(membership.list_members())


def explain(
    config: Config,
    terms: Terms,
    facts: Sequence[PeerFacts],
    policies: Mapping[str, Policy],
    name: str,
    text: str,
) -> Explained:
    """LocalError for a peer that there is not, or a question that is none."""
    names = [each.name for each in facts]
    if name not in names:
        raise LocalError(f'no peer "{name}"; known peers: {", ".join(names) or "none"}')
    try:
        target = reach_words.question(text)
        addresses = reach_words.resolve(target, facts, terms.own)
    except ValueError as expected:
        raise LocalError(f'given "{text}", expected {expected}') from None
    where = _owner(config, facts)
    asked = [Asked(address, where(address.packed)) for address in addresses]
    return reach_words.explain(name, policies.get(name), target, asked, config.client_isolation)


def _owner(config: Config, facts: Sequence[PeerFacts]) -> Callable[[bytes], str]:
    """The name of the peer that has an address; UNOWNED for none."""
    owners = owners_of(config, facts)
    table = RouteTable()
    table.replace(
        (network.network_address.packed, network.prefixlen, index) for index, (network, _) in enumerate(owners)
    )

    def owner(address: bytes) -> str:
        found = table.lookup(address)
        return UNOWNED if found == NO_PEER else owners[found][1]

    return owner
