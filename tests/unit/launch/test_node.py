"""The ranks of a node: started at their places, ended together, the first failure named."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.failures import Failure, failures, record_failure
from launch.node import _parse as parse  # pyright: ignore[reportPrivateUsage]
from launch.places import Place, interface_towards, place_of, rank_environment, slurm_place
from ovtrain.schema.errors import ConfigError
from ovtrain.schema.status import SAVED

SUPERVISOR = """
import os, sys
from pathlib import Path
from launch.node import Node
from launch.places import Place
node = Node(Place(2, 3, 0, 6, 2, "127.0.0.1", 29500), Path(sys.argv[1]), sys.argv[3], sys.stdout)
sys.exit(node.run([sys.executable, "-u", "-c", sys.argv[2]], os.environ))
"""
RANK = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
def sleep_until_asked(status):
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: asked.append(1))
    print("ready", flush=True)
    while not asked:
        time.sleep(0.02)
    print("12:00:00 saved", flush=True)
    return status
"""


def start(out: Path, work: str, attempt: str = "") -> subprocess.Popen[str]:
    """A supervisor of ranks 2, 3 and 4 of 6, each of which does ``work``."""
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(out), RANK + work, attempt],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(supervisor: subprocess.Popen[str]) -> tuple[int, str]:
    told, _ = supervisor.communicate(timeout=30)
    return supervisor.returncode, told


def said(out: Path, rank: int) -> str:
    path = out / "logs" / f"rank-{rank:05d}.out"
    return path.read_text() if path.exists() else ""


def wait_until_ready(out: Path) -> None:
    ends = time.monotonic() + 20
    while not all("ready" in said(out, rank) for rank in (2, 3, 4)):
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_ranks_know_their_places(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    work = f"print(*(os.environ[name] for name in {names}))"
    assert ended(start(tmp_path, work)) == (0, "")  # only rank 0 shows what is no line of a log
    for rank in (2, 3, 4):
        assert said(tmp_path, rank).split() == [str(rank), str(rank - 2), "6", "127.0.0.1", "29500"]


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path):
    began = time.monotonic()
    work = "os.kill(os.getpid(), 9) if rank == 3 else time.sleep(60)"
    status, told = ended(start(tmp_path, work))
    assert time.monotonic() - began < 10
    assert status == 1
    assert told.splitlines()[0].startswith("error: rank 3 on ")
    assert "killed by signal 9 (SIGKILL)" in told


