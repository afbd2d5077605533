"""The packed encoder (paper section 2; sizes and details of the public release).

    encoder(patches (N, 3*p*p), positions (N, 3), cu_seqlens (B+1,), max_seqlen, group_id=None)
        -> tokens (N, D), pooled (B, D)

Bidirectional ViT without class token or absolute positions. An image, eight frames, a tiling strip
and a clip's codec patches are the same thing: a bag of patches with (t, h, w) positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovtrain.config.model import ModelConfig
from ovtrain.models.attention import Packing
from ovtrain.models.block import Block
from ovtrain.models.patch_embed import PatchEmbed
from ovtrain.models.pooling import AttentivePooling
from ovtrain.models.rope3d import axis_sizes, rope_tables
from ovtrain.ops.patchify import normalise_patches
from ovtrain.ops.varlen_attention import choose_backend


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.size
        self.config = config
        self.head_dim = size.width // size.heads
        axis_sizes(self.head_dim)
        self.embed = PatchEmbed(size.width, config.patch, config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, size.mlp, config.norm_eps) for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width, eps=config.norm_eps)
        self.pool = AttentivePooling(size.width, size.heads, size.mlp, config.norm_eps)

    @property
    def width(self) -> int:
        return self.config.size.width

    def forward(
        self,
        patches: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        group_id: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See the module. uint8 patches are normalised here, on the device; floats are taken as
        they are. ``group_id`` (N,) narrows attention to equal ids that are consecutive in a
        sample."""
        weight = self.embed.projection.weight
        if patches.dtype == torch.uint8:
            patches = normalise_patches(patches)
        bounds, longest = _attention_bounds(cu_seqlens, max_seqlen, group_id)
        cos, sin = rope_tables(
            positions, self.head_dim, self.config.rope_theta, self.config.rope_style
        )
        backend = choose_backend(self.config.attention, patches.device.type, weight.dtype)
        packing = Packing(bounds, longest, cos, sin, backend)
        x = self.embed(patches.to(weight.dtype))
        for block in self.blocks:
            x = block(x, packing)
        tokens = self.norm(x)
        return tokens, self.pool(tokens, cu_seqlens, max_seqlen, backend)


def _attention_bounds(
    cu_seqlens: Tensor, max_seqlen: int, group_id: Tensor | None
) -> tuple[Tensor, int]:
    """Sequence bounds cut further where ``group_id`` changes: nothing is masked quadratically."""
    if group_id is None:
        return cu_seqlens, max_seqlen
    changes = torch.nonzero(group_id[1:] != group_id[:-1]).flatten() + 1
    bounds = torch.cat([cu_seqlens, changes.to(cu_seqlens.dtype)]).unique()
    return bounds, int(bounds.diff().max())


def init_weights(encoder: Encoder, seed: int) -> None:
    """Normal std ``init_std`` for linear maps, 0 biases, 1/0 norms, N(0, 1) probe, xavier-uniform
    for the pooling's in-projection; a function of ``seed`` alone, equal on every rank."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in encoder.named_parameters():
        value = torch.empty(parameter.shape)
        if name == "pool.probe":
            value.normal_(generator=generator)
        elif name.endswith("bias"):
            value.zero_()
        elif value.ndim == 1:
            value.fill_(1.0)
        elif name.startswith(("pool.query", "pool.key_value")):
            bound = (6 / (encoder.width * 4)) ** 0.5
            value.uniform_(-bound, bound, generator=generator)
        else:
            value.normal_(std=encoder.config.init_std, generator=generator)
        with torch.no_grad():
            parameter.copy_(value)
    unset = [n for n, p in encoder.named_parameters() if not torch.isfinite(p).all()]
    assert not unset, f"parameters without an initialisation: {unset}"


def build_encoder(config: ModelConfig, seed: int) -> Encoder:
    """Built without memory, filled with NaN, initialised: a forgotten parameter shows at once."""
    with torch.device("meta"):
        encoder = Encoder(config)
    encoder = encoder.to_empty(device="cpu")
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, float("nan"))
    init_weights(encoder, seed)
    return encoder
