"""The parameter sets and slice headers of a plan, for the stream writer beside this file.

What x265 never sends is sent here: PCM, tiles of any width, dependent slices that start in
mid-row, predicted and long-term reference sets, modified lists, custom scaling lists, HRD
parameters, parallel merge levels, range extensions. ``records(plan)`` is what writer.cpp reads
(ITU-T H.265, 7.3).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from tests.helpers.hevc_writer.plan import PicturePlan, Plan

VPS, SPS, PPS, IDR, TRAIL = 32, 33, 34, 19, 1
B, P, I = 0, 1, 2
RANGE_EXTENSIONS = 4
"""general_profile_idc of the formats and tools of 7.3.2.2.2."""


class Bits:
    """u(n), ue(v), se(v), written."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, count: int, value: int) -> None:
        assert 0 <= value < 1 << count, (count, value)
        self.text += f"{value:0{count}b}" if count else ""

    def flag(self, value: object) -> bool:
        self.text += "1" if value else "0"
        return bool(value)

    def ue(self, value: int) -> None:
        assert value >= 0, value
        code = f"{value + 1:b}"
        self.text += "0" * (len(code) - 1) + code

    def se(self, value: int) -> None:
        self.ue(2 * value - 1 if value > 0 else -2 * value)

    def stop(self) -> bytes:
        """With the stop bit and its alignment."""
        text = self.text + "1"
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def records(plan: Plan) -> Iterator[bytes]:
    """Everything the writer reads, in order."""
    yield _record(VPS, _vps(plan))
    yield _record(SPS, _sps(plan))
    yield _record(PPS, _pps(plan))
    yield from Pictures(plan).records()


def _record(kind: int, payload: bytes, ctbs: int = 0, seed: int = 0, surprise: int = 0) -> bytes:
    unit = bytes([kind << 1, 1]) + payload
    return struct.pack("<4I", len(unit), ctbs, seed, surprise) + unit


def _profile(bits: Bits, plan: Plan) -> None:
    bits.u(3, 0)
    profile = RANGE_EXTENSIONS if plan.range_profile else 2 if plan.depth > 8 else 1
    bits.u(5, profile)
    bits.u(32, 1 << (31 - profile))
    bits.u(4, 0b1001)
    bits.u(32, 0)
    bits.u(12, 0)
    bits.u(8, 186)


def _vps(plan: Plan) -> bytes:
    bits = Bits()
    bits.u(4, 0)
    bits.u(2, 3)
    bits.u(6, 0)
    bits.u(3, 0)
    bits.flag(1)
    bits.u(16, 0xFFFF)
    _profile(bits, plan)
    bits.flag(1)
    for value in (7, 3, 0):
        bits.ue(value)
    bits.u(6, 0)
    bits.ue(0)
    bits.flag(0)
    bits.flag(0)
    return bits.stop()


