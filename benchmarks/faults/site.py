"""What the campaign's runs share: their layouts, their settings, their data, undisturbed ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.shards.writer import write_source
from ovtrain.data.shards import ShardReader
from tests.helpers.damage import FRAMES, SIZE, payloads
from tests.helpers.shards import geometry, write_labels

from .jobs import Zygote

TENSOR = "tensor 2"
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp"},
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    TENSOR: {"tensor_parallel": 2, "zero_stage": 1},
}
STEPS, EVERY, PROCESSES = 20, 4, 2
RUN = {"steps": STEPS, "global_batch": 7, "micro_batch": 2, "checkpoint_every": EVERY, "keep": 3}
"""Seven samples on two ranks in micro-steps of two: no two hold equally many."""
GUARDS = {"step_timeout_s": 10.0, "save_timeout_s": 20.0}
SAMPLES, PER_SHARD, CLASSES = 24, 12, {"video": 40, "image": 23}
Damage = Callable[[str, int, dict[str, bytes]], dict[str, bytes]]


def write_data(folder: Path, damage: Damage = lambda kind, number, given: given) -> None:
    """Shards and labels of both sources, as the product writes them."""
    for kind, classes in CLASSES.items():
        like = geometry(kind, FRAMES if kind == "video" else 1, SIZE)  # type: ignore[arg-type]
        samples = [(f"{kind}-{n:04d}", damage(kind, n, payloads(kind, n))) for n in range(SAMPLES)]
        manifest = write_source(folder / kind, like, samples, PER_SHARD)
        write_labels(folder / f"{kind}-labels", manifest, ShardReader(folder / kind).keys, classes)


class Site:
    """The zygote, sound data; undisturbed runs lie in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        if not self.data.exists():
            whole = folder / ".data"
            shutil.rmtree(whole, ignore_errors=True)
            write_data(whole)
            whole.rename(self.data)
        self.zygote = Zygote()

    def close(self) -> None:
        self.zygote.close()
