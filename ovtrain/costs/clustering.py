"""Costs of clustering: FLOPs, bytes, memory and time of the feature pass, k-means and the labels.

N samples, F width of a feature, C centers, K labels each, W devices (one rank each) = D data groups
x G center shards: the ranks of a group read the same N / D samples, each searches its own C / G
centers. GB: 10^9 bytes.

Sizes on disk
    features     2 N F            float16, and keys 8 N
    centroids    4 C F            float32
    labels       N (8 + 8 + 8 K)  key, offset; id (int32) and distance (float32) of each label

A pass over all samples (an iteration of k-means, or the labels)
    FLOPs        2 N C F          products of every sample with every center; k-means adds N F for
                                  the sums. Multiply-adds count as two
    read         2 N F G R        every rank of a group reads the group's samples from disk. R: 1
                                  where a rank's centers fit its memory in one range; with r ranges
                                  r, and r more for the sums of k-means
                                  and k-means' keys of before and of now, 16 N
    touched      N F (10 G R + 16) bytes in memory: the float16 block, its float32 copy; of k-means
                                  the integer sums that are read and written
    merged       8 K N / D (G - 1) int64 keys that a rank gets from its group; k-means, where K = 1,
                                  takes their minimum: 2 (G - 1) / G x 8 N / D
    reduced      2 (D - 1) / D x 8 C F / G  int64 sums that a rank sends around the ring of its
                                  peers in the other groups, once per iteration

Memory of a rank, per number of its C F / G center numbers: float32 4, bfloat16 2, integer sums 8,
other 10 (the second bfloat16 copy, new centers, products): ``ROW_BYTES``, of which ``FOR_CENTERS``
of the device's memory may be taken; and blocks of ``BLOCK_NUMBERS`` numbers.

k-means is ``iterations`` such passes and one that only assigns, ``restarts`` times. Hierarchical,
with A coarse cells: as many iterations over A centers, then as many within the cells, 2 N F C / A
each, from memory, then one pass over all C centers. Labels are one pass with K neighbours.

Time of a pass: the slowest of products at the achievable rate (peak x efficiency), memory traffic
at the device's bandwidth, and reading at the nodes' disks, which overlap (on a CPU, whose cores do
both, products and memory traffic add up); then what ranks exchange,
which does not. Left out: the drawing of first centers, refills, start-up, what the page cache
saves, the candidates' exact distances (inside the efficiency), copies from host to device.

Teacher: ``encoder.forward_flops`` per frame; a CLIP tower has no pooling head, which is 0.25 % of
ViT-H/14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ovtrain.costs import encoder

CENTER_BYTES = {"float32": 4, "bfloat16": 2, "sums": 8, "other": 10}
ROW_BYTES = sum(CENTER_BYTES.values())
FOR_CENTERS = 0.75
"""Share of the memory that centers and what comes with them may take; blocks, libraries and keys
take the rest."""
BLOCK_NUMBERS = 2**24
"""Numbers of a block of points: 16,384 rows of width 1,024."""
BLOCK_BYTES = 8
"""Per number of a block: two of float16 that are read in turn, one of float32."""
KEY, OFFSET, ID, DISTANCE = 8, 8, 4, 4


@dataclass(frozen=True)
class TowerSize:
    """Sizes of an image tower."""

    width: int
    depth: int
    mlp: int


TOWERS = {
    "vit-h-14": TowerSize(1280, 32, 5120),
    "vit-l-14": TowerSize(1024, 24, 4096),
    "vit-b-14": TowerSize(768, 12, 3072),
}


def tower_flops(name: str, pixels: int = 224, patch: int = 14) -> float:
    """Of one frame, class token included."""
    return encoder.forward_flops(TOWERS[name], (pixels // patch) ** 2 + 1, patch)


def feature_bytes(samples: int, width: int) -> int:
    return samples * (2 * width + KEY)


def centroid_bytes(clusters: int, width: int) -> int:
    return 4 * clusters * width


def label_bytes(samples: int, top: int) -> int:
    return samples * (KEY + OFFSET + top * (ID + DISTANCE))


@dataclass(frozen=True)
class Machine:
    """``devices`` of one kind. tflops: achievable by one; memory_gb of one, memory_gbs its
    bandwidth; exchange_gbs: what a rank sends per second while it receives as much; disk_gbs of a
    node of ``per_node`` devices; overlaps: products run while memory is moved."""

    devices: int
    tflops: float
    memory_gb: float
    memory_gbs: float
    exchange_gbs: float
    disk_gbs: float
    per_node: int = 8
    overlaps: bool = True

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.per_node)


@dataclass(frozen=True)
class Problem:
    """N, F, C, K."""

    samples: int
    width: int
    clusters: int
    top: int = 10


@dataclass(frozen=True)
class Layout:
    """How centers lie on ranks: G shards, each in ``ranges`` that fit memory one at a time."""

    groups: int
    center_shards: int
    ranges: int


@dataclass(frozen=True)
class Cost:
    """Of all devices: flops, bytes read from disks and touched in memory; sent: bytes of one rank.
    seconds by what takes them; ``total`` is the wall-clock time."""

    flops: float
    read: float
    touched: float
    sent: float
    compute_s: float
    memory_s: float
    disk_s: float
    exchange_s: float
    overlaps: bool = True

    @property
    def total_s(self) -> float:
        both = [self.compute_s, self.memory_s]
        inside = max(both) if self.overlaps else sum(both)
        return max(inside, self.disk_s) + self.exchange_s

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "products": self.compute_s,
            "memory": self.memory_s,
            "disk": self.disk_s,
            "exchange": self.exchange_s,
        }
        return max(parts, key=lambda name: parts[name])


def layout(problem: Problem, machine: Machine, center_shards: int = 0) -> Layout:
    """``center_shards`` 0: the fewest that let a rank's centers fit into its memory. It divides the
    devices."""
    numbers = problem.clusters * problem.width
    memory = FOR_CENTERS * machine.memory_gb * 1e9
    divisors = [d for d in range(1, machine.devices + 1) if machine.devices % d == 0]
    assert center_shards in (0, *divisors), center_shards
    fits = (d for d in divisors if numbers * ROW_BYTES <= memory * d)
    shards = center_shards or next(fits, machine.devices)
    ranges = max(1, math.ceil(numbers * ROW_BYTES / shards / memory))
    return Layout(machine.devices // shards, shards, ranges)


def center_memory(problem: Problem, placed: Layout) -> dict[str, int]:
    """Bytes of the fullest rank, by what they hold; centers of one range at a time."""
    rows = -(-problem.clusters // (placed.center_shards * placed.ranges))
    held = {name: size * rows * problem.width for name, size in CENTER_BYTES.items()}
    return {**held, "blocks": BLOCK_BYTES * BLOCK_NUMBERS}


def search_pass(
    problem: Problem, machine: Machine, placed: Layout, top: int = 1, *, sums: bool = False
) -> Cost:
    """One pass over all samples; ``sums``: of a k-means iteration, with its reduction."""
    samples, width, clusters = problem.samples, problem.width, problem.clusters
    groups, shards, ranges = placed.groups, placed.center_shards, placed.ranges
    numbers = float(samples) * width
    flops = 2.0 * numbers * clusters + (numbers if sums else 0.0)
    again = ranges if sums and ranges > 1 else 0
    read = 2.0 * numbers * shards * (ranges + again) + (2.0 * KEY * samples if sums else 0.0)
    touched = numbers * (10 * shards * (ranges + again) + (16 if sums else 0))
    merged = float(KEY) * samples / groups * (shards - 1)
    sent = merged * (2 / shards if top == 1 else top)
    if sums:
        sent += 2 * (groups - 1) / groups * 8 * clusters * width / shards
    return _cost(machine, flops, read, touched, sent)


def _cost(machine: Machine, flops: float, read: float, touched: float, sent: float) -> Cost:
    return Cost(
        flops,
        read,
        touched,
        sent,
        flops / (machine.devices * machine.tflops * 1e12),
        touched / (machine.devices * machine.memory_gbs * 1e9),
        read / (machine.nodes * machine.disk_gbs * 1e9),
        sent / (machine.exchange_gbs * 1e9),
        machine.overlaps,
    )


@dataclass(frozen=True)
class KMeansPlan:
    """iteration: one pass of the flat k-means; parts: (name, passes, cost of one), in order."""

    placed: Layout
    memory: dict[str, int]
    iteration: Cost
    parts: tuple[tuple[str, int, Cost], ...]

    @property
    def flops(self) -> float:
        return sum(count * cost.flops for _, count, cost in self.parts)

    @property
    def bytes(self) -> float:
        """Read from disks."""
        return sum(count * cost.read for _, count, cost in self.parts)

    @property
    def seconds(self) -> float:
        return sum(count * cost.total_s for _, count, cost in self.parts)


def kmeans_plan(
    problem: Problem,
    machine: Machine,
    *,
    iterations: int = 20,
    restarts: int = 1,
    coarse: int = 0,
    center_shards: int = 0,
) -> KMeansPlan:
    """All passes of a k-means that ends after ``iterations``; ``coarse`` cells, 0: flat."""
    placed = layout(problem, machine, center_shards)
    iteration = search_pass(problem, machine, placed, sums=True)
    last = search_pass(problem, machine, placed)
    if not coarse:
        parts = [("iterations", iterations * restarts, iteration), ("last", restarts, last)]
    else:
        few = Problem(problem.samples, problem.width, coarse)
        around = layout(few, machine)
        cells = _cells(problem, machine, coarse)
        parts = [
            (
                "coarse iterations",
                iterations * restarts,
                search_pass(few, machine, around, sums=True),
            ),
            ("coarse last", restarts, search_pass(few, machine, around)),
            ("cells read", 1, _cost(machine, 0.0, 2.0 * problem.samples * problem.width, 0.0, 0.0)),
            ("cells", iterations + 1, cells),
            ("all centers", 1, last),
        ]
    return KMeansPlan(placed, center_memory(problem, placed), iteration, tuple(parts))


def _cells(problem: Problem, machine: Machine, coarse: int) -> Cost:
    """An iteration within all cells, each in the memory of one rank."""
    numbers = float(problem.samples) * problem.width
    flops = 2.0 * numbers * problem.clusters / coarse + numbers
    return _cost(machine, flops, 0.0, 26 * numbers, 0.0)


def label_pass(problem: Problem, machine: Machine, center_shards: int = 0) -> Cost:
    """The labels of all samples: exact search of the ``top`` nearest."""
    placed = layout(problem, machine, center_shards)
    return search_pass(problem, machine, placed, problem.top)


def feature_pass(
    problem: Problem, machine: Machine, frame_flops: float, frames: int, decoded_per_s: float = 0.0
) -> Cost:
    """Teacher features of all samples, ``frames`` each. ``decoded_per_s``: samples that a node
    reads and decodes per second; 0 leaves that out. What is read of the shards is not counted."""
    flops = float(problem.samples) * frames * frame_flops
    found = _cost(machine, flops, 0.0, 0.0, 0.0)
    if not decoded_per_s:
        return found
    seconds = problem.samples / (machine.nodes * decoded_per_s)
    return Cost(flops, 0.0, 0.0, 0.0, found.compute_s, 0.0, seconds, 0.0)