def _sps(plan: Plan) -> bytes:
    bits, rng = Bits(), plan.rng
    bits.u(4, 0)
    bits.u(3, 0)
    bits.flag(1)
    _profile(bits, plan)
    bits.ue(0)
    bits.ue(plan.chroma)
    if plan.chroma == 3:
        bits.flag(0)
    bits.ue(plan.width)
    bits.ue(plan.height)
    bits.flag(0)  # no cropping: the oracle wants whole blocks
    bits.ue(plan.depth - 8)
    bits.ue(plan.depth - 8)
    bits.ue(plan.log2_poc_lsb - 4)
    bits.flag(1)
    for value in (7, 3, 0):
        bits.ue(value)
    bits.ue(plan.log2_min_cb - 3)
    bits.ue(plan.log2_ctb - plan.log2_min_cb)
    bits.ue(plan.log2_min_tb - 2)
    bits.ue(plan.log2_max_tb - plan.log2_min_tb)
    bits.ue(plan.transform_depth[0])
    bits.ue(plan.transform_depth[1])
    if bits.flag(plan.scaling) and bits.flag(plan.scaling == 2):
        _scaling(bits, plan)
    bits.flag(plan.amp)
    bits.flag(0)  # sample adaptive offset
    if bits.flag(plan.pcm):
        bits.u(4, rng.randint(1, plan.depth) - 1)
        bits.u(4, rng.randint(1, plan.depth) - 1)
        least = rng.randint(max(3, plan.log2_min_cb), min(plan.log2_ctb, 5))
        bits.ue(least - 3)
        bits.ue(rng.randint(least, min(plan.log2_ctb, 5)) - least)
        bits.flag(1)
    sets = plan.pictures[1:] if plan.predicts_sets else []
    bits.ue(len(sets))
    for number, picture in enumerate(sets):
        before = sets[number - 1] if number else None
        if number == 0 or not bits.flag(rng.random() < 0.7):
            _explicit_set(bits, picture)
        else:
            assert before is not None
            _predicted_set(bits, picture, before)
    if bits.flag(plan.long_term):
        bits.ue(len(plan.long_candidates))
        for lsb, used in plan.long_candidates:
            bits.u(plan.log2_poc_lsb, lsb)
            bits.flag(used)
    bits.flag(plan.temporal_mvp)
    bits.flag(plan.strong_smoothing)
    if bits.flag(plan.hrd):
        _vui(bits, rng)
    if bits.flag(plan.extension):
        bits.u(8, 0b10000000)
        for name in ("rotation", "context", "implicit_rdpcm", "explicit_rdpcm"):
            bits.flag(plan.extension[name])
        bits.flag(0)
        bits.flag(0)
        bits.flag(plan.extension["offsets"])
        bits.flag(plan.extension["rice"])
        bits.flag(0)
    return bits.stop()


def _explicit_set(bits: Bits, picture: PicturePlan) -> None:
    deltas = picture.deltas()
    earlier = [d for d in deltas if d[0] < 0]
    bits.ue(len(earlier))
    bits.ue(len(deltas) - len(earlier))
    last = 0
    for delta, used in deltas:
        if delta > 0 > last:
            last = 0
        bits.ue(abs(delta - last) - 1)
        bits.flag(used)
        last = delta


def _predicted_set(bits: Bits, picture: PicturePlan, before: PicturePlan) -> None:
    """7.4.8: what stays of the set of the picture decoded before, and that picture itself."""
    step = before.poc - picture.poc
    bits.flag(step < 0)
    bits.ue(abs(step) - 1)
    wanted = dict(picture.deltas())
    for delta in [*(d for d, _ in before.deltas()), 0]:
        if not bits.flag(wanted.get(delta + step, False)):
            bits.flag(delta + step in wanted)


def _vui(bits: Bits, rng: random.Random) -> None:
    if bits.flag(rng.random() < 0.5):
        bits.u(8, 255)
        bits.u(32, 0x00010001)
    bits.flag(0)
    if bits.flag(rng.random() < 0.5):
        bits.u(4, 0b1010)
        if bits.flag(1):
            bits.u(24, 0x010101)
    if bits.flag(rng.random() < 0.5):
        bits.ue(0)
        bits.ue(0)
    bits.u(3, 0)
    if bits.flag(rng.random() < 0.3):  # default display window
        for value in (1, 0, 2, 1):
            bits.ue(value)
    bits.flag(1)
    bits.u(32, 1)
    bits.u(32, 25)
    if bits.flag(rng.random() < 0.5):
        bits.ue(0)
    if bits.flag(1):
        _hrd(bits, rng)
    if bits.flag(rng.random() < 0.5):
        bits.u(3, 0b010)
        for value in (0, 0, 0, 15, 15):
            bits.ue(value)


