"""Pipeline file: jobs that wait for one another, from raw media to a probed encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ovtrain.config.load import overlay
from ovtrain.config.rules import POSITIVE, broken, not_among

NEEDS = {
    "prepare": ("source", "out"),
    "cluster": ("source", "out"),
    "train": ("config",),
    "probe": (),
}
"""What a job can run, and the keys that it cannot do without."""
IN_TASKS = ("prepare", "cluster")
"""Jobs that can be divided over the tasks of an array."""


@dataclass(frozen=True)
class JobConfig:
    """run      prepare, cluster, train or probe
    source   prepare: raw media or a .csv list; cluster: shards
    out      prepare: folder of shards; cluster: folder of labels; train and probe: their config's
    config   a path or a shipped name
    set      key=value overrides of that config
    tasks    of an array: the stages of prepare, the feature pass of cluster
    after    names of jobs that must have ended well before this one starts
    site     what differs for this job from the site's values
    """

    run: str = ""
    source: str = ""
    out: str = ""
    config: str = ""
    set: list[str] = field(default_factory=list[str])
    tasks: int = 1
    after: list[str] = field(default_factory=list[str])
    site: dict[str, Any] = field(default_factory=dict[str, Any])

    def problems(self) -> list[str]:
        found = not_among(self, "", {"run": tuple(NEEDS)}) + broken(
            self, "", {POSITIVE: ("tasks",)}
        )
        missing = [key for key in NEEDS.get(self.run, ()) if not getattr(self, key)]
        found += [f"{key} is empty; run={self.run} needs it" for key in missing]
        if self.tasks > 1 and self.run not in IN_TASKS:
            found.append(f"tasks={self.tasks}; run={self.run} is one job: allowed: 1")
        return found


@dataclass(frozen=True)
class PipelineConfig:
    """``root``: where the jobs' ids are kept (``jobs.json``); other values may refer to it as
    ``${root}``. ``site``: a site file; the command line's wins."""

    root: str = ""
    site: str = ""
    jobs: dict[str, Any] = field(default_factory=dict[str, Any])

    def job(self, name: str) -> JobConfig:
        """Raises ConfigError."""
        return overlay(JobConfig(), self.jobs[name], f"jobs.{name}")

    def problems(self) -> list[str]:
        found = [] if self.root else ["root is empty; name a folder"]
        if not self.jobs:
            found.append("jobs is empty; name at least one")
        for name in self.jobs:
            job = self.job(name)
            found += [f"jobs.{name}: {text}" for text in job.problems()]
            unknown = [other for other in job.after if other not in self.jobs]
            found += [f"jobs.{name}: after names {x}, no job here" for x in unknown]
        return found or self._circles()

    def _circles(self) -> list[str]:
        circle = sorted(self.jobs.keys() - set(self.order()))
        return [f"jobs {', '.join(circle)} wait for one another"] if circle else []

    def order(self) -> list[str]:
        """Names, each behind those that it waits for; what waits in a circle is left out."""
        done: list[str] = []
        left = list(self.jobs)
        while ready := [x for x in left if set(self.job(x).after) <= set(done)]:
            done += ready
            left = [name for name in left if name not in ready]
        return done
