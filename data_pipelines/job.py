"""One preparation: its inputs, its folder, its settings, and what each stage is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from data_pipelines.inventory.scan import Listing, scan
from data_pipelines.journal import Row, StageError
from data_pipelines.manifests import Manifest
from data_pipelines.progress import Progress
from data_pipelines.stages import file_state, fingerprint
from data_pipelines.workers import Failure, Workers
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import ConfigError, MediaError
from ovtrain.schema.versions import PIPELINE

WORK = ".work"
ORDER = ("inventory", "cuts", "plan", "samples", "select", "shards", "finish")
"""The stages, each of which reads those before."""
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """``source``: a folder or a list; ``exclude``: a folder that is not searched, by default
    ``out``; ``timeout_s``: per file."""

    source: Path
    out: Path
    config: PrepareConfig
    timeout_s: float
    exclude: Path | None = None

    @cached_property
    def listing(self) -> Listing:
        return scan(self.source, self.exclude or self.out, pictures=self.config.pictures)

    @property
    def folder(self) -> Path:
        """What names of media are relative to. Raises MediaError where the source is gone."""
        if self.source.is_dir():
            return self.source
        if not self.source.is_file():
            raise MediaError(str(self.source), "no such folder or .csv list")
        return self.source.parent

    def manifest(self, stage: str) -> Manifest:
        return Manifest(self.out, stage)

    def inventory_from(self) -> str:
        """What the inventory is made from: the files, and what is asked of them."""
        listing = self.listing
        states = [[name, *file_state(listing.folder / name)[1:]] for name in listing.files]
        asked = [self.config.pictures, self.config.dedup.exact]
        return fingerprint(PIPELINE, states, sorted(listing.spans.items()), asked)

    def made_from(self, stage: str) -> str:
        """What a stage's rows are made from: those of the stages before, and its settings. Raises
        StageError where those are not there."""
        if stage == "inventory":
            return self.inventory_from()
        before = {
            "cuts": ["inventory"],
            "plan": ["inventory", "cuts"] if self.config.scene_cuts else ["inventory"],
        }.get(stage, [ORDER[ORDER.index(stage) - 1]])
        rows = [[name, self._of(name), self.manifest(name).content()] for name in before]
        return fingerprint(stage, rows, self._settings(stage))

    def _of(self, stage: str) -> str:
        """What a stage that is there was made from, which must be what it would be made from now.
        Of the inventory it is taken as it is: the source is looked at by that stage alone."""
        found = self.manifest(stage).made_from()
        if stage != "inventory" and found != self.made_from(stage):
            raise StageError(
                str(self.manifest(stage).folder),
                "made from other files or settings than asked for now",
                fix=f"run --stage {stage} again, or give the settings it was run with",
            )
        return found

    def rows(self, stage: str) -> Iterator[Row]:
        """The rows of a stage, made from what is asked for now. Raises StageError."""
        self._of(stage)
        return self.manifest(stage).rows()

    def _settings(self, stage: str) -> list[object]:
        if stage == "cuts":
            return [self.config.scene_cuts]
        if stage != "plan":
            return []
        ocr = self.config.ocr
        read = [*word_files(ocr.words), *([Path(ocr.vocabulary)] if ocr.vocabulary else [])]
        # The number of workers changes nothing.
        return [asdict(replace(self.config, workers=0)), [file_state(path) for path in read]]

    def each(
        self,
        name: str,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        unit: str = "files",
    ) -> Iterator[tuple[int, Result | Failure]]:
        """Run ``tasks`` in the workers, with progress."""
        with (
            Workers(work, self.config.workers, self.timeout_s) as pool,
            Progress(name, len(tasks), unit) as progress,
        ):
            for found in pool.run(tasks):
                yield found
                progress.advance()


def skip(name: str, reason: str) -> Row:
    """A row of something that gives no sample."""
    return {"skipped": [[name, reason]]}


def word_files(words: str) -> list[Path]:
    """The .jsonl files that ``ocr.words`` names, sorted. Raises ConfigError where none is there."""
    path = Path(words)
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if words and not (found and all(one.is_file() for one in found)):
        allowed = "a .jsonl file or a folder of them"
        raise ConfigError(f"ocr.words={words}", "no such file", allowed=allowed)
    return found if words else []