def test_a_disk_that_is_full_does_not_hide_the_cause(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-00003.out").symlink_to("/dev/full")
    work = """
time.sleep(0 if rank == 3 else 60)
print('x' * 99999, 'error: no space', sep='\\n')
sys.exit(2)
"""
    status, told = ended(start(tmp_path, work))
    assert status == 2
    assert ": no space" in told.splitlines()[0]


def test_only_the_first_traceback_is_shown(tmp_path):
    work = """
print(f"12:00:00 rank {rank} begins", flush=True)
if rank != 4: time.sleep(0.5); raise RuntimeError("Connection closed by peer")
time.sleep(0.1)
raise KeyError("the cause")
"""
    status, told = ended(start(tmp_path, work, "9.0"))
    assert status == 1
    assert sorted(told.splitlines()) == [f"12:00:00 rank {rank} begins" for rank in (2, 3, 4)]
    (failure,) = failures(tmp_path, "9.0")
    assert (failure.rank, failure.why) == (4, "KeyError: 'the cause'")
    assert "Traceback (most recent call last):" in failure.text[0]
    assert "Connection closed" not in "".join(failure.text)


def test_an_input_error_has_its_own_status(tmp_path):
    work = "if rank == 2: print('error: run.steps=0'); sys.exit(2)\ntime.sleep(60)"
    assert ended(start(tmp_path, work, "9.0"))[0] == 2
    assert failures(tmp_path, "9.0")[0].kind == "input_error"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_has_all_ranks_save_once(tmp_path, number):
    supervisor = start(tmp_path, "sys.exit(sleep_until_asked(75))")
    wait_until_ready(tmp_path)
    supervisor.send_signal(number)
    supervisor.send_signal(number)
    status, told = ended(supervisor)
    assert status == 75
    assert told == "12:00:00 saved\n" * 3


def test_a_warning_that_comes_while_ranks_start_ends_them_politely(tmp_path):
    supervisor = start(tmp_path, "print('ready', flush=True); time.sleep(60)", "9.0")
    wait_until_ready(tmp_path)
    supervisor.send_signal(signal.SIGUSR1)
    assert ended(supervisor)[0] == 75
    assert failures(tmp_path, "9.0")[0].kind == "stopped"


def test_a_hung_step_is_a_failure_not_a_save(tmp_path):
    work = "sys.exit(75) if rank == 4 else time.sleep(60)"
    assert ended(start(tmp_path, work, "9.0"))[0] == 1
    assert "a step hung" in failures(tmp_path, "9.0")[0].why
    assert "rank 2, 3 did not end" in failures(tmp_path, "9.0")[0].why


def test_a_step_that_hung_names_the_rank_that_did_not_end(tmp_path):
    work = "time.sleep(60 if rank == 3 else rank / 10)\nsys.exit(75)"
    assert ended(start(tmp_path, work, "9.0"))[0] == 1
    assert failures(tmp_path, "9.0")[0].why.endswith(
        "rank 3 did not end, and may be what the others wait for"
    )


def test_a_signal_to_a_rank_alone_is_not_taken_for_a_step_that_hung(tmp_path):
    work = f"""
print("{SAVED}", flush=True)
sys.exit(75)
"""
    assert ended(start(tmp_path, work, "9.0"))[0] == 1
    why = failures(tmp_path, "9.0")[0].why
    assert why == f"a rank, not the launcher, was sent a signal; all {SAVED}"


@pytest.mark.parametrize("limit", ["VERDICT_S", "CHECK_S"])
def test_a_rank_that_hangs_in_the_check_does_not_hold_the_verdict_up(tmp_path, limit):
    set_limit = f"import launch.node as n; n.{limit} = 3; node = "
    supervisor = SUPERVISOR.replace("node = ", set_limit)
    supervisor = supervisor.replace("os.environ)", "os.environ, check=True)")
    others = "sys.exit(76)" if limit == "VERDICT_S" else "time.sleep(60)"
    ranks = RANK + f"time.sleep(60) if rank == 3 else {others}"
    command = [sys.executable, "-c", supervisor, str(tmp_path), ranks, ""]
    assert subprocess.run(command, timeout=20, check=False).returncode == 76


def test_a_failure_on_another_node_ends_this_one(tmp_path):
    supervisor = start(tmp_path, "print('ready', flush=True); time.sleep(60)", "9.1")
    wait_until_ready(tmp_path)
    record_failure(tmp_path, "9.0", Failure.of_rank(0, "elsewhere", -9, []))  # an earlier start's
    time.sleep(1)
    assert supervisor.poll() is None
    record_failure(tmp_path, "9.1", Failure.of_rank(0, "elsewhere", -9, []))
    began = time.monotonic()
    assert ended(supervisor)[0] == 1
    assert time.monotonic() - began < 5


SLURM = {
    **{"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
    **{"SLURM_LOCALID": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "20007"},
}


def test_a_task_per_node_starts_its_ranks_and_a_task_per_gpu_starts_one():
    eight = slurm_place(SLURM | {"SLURM_GPUS_ON_NODE": "8"})
    assert eight == Place(8, 8, 0, 16, 2, "10.0.0.1", 20007)
    chosen = slurm_place(SLURM | {"SLURM_GPUS_ON_NODE": "8", "OVTRAIN_NPROC": "2"})
    assert (chosen.first, chosen.count, chosen.world) == (2, 2, 4)
    each = SLURM | {"SLURM_NTASKS": "16", "SLURM_PROCID": "13", "SLURM_LOCALID": "5"}
    one = slurm_place(each | {"SLURM_GPUS_ON_NODE": "8"})
    assert one == Place(13, 1, 5, 16, 2, "10.0.0.1", 20007)
    assert one.environment(13)["LOCAL_RANK"] == "5"


def test_places_are_given_wholly_or_not_at_all():
    options = ["--nodes", "3", "--node-rank", "2", "--nproc", "4", "--master", "10.0.0.1:29500"]
    place = place_of(parse(["c.yaml", *options]), {})
    assert place == Place(8, 4, 0, 12, 3, "10.0.0.1", 29500)
    with pytest.raises(ConfigError, match="only some given"):
        place_of(parse(["c.yaml", "--nodes", "3"]), {})
    with pytest.raises(ConfigError, match="no port"):
        place_of(parse(["c.yaml", *options[:-1], "10.0.0.1"]), {})
    with pytest.raises(ConfigError, match=r"SLURM_NNODES: not set.*srun"):
        place_of(parse(["c.yaml"]), {})


def test_gloo_is_told_the_interface_by_which_ranks_meet():
    place = Place(0, 2, 0, 2, 1, "127.0.0.1", 1)
    assert interface_towards("127.0.0.1") == "lo"
    assert rank_environment(place, {})["GLOO_SOCKET_IFNAME"] == "lo"
    assert rank_environment(place, {"GLOO_SOCKET_IFNAME": "ib0"})["GLOO_SOCKET_IFNAME"] == "ib0"
    assert interface_towards("no.such.host.invalid") == ""
    assert interface_towards("localhost") == ""  # other hosts would not find this one there