def _hrd(bits: Bits, rng: random.Random) -> None:
    nal, vcl = bits.flag(rng.random() < 0.7), bits.flag(rng.random() < 0.7)
    sub_pictures = False
    if nal or vcl:
        sub_pictures = bits.flag(rng.random() < 0.5)
        if sub_pictures:
            bits.u(19, 0)
        bits.u(8, 0)
        if sub_pictures:
            bits.u(4, 0)
        bits.u(15, 0x5AD6)
    general = bits.flag(rng.random() < 0.5)
    within = True if general else bits.flag(rng.random() < 0.5)
    low_delay = False
    if within:
        bits.ue(0)
    else:
        low_delay = bits.flag(rng.random() < 0.5)
    count = 1
    if not low_delay:
        count = rng.randint(1, 3)
        bits.ue(count - 1)
    for _ in range(count * (int(nal) + int(vcl))):
        for _ in range(4 if sub_pictures else 2):
            bits.ue(rng.randint(0, 999))
        bits.flag(rng.random() < 0.5)


def _scaling(bits: Bits, plan: Plan) -> None:
    rng = plan.rng
    for size in range(4):
        step = 3 if size == 3 else 1
        for matrix in range(0, 6, step):
            if not bits.flag(rng.random() < 0.6):
                # 0: the default list; else one that came before (32x32: in steps of three)
                bits.ue(rng.randint(0, matrix // step))
                continue
            following = 8
            if size > 1:
                following = rng.randint(4, 60)
                bits.se(following - 8)
            for _ in range(min(64, 16 << 2 * size)):
                value = min(max(following + rng.randint(-6, 8), 1), 255)
                bits.se(value - following)
                following = value


def _pps(plan: Plan) -> bytes:
    bits, rng = Bits(), plan.rng
    bits.ue(0)
    bits.ue(0)
    bits.flag(plan.dependent)
    bits.flag(0)
    bits.u(3, plan.extra_bits)
    bits.flag(plan.sign_hiding)
    bits.flag(plan.cabac_init)
    bits.ue(plan.default_references[0] - 1)
    bits.ue(plan.default_references[1] - 1)
    bits.se(rng.randint(-8, 8))
    bits.flag(0)  # constrained intra prediction: the oracle knows it from x265's streams
    bits.flag(plan.transform_skip)
    if bits.flag(plan.qp_delta_depth is not None):
        bits.ue(plan.qp_delta_depth or 0)
    bits.se(rng.randint(-4, 4))
    bits.se(rng.randint(-4, 4))
    bits.flag(0)
    bits.flag(plan.weighted[0])
    bits.flag(plan.weighted[1])
    bits.flag(plan.lossless)
    bits.flag(plan.tiles)
    bits.flag(plan.wavefront)
    if plan.tiles:
        columns, rows = plan.tiles
        bits.ue(len(columns) - 1)
        bits.ue(len(rows) - 1)
        bits.flag(0)
        for sizes in (columns, rows):
            for size in sizes[:-1]:
                bits.ue(size - 1)
        if len(columns) > 1 or len(rows) > 1:
            bits.flag(0)
    bits.flag(0)
    if bits.flag(1):  # deblocking control: off
        bits.flag(0)
        bits.flag(1)
    if bits.flag(plan.scaling == 3):
        _scaling(bits, plan)
    bits.flag(plan.lists_modification)
    bits.ue(plan.merge_level - 2)
    bits.flag(0)
    extended = plan.cross_component or plan.chroma_offsets or plan.log2_transform_skip > 2
    if bits.flag(extended):
        bits.u(8, 0b10000000)
        if plan.transform_skip:
            bits.ue(plan.log2_transform_skip - 2)
        bits.flag(plan.cross_component)
        if bits.flag(plan.chroma_offsets):
            bits.ue(rng.randint(0, plan.log2_ctb - plan.log2_min_cb))
            bits.ue(plan.chroma_offsets - 1)
            for _ in range(2 * plan.chroma_offsets):
                bits.se(rng.randint(-6, 6))
        bits.ue(0)
        bits.ue(0)
    return bits.stop()


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
            return _explicit_set(bits, picture)
        if bits.flag(rng.random() < 0.4):
            return bits.u((sets - 1).bit_length(), number - 1)
        if number > 1 and bits.flag(rng.random() < 0.6):
            bits.ue(sets - (number - 2) - 1)
            return _predicted_set(bits, picture, plan.pictures[number - 1])
        if number == 1:
            bits.flag(0)
        return _explicit_set(bits, picture)

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
