"""A stored random projection: features of F numbers -> ``width`` unit numbers, for memory.

    x -> L2(x @ signs), signs (F, width) of +1 and -1, each as likely

Random signs keep distances as a Gaussian matrix does (Achlioptas 2003): before the last L2, the
squared distance of two features, over the width, is right on average and has a relative standard
deviation of at most sqrt(2 / width), 4.4 % at 1,024. Unlike a Gaussian's or a QR's, their bits are
the same on every machine, so that tasks on different ones make the same store. They are drawn as a
function of (F, width) alone: k-means may be given another seed without new features. The store
keeps them as ``projection.npy``, int8, and the teacher's name their digest.

The product is L2-normalised: features of a frame-wise teacher lie on the unit sphere, where centers
may be held, and after a projection only its error would make one longer than another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from clustering.teachers import Features, Frames, Teacher
from ovtrain.distributed.context import seed_for
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.sample import Kind

FILE = "projection.npy"


class ProjectedTeacher:
    """Another teacher's features, projected."""

    def __init__(self, teacher: Teacher, width: int, device: str | None = None) -> None:
        if width >= teacher.width:
            raise ConfigError(
                f"projection={width}",
                f"features of {teacher.name} are {teacher.width} wide",
                allowed=f"1 to {teacher.width - 1}, or 0 for none",
            )
        self.teacher, self.width = teacher, width
        self.kind: Kind = teacher.kind
        signs = random_signs(teacher.width, width)
        digest = sha256(signs.tobytes()).hexdigest()[:12]
        self.name = f"{teacher.name}:projection{width}-{digest}"
        self.arrays: Mapping[str, npt.NDArray[Any]] = {**teacher.arrays, FILE: signs}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.matrix = torch.from_numpy(signs).to(self.device, torch.float32)

    def indices(self, frames: int) -> list[int] | None:
        return self.teacher.indices(frames)

    @torch.inference_mode()
    def features(self, samples: Sequence[Frames]) -> Features:
        whole = torch.from_numpy(self.teacher.features(samples)).to(self.device)
        return functional.normalize(whole @ self.matrix, dim=-1).cpu().numpy()


def random_signs(rows: int, width: int) -> npt.NDArray[np.int8]:
    """(rows, width) of +1 and -1, a function of its shape."""
    bits = np.random.Philox(key=seed_for(0, "projection", rows, width))
    drawn = np.frombuffer(bits.random_raw(-(-rows * width // 64)).astype("<u8").tobytes(), np.uint8)
    ones = np.unpackbits(drawn, count=rows * width).reshape(rows, width)
    return (2 * ones.astype(np.int8) - 1).astype(np.int8)
