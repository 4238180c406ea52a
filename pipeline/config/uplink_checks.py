"""Rules about the uplinks of a client, as those in `checks`."""

from pipeline.config.schema import Config
from pipeline.config.violation import ONLY_ONCE, Violations
from pipeline.wire.uplink import UPLINKS_MAX

UPLINKS_MIN = 2
NO_NAMES = (".", "..")  # dev_valid_name, net/core/dev.c


def interfaces(config: Config) -> Violations:
    uplinks = config.named_uplinks
    if uplinks and not UPLINKS_MIN <= len(uplinks) <= UPLINKS_MAX:
        expected = f"{UPLINKS_MIN} to {UPLINKS_MAX} uplinks, or none: one alone is the way that the routes lead"
        yield "uplinks", expected, len(uplinks)
    seen = set()
    for number, name, _ in uplinks:
        if name in NO_NAMES or not name.isprintable():  # a pattern's $ matches before a newline, too
            yield f"uplinks[{number}]", "the name of an interface", name
        elif name == config.tun_name:
            yield f"uplinks[{number}]", "another interface than that of the tunnel itself (tun_name)", name
        elif name in seen:
            yield f"uplinks[{number}]", ONLY_ONCE, name
        seen.add(name)
    if uplinks and all(each.is_backup for each in uplinks):
        yield "uplinks", 'at least one uplink with the role "main"', "backups alone"


def others(config: Config) -> Violations:
    """Settings that uplinks exclude."""
    if not config.named_uplinks:
        return
    if config.compat:
        yield "uplinks", "none with compat: the original program has one connection only", len(config.uplinks)
    elif config.fec == "off":
        expected = '"auto" or "on" with uplinks, at both ends: the fec worker puts in order what comes on several paths'
        yield "fec", expected, config.fec
    for name in ("proxy", "proxy_command", "websocket"):
        if getattr(config, name):
            yield name, "nothing with uplinks: a proxy is one way, and uplinks are several", getattr(config, name)


def connections(config: Config) -> Violations:
    """Each uplink needs a connection for bulk and one for light flows."""
    count = len(config.named_uplinks)
    if not count or config.compat or config.fec == "off":
        return
    for name in ("connections", "light_connections"):
        if getattr(config, name) < count:
            yield name, f"at least {count}, one for each uplink", getattr(config, name)
