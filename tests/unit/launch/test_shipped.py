"""Every shipped config loads and is sound; sbatch arguments are golden."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli
from ovtrain.config import validate
from ovtrain.config.cluster import ClusterConfig
from ovtrain.config.demo import DemoConfig
from ovtrain.config.load import data_folder, load
from ovtrain.config.pipeline import PipelineConfig
from ovtrain.config.prepare import PrepareConfig
from ovtrain.config.probe import ProbeConfig
from ovtrain.config.site import SiteConfig
from ovtrain.config.train import TrainConfig

SCHEMAS = {
    "prepare": PrepareConfig,
    "cluster": ClusterConfig,
    "site": SiteConfig,
    "pipeline": PipelineConfig,
    "pretrain": TrainConfig,
}
CONFIGS = sorted(data_folder("configs").rglob("*.yaml"))


def schema_of(path: Path) -> type:
    if path.parent.name == "demo":
        return DemoConfig if path.stem == "demo" else TrainConfig
    return SCHEMAS[path.parent.name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_is_sound(path: Path):
    config = load(schema_of(path), path)
    found = validate.problems(config) if isinstance(config, TrainConfig) else config.problems()
    assert found == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_states_its_command(path: Path):
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert "command" in header
    if path.parent.name != "site":
        assert "expected" in header
        assert "hardware" in header


def test_the_demos_probe_settings_are_sound():
    config = load(DemoConfig, data_folder("configs") / "demo/demo.yaml")
    probe = load(ProbeConfig, None, config.probe_set)
    stage2 = load(TrainConfig, data_folder("configs") / f"{config.stage2}.yaml")
    assert (probe.token_budget, probe.chunks) == (stage2.data.token_budget, stage2.data.chunks)


@pytest.mark.parametrize("name", ["pretrain", "prepare", "cluster", "probe"])
def test_batch_scripts_parse(name: str):
    script = data_folder("slurm") / f"{name}.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


OUT = "runs/vitl14-stage1-224px"
SITES = {
    "example": [
        "--partition=gpu",
        "--time=24:00:00",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--signal=USR1@300",
    ],
    "gres": [
        "--partition=a100",
        "--account=vision",
        "--qos=long",
        "--constraint=ib",
        "--exclude=node[013,207]",
        "--time=2-00:00:00",
        "--nodes=4",
        "--ntasks-per-node=4",
        "--gres=gpu:a100:4",
        "--cpus-per-task=14",
        "--mem=480G",
        "--signal=USR1@600",
    ],
    "container": [
        "--partition=batch",
        "--account=lab-ovtrain",
        "--time=12:00:00",
        "--nodes=16",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=128",
        "--mem=0",
        "--exclusive",
        "--signal=USR1@300",
        "--comment=pretraining",
    ],
    "cpu": [
        "--time=01:00:00",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--signal=USR1@300",
    ],
}
SETUPS = {
    "example": [
        "export OVTRAIN_PYTHON=python",
        "export OVTRAIN_RESTARTS=3",
        "export NCCL_DEBUG=WARN",
        "module load cuda",
        "source .venv/bin/activate",
    ],
    "gres": [
        "export OVTRAIN_PYTHON=/shared/envs/ovtrain/bin/python",
        "export OVTRAIN_RESTARTS=3",
        "export NCCL_SOCKET_IFNAME=ib0",
    ],
    "container": [
        "export OVTRAIN_PYTHON=python",
        "export OVTRAIN_CONTAINER='apptainer exec --nv --bind /data,/runs /images/ovtrain.sif'",
        "export OVTRAIN_SRUN='--mpi=none --cpu-bind=none'",
        "export OVTRAIN_RESTARTS=5",
        "export NCCL_IB_HCA=mlx5_0,mlx5_1,mlx5_2,mlx5_3",
        "export NCCL_SOCKET_IFNAME=bond0",
        "export GLOO_SOCKET_IFNAME=bond0",
    ],
    "cpu": [
        f"export OVTRAIN_PYTHON={sys.executable}",
        "export OVTRAIN_RESTARTS=3",
        "export OVTRAIN_CHECK=0",
        "export OVTRAIN_NPROC=2",
        "export OMP_NUM_THREADS=1",
    ],
}


@pytest.mark.parametrize("site", SITES)
def test_sbatch_arguments(site, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["launch", "slurm", "pretrain/vitl14-stage1-224px", "--site", f"site/{site}"]
    assert cli.run([*call, "run.micro_batch=64", "--dry-run"]) == 0
    told = capsys.readouterr()
    command = shlex.split(told.out)
    shared = [
        f"--job-name={Path(OUT).name}",
        f"--output={OUT}/logs/slurm-%j.out",
        "--export=ALL",
    ]
    assert command.pop(0) == f"OVTRAIN_SETUP={OUT}/logs/setup.sh"
    assert command[0] == "sbatch"
    assert command[-2:] == [str(data_folder("slurm") / "pretrain.sbatch"), f"{OUT}/launch.yaml"]
    assert sorted(command[1:-2]) == sorted([*SITES[site], *shared])
    setup = told.err[told.err.index("# ") :].splitlines()
    assert setup == [f"# {OUT}/logs/setup.sh", *SETUPS[site]]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_fit_the_sites_gpus_is_refused(capsys):
    call = ["launch", "slurm", "pretrain/vitl14-stage1-224px", "--site", "site/example"]
    assert cli.run([*call, "--dry-run"]) == 2  # 16,384 samples on 16 GPUs
    error = capsys.readouterr().err
    assert "h100 has 80 GB" in error
    assert "run.micro_batch=" in error


def test_options_win_over_the_site(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["launch", "slurm", "pretrain/vitl14-stage1-224px", "--site", "site/example"]
    options = ["--nodes", "16", "--gpus-per-node", "4", "--partition", "big", "--time", "48:00:00"]
    assert cli.run([*call, *options, "run.micro_batch=64", "--dry-run"]) == 0
    command = shlex.split(capsys.readouterr().out)
    given = {"--nodes=16", "--gpus-per-node=4", "--partition=big", "--time=48:00:00"}
    assert given < set(command)
    assert "--cpus-per-task=48" in command


def test_a_batch_too_small_for_the_nodes_is_refused(capsys):
    call = ["launch", "slurm", "pretrain/debug-stage2", "--nodes", "4", "--dry-run"]
    assert cli.run(call) == 2
    assert "for 32 ranks" in capsys.readouterr().err


def script_call(
    name: str, *arguments: str, path: str = "/usr/bin:/bin", **environment: str
) -> subprocess.CompletedProcess[str]:
    """What a script would start, with a Python that only says how it was called."""
    script = data_folder("slurm") / f"{name}.sbatch"
    variables = {"PATH": path, "OVTRAIN_PYTHON": "echo", **environment}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_the_preparation_script_runs_everything_or_an_array_of_one_stage():
    alone = script_call("prepare", "in", "out", SLURM_CPUS_PER_TASK="16")
    call = "-m launch.cli prepare in --out out --config prepare/default workers=16"
    assert alone.stdout.strip() == call
    array = script_call(
        *("prepare", "in", "out", "mine.yaml", "--stage", "samples", "crf=20"),
        SLURM_ARRAY_TASK_ID="3",
    )
    call = "-m launch.cli prepare in --out out --config mine.yaml workers=2"
    assert array.stdout.strip() == f"{call} --stage samples crf=20"
    whole = script_call("prepare", "in", "out", SLURM_ARRAY_TASK_ID="3")
    assert whole.returncode == 2
    assert "an array does one stage" in whole.stderr
    assert script_call("prepare", "in").returncode != 0
    for words in (["--stage", "plan"], ["crf=20"]):
        found = script_call("prepare", "in", "out", *words).stdout.strip()
        call = "-m launch.cli prepare in --out out --config prepare/default workers=2"
        assert found == f"{call} {' '.join(words)}"


def test_the_clustering_script_runs_ranks_or_an_array_of_the_feature_pass(tmp_path: Path):
    variables = {
        *(("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_MIN", "4")),
        *(("SLURM_ARRAY_TASK_COUNT", "8"), ("SLURM_CPUS_PER_TASK", "16")),
    }
    words = ("in", "out", "cluster/image", "--stage", "features", "batch=64")
    array = script_call("cluster", *words, **dict(variables))
    call = "-m clustering.run in --out out --config cluster/image --task 3/8 workers=16"
    assert array.stdout.strip() == f"{call} --stage features batch=64"
    whole = script_call("cluster", "in", "out", **dict(variables))
    assert whole.returncode == 2
    assert "an array shares the feature pass" in whole.stderr
    for tool, said in (("srun", 'shift; exec "$@"'), ("scontrol", "echo NodeAddr=10.0.0.1 x")):
        (tmp_path / tool).write_text(f"#!/bin/bash\n{said}\n")
        (tmp_path / tool).chmod(0o755)
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "4", "SLURM_NODEID": "1"}
    ranks = script_call(
        *("cluster", "in", "out", "top=5"), path=f"{tmp_path}:/usr/bin:/bin",
        SLURM_CPUS_PER_TASK="16", SLURM_GPUS_ON_NODE="8", SLURM_JOB_NODELIST="n[1-4]", **job,
    )  # fmt: skip
    call = "-m torch.distributed.run --nnodes 4 --node-rank 1 --nproc-per-node 8"
    assert ranks.stdout.strip() == (
        f"{call} --master-addr 10.0.0.1 --master-port 20012 -m clustering.run in --out out "
        "--config cluster/video workers=2 top=5"
    )


def test_launching_here_is_training(capsys):
    words = ["pretrain/debug-stage1", "--nproc", "2", "--dry-run", "--allow-missing-data"]
    assert cli.run(["train", *words]) == 0
    trained = capsys.readouterr().out
    assert cli.run(["launch", "local", *words]) == 0
    assert capsys.readouterr().out == trained
    assert "100 steps of 16 samples on 2 ranks" in trained
