"""Stages of a clustering, and what they were made from: ``OUT/stages.json``, a stamp of each.

A stamp is a digest of everything that a stage's outputs depend on.
"""

from __future__ import annotations

import json
import shutil
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


def read_record(path: Path) -> Any:
    """What a run has left to go on with; None where it has left nothing.

    Such files are written whole. LabelError where one is damaged, OSError where it cannot be read:
    a fault of the disk must not pass for a fresh start, which would throw work away.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        fix = f"remove {path.parent} to begin anew, or restore the file"
        raise LabelError(str(path), f"damaged ({error})", fix=fix) from error


@dataclass(frozen=True)
class Stages:
    out: Path
    world: World
    say: Callable[[str], None]

    def run(self, name: str, stamp: str, outputs: list[Path], make: Callable[[], str]) -> None:
        """Collective: run ``make`` unless its outputs are of these inputs. What it returns on the
        first rank is told: nothing, where others have still to do their share."""
        stamps = self._read()
        same = stamps.get(name) == stamp and self.world.is_main  # which alone looks at the files
        same = same and all(output.is_file() for output in outputs)
        if broadcast_object(same, self.world.group):
            self.say(f"{name}: unchanged, skipped")
            return
        if self.world.is_main and stamps.pop(name, None):
            write_json(self.out / STAGES, stamps)  # one cut short must not pass for its former self
        start = time.monotonic()
        said = broadcast_object(make(), self.world.group)
        if self.world.is_main and said:
            write_json(self.out / STAGES, {**stamps, name: stamp})
        barrier(self.world.group)
        took = f"({time.monotonic() - start:.1f} s)"
        self.say(f"{name}: {said} {took}" if said else f"{name}: other tasks are not done yet")

    def drop(self, name: str) -> None:
        """Of a stage that is done, what it would have gone on with: not before ``stages.json`` says
        so, since what is half removed can neither be gone on with nor replaced."""
        if self.world.is_main:
            shutil.rmtree(self.out / name, ignore_errors=True)

    def needs(self, name: str, stamp: str) -> None:
        """Collective. LabelError where stage ``name`` has not been done for these inputs."""
        there = self._read().get(name) == stamp
        if not broadcast_object(there, self.world.group):
            raise LabelError(
                str(self.out),
                f"no {name} of these shards and settings",
                fix=f"run the same command with --stage {name} first, or without --stage",
            )

    def _read(self) -> dict[str, str]:
        return read_record(self.out / STAGES) or {}
