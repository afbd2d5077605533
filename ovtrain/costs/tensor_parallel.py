"""What tensor ranks exchange for the encoder: calls and payload by kind of collective.

T tensor ranks of one data rank, of whose micro-batch of N tokens in B samples (placeholders among
them) all know the same. d width, L blocks, b bytes of an activation (2 in bf16 runs, else 4), w
bytes of a weight. N' and B': the next multiples of T. The maps' cuts are Megatron-LM's (section 3).

Whole tokens on every rank (``run.sequence_parallel=false``), all of it all-reduces
    forward     per block 2 of b N d: exits of attention and MLP. Pooling: 2 of b B d, likewise
    backward    per block 2 of b N d: entries of attention and MLP. Pooling: b N d for the tokens,
                b d for the probe, b B d for the entry of its MLP

A T-th of the tokens on each rank between the maps (``run.sequence_parallel=true``)
    forward     per block 2 all-gathers (entries) and 2 reduce-scatters (exits) of b N' d. Pooling:
                all-gather b N' d (tokens), reduce-scatter b B' d (exit of attention), all-gather
                and reduce-scatter b B' d (entry and exit of its MLP), all-gather b B' d (the pooled
                embeddings made whole)
    backward    an all-gather for each reduce-scatter and the other way round, of the same size; for
                the last gather nothing. All-gather b N' d, where the tokens were divided before the
                first norm. All-reduces: each norm's gradients, w 2 d (w d of an RMSNorm), since a
                rank has seen a part of the tokens: before the first block, 2 per block, before the
                pooling and in it (an RMSNorm); and b d for the probe

A block that is computed again runs its forward collectives a second time but for the last, the exit
of its MLP: nothing behind it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ovtrain.costs.collectives import Collectives
from ovtrain.costs.encoder import EncoderSize, recomputed_blocks


@dataclass(frozen=True)
class Activations:
    """What decides the size and the number of a run's collectives in a tensor group. ``number``,
    ``weight``: bytes of an activation and of a weight; ``recompute``, ``norm``, ``pooling`` as in
    the model's config, ``sequence`` as run.sequence_parallel."""

    size: EncoderSize
    tensor_ranks: int
    sequence: bool
    number: int
    weight: int
    recompute: int = 0
    norm: str = "layer_norm"
    pooling: bool = True


def exchanged(run: Activations, tokens: int, samples: int) -> Collectives:
    """Of one micro-step, forward and backward. One tensor rank exchanges nothing."""
    if run.tensor_ranks == 1:
        return Collectives()
    return _divided(run, tokens, samples) if run.sequence else _whole(run, tokens, samples)


def _whole(run: Activations, tokens: int, samples: int) -> Collectives:
    numbers = run.number * run.size.width
    of_tokens, of_samples = numbers * tokens, numbers * samples
    again = recomputed_blocks(run.size, run.recompute)
    found = Collectives.of("all_reduce", of_tokens, 4 * run.size.depth + again)
    if run.pooling:
        found += Collectives.of("all_reduce", of_samples, 3)
        found += Collectives.of("all_reduce", of_tokens) + Collectives.of("all_reduce", numbers)
    return found


def _divided(run: Activations, tokens: int, samples: int) -> Collectives:
    numbers = run.number * run.size.width
    of_tokens, of_samples = (numbers * padded(n, run.tensor_ranks) for n in (tokens, samples))
    depth, again = run.size.depth, recomputed_blocks(run.size, run.recompute)
    found = Collectives.of("all_gather", of_tokens, 4 * depth + 2 * again + 1)
    found += Collectives.of("reduce_scatter", of_tokens, 4 * depth + again)
    found += _norms(run)
    if run.pooling:
        both = [Collectives.of(kind, of_tokens) for kind in ("all_gather", "reduce_scatter")]
        found += both[0] + Collectives.of("all_gather", of_samples, 4)
        found += both[1] + Collectives.of("reduce_scatter", of_samples, 3)
        found += Collectives.of("all_reduce", numbers)
    return found


def _norms(run: Activations) -> Collectives:
    """Of the gradients of each norm's parameters."""
    of_vector = run.weight * run.size.width
    own = of_vector * (2 if run.norm == "layer_norm" else 1)
    found = Collectives.of("all_reduce", own, 1 + 2 * run.size.depth + run.pooling)
    return found + Collectives.of("all_reduce", of_vector, int(run.pooling))


def padded(number: int, tensor_ranks: int) -> int:
    """Tokens or samples, filled up to equal parts."""
    return -(-number // tensor_ranks) * tensor_ranks
