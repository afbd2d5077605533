"""When to save, who writes what, and how a run finds its way back.

Whatever has state registers as a ``Part``. A save copies this rank's state into memory that was set
aside for it and goes on training; a thread writes the copy. A checkpoint counts when every rank
has written its files: rank 0 then gives the directory its name. All randomness of a run is a
function of (seed, role, counter), so the step and the samples consumed are the whole of it: no
generator state is saved.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from threading import Thread
from typing import Any

from ovtrain.checkpoint import storage
from ovtrain.checkpoint.snapshot import Snapshot
from ovtrain.checkpoint.state import Files, Part
from ovtrain.checkpoint.tensor_files import write_tensors
from ovtrain.distributed.collectives import gather_objects
from ovtrain.distributed.comm_time import CLOCK
from ovtrain.distributed.context import World, side_group
from ovtrain.schema.errors import CheckpointError

log = logging.getLogger(__name__)


class Checkpoints:
    """``every`` steps one is due; the newest ``keep`` stay, and those of every ``keep_every``-th
    step (0: none). ``background``: the loop goes on while a copy is written.

    Any failure to save is raised, at the latest by the next save: no run goes on unsaved.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, Part],
        world: World,
        *,
        every: int,
        keep: int,
        keep_every: int = 0,
        background: bool = True,
    ) -> None:
        self.folder, self.parts, self.world = folder, parts, world
        self.every, self.keep, self.keep_every = every, keep, keep_every
        self.background = background
        self.saved_step = -1
        self._stalled = 0.0
        self._refused: set[str] = set()
        self._snapshot = Snapshot()
        self._group = side_group(world)
        self._writing: Future[None] | None = None

    def due(self, step: int, *, final: bool) -> bool:
        """Whether ``step`` is to be saved and has not been yet."""
        return step != self.saved_step and (final or step % self.every == 0)

    def reserve(self) -> None:
        """Set aside the memory of all copies."""
        if self.background:
            size = self._snapshot.reserve(self._files())
            log.info("%.1f MiB per rank set aside for checkpoints", size / 2**20)

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write a step directory (whole on return where not in the background)."""
        began = time.perf_counter()
        self.wait()
        state = json.loads(json.dumps(state | {"world_size": self.world.size}))
        files = self._files()
        if self.background:
            copies = self._snapshot.take(files)
            self._writing = _started(lambda: self._write(state, copies))
        else:
            self._write(state, files)
        self.saved_step = state["step"]
        self._stalled += time.perf_counter() - began

    def read_stall_ms(self) -> float:
        """How long saves have kept the loop waiting since the last call."""
        stalled, self._stalled = self._stalled, 0.0
        return 1e3 * stalled

    def busy(self) -> bool:
        """Whether a copy is being written."""
        return self._writing is not None and not self._writing.done()

    def poll(self) -> None:
        """Raise the failure of a save that has ended meanwhile."""
        if not self.busy():
            self.wait()

    def wait(self) -> None:
        """Until what was begun is on disk. Raises CheckpointError where it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def settle(self, seconds: float = 60.0) -> None:
        """Give what was begun the time to get to disk, whatever else has failed."""
        if self._writing is not None:
            failed = _outcome(self._writing, seconds)
            if failed is not None:
                log.warning("the checkpoint that was being written is lost: %s", failed)

    def _files(self) -> Files:
        return {name: t for part in self.parts.values() for name, t in part.files().items()}

    def _write(self, state: dict[str, Any], files: Files) -> None:
        """Collective over ``_group``, which nothing else uses."""
        began = time.perf_counter()
        final = self.folder / storage.step_name(state["step"])
        temp = self.folder / f".{final.name}.tmp"
        entries: storage.Entries = {}

        def write() -> None:
            for name, tensors in files.items():
                entries[name] = write_tensors(temp / name, tensors)

        def seal() -> None:
            storage.seal(temp, final, state, written)
            self._prune(state["step"])

        self._agree(final, temp, self._attempt(lambda: storage.begin(temp), main=True))
        written = self._agree(final, temp, self._attempt(write), entries)
        self._agree(final, temp, self._attempt(seal, main=True))
        log.info("saved %s in %.1f s", final, time.perf_counter() - began)

    def _prune(self, newest: int) -> None:
        """An old checkpoint that does not go (on NFS while somebody reads it) harms no new one."""
        self._refused.discard(storage.step_name(newest))
        try:
            storage.prune(self.folder, self.keep, newest, self.keep_every, self._refused)
        except OSError as error:
            log.warning("could not delete old checkpoints: %s", error)

    def _attempt(self, work: Callable[[], None], *, main: bool = False) -> str:
        """What went wrong, or nothing; ``main``: work of rank 0 alone."""
        try:
            if self.world.is_main or not main:
                work()
        except OSError as error:
            return f"{error.strerror or error} ({error.filename or self.folder})"
        except Exception as error:  # noqa: BLE001 (the other ranks wait to be told; then all raise it)
            return f"{type(error).__name__}: {error}"
        return ""

    def _agree(
        self, final: Path, temp: Path, failure: str, entries: storage.Entries | None = None
    ) -> storage.Entries:
        """All ranks' entries; one error for all of them where one rank failed."""
        told = gather_objects((failure, entries or {}), self._group)
        failures = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(told) if text]
        if not failures:
            return {name: entry for _, own in told for name, entry in own.items()}
        if self.world.is_main:
            shutil.rmtree(temp, ignore_errors=True)
        free = shutil.disk_usage(self.folder).free if self.folder.is_dir() else 0
        raise CheckpointError(
            str(final),
            f"could not be saved: {'; '.join(failures[:4])}; {free / 2**20:,.0f} MiB free",
            fix="make room or lower run.keep; older checkpoints are as they were, and the same "
            "command resumes from the newest",
        )

    def resume(self) -> dict[str, Any] | None:
        """Load the newest sound checkpoint into the parts; its state, or None for a fresh run.

        Collective. One that is damaged or not whole is refused by name and the one before it taken.
        Raises CheckpointError where there are checkpoints and none is sound, or all are gone.
        """
        refused = list[str]()
        tried = storage.candidates(self.folder) if self.world.is_main else []
        names = [path.name for path in tried]
        for name in gather_objects(names, self.world.group)[0]:
            folder = self.folder / name
            found = self._faults(folder)
            if not found:
                return self._load(folder, refused)
            self._refused.add(name)
            refused.append(f"{folder}: {'; '.join(found[:4])}")
            log.warning("refused %s", refused[-1])
        if refused or self._names_one():
            reasons = " | ".join(refused) or f"{storage.LATEST} names one, but there is none"
            raise CheckpointError(
                str(self.folder),
                f"no checkpoint is sound: {reasons}",
                fix="put a sound step directory back, or start another run.out",
            )
        return None

    def _names_one(self) -> bool:
        """Collective: whether checkpoints were here once."""
        told = self.world.is_main and (self.folder / storage.LATEST).exists()
        return gather_objects(told, self.world.group)[0]

    def _faults(self, folder: Path) -> list[str]:
        """Collective: what is wrong with a step directory. Each rank reads its share of it."""
        own = list[str]()
        try:
            entries = sorted(storage.read_manifest(folder).items())
            own = storage.faults(folder, dict(entries[self.world.rank :: self.world.size]))
        except CheckpointError as error:
            own = [str(error)] if self.world.is_main else ["cannot be read"]
        told = gather_objects(own, self.world.group)
        return [fault for part in told for fault in part]

    def _load(self, folder: Path, refused: list[str]) -> dict[str, Any]:
        state = storage.read_state(folder)
        for part in self.parts.values():
            part.load(folder)
        self.saved_step = state["step"]
        instead = f" instead of {len(refused)} refused" if refused else ""
        log.info("resumed from %s%s", folder, instead)
        return state


def _outcome(writing: Future[None], seconds: float) -> BaseException | None:
    try:
        return writing.exception(seconds)
    except FutureTimeout as error:
        return error


def _started(work: Callable[[], None]) -> Future[None]:
    """``work`` in a thread that does not keep a process alive: after an error elsewhere the other
    ranks, which it waits for, may be gone."""
    result: Future[None] = Future()

    def run() -> None:
        try:
            with CLOCK.uncounted():
                result.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            result.set_exception(error)

    Thread(target=run, name="checkpoint", daemon=True).start()
    return result
