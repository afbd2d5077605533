"""A maker of samples that does to its process what their names say. Workers import it: no torch."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from ovtrain.data.making import Made, Maker, SampleTask

KEPT: list[np.ndarray] = []


class Harmful(Maker):
    def __call__(self, task: SampleTask) -> Made:
        if task.where.endswith("0001"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if task.where.endswith("0002"):
            time.sleep(60)
        if task.where.endswith("0003"):
            KEPT.append(np.ones(2**27))  # 1 GiB
        return super().__call__(task)

    def __reduce__(self):
        return Harmful, (self.data,)
