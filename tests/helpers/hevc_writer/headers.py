"""The records of a plan, for the stream writer beside this file: parameter sets, slice headers.

What x265 never sends is sent here: PCM, tiles of any width, dependent slices that start in
mid-row, predicted and long-term reference sets, modified lists, custom scaling lists, HRD
parameters, parallel merge levels, range extensions. ``records(plan)`` is what writer.cpp reads
(ITU-T H.265, 7.3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.helpers.hevc_writer.bits import Bits
from tests.helpers.hevc_writer.parameter_sets import explicit_set, pps, predicted_set, sps, vps
from tests.helpers.hevc_writer.plan import PicturePlan, Plan

VPS, SPS, PPS, IDR, TRAIL = 32, 33, 34, 19, 1
B, P, I = 0, 1, 2


def records(plan: Plan) -> Iterator[bytes]:
    """Everything the writer reads, in order."""
    yield _record(VPS, vps(plan))
    yield _record(SPS, sps(plan))
    yield _record(PPS, pps(plan))
    yield from Pictures(plan).records()


def _record(kind: int, payload: bytes, ctbs: int = 0, seed: int = 0, surprise: int = 0) -> bytes:
    unit = bytes([kind << 1, 1]) + payload
    return struct.pack("<4I", len(unit), ctbs, seed, surprise) + unit


class Pictures:
    """Slice segment headers of the planned pictures."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.rng = plan, plan.rng

    def records(self) -> Iterator[bytes]:
        for number in range(len(self.plan.pictures)):
            yield from self._picture(number)

    def _picture(self, number: int) -> Iterator[bytes]:
        plan, rng = self.plan, self.rng
        idr = number == 0
        down, across = plan.ctbs
        total = down * across
        starts = [0]
        if not plan.tiles or (len(plan.tiles[0]) == 1 and len(plan.tiles[1]) == 1):
            cuts = rng.sample(range(1, total), min(rng.randint(0, 3), total - 1))
            if plan.wavefront:  # a slice that starts in mid-row ends in it
                cuts = [cut for cut in cuts if cut % across == 0]
            starts += sorted(cuts)
        independent = [True] + [not plan.dependent or rng.random() < 0.3 for _ in starts[1:]]
        # All slices must mean the same collocated picture: with one slice they do.
        uses_tmvp = plan.temporal_mvp and sum(independent) == 1
        for start, end, own in zip(starts, [*starts[1:], total], independent, strict=True):
            bits = Bits()
            bits.flag(start == 0)
            if idr:
                bits.flag(0)
            bits.ue(0)
            if start:
                if plan.dependent:
                    bits.flag(not own)
                bits.u((total - 1).bit_length(), start)
            if own:
                self._independent(bits, number, uses_tmvp)
            if plan.tiles or plan.wavefront:
                bits.ue(0)  # entry points: not needed to decode one part after the other
            kind = IDR if idr else TRAIL
            yield _record(kind, bits.stop(), end - start, rng.getrandbits(31), plan.surprise)

    def _independent(self, bits: Bits, number: int, tmvp: bool) -> None:
        plan, rng = self.plan, self.rng
        picture = plan.pictures[number]
        bits.u(plan.extra_bits, 0)
        kind = rng.choice([B, B, P, P, I]) if number else I
        bits.ue(kind)
        if number:
            poc = rng.getrandbits(16) if plan.wild else picture.poc
            bits.u(plan.log2_poc_lsb, poc & plan.lsb_mask)
            self._short_term(bits, number)
            if plan.long_term:
                self._long_term(bits, picture)
            if plan.temporal_mvp:
                bits.flag(tmvp)
        if kind != I:
            used = sum(used for _, used in picture.short + picture.long)
            self._inter(bits, kind, used, tmvp)
        bits.se(rng.randint(-6, 6))
        if plan.chroma_offsets:
            bits.flag(rng.random() < 0.8)

    def _short_term(self, bits: Bits, number: int) -> None:
        """The set of the sequence, or one of its own, predicted or not."""
        plan, rng = self.plan, self.rng
        picture, sets = plan.pictures[number], len(plan.pictures) - 1
        if not plan.predicts_sets:
            bits.flag(0)
            return explicit_set(bits, picture)
        if bits.flag(rng.random() < 0.4):
            return bits.u((sets - 1).bit_length(), number - 1)
        if number > 1 and bits.flag(rng.random() < 0.6):
            bits.ue(sets - (number - 2) - 1)
            return predicted_set(bits, picture, plan.pictures[number - 1])
        if number == 1:
            bits.flag(0)
        return explicit_set(bits, picture)

    def _long_term(self, bits: Bits, picture: PicturePlan) -> None:
        """Those that the sequence names come first; within each group, falling order counts."""
        plan = self.plan
        groups: list[list[tuple[int, bool]]] = [[], []]
        for entry, used in sorted(picture.long, reverse=True):
            named = (entry & plan.lsb_mask, used) in plan.long_candidates
            groups[not named].append((entry, used))
        if plan.long_candidates:
            bits.ue(len(groups[0]))
        bits.ue(len(groups[1]))
        for named, group in zip((True, False), groups, strict=True):
            past = 0
            for entry, used in group:
                lsb = entry & plan.lsb_mask
                if named:
                    known = len(plan.long_candidates)
                    place = plan.long_candidates.index((lsb, used))
                    bits.u((known - 1).bit_length(), place)
                else:
                    bits.u(plan.log2_poc_lsb, lsb)
                    bits.flag(used)
                cycle = (picture.poc >> plan.log2_poc_lsb) - (entry >> plan.log2_poc_lsb)
                if plan.wild:
                    cycle = max(past + self.rng.choice([0, 1]), self.rng.choice([0, 0xFFFFF0]))
                if bits.flag(plan.log2_poc_lsb == 4 or self.rng.random() < 0.5):
                    bits.ue(cycle - past)
                    past = cycle

    def _inter(self, bits: Bits, kind: int, total: int, tmvp: bool) -> None:
        plan, rng = self.plan, self.rng
        lists = 2 if kind == B else 1
        counts = list(plan.default_references[:lists])
        if bits.flag(rng.random() < 0.6):
            counts = [rng.randint(1, 4) for _ in range(lists)]
            for count in counts:
                bits.ue(count - 1)
        if plan.lists_modification and total > 1:
            for count in counts:
                if bits.flag(rng.random() < 0.7):
                    for _ in range(count):
                        bits.u((total - 1).bit_length(), rng.randrange(total))
        if kind == B:
            bits.flag(rng.random() < 0.3)
        if plan.cabac_init:
            bits.flag(rng.random() < 0.5)
        if tmvp:
            first = bits.flag(rng.random() < 0.5) if kind == B else True
            count = counts[0 if first else 1]
            if count > 1:
                bits.ue(rng.randrange(count))
        if plan.weighted[0 if kind == P else 1]:
            self._weights(bits, counts)
        bits.ue(rng.randint(0, 4))

    def _weights(self, bits: Bits, counts: list[int]) -> None:
        plan, rng = self.plan, self.rng
        bits.ue(rng.randint(0, 6))
        if plan.chroma:
            bits.se(0)
        reach = 1 << (plan.depth - 1) if plan.extension.get("offsets") else 128
        for count in counts:
            luma = [bits.flag(rng.random() < 0.6) for _ in range(count)]
            chroma = [plan.chroma and bits.flag(rng.random() < 0.4) for _ in range(count)]
            for i in range(count):
                if luma[i]:
                    bits.se(rng.randint(-20, 20))
                    bits.se(rng.randint(-reach // 4, reach // 4))
                if chroma[i]:
                    for _ in range(2):
                        bits.se(rng.randint(-20, 20))
                        bits.se(rng.randint(-20, 20))
