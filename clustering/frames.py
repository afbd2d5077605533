"""A clip's feature from its frames' embeddings (paper section 3), for every teacher that looks at
one frame at a time:

    first ``keep`` numbers of each frame -> L2 -> concatenate -> L2

The released code keeps 512 of MetaCLIP-H/14's 1,024. An image is a clip of one frame, all of which
is kept. What is of length zero stays so. B samples, T frames, D embedding width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ovtrain.schema.errors import ConfigError


def join_frames(embedded: Tensor, keep: int) -> Tensor:
    """(B, T, D) -> (B, T * keep) float32, of length 1."""
    per_frame = functional.normalize(embedded[..., :keep].float(), dim=-1)
    return functional.normalize(per_frame.flatten(1), dim=-1)


def kept_of(frame_dims: int, width: int, where: str) -> int:
    """Numbers kept of each frame: ``frame_dims``, or all with 0. Raises ConfigError where a frame
    has no so many."""
    if frame_dims > width:
        raise ConfigError(
            f"frame_dims={frame_dims}",
            f"embeddings of {where} are {width} wide",
            allowed=f"0 (all) to {width}",
        )
    return frame_dims or width
