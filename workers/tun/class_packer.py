"""Classes inside a peer (`always_voice`, `always_light`, `always_bulk`, `class_by_dscp`): voice, normal and bulk.

ClassPacker takes the place of LightPacker where a setting asks for it, so classes cost nothing where they are off.

    voice     into the light ring, in blocks of its own with the mark VOICE: the tcp workers send them ahead of the
              light blocks that wait. Some slots are kept for them, so that they find room where light flows have filled
              the ring
    normal    as without rules, or always light
    bulk      never into the light ring

Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.packet.flow_classifier import LIGHT_PACKET_BYTES
from pipeline.packet.flow_rules import BULK, LIGHT, NO_RULE, RULED_BURST_BYTES, RULED_RATE, FlowRules
from pipeline.packet.flow_rules import VOICE as RULED_VOICE
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.token_bucket import TokenBucket
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import NUMBER_VOICE_CLASS, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.slot import VOICE
from workers.tun.light_packer import MARK_STEP, LightPacker
from workers.tun.sealing import BlockSealing

KEPT_SHARE = 8
"""One slot of so many is kept for voice."""

_VOICE_KEY = VOICE * MARK_STEP


class ClassPacker(LightPacker):
    """`verdict`: of the rules, on the last packet."""

    def __init__(self, attachment: Attachment, links: LinkView, sealing: BlockSealing | None = None) -> None:
        super().__init__(attachment, links, sealing)
        self._rules = rules(attachment.settings)
        self._limits = {verdict: TokenBucket(RULED_RATE, RULED_BURST_BYTES) for verdict in (LIGHT, RULED_VOICE)}
        if attachment.settings.has_voice:
            self._kept = self._port.ring.capacity // KEPT_SHARE
        self.verdict = NO_RULE

    def offer(self, slot: memoryview, at: int, length: int, now: int, peer_handle: int) -> bool:
        verdict = self.verdict = self._rules.look(slot, at)
        if verdict == BULK:
            return False
        if verdict == NO_RULE or length > LIGHT_PACKET_BYTES or not self._limits[verdict].in_credit(now):
            return super().offer(slot, at, length, now, peer_handle)
        is_voice = verdict == RULED_VOICE
        if not self._put(slot, at, length, now, peer_handle | _VOICE_KEY if is_voice else peer_handle):
            return False
        self._limits[verdict].spend(length, now)
        if is_voice:
            word = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + NUMBER_VOICE_CLASS
            self._numbers[word] += length - VNET_HEADER_BYTES
        return True

    def judge(self, slot: memoryview, at: int) -> None:
        """Take a packet that is bulk already for the last one."""
        self.verdict = self._rules.look(slot, at)


def rules(settings: WorkerSettings) -> FlowRules:
    return FlowRules(
        settings.always_light.split(),
        settings.always_bulk.split(),
        settings.always_voice.split(),
        settings.class_by_dscp,
    )


def light_packer(attachment: Attachment, links: LinkView, sealing: BlockSealing | None) -> LightPacker:
    """The light packer that the settings ask for."""
    return (ClassPacker if attachment.settings.has_rules else LightPacker)(attachment, links, sealing)
