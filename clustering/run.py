"""Shards -> features -> centers -> labels: ``python -m clustering.run SHARDS --out DIR``.

    [torchrun --nproc-per-node N -m] clustering.run SHARDS --out DIR [--config YAML]
        [--features DIR] [--centroids DIR] [--stage features|centers|labels] [--task I/N]
        [key=value ...]

writes ``DIR/features``, ``DIR/centroids``, ``DIR/labels`` (stores of ``ovtrain.schema``),
``DIR/convergence.jsonl`` (a row of each iteration), ``DIR/quality.json``, ``DIR/skipped.jsonl``
(one {"file", "reason"} per sample left out), ``DIR/settings.json`` and ``DIR/stages.json``. With
``--features`` a store made before is used, of another seed's run say; with ``--centroids`` no
centers are made: samples get labels from those (held-out data). ``--stage`` does one stage alone;
``--task`` the I-th of N shares of the feature pass, as in a SLURM array.

A stage whose inputs and settings are unchanged is not run again; one that was interrupted goes on.
Errors are one line on stderr, exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clustering.job import STAGE_NAMES, Clustering, Run
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.load import checked, find_config, load
from ovtrain.distributed.context import die_with_launcher, start_world, stop_world
from ovtrain.schema.errors import ConfigError, exit_status

LONGEST_S = 7 * 86_400
"""Ranks wait so long for each other: the first alone joins labels, parts of a pass end apart."""


def _say(line: str) -> None:
    print(line, flush=True)


def _task(text: str) -> tuple[int, int]:
    """``I/N``, I from 0 to N - 1."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise ConfigError(f"--task {text}", "not a share", allowed="I/N with I from 0 to N - 1")
    return int(first), int(count)


def run(job: Clustering, say: Callable[[str], None] = _say) -> None:
    """All stages of ``job``, in the world that the environment describes. Raises OvtrainError."""
    die_with_launcher()
    world = start_world(timeout_s=LONGEST_S)
    Run(job, world, say).all()
    stop_world()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m clustering.run")
    parser.add_argument("shards", type=Path, help="folder with manifest.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", help="YAML path, or a name under the shipped configs")
    parser.add_argument("--features", type=Path, help="a store of these shards; make none")
    parser.add_argument("--centroids", type=Path, help="assign to these centers, make none")
    parser.add_argument("--stage", choices=STAGE_NAMES, default="", help="only this stage")
    parser.add_argument("--task", metavar="I/N", help="a share of --stage features")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(arguments)

    def work() -> None:
        path = find_config(given.config) if given.config else None
        config = load(ClusterConfig, path, given.overrides)
        checked(str(path or "cluster config"), config)
        task = _task(given.task) if given.task else None
        if task and given.stage != "features":
            raise ConfigError(
                f"--task {given.task}", "a share of one stage", fix="--stage features"
            )
        for stage, name in (("centers", "centroids"), ("features", "features")):
            if given.stage == stage and getattr(given, name):
                found = f"with --{name} none are made"
                raise ConfigError(f"--stage {stage}", found, fix="leave one of them out")
        made = given.centroids, given.features
        run(Clustering(given.shards, given.out, config, *made, given.stage, task))

    return exit_status(work)


if __name__ == "__main__":
    status = main()
    # After an error the other ranks may wait in a collective: leave without the group's goodbye,
    # and torchrun ends them.
    os._exit(status) if status == 2 else sys.exit(status)
