"""A training step of the encoder against a plain eager implementation of the same model.

    python benchmarks/encoder.py [--preset large] [--cases 256 1024 2048 mixed] [--rounds 3]
                                 [--device cpu] [--backends sdpa] [--depth 0]

``eager`` is the textbook version: separate projections, scores of all pairs in memory, softmax in
float32, cosines in every layer; samples of one length together, one length after the other.
``BACKEND`` is ``ovtrain.models.encoder.Encoder`` with that attention, all samples packed. Both have
the same weights in bfloat16 and the same inputs; a step is forward, and backward of the pooled
outputs' sum, no optimizer. Rounds are interleaved. ``over_eager`` compares the fastest of each;
``tflops`` counts the formulas of ``ovtrain.costs``, ``mfu`` divides by ``--peak`` TFLOP/s.
``memory_mib``: on a GPU the peak of a step above weights and gradients, on a CPU what a forward
pass keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from measure import interleaved, line
from torch import Tensor, nn

from ovtrain.config.model import ModelConfig
from ovtrain.costs.encoder import training_flops
from ovtrain.models.block import Block
from ovtrain.models.encoder import Encoder, build_encoder
from ovtrain.ops.varlen_attention import choose_backend

CASES = {
    "256": [256],
    "1024": [1024],
    "2048": [2048],
    "4096": [4096],
    "mixed": [1024, 768, 256, 256, 512, 256],
}


class EagerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x (B, n, D), angles (B, 1, n, d)."""
        normed = self.norm1(x)
        q, k, v = (
            linear(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k = (y * cos + _turned(y) * sin for y in (q, k))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


def _turned(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)


class Eager(nn.Module):
    """The encoder's weights in the textbook's modules; the pooling head is the encoder's own."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        size, config = encoder.config.size, encoder.config
        self.head_dim, self.theta = encoder.head_dim, config.rope_theta
        self.embed = nn.Conv2d(3, size.width, config.patch, config.patch, bias=False)
        self.pre, self.post = (nn.LayerNorm(size.width, eps=config.norm_eps) for _ in range(2))
        self.blocks = nn.ModuleList(
            EagerBlock(size.width, size.heads, size.mlp, config.norm_eps) for _ in range(size.depth)
        )
        self.probe = nn.Parameter(encoder.head.probe.detach().clone())
        self.attention = nn.MultiheadAttention(size.width, size.heads, batch_first=True)
        self.norm = nn.RMSNorm(size.width, eps=config.norm_eps)
        self.fc1, self.fc2 = nn.Linear(size.width, size.mlp), nn.Linear(size.mlp, size.width)
        self._copy(encoder)

    @torch.no_grad()
    def _copy(self, encoder: Encoder) -> None:
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.embed, encoder.embeddings.patch_embedding)
        ]
        pairs += [(self.pre, encoder.layernorm_pre), (self.post, encoder.layernorm_post)]
        pairs += [(self.norm, encoder.head.norm)]
        pairs += [(self.fc1, encoder.head.mlp.fc1), (self.fc2, encoder.head.mlp.fc2)]
        pairs += [(self.attention, encoder.head.attention)]
        for mine, theirs in zip(self.blocks, encoder.layers, strict=True):
            assert isinstance(mine, EagerBlock)
            assert isinstance(theirs, Block)
            pairs += [(mine.norm1, theirs.layer_norm1), (mine.norm2, theirs.layer_norm2)]
            pairs += [(mine.fc1, theirs.mlp.fc1), (mine.fc2, theirs.mlp.fc2)]
            pairs += [(mine.out, theirs.self_attn.out_proj)]
            for part in ("weight", "bias"):
                fused = getattr(theirs.self_attn.qkv, part).unflatten(0, (mine.heads, 3, -1))
                for linear, rows in zip((mine.q, mine.k, mine.v), fused.unbind(1), strict=True):
                    getattr(linear, part).copy_(rows.flatten(0, 1))
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict())

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """patches (B, n, 588), positions (B, n, 3) -> pooled (B, D)."""
        count, length, _ = patches.shape
        side = self.embed.kernel_size[0]
        x = self.embed(patches.reshape(-1, 3, side, side)).reshape(count, length, -1)
        x = self.pre(x)
        half = self.head_dim // 2
        axes = []
        for axis, n in enumerate((half // 4, half * 3 // 8, half * 3 // 8)):
            steps = torch.arange(n, device=x.device, dtype=torch.float32) / n
            axes.append(positions[..., axis, None] * self.theta**-steps)
        angles = torch.cat(axes, -1).repeat_interleave(2, -1)[:, None]
        for block in self.blocks:
            x = block(x, angles)
        x = self.post(x)
        y, _ = self.attention(self.probe.expand(count, -1, -1), x, x, need_weights=False)
        return (y + self.fc2(nn.functional.gelu(self.fc1(self.norm(y)))))[:, 0]


@dataclass(frozen=True)
class Bag:
    patches: Tensor
    positions: Tensor
    lengths: list[int]

    @staticmethod
    def make(lengths: list[int], device: str) -> Bag:
        generator = torch.Generator().manual_seed(0)
        count = sum(lengths)
        patches = torch.randn(count, 588, generator=generator).bfloat16()
        columns = [torch.randint(0, top, (count,), generator=generator) for top in (64, 16, 16)]
        return Bag(patches.to(device), torch.stack(columns, 1).to(device), lengths)

    def packed(self) -> tuple[Tensor, Tensor, Tensor, int]:
        cu = torch.tensor([0, *self.lengths]).cumsum(0).int().to(self.patches.device)
        return self.patches, self.positions, cu, max(self.lengths)

    def batches(self) -> list[tuple[list[int], Tensor, Tensor]]:
        """(samples, patches (B, n, 588), positions (B, n, 3)) of each length."""
        parts = list(
            zip(self.patches.split(self.lengths), self.positions.split(self.lengths), strict=True)
        )
        found = []
        for length in sorted(set(self.lengths)):
            which = [i for i, n in enumerate(self.lengths) if n == length]
            stacked = (torch.stack([parts[i][k] for i in which]) for k in (0, 1))
            found.append((which, *stacked))
        return found


def step_of(model: nn.Module, bag: Bag) -> Callable[[], Tensor]:
    """A training step that returns the pooled outputs (B, D)."""
    packed, batches = bag.packed(), bag.batches()

    def step() -> Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        if isinstance(model, Eager):  # length by length: it would not fit into memory together
            pooled = torch.empty(len(bag.lengths), model.probe.shape[-1], device=bag.patches.device)
            for which, *given in batches:
                part = model(*given)
                part.float().sum().backward()
                pooled[which] = part.detach().float()
        else:
            _, pooled = model(*packed)
            pooled.float().sum().backward()
        if bag.patches.is_cuda:
            torch.cuda.synchronize()
        return pooled.detach().float()

    return step


def make_models(args: argparse.Namespace) -> dict[str, nn.Module]:
    config = ModelConfig(preset=args.preset, depth=args.depth, recompute=args.recompute)
    first = build_encoder(config, seed=0)
    models: dict[str, nn.Module] = {"eager": Eager(first)}
    for name in args.backends:
        encoder = Encoder(replace(config, attention=name))
        encoder.load_state_dict(first.state_dict())
        models[name] = encoder
    return {name: model.to(args.device, torch.bfloat16) for name, model in models.items()}


def measure(args: argparse.Namespace, models: dict[str, nn.Module], case: str) -> dict[str, Any]:
    bag = Bag.make(CASES[case], args.device)
    steps = {name: step_of(model, bag) for name, model in models.items()}
    wanted, *others = (step() for step in steps.values())
    for name, pooled in zip(args.backends, others, strict=True):
        torch.testing.assert_close(pooled, wanted, atol=0.1, rtol=0.1, msg=name)
    times = interleaved(steps, warm_up=args.warm_up, rounds=args.rounds)
    size = next(m for m in models.values() if isinstance(m, Encoder)).config.size
    flops = sum(training_flops(size, n) for n in bag.lengths)
    found: dict[str, Any] = {}
    for name, entry in times.items():
        rate = flops / entry["min_ms"] / 1e9
        found[name] = {**entry, "tflops": round(rate, 3)}
        if args.peak:
            found[name]["mfu"] = round(rate / args.peak, 3)
    fastest = {name: times["eager"]["min_ms"] / entry["min_ms"] for name, entry in times.items()}
    return {
        "lengths": bag.lengths,
        "steps": found,
        "over_eager": {n: round(x, 2) for n, x in fastest.items() if n != "eager"},
    }


def memory_mib(model: nn.Module, bag: Bag) -> int:
    """See the module; on a CPU a process's memory would say little. Weights do not count."""
    if bag.patches.is_cuda:
        step = step_of(model, bag)
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would hold its own graph

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = (
            [model(*given) for _, *given in bag.batches()]
            if isinstance(model, Eager)
            else [model(*bag.packed())]
        )
    assert outputs
    return round(sum(kept.values()) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="large")
    parser.add_argument("--depth", type=int, default=0, help="blocks, instead of the preset's")
    parser.add_argument("--cases", nargs="*", default=["256", "1024", "2048", "mixed"])
    parser.add_argument("--backends", nargs="+", default=["sdpa"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recompute", type=int, default=0)
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the device in bf16")
    parser.add_argument("--memory", nargs="*", default=["1024", "2048", "4096"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = make_models(args)
    size = ModelConfig(preset=args.preset).size
    head_dim = size.width // size.heads
    cases: dict[str, Any] = {}
    for case in args.cases:
        cases[case] = measure(args, models, case)
        print(case, cases[case]["over_eager"], file=sys.stderr, flush=True)
    memory: dict[str, dict[str, int]] = {}
    for case in args.memory:
        bag = Bag.make(CASES[case], args.device)
        # The textbook's scores of 4,096 tokens would not fit.
        named = {n: m for n, m in models.items() if n != "eager" or case != "4096"}
        memory[case] = {name: memory_mib(model, bag) for name, model in named.items()}
    print(
        line(
            "encoder",
            preset=args.preset,
            depth=args.depth or None,
            device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
            torch=torch.__version__,
            dtype="bfloat16",
            auto=choose_backend("auto", args.device, torch.bfloat16, head_dim),
            recompute=args.recompute,
            rounds=args.rounds,
            cases=cases,
            memory_mib=memory,
        )
    )


if __name__ == "__main__":
    main()
