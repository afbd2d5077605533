"""Makers of samples that do harm to their process. Workers import this: no torch."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from ovtrain.data.making import Gathered, Gatherer, Made, Maker, SampleTask
from ovtrain.schema.sample import MEMBERS

KEPT: list[object] = []
MARK = b"harm:"


def hang() -> NoReturn:
    time.sleep(3600)
    raise AssertionError


def spin() -> NoReturn:
    while True:
        pass


def grow(*_: object) -> NoReturn:
    while True:
        KEPT.append(np.ones(2**21))  # 16 MiB


def grow_outside_of_python(*_: object) -> None:
    while True:
        KEPT.append(mapped := mmap.mmap(-1, 2**24, mmap.MAP_PRIVATE))
        mapped.write(bytes(2**24))


def deny() -> NoReturn:
    raise KeyError("a defect of the decoder's binding")


HARMS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "floating-point": lambda: os.kill(os.getpid(), signal.SIGFPE),
    "exit": lambda: os._exit(0),
    "system-exit": lambda: sys.exit(3),
    "hang": hang,
    "spin": spin,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "grow": grow,
    "grow-outside": grow_outside_of_python,
    "defect": deny,
}


def harm(task: SampleTask) -> None:
    if task.where.endswith("000000.tar#1"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.where.endswith("000000.tar#2"):
        time.sleep(60)
    if task.where.endswith("000000.tar#3"):
        KEPT.append(np.ones(2**27))  # 1 GiB


class Harmful(Maker):
    """Rows 1 to 3 of the first shard crash, hang and swell."""

    def __call__(self, task: SampleTask) -> Made:
        harm(task)
        return super().__call__(task)


class HarmedByPayload(Maker):
    """A decoder that does to its process what the payload says."""

    def __call__(self, task: SampleTask) -> Made:
        media = task.members[MEMBERS[task.kind][0]]
        if media.size < 64 and media.offset:
            payload = self.files.read(media, task.where)
            if payload.startswith(MARK):
                HARMS[payload.removeprefix(MARK).decode()]()
        return super().__call__(task)


class HarmfulGatherer(Gatherer):
    def __call__(self, task: SampleTask) -> Gathered:
        harm(task)
        return super().__call__(task)
