"""Memory of the fullest rank by kind, and whether it fits: docs/scaling.md, Memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.plan.deal import Deal, deal
from launch.plan.step import Plan, SourcePlan, drawn_rows, table_of
from launch.plan.traffic import limits_of, stage_of
from ovtrain.config.layout import data_ranks
from ovtrain.config.train import TrainConfig
from ovtrain.costs import encoder, head, zero

CONTEXT = 2 * 10**9
"""A CUDA context, the libraries' workspaces and NCCL's buffers: an assumption."""
FRAGMENTS = 0.05
"""Share of what is held that the allocator loses between blocks: an assumption."""


def memory_of(
    config: TrainConfig,
    sources: Sequence[SourcePlan],
    dealt: Deal,
    world: int,
) -> dict[str, int]:
    """Bytes by kind, on ``world`` ranks. Heads are cut over all of them, the encoder's parameters
    over tensor ranks, what ZeRO divides of a part over data ranks."""
    run, model, stage = config.run, config.model, stage_of(config)
    ranks, table = data_ranks(config, world), table_of(config)
    state = zero.encoder_state(table, ranks, stage, run.precision)
    tokens = int(dealt.most([source.longest for source in sources]))
    held = {
        "weights": state.weights,
        "gradients": state.gradients,
        "master weights and moments": state.optimizer,
        **_of_heads(config, sources, dealt, world),
        "activations": _passes(config, dealt)
        * encoder.activation_bytes(
            model.size,
            tokens,
            model.patch,
            recompute=model.recompute,
            number_bytes=encoder.NUMBER_BYTES[run.precision],
            tensor_ranks=run.tensor_parallel,
            sequence=run.sequence_parallel,
        ),
        "batch": tokens * (3 * model.patch**2 + 24),  # uint8 patches, int64 positions
        "copies of weights": zero.cast_bytes(table, stage, run.precision),
        "reduction buffers": zero.buffer_bytes(
            table, stage, run.precision, limits_of(config), overlap=run.overlap_comm
        ),
    }
    return held | {"context and allocator": CONTEXT + int(FRAGMENTS * sum(held.values()))}


def _passes(config: TrainConfig, dealt: Deal) -> int:
    """Micro-steps whose activations are kept at once."""
    return 2 if config.run.forward_ahead and dealt.micro_steps > 1 else 1


def _of_heads(
    config: TrainConfig, sources: Sequence[SourcePlan], dealt: Deal, world: int
) -> dict[str, int]:
    half, width = config.run.precision == "bf16", config.model.size.width
    found = dict.fromkeys(("head rows", "head moments", "drawn centers", "head tiles"), 0)
    largest = 0
    for source, samples in zip(sources, dealt.samples, strict=True):
        if source.classes is None or not source.trains_head:
            continue
        own, shape = config.head_of(source.name), (source.classes, width, world)
        rows = drawn_rows(config, source)
        exponential = own.loss != "logistic"
        largest = max(largest, *samples)
        found["head rows"] += head.weight_bytes(*shape, own.rows)
        found["head moments"] += head.optimizer_bytes(*shape, own.optimizer, own.moments)
        found["drawn centers"] += head.drawn_bytes(
            round(rows), width, world, half=half, micro_steps=dealt.micro_steps
        )
        found["head tiles"] = max(
            found["head tiles"],
            head.tile_bytes(max(samples), rows / world, exponential=exponential, half=half),
        )
    slots, ranks = max(dealt.slots), data_ranks(config, world)
    exchanged = head.exchange_buffers(slots, largest, width, ranks, half=half)
    return found | {"gathered embeddings": exchanged}


def rank_memory(config: TrainConfig, plan: Plan) -> dict[str, int]:
    """Of the fullest rank of the config as it is."""
    counts = tuple(source.samples for source in plan.sources)
    dealt = deal(counts, data_ranks(config, plan.world), config.run.micro_batch)
    return memory_of(config, plan.sources, dealt, plan.world)


def memory_lines(held: Mapping[str, int], plan: Plan, room: float | None = None) -> list[str]:
    """As text, the sum last, compared to a device's memory in bytes where that is known."""
    kinds = [f"memory       {name}: {shown(size)}" for name, size in held.items() if size]
    total, said = sum(held.values()), ""
    if room is not None:
        fits = "fits" if total <= room else f"does not fit, by {shown(total - room)}"
        said = f" of {shown(room)}: {fits}"
    return [*kinds, f"memory       total: {shown(total)}{said}{plan.rank.without}"]


def shown(size: float) -> str:
    """Bytes, in units of powers of 1,000."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size:.0f} B"
