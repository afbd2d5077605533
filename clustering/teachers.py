"""Teachers: what turns decoded frames into the features that are clustered.

A teacher sees pixels only: never class names, file names or how the data was made. Its ``name``
tells one feature space from another (weights, preprocessing, frames, numbers kept of each, random
projection) and is written into every store made with it.

Shape legend: T frames, H x W pixels, B samples, F the teacher's width.
Paper section 3: 8 uniformly sampled frames, MetaCLIP-H/14.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ovtrain.config.cluster import ClusterConfig
from ovtrain.schema.atomic import atomic_open, file_sha256
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.sample import Kind

FIX = "copy the teacher's folder again, or save it anew"

Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


class Teacher(Protocol):
    """A feature space. One thread at a time calls ``features``; others may ask for the rest."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """What features were made with and is drawn at random, by the file name under which a
        store keeps it."""
        ...

    def indices(self, frames: int) -> list[int] | None:
        """Frames of a clip of ``frames`` that are to be decoded; None = all."""
        ...

    def features(self, samples: Sequence[Frames]) -> Features:
        """B arrays (T, H, W, 3) uint8 RGB -> (B, F) float32; an image has T = 1."""
        ...


def open_teacher(config: ClusterConfig, kind: Kind, device: str | None = None) -> Teacher:
    """The teacher a config names, on ``device`` (None: this process's GPU where it has one). Raises
    ConfigError, or CheckpointError for an export, where its weights are missing or do not fit."""
    teacher = _open(config, kind, device)
    if not config.projection:
        return teacher
    from clustering.projection import ProjectedTeacher

    return ProjectedTeacher(teacher, config.projection, device)


def _open(config: ClusterConfig, kind: Kind, device: str | None) -> Teacher:
    if config.teacher == "clip":
        from clustering.clip import ClipTeacher

        return ClipTeacher(config.teacher_dir, kind, config.frames, config.frame_dims, device)
    if config.teacher == "ovtrain":
        from clustering.exported import ExportTeacher

        return ExportTeacher(config.teacher_dir, kind, config.frames, device)
    from clustering.descriptor import DescriptorTeacher

    return DescriptorTeacher(kind, config.workers)


def store_files(teacher: Teacher, folder: Path) -> dict[str, str]:
    """Have a teacher's arrays in ``folder``; hex digests by file name."""
    digests = dict[str, str]()
    for name, array in teacher.arrays.items():
        data = io.BytesIO()
        np.save(data, array)
        digests[name] = sha256(data.getbuffer()).hexdigest()
        path = folder / name
        if not path.is_file() or file_sha256(path) != digests[name]:
            with atomic_open(path) as handle:
                handle.write(data.getbuffer())
    return digests


def files_digest(paths: Iterable[Path]) -> str:
    """Short digest of files' bytes: all of them, since weights that were trained on share their
    beginning with those that they came from."""
    return sha256("".join(map(file_sha256, paths)).encode()).hexdigest()[:12]


def read_json(path: Path) -> dict[str, Any]:
    """An object of a teacher's folder. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(str(path), "missing", fix=FIX)
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"unreadable ({error})", fix=FIX) from error
    if not isinstance(value, dict):
        raise ConfigError(str(path), "not a JSON object", fix=FIX)
    return value


def uniform_indices(total: int, count: int) -> list[int]:
    """Middle frame of each of ``count`` equal spans of ``total`` frames."""
    return [int((i + 0.5) * total / count) for i in range(count)]
