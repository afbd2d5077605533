"""A maker of samples that does to its process what their names say. Workers import it: no torch."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from ovtrain.data.making import Gathered, Gatherer, Made, Maker, SampleTask

KEPT: list[np.ndarray] = []


def harm(task: SampleTask) -> None:
    if task.where.endswith("0001"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.where.endswith("0002"):
        time.sleep(60)
    if task.where.endswith("0003"):
        KEPT.append(np.ones(2**27))  # 1 GiB


class Harmful(Maker):
    def __call__(self, task: SampleTask) -> Made:
        harm(task)
        return super().__call__(task)


class HarmfulGatherer(Gatherer):
    def __call__(self, task: SampleTask) -> Gathered:
        harm(task)
        return super().__call__(task)
