"""Shared 3D rotary positions, T:H:W = 4:6:6 (paper section 2.5).

half = head_dim / 2 frequencies: three eighths each for h and w, rounded (a half to even), the rest
for t: exactly 4:6:6 where 16 divides half, 12:20:20 for heads of 104. On each axis
inv_freq_i = theta ** (-i / n_axis). Tables are computed once per batch, in float32 (float64 for an
encoder in float64), and take the type of q and k before the product.

``rotary``   pairs (2i, 2i+1) share one angle: a true, shift-invariant rotation (default).
``released`` the public code's: element j turns by angle f[j mod half], which is not a rotation;
             for weights of the public release only.

N tokens, H heads, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovtrain.schema.errors import ConfigError

LEAST, STEP = 16, 8
"""Head sizes that can be split are multiples of 8 from 16 on."""


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Frequencies per axis (t, h, w). Raises ConfigError for what is too small or odd to split."""
    if head_dim < LEAST or head_dim % STEP:
        raise ConfigError(
            f"head_dim={head_dim}",
            "cannot be split about 4:6:6",
            allowed=f"multiples of {STEP} from {LEAST} on",
            fix="use 64",
        )
    half = head_dim // 2
    side = round(half * 3 / 8)
    return half - 2 * side, side, side


def rope_tables(
    positions: Tensor, head_dim: int, theta: float, style: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(N, 3) positions -> cos, sin (N, 1, d) ``dtype``, one column per element of q and k."""
    angles: list[Tensor] = []
    for axis, count in enumerate(axis_sizes(head_dim)):
        steps = torch.arange(count, device=positions.device, dtype=dtype) / count
        angles.append(positions[:, axis, None].to(dtype) * (1.0 / theta**steps))
    half = torch.cat(angles, dim=-1)  # (N, d/2)
    full = torch.cat([half, half], -1) if style == "released" else half.repeat_interleave(2, -1)
    return full.cos()[:, None], full.sin()[:, None]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, ..., d) -> x * cos + rot(x) * sin, rot: (x0, x1, ...) -> (-x1, x0, ...). Tables of any
    float type, on any device, that broadcast to x."""
    # The sign goes to the table, which all heads share: half the time of turning q and k.
    sin = torch.stack([-sin[..., 0::2], sin[..., 1::2]], -1).flatten(-2).to(x)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos.to(x) + swapped * sin
