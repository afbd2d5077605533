"""The packed encoder (paper section 2; sizes and details of the public release).

    encoder(patches (N, 3*p*p), positions (N, 3), cu_seqlens (B+1,), max_seqlen, group_id=None)
        -> tokens (N, D), pooled (B, D)

Bidirectional ViT without class token or absolute positions. An image, eight frames, a tiling strip
and a clip's codec patches are the same thing: a bag of patches with (t, h, w) positions. Parameters
have the public checkpoints' names (``layers`` being their ``encoder.layers``) and layouts, but for
the fused query-key-value projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovtrain.config.model import ModelConfig
from ovtrain.models.attention import Packing, make_packing
from ovtrain.models.block import Block, make_norm
from ovtrain.models.packing import arrange, check_packed
from ovtrain.models.patch_embed import PatchEmbeddings
from ovtrain.models.pooling import AttentivePooling
from ovtrain.models.rope3d import axis_sizes
from ovtrain.models.seams import same
from ovtrain.ops.patchify import normalise_patches
from ovtrain.ops.varlen_attention import Sequences, choose_backend, varlen_attention
from ovtrain.schema.cut import COLUMN, ROW, Cut

PLAN = {
    "self_attn.qkv.weight": COLUMN,
    "self_attn.qkv.bias": COLUMN,
    "self_attn.out_proj.weight": ROW,
    "mlp.fc1.weight": COLUMN,
    "mlp.fc1.bias": COLUMN,
    "mlp.fc2.weight": ROW,
    "head.attention.in_proj_weight": Cut("column", 3),
    "head.attention.in_proj_bias": Cut("column", 3),
    "head.attention.out_proj.weight": ROW,
}
"""How tensor ranks divide what ends in these names; the rest lies whole on each."""


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, norm = config.size, config.norm
        self.config = config
        self.image_size = 448
        """Side of still pictures that it is meant for, the public release's; for exports alone."""
        self.head_dim = size.width // size.heads
        axis_sizes(self.head_dim)
        self.embeddings = PatchEmbeddings(size.width, config.patch)
        self.layernorm_pre = make_norm(norm, size.width, config.norm_eps)
        self.layers = nn.ModuleList(
            Block(
                size.width,
                size.heads,
                size.mlp,
                config.norm_eps,
                norm=norm,
                windowed=i in config.window_layers,
            )
            for i in range(size.depth)
        )
        if config.pooling:
            self.layernorm_post = make_norm(norm, size.width, config.norm_eps)
            self.head = AttentivePooling(size.width, size.heads, size.mlp, config.norm_eps)
        self.split: Callable[[Tensor], Tensor] = same
        self.whole: Callable[[Tensor, int], Tensor] = same
        self.parameter_count = sum(p.numel() for p in self.parameters())
        """Known here for good: a backend may leave a rank a part of each parameter."""

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
        *,
        pooled_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """See the module; with ``pooled_only`` tokens are (0, D). uint8 patches are normalised
        here, on the device; floats are taken as they are. ``group_id`` (N,) narrows attention to
        equal ids of one sample; pooling reads the whole sample. Without a pooling head, pooled is
        (B, 0). Raises InputError, a ValueError, for what breaks a rule (values are read on the CPU
        only)."""
        config = self.config
        self.check(patches, positions, cu_seqlens, max_seqlen, group_id)
        samples = Sequences(cu_seqlens.int(), max_seqlen)
        arranged = arrange(samples, group_id, positions[:, 0], config.window_frames)
        if arranged.order is not None:
            patches, positions = patches[arranged.order], positions[arranged.order]
        packing = self._packing(arranged.whole, arranged.windows, positions)
        x = self.layernorm_pre(self.split(self.embeddings(self._floats(patches))))
        for i, block in enumerate(self.layers):
            x = self._run(i, block, x, packing)
        pooled = x.new_empty(len(samples), 0)
        if config.pooling:
            x = self.layernorm_post(x)
            pooled = self.head(x, samples, packing.backend, len(positions))
        tokens = x[:0] if pooled_only else arranged.restore(self.whole(x, len(positions)))
        return tokens, pooled

    def tensor_plan(self) -> dict[str, Cut]:
        """How tensor ranks divide parameters (Megatron-LM, section 3), by name; those that lie
        whole on each rank are left out."""
        names = (name for name, _ in self.named_parameters())
        cuts = ((n, next((c for end, c in PLAN.items() if n.endswith(end)), None)) for n in names)
        return {name: cut for name, cut in cuts if cut is not None}

    def set_seams(
        self,
        split: Callable[[Tensor], Tensor],
        enter: Callable[[Tensor], Tensor],
        copy: Callable[[Tensor], Tensor],
        whole: Callable[[Tensor, int], Tensor],
    ) -> None:
        """What happens where ranks that share this encoder come together outside of linear maps and
        norms: tokens are dealt out; rows, and what all ranks hold, go into a divided product; rows
        are made whole. All do nothing on one rank."""
        self.split, self.whole = split, whole
        if self.config.pooling:
            self.head.whole = whole
            self.head.attention.enter, self.head.attention.copy = enter, copy

    def compile_layers(self) -> None:
        """torch.compile each block, in place; blocks are alike, so all but the first are cached.
        Attention stays outside: it has kernels of its own, and the reference loops over lengths,
        for each of which it would be compiled anew."""
        attend: Any = torch.compiler.disable(varlen_attention)
        for block in self.layers:
            assert isinstance(block, Block)
            block.self_attn.attend = attend
            block.compile(dynamic=True)

    def check(
        self,
        patches: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        group_id: Tensor | None = None,
    ) -> None:
        """Raise InputError for what ``forward`` would refuse; of tensors that lie on a GPU it knows
        the shapes alone."""
        rules = (self.config.patch, self.config.rope_frames)
        check_packed(patches, positions, cu_seqlens, max_seqlen, group_id, *rules)

    def _floats(self, patches: Tensor) -> Tensor:
        if patches.dtype == torch.uint8:
            patches = normalise_patches(patches)
        return patches.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        # Asked of the list, not of a weight: ZeRO-3 takes a look at another module's weight for its
        # use, and gathers it for the whole pass.
        return next(self.parameters()).dtype

    def _packing(self, whole: Sequences, windows: Sequences | None, positions: Tensor) -> Packing:
        config, device = self.config, positions.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else self._dtype
        return make_packing(
            whole,
            windows,
            positions,
            head_dim=self.head_dim,
            theta=config.rope_theta,
            style=config.rope_style,
            dtype=dtype,
            backend=choose_backend(config.attention, device, dtype, self.head_dim),
        )

    def _run(self, i: int, block: nn.Module, x: Tensor, packing: Packing) -> Tensor:
        every = self.config.recompute
        if every and i % every == 0 and torch.is_grad_enabled():
            found = checkpoint(block, x, packing, use_reentrant=False)
            assert isinstance(found, Tensor)
            return found
        return block(x, packing)


def init_weights(encoder: Encoder, seed: int) -> None:
    """Normal std ``init_std`` for linear maps, 0 biases, 1/0 norms, N(0, 1) probe, xavier-uniform
    for the pooling's in-projection; a function of ``seed`` alone, equal on every rank."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in encoder.named_parameters():
        value = torch.empty(parameter.shape)
        if name == "head.probe":
            value.normal_(generator=generator)
        elif name.endswith("bias"):
            value.zero_()
        elif value.ndim == 1:
            value.fill_(1.0)
        elif name == "head.attention.in_proj_weight":
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
