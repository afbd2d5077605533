"""What one drawn stream is: its parameter sets, its pictures and their references, at random.

``draw(seed)`` is a plan; headers.py writes it down. Filters are off: the reconstruction oracle
wants that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

ORDER = (0, 4, 2, 1, 3, 8, 6, 7, 12, 10, 9, 16, 14, 18)
"""Picture order counts in decoding order; most streams stop after SHORT of them."""
SHORT = 8


@dataclass
class PicturePlan:
    """A picture and its references that stay: (picture order count, whether this one uses it)."""

    poc: int
    short: list[tuple[int, bool]]
    long: list[tuple[int, bool]]

    def deltas(self) -> list[tuple[int, bool]]:
        """Of the short-term set: earlier pictures, nearest first, then later ones."""
        found = [(entry - self.poc, used) for entry, used in self.short]
        return sorted((d for d in found if d[0] < 0), reverse=True) + sorted(
            d for d in found if d[0] > 0
        )


@dataclass
class Plan:
    """One stream: what its parameter sets say."""

    seed: int
    rng: random.Random
    chroma: int = 1
    depth: int = 8
    width: int = 96
    height: int = 80
    log2_min_cb: int = 3
    log2_ctb: int = 4
    log2_min_tb: int = 2
    log2_max_tb: int = 4
    transform_depth: tuple[int, int] = (1, 1)
    pcm: bool = False
    scaling: int = 0  # 0 none, 1 default, 2 of the sequence, 3 of the picture
    amp: bool = False
    long_term: bool = False
    strong_smoothing: bool = False
    temporal_mvp: bool = True
    extension: dict[str, bool] = field(default_factory=dict[str, bool])
    hrd: bool = False
    # pictures
    sign_hiding: bool = False
    transform_skip: bool = False
    qp_delta_depth: int | None = None
    weighted: tuple[bool, bool] = (False, False)
    lossless: bool = False
    tiles: tuple[list[int], list[int]] | None = None  # widths and heights in CTBs
    wavefront: bool = False
    dependent: bool = False
    lists_modification: bool = False
    merge_level: int = 2
    cabac_init: bool = False
    extra_bits: int = 0
    log2_transform_skip: int = 2
    cross_component: bool = False
    chroma_offsets: int = 0
    default_references: tuple[int, int] = (1, 1)
    surprise: int = 300
    pictures: list[PicturePlan] = field(default_factory=list["PicturePlan"])
    log2_poc_lsb: int = 8  # 4: the order counts go round
    long_candidates: list[tuple[int, bool]] = field(default_factory=list[tuple[int, bool]])
    wild: bool = False  # order counts and their cycles as large as they come
    predicts_sets: bool = False  # reference sets in the sequence, predicted from one another

    @property
    def lsb_mask(self) -> int:
        return (1 << self.log2_poc_lsb) - 1

    @property
    def ctbs(self) -> tuple[int, int]:
        """Down, across."""
        size = 1 << self.log2_ctb
        return -(-self.height // size), -(-self.width // size)

    @property
    def range_profile(self) -> bool:
        pps = self.cross_component or self.chroma_offsets or self.log2_transform_skip > 2
        return self.chroma != 1 or self.depth > 10 or bool(self.extension) or bool(pps)


def draw(seed: int) -> Plan:
    """A plan; equal seeds give equal plans."""
    rng = random.Random(seed)
    plan = Plan(seed, rng)
    chance = lambda p: rng.random() < p  # noqa: E731
    plan.chroma = rng.choice([1, 1, 1, 0, 2, 3])
    plan.depth = rng.choice([8, 8, 8, 10, 12])
    plan.log2_min_cb = rng.choice([3, 3, 4])
    plan.log2_ctb = rng.randint(max(4, plan.log2_min_cb), 6)
    plan.log2_max_tb = rng.randint(max(3, plan.log2_min_cb - 1), min(plan.log2_ctb, 5))
    plan.log2_min_tb = rng.randint(2, min(plan.log2_max_tb, plan.log2_min_cb - 1))
    side = 1 << plan.log2_min_cb
    plan.width, plan.height = (side * rng.randint(5, 160 // side) for _ in range(2))
    depth = plan.log2_ctb - plan.log2_min_tb
    plan.transform_depth = (rng.randint(0, depth), rng.randint(0, depth))
    plan.pcm, plan.amp, plan.long_term = chance(0.3), chance(0.5), chance(0.3)
    plan.scaling = rng.choice([0, 0, 0, 1, 2, 3])
    plan.strong_smoothing, plan.temporal_mvp = chance(0.5), chance(0.8)
    plan.hrd = chance(0.2)
    plan.sign_hiding = chance(0.5)
    plan.transform_skip, plan.lossless = chance(0.4), chance(0.2)
    plan.qp_delta_depth = rng.randint(0, plan.log2_ctb - plan.log2_min_cb) if chance(0.4) else None
    plan.weighted = (chance(0.3), chance(0.3))
    down, across = plan.ctbs
    if chance(0.3) and down > 1 and across > 1:
        plan.tiles = (_parts(rng, across), _parts(rng, down))
    plan.wavefront = not plan.tiles and chance(0.2)  # FFmpeg gets both together wrong
    plan.dependent = chance(0.4)
    plan.lists_modification, plan.merge_level = chance(0.4), rng.randint(2, plan.log2_ctb)
    plan.cabac_init, plan.extra_bits = chance(0.5), rng.choice([0, 0, 2])
    plan.default_references = (rng.randint(1, 3), rng.randint(1, 3))
    if chance(0.4):
        names = ("rotation", "context", "implicit_rdpcm", "explicit_rdpcm", "offsets", "rice")
        plan.extension = {name: chance(0.5) for name in names}
        plan.log2_transform_skip = rng.randint(2, plan.log2_max_tb) if plan.transform_skip else 2
        plan.cross_component = plan.chroma == 3 and chance(0.7)
        # FFmpeg reads the index as if the list had six entries.
        plan.chroma_offsets = rng.choice([1, 6]) if plan.chroma and chance(0.4) else 0
        if plan.lossless:
            # FFmpeg does not turn lossless blocks, as 8.6.2 has it, and takes the direction of
            # explicit RDPCM from the intra mode where implicit RDPCM is on as well.
            plan.extension["rotation"] = False
            plan.extension["implicit_rdpcm"] &= not plan.extension["explicit_rdpcm"]
    plan.surprise = rng.choice([150, 250, 350])
    plan.predicts_sets = chance(0.5)
    plan.log2_poc_lsb = rng.choice([4, 8, 8])
    plan.pictures = _draw_pictures(plan)
    if plan.long_term and chance(0.6):
        known = {(e & plan.lsb_mask, used) for picture in plan.pictures for e, used in picture.long}
        plan.long_candidates = sorted(known)[:5]
    return plan


def _draw_pictures(plan: Plan) -> list[PicturePlan]:
    rng = plan.rng
    short: list[int] = []
    long: list[int] = []
    found: list[PicturePlan] = []
    for poc in ORDER if plan.log2_poc_lsb == 4 else ORDER[:SHORT]:
        while len(short) + len(long) > 4:
            (long if long and rng.random() < 0.5 else short).pop(0)
        # A long-term reference cannot be of a later cycle of the order counts.
        old = [entry for entry in short if entry < ORDER[-2]]
        if plan.long_term and len(old) > 1 and rng.random() < 0.5:
            long.append(rng.choice(old))
            short.remove(long[-1])
        used = [rng.random() < 0.8 for _ in short + long]
        if not any(used):
            used = [True] * len(used)
        kept = list(zip(short + long, used, strict=True))
        found.append(PicturePlan(poc, kept[: len(short)], kept[len(short) :]))
        short.append(poc)
    return found


def _parts(rng: random.Random, total: int) -> list[int]:
    """A sum of ``total`` in 1 to 3 random parts."""
    count = rng.randint(1, min(3, total))
    cuts = sorted(rng.sample(range(1, total), count - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
