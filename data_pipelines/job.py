"""One preparation: its inputs, its folder, its settings, and what each stage is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from data_pipelines.inventory.scan import Listing, scan
from data_pipelines.manifests import Manifest, Row
from data_pipelines.progress import Progress
from data_pipelines.stages import file_state, fingerprint
from data_pipelines.workers import Failure, Workers
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.versions import PIPELINE

WORK = ".work"
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
        """What names of media are relative to."""
        return self.source if self.source.is_dir() else self.source.parent

    def manifest(self, stage: str) -> Manifest:
        return Manifest(self.out, stage)

    def inventory_from(self) -> str:
        """What the inventory is made from: the files, and what is asked of them."""
        listing = self.listing
        states = [file_state(listing.folder / name) for name in listing.files]
        asked = [self.config.pictures, self.config.dedup.exact]
        return fingerprint(PIPELINE, states, sorted(listing.spans.items()), asked)

    def cuts_from(self, inventory: str) -> str:
        return fingerprint("cuts", inventory, self.config.scene_cuts)

    def plan_from(self, inventory: str) -> str:
        """What the plan and all behind it are made from; the number of workers changes nothing."""
        words = [file_state(path) for path in word_files(self.config.ocr.words)]
        settings = asdict(replace(self.config, workers=0))
        return fingerprint("plan", inventory, settings, words)

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
