"""What a step's heads exchange between ranks: calls and payload by kind of collective.

W ranks = D data ranks x T tensor ranks, d width; of each micro-step ``slots``, the most samples
that a data rank holds, and per head the B_h samples of its source on all of them; l the most labels
of a sample, H heads.

Over the D data ranks
    labels      all-gather of int32 (D x all slots, l), once, between hosts
    embeddings  all-gather of (D x slots, d) in each micro-step, bfloat16 in bf16 runs
    gradients   reduce-scatter of as many float32
Over the T tensor ranks, where there are several
    gradients   all-reduce of (slots, d) float32 in each micro-step: class rows are divided over all
                W ranks, and so are the terms of an embedding's gradient
Over all W ranks
    statistics  exponential losses alone, in each micro-step that holds a sample of one: all-reduce
                of maxima with the positives' cosines, 4 B_h (1 + l_h), and of sums, 4 B_h; of all
                such heads together
    losses      all-reduce of H losses, the unsound samples and the rows' squares, once

One data rank of several tensor ranks gathers nothing; one rank alone exchanges with itself where it
has a process group. Left out: what log lines, saves and signals exchange between steps. A payload
is a whole gathered output or scattered input (``ovtrain.distributed.traffic``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ovtrain.costs.collectives import Collectives

INT, FLOAT = 4, 4


@dataclass(frozen=True)
class HeadBatch:
    """A head's part of the step: samples of its source in each micro-step, on all ranks; most
    labels of one; whether its loss is exponential."""

    samples: tuple[int, ...]
    labels: int
    exponential: bool


def label_bytes(slots: Sequence[int], labels: int, data_ranks: int) -> int:
    return INT * data_ranks * sum(slots) * labels


def embedding_bytes(slots: int, width: int, data_ranks: int, *, half: bool) -> int:
    """Of gathered embeddings: of one micro-step, or of the slots of several."""
    return (2 if half else FLOAT) * data_ranks * slots * width


def exchanged(
    heads: Sequence[HeadBatch],
    slots: Sequence[int],
    width: int,
    data_ranks: int,
    tensor_ranks: int = 1,
    *,
    half: bool,
) -> dict[str, Collectives]:
    """Of one step, by the group that exchanges it: ``data``, ``tensor``, ``world``. Each source is
    taken to have a labelled sample."""
    found, calls, all_slots = {"world": _over_all(heads)}, len(slots), sum(slots)
    if data_ranks > 1 or tensor_ranks == 1:
        most = max((h.labels for h in heads), default=1)
        labels = label_bytes(slots, most, data_ranks)
        sent = embedding_bytes(all_slots, width, data_ranks, half=half)
        back = embedding_bytes(all_slots, width, data_ranks, half=False)
        found["data"] = Collectives(
            {"all_gather": labels + sent, "reduce_scatter": back},
            {"all_gather": 1 + calls, "reduce_scatter": calls},
        )
    if tensor_ranks > 1:
        size = FLOAT * all_slots * width
        found["tensor"] = Collectives({"all_reduce": size}, {"all_reduce": calls})
    return found


def _over_all(heads: Sequence[HeadBatch]) -> Collectives:
    numbers, calls = len(heads) + 2, 1
    exponential = [h for h in heads if h.exponential]
    for samples, count in Counter(zip(*(h.samples for h in exponential), strict=True)).items():
        each = zip(samples, exponential, strict=True)
        numbers += count * sum(n * (2 + h.labels) for n, h in each)
        calls += 2 * count * any(samples)
    return Collectives({"all_reduce": FLOAT * numbers}, {"all_reduce": calls})
