"""A pipeline file becomes a chain of batch jobs: ``ovtrain launch slurm pipeline.yaml``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch.jobs import jobs_of
from launch.preflight import Findings
from launch.sbatch import Job, folder_problems, show, submit
from ovtrain.config.load import checked, find_config, load
from ovtrain.config.pipeline import PipelineConfig
from ovtrain.config.site import SiteConfig
from ovtrain.schema.atomic import write_json
from ovtrain.schema.errors import ConfigError

IDS = "jobs.json"


def is_pipeline(name: str) -> bool:
    """Whether a config file lists jobs, as opposed to being a training config."""
    try:
        found = OmegaConf.load(find_config(name))
    except (OmegaConfBaseException, YAMLError):
        return False  # reading it as a config tells what is wrong with it
    return "jobs" in found


def load_pipeline(name: str, overrides: Sequence[str]) -> PipelineConfig:
    """Raises ConfigError."""
    pipeline = load(PipelineConfig, find_config(name), overrides)
    checked(name, pipeline)
    return pipeline


def plan_jobs(pipeline: PipelineConfig, site: SiteConfig) -> tuple[list[Job], Findings]:
    """All sbatch calls, each behind those that it waits for, and all that is wrong with any.

    What a job reads may be made by one before it: only jobs that wait for none need their data.
    """
    calls: list[Job] = []
    found = Findings()
    for name in pipeline.order():
        job = pipeline.job(name)
        try:
            made, own = jobs_of(name, job, site, tuple(job.after))
        except ConfigError as error:
            found.config.append(f"jobs.{name}: {error}")
            continue
        calls += made
        found.config += [f"jobs.{name}: {text}" for text in own.config]
        if not job.after:
            found.data += [f"jobs.{name}: {text}" for text in own.data]
    found.data += folder_problems(calls)
    return calls, found


def launch(name: str, pipeline: PipelineConfig, site: SiteConfig, *, dry_run: bool) -> int:
    """Print the calls, or submit them and keep their ids in ``{root}/jobs.json``."""
    calls, found = plan_jobs(pipeline, site)
    found.check(name, allow_missing_data=dry_run)
    if dry_run:
        for problem in found.data:
            click.echo(f"not found yet  {problem}", err=True)
        show(calls)
        return 0
    ids = submit(calls)
    write_json(Path(pipeline.root) / IDS, {"submitted": time.time(), "jobs": ids})
    return 0
