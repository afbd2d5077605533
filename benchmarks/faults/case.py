"""One run of the campaign: its folder, its data, its layout, its random moments, its starts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_pipelines.shards.writer import write_source
from ovtrain.data.shards import ShardReader
from ovtrain.observability.history import read_rows
from tests.helpers.damage import FRAMES, SIZE, payloads
from tests.helpers.shards import geometry, write_labels
from tests.helpers.training import base_config
from tests.helpers.world import train_command

from .fault import Fault
from .jobs import Command, Job, Zygote, children, descendants, lives
from .judge import reached
from .within import VARIABLE

LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp"},
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
}
STEPS, EVERY, PROCESSES = 20, 4, 2
RUN = {"steps": STEPS, "global_batch": 7, "micro_batch": 2, "checkpoint_every": EVERY, "keep": 3}
"""Seven samples on two ranks in micro-steps of two: no two hold equally many."""
GUARDS = {"step_timeout_s": 10.0, "save_timeout_s": 20.0}
SAMPLES, PER_SHARD, CLASSES = 24, 12, {"video": 40, "image": 23}
LOOK_S = 0.003
START_S = 1.5
"""Of a start that is disturbed before its first step: the moment lies in so many seconds."""
Damage = Callable[[str, int, dict[str, bytes]], dict[str, bytes]]


class Missed(Exception):
    """The run had ended before its moment came."""


def write_data(folder: Path, damage: Damage = lambda kind, number, given: given) -> None:
    """Shards and labels of both sources, as the product writes them."""
    for kind, classes in CLASSES.items():
        like = geometry(kind, FRAMES if kind == "video" else 1, SIZE)  # type: ignore[arg-type]
        samples = [(f"{kind}-{n:04d}", damage(kind, n, payloads(kind, n))) for n in range(SAMPLES)]
        manifest = write_source(folder / kind, like, samples, PER_SHARD)
        write_labels(folder / f"{kind}-labels", manifest, ShardReader(folder / kind).keys, classes)


class Site:
    """What all runs share: the zygote, sound data, undisturbed runs."""

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


class Case:
    """``facts``: what patterns name; ``hit``: when the fault came; ``when``: what it met."""

    def __init__(self, site: Site, fault: Fault, folder: Path, layout: str, seed: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.site, self.fault, self.folder, self.layout = site, fault, folder, layout
        self.random = random.Random(f"{fault.name} {seed}")
        self.data, self.out = site.data, folder / "run"
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(fault.settings)))
        self.hook: dict[str, Any] | None = None
        self.facts: dict[str, Any] = {}
        self.jobs: list[Job] = []
        self.others: list[Job] = []
        self.processes, self.hit, self.when = PROCESSES, 0.0, ""
        self.kept: dict[Path, bytes] = {}
        self.cleanups: list[Callable[[], None]] = []

    # Configs and starts

    @property
    def job(self) -> Job:
        return self.jobs[-1]

    @property
    def steps(self) -> int:
        return int(self.settings.get("steps", STEPS))

    def config(self, out: Path, **changed: Any) -> Path:
        """The config of this case, written for ``out``; keys of the sections run, guards, data."""
        asked = {**self.settings, **changed}
        guards = GUARDS | asked.pop("guards", {})
        data, optim = asked.pop("data", {}), asked.pop("optim", {})
        run = {**RUN, **LAYOUTS[self.layout], **asked, "out": str(out)}
        made = base_config(self.data, guards=guards, **run)
        made["data"] |= {"sample_timeout_s": 20.0, **data}
        made["optim"] |= optim
        path = out.with_suffix(".yaml")
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(made)))
        return path

    def start(self, config: Path | None = None, *, hooked: bool, **options: Any) -> Job:
        """Start the run (or ``config``) once more; ``hooked``: with the fault inside."""
        path = config or self.config(self.out)
        output = self.folder / f"output-{len(self.jobs) + len(self.others)}.txt"
        if self.fault.real:
            return Command(train_command(str(path), self.processes), output)
        env = {VARIABLE: json.dumps(self.hook)} if self.hook and hooked else {}
        given = {"processes": self.processes, **options}
        return self.site.zygote.start(path, output, env=env, **given)

    def reference(self) -> Path:
        """The run that nobody disturbs; one for all cases that are alike, where the data are."""
        lasting = self.fault.lasting
        alike = [self.layout, self.settings if lasting else {}, self.hook if lasting else None]
        name = sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()[:12]
        own = self.data != self.site.data
        folder = self.folder if own and lasting else self.site.folder / "undisturbed"
        out = folder / f"undisturbed-{name}"
        done = folder / f"{out.name}.done"
        if not done.exists():
            folder.mkdir(exist_ok=True)
            shutil.rmtree(out, ignore_errors=True)
            self._undisturbed(out, folder / f"{out.name}.txt", lasting=lasting)
            done.touch()
        return out

    def _undisturbed(self, out: Path, output: Path, *, lasting: bool) -> None:
        data, settings = self.data, self.settings
        if not lasting:
            self.data, self.settings = self.site.data, {}
        env = {VARIABLE: json.dumps(self.hook)} if self.hook and lasting else {}
        job = self.site.zygote.start(self.config(out), output, env=env)
        status = job.wait(120)
        self.data, self.settings = data, settings
        if status != 0:
            job.end()
            raise RuntimeError(f"an undisturbed run ended with {status}: {output}")

    # Moments

    def until(self, met: Callable[[], bool]) -> None:
        while not met():
            if self.job.poll() is not None:
                raise Missed
            time.sleep(LOOK_S)

    def checkpoints(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob("step-*"))

    def saving(self) -> bool:
        return any((self.out / "checkpoints").glob(".step-*.tmp"))

    def moment(
        self, *, early: bool = True, least: int = 1, most: int = STEPS, checkpoints: int = 0
    ) -> None:
        """Wait for a random one: of the start, of a save, or of the steps from ``least`` to
        ``most`` with so many checkpoints there; of the last steps none, in which a run might end
        before the fault. ``early``: the start counts."""
        self.until(lambda: len(self.job_ranks()) == self.processes)
        kind = self.random.random()
        if early and kind < 0.15:
            ends = time.monotonic() + self.random.uniform(0, START_S)
            self.until(lambda: time.monotonic() > ends)
        else:
            last = min(most, self.steps - EVERY * (2 if kind < 0.4 else 1))
            step = self.random.randint(least, max(least, last))
            self.until(lambda: reached(self.out) >= step and len(self.checkpoints()) >= checkpoints)
            if kind < 0.4:
                self.until(self.saving)
            time.sleep(self.random.uniform(0, 0.02 if kind < 0.4 else 0.06))
        self.note()

    def note(self) -> None:
        """The fault comes now."""
        self.hit = time.time()
        logged = bool(read_rows(self.out / "metrics.jsonl"))
        self.when = "saving" if self.saving() else "training" if logged else "starting"
        if self.job.poll() is not None:
            raise Missed

    def hook_at_step(self, name: str, *, least: int = 2, **arguments: Any) -> None:
        """A fault inside of a random rank at a random update (0-based ``step``)."""
        step = self.random.randint(least, self.steps - EVERY)
        rank = self.random.randrange(self.processes)
        self.hook = {"name": name, "rank": rank, "step": step, **arguments}
        self.facts |= {"rank": rank, "step": step, "update": step + 1}

    def met_at_step(self) -> None:
        """Of a hook: the fault comes with the row before its update."""
        step = int(str(self.facts["step"]))
        self.until(lambda: reached(self.out) >= step)
        self.hit, self.when = time.time(), "training"

    # Processes

    def job_ranks(self) -> dict[int, int]:
        if not self.fault.real:
            return self.job.ranks()
        found = {_rank_of(pid): pid for pid in reversed(descendants(self.job.pid))}
        found.pop(-1, None)
        return found

    def some_rank(self) -> int:
        """Pid of a random rank, which becomes a fact."""
        ranks = self.job_ranks()
        if not ranks:
            raise Missed
        rank = self.random.choice(sorted(ranks))
        self.facts["rank"] = rank
        return ranks[rank]

    def worker(self) -> int:
        """Pid of a random loader worker that is at work."""
        found = [w for pid in self.job_ranks().values() for w in children(pid) if _is_worker(w)]
        if not found:
            raise Missed
        return self.random.choice(sorted(found))

    def signal(self, pid: int, number: signal.Signals) -> None:
        """To a process of the run. Raises Missed where it has come to its end."""
        if not lives(pid):
            raise Missed
        os.kill(pid, number)

    # Files

    def own_data(self, damage: Damage | None = None) -> None:
        """Data of this case alone: a copy, or damaged before they were written."""
        self.data = self.folder / "data"
        if damage is None:
            shutil.copytree(self.site.data, self.data)
        else:
            write_data(self.data, damage)

    def keep(self, path: Path) -> bytes:
        """Remember a file, to be put back."""
        self.kept[path] = path.read_bytes()
        return self.kept[path]

    def put_back(self) -> None:
        for path, data in self.kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def go_back(self) -> None:
        """To the newest checkpoint from before any sample was lost; else the run begins anew."""
        for step in reversed(self.checkpoints()):
            if not json.loads((step / "state.json").read_text())["train"]["bad"]:
                (step.parent / "latest").write_text(step.name + "\n")
                return
        shutil.rmtree(self.out)

    def close(self) -> None:
        for job in (*self.jobs, *self.others):
            if job.poll() is None:
                job.end()
        for clean in reversed(self.cleanups):
            clean()


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"isolated" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _rank_of(pid: int) -> int:
    """RANK in a process's environment, -1 without one."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return -1
