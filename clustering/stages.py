"""Stages of a clustering, and what they were made from: ``OUT/stages.json``, a stamp of each.

A stamp is a digest of everything that a stage's outputs depend on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ovtrain.distributed.collectives import barrier, broadcast_object
from ovtrain.distributed.context import World
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import LabelError

STAGES = "stages.json"


def stamp_of(**inputs: Any) -> str:
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Stages:
    out: Path
    world: World
    say: Callable[[str], None]

    def run(self, name: str, stamp: str, outputs: list[Path], make: Callable[[], str]) -> None:
        """Collective: run ``make`` unless its outputs are of these inputs. What it returns on the
        first rank is told: nothing, where others have still to do their share."""
        stamps = self._read()
        same = stamps.get(name) == stamp and all(output.is_file() for output in outputs)
        if broadcast_object(same, self.world.group):
            self.say(f"{name}: unchanged, skipped")
            return
        if self.world.is_main and stamps.pop(name, None):
            write_json(self.out / STAGES, stamps)  # one cut short must not pass for its former self
        start = time.monotonic()
        said = make()
        if self.world.is_main and said:
            write_json(self.out / STAGES, {**stamps, name: stamp})
        barrier(self.world.group)
        took = f"({time.monotonic() - start:.1f} s)"
        self.say(f"{name}: {said} {took}" if said else f"{name}: other tasks are not done yet")

    def needs(self, name: str, stamp: str) -> None:
        """Raise LabelError where the stage ``name`` has not been done for these inputs."""
        if self._read().get(name) != stamp:
            raise LabelError(
                str(self.out),
                f"no {name} of these shards and settings",
                fix=f"run the same command with --stage {name} first, or without --stage",
            )

    def _read(self) -> dict[str, str]:
        try:
            return json.loads((self.out / STAGES).read_text())
        except (OSError, ValueError):
            return {}  # none yet, or cut short: everything is made again
