"""A teacher without weights, and a task of a feature pass as a process of its own:

    python -m tests.unit.clustering.passes SHARDS FOLDER KILL_AFTER

``KILL_AFTER``: samples after which it kills itself. RANK of WORLD_SIZE, as torchrun sets them, says
which task it is.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from clustering.features import PassSettings, extract
from ovtrain.data.shards import ShardReader

SETTINGS = PassSettings(workers=2, batch=4, part_samples=10)


class MeanTeacher:
    """Mean colour, of which sums over a batch are a part: rows tell in what company they were made.
    Counts its samples and can be told to stop."""

    def __init__(self, kind="image", stop_after=10**9, name="mean", sign=signal.SIGINT):
        self.name, self.width, self.kind, self.arrays = name, 4, kind, {}
        self.seen, self.stop_after, self.sign = 0, stop_after, sign

    def indices(self, frames):
        return [0, frames - 1]

    def features(self, samples):
        if self.seen >= self.stop_after:
            if self.sign == signal.SIGINT:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.sign)
        self.seen += len(samples)
        means = np.stack([s.mean(axis=(0, 1, 2)) for s in samples]).astype(np.float32)
        return np.hstack([means, np.full((len(means), 1), means.sum(), np.float32)])


def main(shards, folder, kill_after):
    rank, size = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE"))
    teacher = MeanTeacher(stop_after=int(kill_after), sign=signal.SIGKILL)
    made = extract(
        ShardReader(shards), teacher, Path(folder), SETTINGS, task=rank, tasks=size, say=print
    )
    print("made", made is not None, teacher.seen)


if __name__ == "__main__":
    main(*sys.argv[1:])
