"""The embedded default data: generated HEVC clips whose class is their motion.

    python -m data_pipelines.synthetic --out DIR --seed 0 --train-clips 768 --heldout-clips 320

writes ``DIR/train/*.mp4``, ``DIR/heldout/*.mp4`` and ``DIR/classes.json`` ({"classes": [names],
"labels": {file stem: class index}}). Classes are balanced, their order is shuffled, stems say
nothing. Files depend on the arguments alone, not on the number of workers; files that are already
there are kept when ``DIR/synthetic.json`` repeats the arguments. Frames are ``size`` x ``size``
pixels at 30 frames a second. Raises ConfigError on sizes the encoder cannot take.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data_pipelines.encode import HevcSettings, encode_clip
from data_pipelines.motions import CLASSES
from data_pipelines.scenes import Planes, animate, draw_scene, render
from data_pipelines.stages import read_stage, write_stage
from ovtrain.schema.atomic import atomic_open, write_json
from ovtrain.schema.errors import ConfigError, exit_status
from ovtrain.schema.versions import GENERATOR

SPLITS = ("train", "heldout")
"""Position = texture family: the two splits share no texture."""
FPS = Fraction(30)
STAMP = "synthetic.json"
FIRST_SEED = 20_000_000
"""Offset of the label-shuffling seed, out of the way of clip numbers."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Clips per split, side in pixels (a multiple of 8), frames per clip."""

    seed: int = 0
    train_clips: int = 768
    heldout_clips: int = 320
    size: int = 112
    frames: int = 64
    preset: str = "veryfast"

    def check(self) -> None:
        """Raise ConfigError where a value cannot be used."""
        if self.size < 64 or self.size % 8:
            raise ConfigError(f"size={self.size}", allowed="a multiple of 8 from 64 on")
        if self.frames < 16:
            raise ConfigError(f"frames={self.frames}", allowed="16 or more")
        if min(self.seed, self.train_clips, self.heldout_clips) < 0:
            raise ConfigError("seed and clip counts", "negative", allowed="0 or more")

    def clips(self, split: str) -> int:
        return self.train_clips if split == "train" else self.heldout_clips


def stem(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


def labels_of(config: SyntheticConfig, split: str) -> list[int]:
    """Class of each clip: as balanced as the count allows, in shuffled order."""
    order = np.random.default_rng([config.seed, FIRST_SEED, SPLITS.index(split)])
    return order.permutation(np.arange(config.clips(split)) % len(CLASSES)).tolist()


def draw_clip(config: SyntheticConfig, split: str, index: int, label: int) -> Planes:
    """(T, H * 3 / 2, W) uint8 frames of one clip. The scene depends on all but ``label``."""
    family = SPLITS.index(split)
    seed = (config.seed, family, index)
    scene = draw_scene(seed, config.size, family)
    return render(scene, animate(scene, CLASSES[label], seed, config.frames))


def write_clip(config: SyntheticConfig, out: Path, task: tuple[str, int, int]) -> None:
    """Draw, encode and write one clip. ``task``: split, index, label."""
    split, index, label = task
    frames = draw_clip(config, split, index, label)
    payload = encode_clip(frames, FPS, HevcSettings(preset=config.preset))
    with atomic_open(_path(out, split, index)) as handle:
        handle.write(payload)


def _path(out: Path, split: str, index: int) -> Path:
    return out / split / f"{stem(split, index)}.mp4"


def generate(config: SyntheticConfig, out: Path, workers: int) -> int:
    """Write all clips that are missing and ``classes.json``; return how many were written."""
    config.check()
    arguments = {"generator": GENERATOR, **asdict(config)}
    labels = {split: labels_of(config, split) for split in SPLITS}
    wanted = {
        _path(out, split, index): (split, index, label)
        for split in SPLITS
        for index, label in enumerate(labels[split])
    }
    if read_stage(out / STAMP) != arguments:
        _remove_clips(out, keep=set())
        # Stamped before the first clip, so that an interrupted run is continued, not restarted.
        write_stage(out / STAMP, arguments)
    _remove_clips(out, keep=set(wanted))
    tasks = [task for path, task in wanted.items() if not path.exists()]
    for done in _run(partial(write_clip, config, out), tasks, workers):
        if done % 100 == 0:
            print(f"generated {done} of {len(tasks)} clips", flush=True)
    named = {stem(s, i): label for s in SPLITS for i, label in enumerate(labels[s])}
    write_json(out / "classes.json", {"classes": list(CLASSES), "labels": named})
    return len(tasks)


def _remove_clips(out: Path, keep: set[Path]) -> None:
    """Remove generated clips that belong to other arguments; nothing else is touched."""
    for split in SPLITS:
        for path in (out / split).glob(f"{split}-??????.mp4"):
            if path not in keep:
                path.unlink()


def _run(work: partial[None], tasks: list[tuple[str, int, int]], workers: int) -> Iterator[int]:
    """Do ``tasks``, in processes of their own where ``workers`` > 1; yield how many are done."""
    if workers <= 1 or len(tasks) < 8:
        for done, task in enumerate(tasks, 1):
            work(task)
            yield done
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(work, tasks, chunksize=8), 1):
            yield done


def main(argv: list[str] | None = None) -> int:
    """Command line of the generator; exit status 2 on an error of the user."""
    defaults = SyntheticConfig()
    parser = argparse.ArgumentParser(prog="data_pipelines.synthetic", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args(argv))
    out, workers = given.pop("out"), given.pop("workers")
    config = SyntheticConfig(**given)

    def work() -> None:
        written = generate(config, out, workers)
        total = config.train_clips + config.heldout_clips
        print(f"{total} clips of {len(CLASSES)} classes in {out} ({written} written now)")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
