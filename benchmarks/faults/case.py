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
from typing import Any, NoReturn

from omegaconf import OmegaConf

from tests.helpers.training import base_config
from tests.helpers.world import train_command

from .fault import FINISHED, Fault
from .jobs import Command, Job, children, descendants, is_worker, lives, rank_of
from .judge import due, firsts, reached
from .site import EVERY, GUARDS, LAYOUTS, PROCESSES, RUN, STEPS, Damage, Site, write_data
from .within import VARIABLE

LOOK_S = 0.003
START_S = 1.5
"""Of a start that is disturbed before its first step: the moment lies in so many seconds."""
REFERENCE_S = 120.0


class Missed(Exception):
    """The start ended by itself, or hung, before its moment came; ``status`` None: it hung."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Unsound(Exception):
    """An undisturbed run did not train to the end; ``status`` None: it hung."""

    def __init__(self, status: int | None, shown: str) -> None:
        super().__init__(f"the undisturbed run ended with status {status}: {shown}")
        self.status = status


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
        self.passing: list[Path] = []

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

    def begin(self, *, hooked: bool, **options: Any) -> None:
        """The run's next start: where it has to go on is noted before."""
        must = due(self.out)
        self.jobs.append(self.start(hooked=hooked, **options))
        self.job.due = must

    def look(self) -> None:
        """Note how far the newest start came, which has ended: a later one cuts off what it wrote,
        and what is done in between may remove it."""
        job = self.job
        job.firsts, job.last = firsts(self.out, job.began), reached(self.out, job.began)

    def start(self, *, hooked: bool, **options: Any) -> Job:
        """The same command; ``hooked``: with the fault inside."""
        began = time.time()
        job = self._started(hooked=hooked, **options)
        job.began = began
        return job

    def _started(self, *, hooked: bool, **options: Any) -> Job:
        path = self.config(self.out)
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
        status = job.wait(REFERENCE_S)
        self.data, self.settings = data, settings
        if status != FINISHED:
            job.end()
            raise Unsound(status, job.shown()[-1500:])

    # Moments

    def until(self, met: Callable[[], bool]) -> None:
        """Raises Missed where the start ends before, or takes longer than the fault allows."""
        ends = time.monotonic() + self.fault.bound_s
        while not met():
            status = self.job.poll()
            if status is not None or time.monotonic() > ends:
                if met():  # while the status was asked for
                    return
                raise Missed(status)
            time.sleep(LOOK_S)

    def over(self) -> NoReturn:
        """What was to be disturbed has gone: how the start ends says whether it may."""
        raise Missed(self.job.wait(self.fault.bound_s))

    def reached(self) -> int:
        """The last step that this start has logged."""
        return reached(self.out, self.job.began)

    def checkpoints(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob("step-*"))

    def saving(self) -> bool:
        """Whether this start is: what a killed one left is older."""
        for path in (self.out / "checkpoints").glob(".step-*.tmp"):
            with suppress(FileNotFoundError):  # it has its name
                if path.stat().st_mtime > self.job.began:
                    return True
        return False

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
            self.until(lambda: self.reached() >= step and len(self.checkpoints()) >= checkpoints)
            if kind < 0.4:
                self.until(self.saving)
            time.sleep(self.random.uniform(0, 0.02 if kind < 0.4 else 0.06))
        self.note()
        if self.job.poll() is not None:
            self.over()

    def note(self) -> None:
        """The fault comes now."""
        self.hit, logged = time.time(), self.reached() > 0
        self.when = "saving" if self.saving() else "training" if logged else "starting"

    def hook_at_step(self, name: str, *, least: int = 2, **arguments: Any) -> None:
        """A fault inside of a random rank at a random update (0-based ``step``)."""
        step = self.random.randint(least, self.steps - EVERY)
        rank = self.random.randrange(self.processes)
        self.hook = {"name": name, "rank": rank, "step": step, **arguments}
        self.facts |= {"rank": rank, "step": step, "update": step + 1}

    def met_at_step(self) -> None:
        """Of a hook: the fault comes with the row before its update, and may be over at once."""
        step = int(str(self.facts["step"]))
        self.until(lambda: self.reached() >= step or self.job.poll() is not None)
        self.hit, self.when = time.time(), "training"

    # Processes

    def job_ranks(self) -> dict[int, int]:
        if not self.fault.real:
            return self.job.ranks()
        found = {rank_of(pid): pid for pid in reversed(descendants(self.job.pid))}
        found.pop(-1, None)
        return found

    def some_rank(self) -> int:
        """Pid of a random rank, which becomes a fact."""
        ranks = self.job_ranks()
        if not ranks:
            self.over()
        rank = self.random.choice(sorted(ranks))
        self.facts["rank"] = rank
        return ranks[rank]

    def worker(self) -> int:
        """Pid of a random loader worker that is at work."""
        found = [w for pid in self.job_ranks().values() for w in children(pid) if is_worker(w)]
        if not found:
            self.over()
        return self.random.choice(sorted(found))

    def signal(self, pid: int, number: signal.Signals) -> None:
        """To a process of the run. Raises Missed where it has come to its end."""
        if not lives(pid):
            self.over()
        os.kill(pid, number)

    def kill(self) -> None:
        """Everything of the run at once, as a lost node is. Raises Missed where it had ended."""
        self.job.end()
        self.look()
        if (status := self.job.poll()) != -signal.SIGKILL:
            raise Missed(status)

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

    def close(self, *, keep: bool) -> None:
        """``keep``: what lies in ``passing`` is evidence, and stays in the folder ``kept``."""
        for job in (*self.jobs, *self.others):
            if job.poll() is None:
                job.end()
        for path in self.passing:
            if keep and path.exists():
                shutil.copytree(path, self.folder / "kept" / path.name)
        for clean in reversed(self.cleanups):
            clean()
