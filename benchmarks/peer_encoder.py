"""Peer of the encoder: the released OneVision-Encoder model, rebuilt for one device.

A forward pass takes samples of one shape: dense pictures, frames or tiles, or so many patches of
each clip with their places on its grid. Same weights, same numbers as ``ovtrain``'s encoder with
``rope_style: released`` (held to it by ``tests/unit/benchmarks``).

    behaviour                                                                       from
    one shape per forward pass, no packing                                          released trainer
    patches of a clip are gathered from its dense float32 frames, then embedded     released trainer
    separate projections to queries, keys and values; pre-norm; exact GELU          released model
    angles of a whole grid, kept from call to call; rows of them for sparse clips   released model
    attentive pooling with one probe per model                                      released model
    attention by a fused kernel (flash-attention there, torch's SDPA here)          released model
    bfloat16 under autocast, parameters in float32                                  released trainer

Nothing was slowed. Where the original does more than it needs to, the cheap form stands here:
patches are taken out of the frames in one indexed copy, without a patchified copy of the whole clip
before and another into pictures after it; a flat patch is embedded by one product, not a
convolution; cosines and sines are made once per grid, not in each layer, and their sign is in the
table; pooling returns no attention weights; no empty padding exists.

B samples, n tokens of each, D width, H heads, d head_dim, p patch side; a grid is (T, Hp, Wp).
"""

from __future__ import annotations

import torch
from encoder import EagerBlock
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

Grid = tuple[int, int, int]


class PeerBlock(EagerBlock):
    """The textbook's parts, with the released rotation and torch's attention."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, n, D); cos, sin (1 or B, n, 1, d)."""
        normed = self.norm1(x)
        q, k, v = (
            map_(normed).unflatten(-1, (self.heads, -1)) for map_ in (self.q, self.k, self.v)
        )
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        attended = scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The released model's: (x0, x1, ...) -> (-x1, x0, ...) times sin, the sign in ``sin``."""
    return x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin


class PeerEncoder(nn.Module):
    def __init__(
        self, width: int, depth: int, heads: int, hidden: int, *, patch: int, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.head_dim, self.patch = width // heads, patch
        self.embed = nn.Linear(3 * patch * patch, width, bias=False)
        self.pre, self.post = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(PeerBlock(width, heads, hidden, eps) for _ in range(depth))
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self._tables: dict[tuple[Grid, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(self, patches: Tensor, grid: Grid, indices: Tensor | None = None) -> Tensor:
        """patches (B, n, 3*p*p) normalised, all of the grid or those at ``indices`` (B, n), ->
        pooled (B, D)."""
        x = self.pre(self.embed(patches))
        cos, sin = self._angles(grid, x)
        if indices is None:
            cos, sin = cos[None], sin[None]
        else:
            cos, sin = cos[indices], sin[indices]
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.post(x)
        probe = self.probe.expand(len(x), -1, -1)
        y, _ = self.attention(probe, x, x, need_weights=False)
        return (y + self.fc2(gelu(self.fc1(self.norm(y)))))[:, 0]

    def _angles(self, grid: Grid, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin (T * Hp * Wp, 1, d) in the type of ``x``."""
        if (grid, x.dtype) not in self._tables:
            half = self.head_dim // 2
            places = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in grid))
            angles = []
            for axis, count in enumerate((half // 4, half * 3 // 8, half * 3 // 8)):
                steps = torch.arange(count, device=x.device) / count
                angles.append(places[:, axis, None] * 10000.0**-steps)
            full = torch.cat(angles + angles, -1)[:, None]
            sign = torch.tensor([-1.0, 1.0], device=x.device).repeat(half)
            self._tables[grid, x.dtype] = full.cos().to(x.dtype), (full.sin() * sign).to(x.dtype)
        return self._tables[grid, x.dtype]


def all_patches(pictures: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, Hp * Wp, 3*p*p), a copy."""
    count, _, height, width = pictures.shape
    tiles = pictures.view(count, 3, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, 3 * patch * patch)


def patches_at(clips: Tensor, indices: Tensor, patch: int) -> Tensor:
    """(B, 3, T, H, W) dense frames and (B, n) flat places on their grid -> (B, n, 3*p*p)."""
    count, _, frames, height, width = clips.shape
    rows, columns = height // patch, width // patch
    tiles = clips.view(count, 3, frames, rows, patch, columns, patch)
    t, rest = indices // (rows * columns), indices % (rows * columns)
    clip = torch.arange(count, device=clips.device)[:, None]
    return tiles[clip, :, t, rest // columns, :, rest % columns].flatten(2)


@torch.no_grad()
def copy_weights(peer: PeerEncoder, weights: dict[str, Tensor]) -> None:
    """From the state of an ``ovtrain`` encoder, whose query-key-value projection is fused."""
    for name, parameter in peer.named_parameters():
        parameter.copy_(_weight(peer, name, weights).reshape(parameter.shape))


NAMES = {
    "embed": "embeddings.patch_embedding",
    "pre": "layernorm_pre",
    "post": "layernorm_post",
    "norm": "head.norm",
    "fc1": "head.mlp.fc1",
    "fc2": "head.mlp.fc2",
    "attention": "head.attention",
    "probe": "head.probe",
}
BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "out": "self_attn.out_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def _weight(peer: PeerEncoder, name: str, weights: dict[str, Tensor]) -> Tensor:
    first, _, rest = name.partition(".")
    if first != "blocks":
        return weights[f"{NAMES[first]}.{rest}".rstrip(".")]
    number, part, kind = rest.split(".")
    if part in BLOCK_NAMES:
        return weights[f"layers.{number}.{BLOCK_NAMES[part]}.{kind}"]
    fused = weights[f"layers.{number}.self_attn.qkv.{kind}"]
    return fused.unflatten(0, (-1, 3, peer.head_dim))[:, "qkv".index(part)].flatten(0, 1)
