"""What one ``ovtrain cluster`` wrote: its numbers, settings and stores. Absent files read as empty;
only the labels must be there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clustering.agreement import overlap
from ovtrain.observability.history import Row, read_object, read_rows
from ovtrain.schema.atomic import file_sha256
from ovtrain.schema.errors import LabelError
from ovtrain.schema.labels import STORE


@dataclass(frozen=True)
class Folder:
    """``out`` of one run; ``name`` tells it from the others on the page."""

    out: Path
    name: str

    def check(self) -> None:
        """Raises LabelError where it holds no labels."""
        if not (self.labels / STORE).is_file():
            fix = "name a folder that `ovtrain cluster` wrote"
            raise LabelError(str(self.out), "holds no labels", fix=fix)

    @property
    def labels(self) -> Path:
        return self.out / "labels"

    @cached_property
    def quality(self) -> Row:
        return read_object(self.out / "quality.json") or {}

    @cached_property
    def settings(self) -> Row:
        return read_object(self.out / "settings.json") or {}

    @property
    def config(self) -> Row:
        found = self.settings.get("config")
        return found if isinstance(found, dict) else {}

    @cached_property
    def convergence(self) -> list[Row]:
        return read_rows(self.out / "convergence.jsonl")

    @cached_property
    def centers(self) -> str:
        """Digest of the centers that the labels name, "" where they are not at hand."""
        folder = Path(str(self.settings.get("centroids") or self.out / "centroids"))
        path = folder / "centroids.npy"
        return file_sha256(path) if path.is_file() else ""

    def overlap(self, other: Folder) -> Row:
        """Agreement of the labels of both. Raises LabelError."""
        same = bool(self.centers) and self.centers == other.centers
        return overlap(self.labels, other.labels, same_centers=same)


def named(paths: list[Path]) -> list[Folder]:
    """Folders under as few of the last parts of their paths as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return [Folder(path, "/".join(part[-depth:])) for path, part in zip(paths, parts, strict=True)]
