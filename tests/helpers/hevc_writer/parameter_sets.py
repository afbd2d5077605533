"""The parameter sets of a plan, and the reference sets that slice headers may repeat (ITU-T H.265,
7.3.2, 7.3.7).
"""

from __future__ import annotations

import random

from tests.helpers.hevc_writer.bits import Bits
from tests.helpers.hevc_writer.plan import PicturePlan, Plan

RANGE_EXTENSIONS = 4
"""general_profile_idc of the formats and tools of 7.3.2.2.2."""


def _profile(bits: Bits, plan: Plan) -> None:
    bits.u(3, 0)
    profile = RANGE_EXTENSIONS if plan.range_profile else 2 if plan.depth > 8 else 1
    bits.u(5, profile)
    bits.u(32, 1 << (31 - profile))
    bits.u(4, 0b1001)
    bits.u(32, 0)
    bits.u(12, 0)
    bits.u(8, 186)


def vps(plan: Plan) -> bytes:
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


def sps(plan: Plan) -> bytes:
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
            explicit_set(bits, picture)
        else:
            assert before is not None
            predicted_set(bits, picture, before)
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


def explicit_set(bits: Bits, picture: PicturePlan) -> None:
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


def predicted_set(bits: Bits, picture: PicturePlan, before: PicturePlan) -> None:
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


def pps(plan: Plan) -> bytes:
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
