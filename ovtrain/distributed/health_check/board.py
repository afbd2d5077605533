"""Where ranks report without a process group: a key-value store that rank 0's process (or the
launcher's agent) serves. A rank that hangs or dies leaves there what it said last.
"""

# torch.distributed does not say of its stores that it exports them.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from ovtrain.distributed.health_check.verdict import Link, RankRow

READY, BROKEN, FINISHED, LEFT = "ready", "broken", "finished", "left"
"""Counters: ranks that measured all there is to measure alone; those of them that cannot go on to
the links; those that are through; those that have read the verdict."""


def connect(rank: int, port: int, *, serve: bool, timeout_s: float) -> TCPStore:
    """A connection of its own to the store. torchrun's agent serves it already."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ.get("MASTER_ADDR", "127.0.0.1"),
        port,
        is_master=serve and rank == 0 and not agent,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )


class Board:
    """One thread's connection: calls of a connection wait for one another."""

    def __init__(self, store: Store, rank: int) -> None:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"health-check-{attempt}", store)
        self._rank = rank

    def publish(self, row: RankRow, links: Sequence[Link] = ()) -> None:
        told = {"row": asdict(row), "links": [asdict(link) for link in links]}
        self._store.set(f"row/{self._rank}", json.dumps(told))

    def row(self, rank: int) -> tuple[RankRow, list[Link]] | None:
        """What a rank published last."""
        if (text := self._read(f"row/{rank}")) is None:
            return None
        told: Any = json.loads(text)
        return RankRow(**told["row"]), [Link(**link) for link in told["links"]]

    def count(self, name: str, more: int = 0) -> int:
        """A counter of all ranks, raised by ``more``."""
        return self._store.add(name, more)

    def beat(self) -> None:
        """Say that this process runs."""
        self._store.add(f"beat/{self._rank}", 1)

    def beats(self, ranks: int) -> list[int]:
        return [self._store.add(f"beat/{rank}", 0) for rank in range(ranks)]

    def announce(self, status: int) -> None:
        """The exit status of all ranks."""
        self._store.set("verdict", str(status))

    def announced(self) -> int | None:
        text = self._read("verdict")
        return None if text is None else int(text)

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None
