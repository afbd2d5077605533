"""The encoder as ``transformers`` knows it: public names, public calls, the computation of
``ovtrain.models``. Every exported directory holds this module with all it uses in one file
(``remote_code``).

    model(pixel_values (B, 3, H, W) or (B, 3, T, H, W), visible_indices (B, N)?,
          patch_positions (B, N, 3)?, packed=None)
        -> last_hidden_state (B, N, D), pooler_output (B, D) or None

All patches in order (t, h, w) where no indices are given. ``visible_indices`` are flat indices
t * Hp * Wp + h * Wp + w of the virtual grid; ``patch_positions`` (t, h, w) replace their positions.
``packed=False``: the indices choose among the given patches. ``packed=True``: the given patches are
the chosen ones already, one per index. None: as the public code guesses, by their number; where as
many indices as patches come in another order, both could be meant, and that is an error.

H and W must be multiples of the patch side p; Hp = H / p, Wp = W / p.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ovtrain.export.public_config import OneVisionEncoderConfig
from ovtrain.models.attention import Attention, Packing, make_packing
from ovtrain.models.block import Block, make_norm
from ovtrain.models.packing import arrange, check_packed
from ovtrain.models.patch_embed import PatchEmbeddings, PatchProjection
from ovtrain.models.pooling import AttentivePooling, ProbeAttention
from ovtrain.ops.varlen_attention import Sequences, choose_backend
from ovtrain.schema.errors import InputError

BACKENDS = {None: "sdpa", "sdpa": "sdpa", "eager": "sdpa", "flash_attention_2": "flash"}
"""``attn_implementation`` -> ours. Eager is the reference, too: weights are never made."""


class SplitAttention(Attention):
    """Queries, keys and values from projections of their own."""

    def make_projections(self, width: int) -> None:
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1))
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        return torch.stack([q, k], 2), v


class OneVisionEncoderLayers(nn.Module):
    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # what gradient_checkpointing_enable sets
        self.layers = nn.ModuleList(
            Block(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.layer_norm_eps,
                norm=config.layer_norm_type,
                windowed=i in config.window_layers,
                attention=SplitAttention,
            )
            for i in range(config.num_hidden_layers)
        )

    def run(self, block: nn.Module, x: Tensor, packing: Packing) -> Tensor:
        """A block; recomputed where that is enabled, also behind frozen ones."""
        if not (self.gradient_checkpointing and self.training):
            return block(x, packing)
        found: Any = checkpoint(block, x, packing, use_reentrant=False)
        return found


class OneVisionEncoderModel(PreTrainedModel):
    config_class = OneVisionEncoderConfig
    base_model_prefix = "onevision_encoder"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True

    def __init__(self, config: OneVisionEncoderConfig) -> None:
        super().__init__(config)
        width, eps = config.hidden_size, config.layer_norm_eps
        heads, hidden = config.num_attention_heads, config.intermediate_size
        self.embeddings = PatchEmbeddings(width, config.patch_size)
        self.layernorm_pre = make_norm(config.layer_norm_type, width, eps)
        self.encoder = OneVisionEncoderLayers(config)
        self.layernorm_post = None
        self.head = None
        if config.use_head:
            self.layernorm_post = make_norm(config.layer_norm_type, width, eps)
            self.head = AttentivePooling(width, heads, hidden, eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | PatchProjection):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, AttentivePooling):
            nn.init.normal_(module.probe)
        elif isinstance(module, ProbeAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)

    def forward(
        self,
        pixel_values: Tensor,
        visible_indices: Tensor | None = None,
        patch_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        packed: bool | None = None,
    ) -> tuple[Any, ...] | BaseModelOutputWithPooling:
        """See the module. Raises InputError, a ValueError. Attention weights are never made."""
        config = self.config
        if output_attentions or (output_attentions is None and config.output_attentions):
            raise InputError("output_attentions", "True", allowed="False: weights are never made")
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        patches, positions = tokens_of(
            pixel_values,
            visible_indices,
            patch_positions,
            packed,
            patch=config.patch_size,
            frames=config.rope_temporal_size,
        )
        (count, length, _), device = patches.shape, patches.device
        samples = Sequences(
            torch.arange(count + 1, device=device, dtype=torch.int32) * length, length
        )
        patches, positions = patches.flatten(0, 1), positions.flatten(0, 1)
        rules = (config.patch_size, config.rope_temporal_size)
        check_packed(patches, positions, samples.bounds, length, None, *rules, everywhere=True)
        arranged = arrange(samples, None, positions[:, 0], config.window_frames)
        if arranged.order is not None:
            patches, positions = patches[arranged.order], positions[arranged.order]
        weight = self.embeddings.patch_embedding.weight
        wanted = BACKENDS.get(config._attn_implementation)
        if wanted is None:
            found = str(config._attn_implementation)
            allowed = ", ".join(name for name in BACKENDS if name)
            raise InputError("attn_implementation", found, allowed=allowed)
        head_dim = config.hidden_size // config.num_attention_heads
        packing = make_packing(
            arranged.whole,
            arranged.windows,
            positions,
            head_dim=head_dim,
            theta=config.rope_theta,
            style=config.rope_style,
            dtype=weight.dtype,
            backend=choose_backend(wanted, patches.device.type, weight.dtype, head_dim),
        )
        x = self.layernorm_pre(self.embeddings(patches.to(weight.dtype)))
        states = [x]
        for block in self.encoder.layers:
            x = self.encoder.run(block, x, packing)
            if output_hidden_states:
                states.append(x)
        pooled = None
        if self.layernorm_post is not None:
            x = self.layernorm_post(x)
        if self.head is not None:
            pooled = self.head(x, samples, packing.backend)
        shape = (count, length)
        tokens = arranged.restore(x).unflatten(0, shape)
        hidden = None
        if output_hidden_states:
            hidden = tuple(arranged.restore(state).unflatten(0, shape) for state in states)
        if return_dict is None:
            return_dict = getattr(config, "return_dict", True)
        if not return_dict:
            return (tokens, pooled) if hidden is None else (tokens, pooled, hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=pooled, hidden_states=hidden
        )


def tokens_of(
    pixel_values: Tensor,
    visible_indices: Tensor | None,
    patch_positions: Tensor | None,
    packed: bool | None,
    *,
    patch: int,
    frames: int | None,
) -> tuple[Tensor, Tensor]:
    """A public call -> patches (B, N, 3*p*p) and positions (B, N, 3). Raises InputError."""
    given, rows, columns = grid_of(pixel_values, patch)
    virtual = given if frames is None or pixel_values.ndim == 4 else frames
    shown = f"the grid of {virtual} frames of {rows} x {columns} patches"
    patches = patches_of(pixel_values, patch)
    count, total, _ = patches.shape
    if visible_indices is None:
        if packed is not None:
            raise InputError("packed", f"{packed} without visible_indices", allowed="None")
        flat = torch.arange(total, device=patches.device).expand(count, -1)
    else:
        flat = _indices(visible_indices, count).to(patches.device)
        most = max(given, virtual)  # frames given beyond the grid may be chosen with positions
        _in_range(
            flat, most * rows * columns, f"the grid of {most} frames of {rows} x {columns} patches"
        )
        if _chooses(flat, total, packed):
            _in_range(flat, total, "the patches given")
            patches = patches.gather(1, flat[..., None].expand(-1, -1, patches.shape[-1]))
    if patch_positions is None:
        if visible_indices is None and given > virtual:
            found = f"{given} frames"
            fix = "sample them, or give patch_positions"
            raise InputError("pixel_values", found, allowed=f"{virtual} at most", fix=fix)
        _in_range(flat, virtual * rows * columns, shown)
        t, rest = flat // (rows * columns), flat % (rows * columns)
        return patches, torch.stack([t, rest // columns, rest % columns], -1)
    wanted = (*patches.shape[:2], 3)
    if tuple(patch_positions.shape) != wanted:
        found = f"shape {tuple(patch_positions.shape)}"
        raise InputError("patch_positions", found, allowed=f"{wanted}, (t, h, w) per patch")
    return patches, patch_positions.to(patches.device)


def grid_of(pixel_values: Tensor, patch: int) -> tuple[int, int, int]:
    """(T, Hp, Wp) of (B, 3, H, W) or (B, 3, T, H, W). Raises InputError."""
    shape = tuple(pixel_values.shape)
    if len(shape) not in (4, 5) or shape[1] != 3 or not pixel_values.is_floating_point():
        allowed = "floats (B, 3, H, W) or (B, 3, T, H, W)"
        raise InputError("pixel_values", f"{pixel_values.dtype} {shape}", allowed=allowed)
    if 0 in shape:
        raise InputError("pixel_values", f"shape {shape}", allowed="nothing empty")
    for name, side in (("height", shape[-2]), ("width", shape[-1])):
        if side % patch:
            below = max(side // patch, 1) * patch
            raise InputError(
                f"picture {name}={side}",
                f"not a multiple of the patch side {patch}",
                fix=f"resize it to {below} or {below + patch}",
            )
    return shape[2] if len(shape) == 5 else 1, shape[-2] // patch, shape[-1] // patch


def patches_of(pixel_values: Tensor, patch: int) -> Tensor:
    """(B, 3, [T,] H, W) -> (B, T*Hp*Wp, 3*p*p), channel-major inside a patch."""
    if pixel_values.ndim == 4:
        pixel_values = pixel_values[:, :, None]
    x = pixel_values.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # B 3 T Hp p Wp p
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def _indices(visible_indices: Tensor, count: int) -> Tensor:
    shape = tuple(visible_indices.shape)
    if visible_indices.dtype == torch.bool:
        raise InputError("visible_indices", "a mask", allowed="indices", fix="use mask.nonzero()")
    if len(shape) != 2 or shape[0] != count or shape[1] < 1 or visible_indices.is_floating_point():
        found = f"{visible_indices.dtype} {shape}"
        raise InputError("visible_indices", found, allowed=f"integers ({count}, 1 or more)")
    return visible_indices.long()


def _chooses(flat: Tensor, total: int, packed: bool | None) -> bool:
    """Whether the indices choose among the patches given."""
    length = flat.shape[1]
    if packed and length != total:
        found = f"True with {length} indices for {total} patches"
        raise InputError("packed", found, allowed="as many patches as indices")
    if packed is not None or length != total:
        return not packed
    given = torch.arange(total, device=flat.device)
    if bool((flat == given).all()) or bool((flat >= total).any()):
        return False  # the order they have; or places that only the virtual grid has
    raise InputError(
        "visible_indices",
        f"{length} indices for as many patches, in another order",
        allowed="packed=True (the patches given are the chosen ones, in this order) or "
        "packed=False (choose among them)",
    )


def _in_range(flat: Tensor, end: int, what: str) -> None:
    outside = (flat < 0) | (flat >= end)
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise InputError(
            "visible_indices",
            f"{flat[row, column].item()} at [{row}, {column}]",
            allowed=f"0 to {end - 1}, {what}",
        )
