"""Lanes and processes of a configuration on a machine: what `lanes` and `split_workers` become where they say "auto".

shape_of(...)                  what the plan of cores has to know of a configuration
choose(given, fec, machine)    the choice, with its reasons
this_machine()                 read once: a reload finds no other number of lanes than the start
"""

import functools

from pipeline.config.schema import AUTO, PartialConfig
from pipeline.policy import core_plan
from pipeline.policy.core_plan import LANES_MOST, Choice, Shape
from pipeline.policy.machine import Machine
from pipeline.system import machine_reader

RINGS = {"compat": 2, "off": 3, "fec": 7}
"""Rings of a lane with slots of `slot_bytes`, rounded up: those of coded blocks are longer."""

RINGS_OF_DATAGRAMS = 2
"""Rings besides, where blocks may travel in datagrams."""


@functools.cache
def this_machine() -> Machine:
    return machine_reader.read_cores()


def shape_of(given: PartialConfig, fec: str) -> Shape:
    """`fec`: complete, if it was left out."""
    kind = "compat" if given.compat else "off" if fec == "off" else "fec"
    datagrams = given.carrier != "tcp"
    return Shape(
        ("tcp", *(["dgram"] if datagrams else []), *(["fec"] if kind == "fec" else []), "tun"),
        fec == AUTO,
        _lanes_most(given),
        (RINGS[kind] + (RINGS_OF_DATAGRAMS if datagrams else 0)) * given.ring_slots * given.slot_bytes,
    )


def _lanes_most(given: PartialConfig) -> int:
    """The lanes for which there are connections."""
    if given.compat and (given.mode == "client" or not given.insecure):
        return 1
    return given.connections or LANES_MOST if given.mode == "client" else LANES_MOST


def choose(given: PartialConfig, fec: str, machine: Machine) -> Choice:
    lanes = None if given.lanes == AUTO else int(given.lanes)
    choice = core_plan.choose(machine, shape_of(given, fec), lanes)
    if given.split_workers != AUTO:
        choice = choice._replace(split=tuple(given.split_workers))
    return choice
