"""Packed attention against padding: what a mixture of lengths costs on this CPU.

    python benchmarks/attention.py [--rounds 20] [--threads 2]

``packed``        ``ovtrain.ops.varlen_attention``, backend sdpa, lengths as the loader packs them:
                  per source one after another, so equal lengths often lie together
``packed_mixed``  the same samples in an order where equal lengths never lie together: its worst
``padded``        the peer: pad to the longest, one SDPA call with a key mask, unpad

Forward and backward, heads of 64, bfloat16 by default. Lengths are those of the demo's and the
paper's views: image 256, codec, frames and tiling 2,048 (times --scale). N tokens in all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import interleaved, line
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ovtrain.ops.varlen_attention import Sequences, varlen_attention

HEADS, WIDTH = 4, 64


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def packed(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    samples = Sequences(bounds(lengths), max(lengths))
    return varlen_attention(q, k, v, samples, samples, "sdpa")


def padded(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Pad, mask, unpad: (B, longest) slots, keys beyond a sample's length masked."""
    held = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # (B, longest)

    def spread(x: Tensor) -> Tensor:
        out = x.new_zeros(*held.shape, *x.shape[1:])
        out[held] = x
        return out.transpose(1, 2)

    mask = held[:, None, None]
    attended = scaled_dot_product_attention(spread(q), spread(k), spread(v), attn_mask=mask)
    return attended.transpose(1, 2)[held]


def both_ways(
    attend: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor],
    tensors: list[Tensor],
    lengths: list[int],
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward from a fixed gradient; the result and the gradient of q."""

    def run() -> tuple[Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in tensors)
        out = attend(q, k, v, lengths)
        out.backward(torch.ones_like(out))
        assert q.grad is not None
        return out.detach(), q.grad

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=0.25, help="of the paper's lengths")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    image, clip = round(256 * args.scale), round(2048 * args.scale)
    # Stage 2: video and image 1 : 1. Tokens of one clip are dropped to three quarters.
    videos, images = [clip, clip, clip, clip * 3 // 4], [image] * 4
    lengths = videos + images
    mixed = [n for pair in zip(videos, images, strict=True) for n in pair]
    generator = torch.Generator().manual_seed(0)
    shape = (sum(lengths), HEADS, WIDTH)
    dtype = getattr(torch, args.dtype)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    variants = {
        "packed": both_ways(packed, tensors, lengths),
        "packed_mixed": both_ways(packed, tensors, mixed),
        "padded": both_ways(padded, tensors, lengths),
    }
    for ours, peer in zip(variants["packed"](), variants["padded"](), strict=True):
        torch.testing.assert_close(ours.float(), peer.float(), atol=2e-2, rtol=2e-2)
    found = interleaved(variants, warm_up=args.warm_up, rounds=args.rounds)
    print(
        line(
            "attention",
            lengths=lengths,
            heads=HEADS,
            head_dim=WIDTH,
            dtype=args.dtype,
            threads=args.threads,
            warm_up=args.warm_up,
            rounds=args.rounds,
            variants=found,
            padded_over_packed=ratio(found, "padded", "packed"),
        )
    )


def ratio(found: dict[str, dict[str, float]], slow: str, fast: str) -> float:
    return round(found[slow]["median_ms"] / found[fast]["median_ms"], 2)


if __name__ == "__main__":
    main()
