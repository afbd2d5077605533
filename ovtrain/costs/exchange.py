"""What a step's heads exchange between ranks: payload by kind of collective.

W ranks, D width; of each micro-step ``slots``, the most samples that a rank holds, and per head the
B_h samples of its source on all ranks; l the most labels of a sample, H heads.

    labels      all-gather of int32 (W x all slots, l), once, between hosts
    embeddings  all-gather of (W x slots, D) in each micro-step, bfloat16 in bf16 runs
    gradients   reduce-scatter of as many float32
    statistics  exponential losses alone: all-reduce of maxima with the positives' cosines,
                4 B_h (1 + l_h), and of sums, 4 B_h
    losses      all-reduce of H losses, the unsound samples and the rows' squares, once

Left out: what log lines, saves and signals exchange between steps. A payload is a whole gathered
output or scattered input (``ovtrain.distributed.traffic``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INT, FLOAT = 4, 4


@dataclass(frozen=True)
class HeadBatch:
    """A head's part of the step: samples of its source in each micro-step, on all ranks; most
    labels of one; whether its loss is exponential."""

    samples: tuple[int, ...]
    labels: int
    exponential: bool


def label_bytes(slots: Sequence[int], labels: int, world: int) -> int:
    return INT * world * sum(slots) * labels


def embedding_bytes(slots: int, width: int, world: int, *, half: bool) -> int:
    """Of one micro-step's gathered embeddings."""
    return (2 if half else FLOAT) * world * slots * width


def exchanged(
    heads: Sequence[HeadBatch], slots: Sequence[int], width: int, world: int, *, half: bool
) -> dict[str, int]:
    """Bytes by kind in one step; each source is taken to have a labelled sample."""
    most = max((h.labels for h in heads), default=1)
    found = Counter(all_gather=label_bytes(slots, most, world))
    found["all_reduce"] = FLOAT * (len(heads) + 2)
    for k, held in enumerate(slots):
        found["all_gather"] += embedding_bytes(held, width, world, half=half)
        found["reduce_scatter"] += embedding_bytes(held, width, world, half=False)
        here = [h for h in heads if h.exponential and h.samples[k]]
        found["all_reduce"] += sum(FLOAT * h.samples[k] * (2 + h.labels) for h in here)
    return dict(found)


def added(*parts: Mapping[str, int]) -> dict[str, int]:
    """Sums by kind."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part)
    return dict(found)
