"""Pictures <-> patches, and normalisation on the device.

A patch is channel-major (c, y, x): 3*p*p numbers, the layout of the public patch-embedding weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise_patches(patches: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, 3*p*p) uint8 -> (N, 3*p*p) ``dtype``, CLIP mean and std per channel."""
    pixels = patches.shape[1] // 3
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    scale = (1 / (255 * std)).repeat_interleave(pixels).to(patches.device)
    shift = (-mean / std).repeat_interleave(pixels).to(patches.device)
    return torch.addcmul(shift, patches.float(), scale).to(dtype)
