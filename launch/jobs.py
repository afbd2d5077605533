"""The batch jobs of a training run, and of each kind of job in a pipeline."""

from __future__ import annotations

from pathlib import Path

from launch.preflight import Findings, preflight
from launch.sbatch import Job, changed_site, gpu_options, log_pattern, shared_options
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.load import find_config, load, to_yaml
from ovtrain.config.pipeline import JobConfig
from ovtrain.config.prepare import PrepareConfig
from ovtrain.config.probe import ProbeConfig
from ovtrain.config.site import SiteConfig
from ovtrain.config.train import TrainConfig

PREPARE_STAGES = ("inventory", "cuts", "plan", "samples", "select", "shards", "finish")
"""Of ``data_pipelines.prepare``, in their order."""
MERGING = ("plan", "select", "finish")
"""Those that one task does."""
DEFAULTS = {"prepare": "prepare/default", "cluster": "cluster/video"}


def train_job(
    config: TrainConfig, site: SiteConfig, name: str = "", after: tuple[str, ...] = ()
) -> Job:
    """One training run; its resolved config is written beside it."""
    out = Path(config.run.out)
    resolved = out / "launch.yaml"
    options = shared_options(site, name or out.name, out)
    options |= gpu_options(site, site.nodes, site.gpus_per_node)
    options["signal"] = f"USR1@{site.warn_s}"
    text = {resolved: to_yaml(config)}
    return Job(name or out.name, "pretrain", (str(resolved),), options, out, site, text, after)


def check(config: TrainConfig, site: SiteConfig) -> Findings:
    """What is wrong with a training run on a site's nodes. Raises ConfigError."""
    gpu = site.gpu if site.gpus_per_node else ""
    return preflight(config, site.world, gpu, max(site.gpus_per_node, 1))


def jobs_of(
    name: str, job: JobConfig, site: SiteConfig, after: tuple[str, ...]
) -> tuple[list[Job], Findings]:
    """A pipeline's job as sbatch calls, the last of which is called ``name``, and what is wrong
    with it. ``after``: names of the calls that it waits for. Raises ConfigError."""
    site = changed_site(site, job.site, f"jobs.{name}.site")
    make = {"prepare": _prepare, "cluster": _cluster, "train": _train, "probe": _probe}
    return make[job.run](name, job, site, after)


def _train(
    name: str, job: JobConfig, site: SiteConfig, after: tuple[str, ...]
) -> tuple[list[Job], Findings]:
    config = load(TrainConfig, find_config(job.config), job.set)
    found = check(config, site)
    return [train_job(config, site, name, after)], found


def _probe(
    name: str, job: JobConfig, site: SiteConfig, after: tuple[str, ...]
) -> tuple[list[Job], Findings]:
    config = load(ProbeConfig, find_config(job.config) if job.config else None, job.set)
    out = Path(config.out)
    resolved = out / "probe.yaml"
    options = shared_options(site, name, out) | gpu_options(site, 1, min(site.gpus_per_node, 1))
    made = Job(
        *(name, "probe", (str(resolved),), options, out, site, {resolved: to_yaml(config)}, after)
    )
    return [made], Findings(config=config.problems())


def _prepare(
    name: str, job: JobConfig, site: SiteConfig, after: tuple[str, ...]
) -> tuple[list[Job], Findings]:
    config = job.config or DEFAULTS["prepare"]
    found = Findings(config=load(PrepareConfig, find_config(config), job.set).problems())
    if not after and not Path(job.source).exists():
        found.data.append(f"source {job.source}: no such file or folder")
    options = shared_options(site, name, Path(job.out), cpu=True)
    options |= {"cpus-per-task": str(site.cpu_cores)}
    words = (job.source, job.out, str(find_config(config)))
    if job.tasks == 1:
        whole = Job(name, "prepare", (*words, *job.set), options, Path(job.out), site, {}, after)
        return [whole], found
    made: list[Job] = []
    for stage in PREPARE_STAGES:
        called = name if stage == PREPARE_STAGES[-1] else f"{name}/{stage}"
        own = {**options, "job-name": f"{name}-{stage}"}
        if stage not in MERGING:
            own |= _array(job.tasks, Path(job.out))
        arguments = (*words, "--stage", stage, *job.set)
        made.append(Job(called, "prepare", arguments, own, Path(job.out), site, {}, after))
        after = (called,)
    return made, found


def _cluster(
    name: str, job: JobConfig, site: SiteConfig, after: tuple[str, ...]
) -> tuple[list[Job], Findings]:
    config = job.config or DEFAULTS["cluster"]
    found = Findings(config=load(ClusterConfig, find_config(config), job.set).problems())
    if not after and not Path(job.source).exists():
        found.data.append(f"source {job.source}: no such folder")
    out = Path(job.out)
    words = (job.source, job.out, str(find_config(config)))
    options = shared_options(site, name, out)
    made: list[Job] = []
    if job.tasks > 1:
        alone = gpu_options(site, 1, min(site.gpus_per_node, 1)) | {"exclusive": "", "mem": ""}
        first = f"{name}/features"
        own = {**options, **alone, **_array(job.tasks, out), "job-name": f"{name}-features"}
        arguments = (*words, "--stage", "features", *job.set)
        made.append(Job(first, "cluster", arguments, own, out, site, {}, after))
        after = (first,)
    whole = options | gpu_options(site, site.nodes, site.gpus_per_node) | {"ntasks-per-node": "1"}
    whole["cpus-per-task"] = str(site.cpus_per_gpu * site.local_ranks)
    made.append(Job(name, "cluster", (*words, *job.set), whole, out, site, {}, after))
    return made, found


def _array(tasks: int, out: Path) -> dict[str, str]:
    return {"array": f"0-{tasks - 1}", "output": log_pattern(out, "%A-%a")}
