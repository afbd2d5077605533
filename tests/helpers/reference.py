"""The public architecture written out by hand, dense, one sequence at a time, in float64.

It reads tensors under the public checkpoint's names and uses nothing of ``ovtrain.models`` or
``ovtrain.ops``: convolution for the patches, a written-out softmax, complex numbers for the
rotation. N tokens, D width, H heads, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, multi_head_attention_forward

from ovtrain.config.model import ModelConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Weights = dict[str, Tensor]


def angles(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """(N, 3) -> (N, d/2): of the frequencies 6 of 16 turn with h, as many with w, rounded; the
    others with t."""
    half = head_dim // 2
    sixes = half * 6 // 16
    rest = half * 6 % 16
    sixes += rest > 8 or (rest == 8 and sixes % 2)  # a half goes to the even number
    counts = (half - 2 * sixes, sixes, sixes)
    columns = [
        positions[:, axis].double() * theta ** (-i / count)
        for axis, count in enumerate(counts)
        for i in range(count)
    ]
    return torch.stack(columns, 1)


def rotate(x: Tensor, angle: Tensor, style: str) -> Tensor:
    """x (N, H, d) float64, angle (N, d/2)."""
    if style == "rotary":  # pair i of an element turns by angle i: a complex product
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
            torch.ones_like(angle), angle
        ).unsqueeze(1)
        return torch.view_as_real(turned).flatten(-2)
    out = torch.empty_like(x)
    half = x.shape[-1] // 2
    for j in range(x.shape[-1]):  # the released code: element j uses angle f[j mod half]
        partner = -x[..., j + 1] if j % 2 == 0 else x[..., j - 1]
        a = angle[:, j % half].unsqueeze(1)
        out[..., j] = x[..., j] * a.cos() + partner * a.sin()
    return out


def encode(
    weights: Weights,
    config: ModelConfig,
    patches: Tensor,
    positions: Tensor,
    allowed: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One sequence: patches (N, 3*p*p) uint8, or floats as they are -> tokens (N, D), pooled (D,),
    float64. ``allowed``: of each block, (N, N) who attends to whom."""
    size, p, eps = config.size, config.patch, config.norm_eps
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    pixels = patches.double().view(-1, 3, p, p)
    if patches.dtype == torch.uint8:
        pixels = (pixels / 255 - mean) / std
    x = conv2d(pixels, weights["embeddings.patch_embedding.weight"], stride=p).flatten(1)
    x = _norm(x, weights, "layernorm_pre", eps)
    angle = angles(positions, size.width // size.heads, config.rope_theta)
    for i in range(size.depth):
        name = f"encoder.layers.{i}"
        normed = _norm(x, weights, f"{name}.layer_norm1", eps)
        mask = allowed[i] if allowed else None
        x = x + _attention(normed, weights, f"{name}.self_attn", config, angle, mask)
        x = x + _mlp(_norm(x, weights, f"{name}.layer_norm2", eps), weights, f"{name}.mlp")
    tokens = _norm(x, weights, "layernorm_post", eps)
    return tokens, _pool(tokens, weights, size.heads, eps)


def encode_padded(
    weights: Weights, config: ModelConfig, bag: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Samples (patches, positions) padded to the longest, keys beyond a length masked; float32,
    differentiable in ``weights``. -> tokens (N, D) of all samples, pooled (B, D)."""
    size, p, eps, heads = config.size, config.patch, config.norm_eps, config.size.heads
    longest = max(len(patches) for patches, _ in bag)
    held = torch.stack([torch.arange(longest) < len(patches) for patches, _ in bag])  # (B, L)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    x = torch.zeros(len(bag), longest, size.width)
    angle = torch.zeros(len(bag), longest, size.width // heads // 2)
    rows = []
    for i, (patches, positions) in enumerate(bag):
        pixels = (patches.float().view(-1, 3, p, p) / 255 - mean) / std
        embedded = conv2d(pixels, weights["embeddings.patch_embedding.weight"], stride=p)
        rows.append(torch.nn.functional.pad(embedded.flatten(1), (0, 0, 0, longest - len(patches))))
        angle[i, : len(patches)] = angles(positions, size.width // heads, config.rope_theta).float()
    x = _norm(torch.stack(rows), weights, "layernorm_pre", eps)
    keys = held[:, None, None]  # (B, 1, 1, L)
    for i in range(size.depth):
        name = f"encoder.layers.{i}"
        normed = _norm(x, weights, f"{name}.layer_norm1", eps)
        q, k, v = (
            _linear(normed, weights, f"{name}.self_attn.{part}_proj").unflatten(-1, (heads, -1))
            for part in "qkv"
        )
        cos, sin = (f(angle).repeat_interleave(2, -1)[:, :, None] for f in (torch.cos, torch.sin))
        q, k = (
            y * cos + torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2) * sin
            for y in (q, k)
        )
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        shares = logits.masked_fill(~keys, float("-inf")).softmax(-1)
        attended = torch.einsum("bhnm,bmhd->bnhd", shares, v).flatten(2)
        x = x + _linear(attended, weights, f"{name}.self_attn.out_proj")
        x = x + _mlp(_norm(x, weights, f"{name}.layer_norm2", eps), weights, f"{name}.mlp")
    tokens = _norm(x, weights, "layernorm_post", eps)
    pooled = [
        _pool(row[: len(b[0])], weights, heads, eps) for row, b in zip(tokens, bag, strict=True)
    ]
    return tokens[held], torch.stack(pooled)


def _norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _mlp(x: Tensor, weights: Weights, name: str) -> Tensor:
    return _linear(gelu(_linear(x, weights, f"{name}.fc1")), weights, f"{name}.fc2")


def _attention(
    x: Tensor,
    weights: Weights,
    name: str,
    config: ModelConfig,
    angle: Tensor,
    allowed: Tensor | None,
) -> Tensor:
    heads = config.size.heads
    q, k, v = (
        _linear(x, weights, f"{name}.{part}_proj").unflatten(-1, (heads, -1)) for part in "qkv"
    )
    q, k = (rotate(y, angle, config.rope_style) for y in (q, k))
    logits = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    out = torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v)
    return _linear(out.flatten(1), weights, f"{name}.out_proj")


def _pool(tokens: Tensor, weights: Weights, heads: int, eps: float) -> Tensor:
    keys = tokens[:, None]  # (N, 1, D)
    y, _ = multi_head_attention_forward(
        weights["head.probe"],
        keys,
        keys,
        tokens.shape[-1],
        heads,
        weights["head.attention.in_proj_weight"],
        weights["head.attention.in_proj_bias"],
        None,
        None,
        False,
        0.0,
        weights["head.attention.out_proj.weight"],
        weights["head.attention.out_proj.bias"],
        need_weights=False,
    )
    y = y.reshape(-1)
    normed = y * (y.square().mean() + eps).rsqrt() * weights["head.norm.weight"]
    return y + _mlp(normed, weights, "head.mlp")
