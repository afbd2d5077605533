"""Costs of the class-sharded head. C classes, D width, W ranks, B samples of the source in a global
batch, S sampled centers over all ranks (S = sample_rate * C). Bytes are per rank.
"""

from __future__ import annotations

import math

DTYPE_BYTES = {"fp32": 4, "bf16": 2}
TILE = 2**26
"""Logits of a tile on a GPU, at most (``ovtrain/heads/streaming.py``)."""
ROW_STATE = 12
"""Of each row beside its numbers: its steps and the decay it has paid."""


def rows_per_rank(classes: int, world_size: int) -> int:
    """Rows of the fullest class shard."""
    return -(-classes // world_size)


def weight_bytes(classes: int, width: int, world_size: int = 1, rows: str = "fp32") -> int:
    return DTYPE_BYTES[rows] * rows_per_rank(classes, world_size) * width


def optimizer_bytes(
    classes: int,
    width: int,
    world_size: int = 1,
    optimizer: str = "adamw",
    moments: str = "fp32",
) -> int:
    """The state of every row: first moment, second moment, counts."""
    first = 0 if optimizer == "rowwise_adagrad" else DTYPE_BYTES[moments] * width
    second = 4 * (width if optimizer == "adamw" else 1)
    return rows_per_rank(classes, world_size) * (first + second + ROW_STATE)


def dense_gradient_bytes(classes: int, width: int, world_size: int = 1) -> int:
    """What a gradient of all rows would take; row-sparse updates need ``sample_rate`` of it."""
    return 4 * rows_per_rank(classes, world_size) * width


def drawn_bytes(
    sampled: int, width: int, world_size: int = 1, *, half: bool, micro_steps: int = 1
) -> int:
    """A step's copy of the drawn centers and their gradient, which is fp32 where micro-steps add up
    in it; the positives of the batch come on top."""
    number, gradient = (2, 4 if micro_steps > 1 else 2) if half else (4, 4)
    return rows_per_rank(sampled, world_size) * width * (number + gradient)


def logit_bytes(batch: int, sampled: int, world_size: int = 1) -> int:
    return 4 * batch * -(-sampled // world_size)


def gathered_bytes(batch: int, width: int) -> int:
    """The global batch's embeddings in bf16, held by every rank."""
    return 2 * batch * width


def step_flops(
    batch: int, sampled: float, width: int, world_size: int = 1, *, exponential: bool = False
) -> float:
    """Per rank: logits, gradient of the embeddings, gradient of the rows; the exponential losses
    make the logits twice."""
    return (8.0 if exponential else 6.0) * batch * sampled * width / world_size


def expected_rows(classes: int, rate: float, labels: int) -> float:
    """Rows of a step over all ranks: drawn at ``rate``, and all positives, where ``labels`` labels
    of the batch fall evenly on the classes. Clustered labels hit fewer."""
    positives = classes * -math.expm1(-labels / classes)
    return rate * classes + (1 - rate) * positives


def tile_bytes(batch: int, rows: float, *, exponential: bool, half: bool) -> int:
    """Of one tile of logits and what is made of it: the products' numbers, for exponential losses
    their float32 before them."""
    number = (2 if half else 4) + (4 if exponential else 0)
    return int(number * min(TILE, batch * rows))


def exchange_buffers(slots: int, batch: int, width: int, world_size: int, *, half: bool) -> int:
    """Embeddings of a micro-step: gathered, a head's copy of them, and the float32 gradients of
    both. ``slots``: samples of a rank, ``batch``: of the largest head."""
    return (world_size * slots + batch) * width * ((2 if half else 4) + 4)
