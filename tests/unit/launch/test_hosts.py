"""Several hosts as one job: reached through a stand-in for ssh that runs everything here."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import fleet
from launch.commands.hosts import hosts as command_line
from launch.fleet import Fleet, Member
from launch.hosts import Hosts, passed_env, read_hosts, run_on_hosts
from launch.processes import Outcome
from ovtrain.schema.errors import ConfigError
from tests.helpers.training import write_config
from tests.helpers.world import ROOT, environment

SLEEP = "import time; print('ready'); time.sleep(60)"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch) -> list[str]:
    """``ssh HOST COMMAND``, that notes both and runs the command here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "ssh"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nshift\nexec bash -c "$1"\n')
    script.chmod(0o755)
    return [str(script)]


@pytest.fixture
def start(ssh: list[str]):
    """A fleet of hosts a, b, ... that run the given Python programs; its lines."""

    def make(*programs: str, env: dict[str, str] | None = None) -> tuple[Fleet, list[str]]:
        hosts = Hosts("abcd"[: len(programs)], 1, ssh, env={"PYTHONUNBUFFERED": "1", **(env or {})})
        lines: list[str] = []
        jobs = hosts.jobs(lambda i, _: [sys.executable, "-c", programs[i]], "a:1")
        return Fleet(jobs, lines.append), lines

    return make


def test_all_hosts_run_here_with_their_variables_and_their_lines_come_back(start, tmp_path):
    said = "import os; print(os.getcwd(), os.environ['OVTRAIN_HOST'], os.environ['TOKEN'])"
    job, lines = start(said, said, env={"TOKEN": "a 'secret'"})
    assert job.run() == Outcome(0)
    here = os.getcwd()
    assert sorted(lines) == [f"[{h}] {here} {h} a 'secret'" for h in "ab"]
    assert "secret" not in (tmp_path / "calls").read_text()


def test_the_first_failing_host_is_named_and_ends_the_others_within_seconds(start):
    begin = time.monotonic()
    job, lines = start(SLEEP, "print('error: no shards here'); raise SystemExit(2)", SLEEP)
    outcome = job.run()
    assert (outcome.status, outcome.error) == (2, "host b: no shards here")
    assert time.monotonic() - begin < 15
    assert "[b] error: no shards here" in lines


def test_ranks_that_do_not_listen_are_killed(start, monkeypatch):
    monkeypatch.setattr(fleet, "GRACE_S", 0.5)
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    begin = time.monotonic()
    job, _ = start(deaf, "import time; time.sleep(1); raise SystemExit(7)")
    outcome = job.run()
    assert (outcome.status, outcome.error) == (7, "host b: ended with status 7")
    assert job.members[0].outcome.status == 128 + signal.SIGKILL
    assert time.monotonic() - begin < 15


def test_who_lost_a_peer_is_not_the_cause(start):
    """The host whose rank was killed takes longer to say so than the one that waited for it."""
    late = "import time; time.sleep(0.7); print('error: rank 1 was killed'); raise SystemExit(1)"
    victim = "import sys; sys.exit('RuntimeError: [gloo] Connection closed by peer [::1]:7')"
    outcome = start(victim, late)[0].run()
    assert outcome.error == "host b: rank 1 was killed"


def test_a_member_that_ends_as_it_was_told_is_not_the_cause():
    def member(status: int, asked: bool, error: str = "") -> bool:
        made = Member.__new__(Member)
        made.outcome, made.asked, made.lost_peer = Outcome(status, error), asked, False
        return made.is_consequence

    assert member(143, asked=True)
    assert not member(143, asked=False)
    assert not member(1, asked=True, error="rank 3 ran out of memory")


POLITE = """
import signal, sys, time
def save(*_):
    print('saving')
    time.sleep(0.6)  # during which a second signal must not come
    sys.exit({status})
signal.signal(signal.SIGTERM, save)
print('ready')
time.sleep(30)
"""


def signalled(job: Fleet, lines: list[str], number: int) -> Outcome:
    """Run ``job``; once both hosts are ready, this process gets the signal twice."""

    def send() -> None:
        while sum("ready" in line for line in lines) < 2:
            time.sleep(0.02)
        for _ in range(2):
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    threading.Thread(target=send, daemon=True).start()
    return job.run()


@pytest.mark.parametrize(
    ("number", "status", "ends"),
    [(signal.SIGINT, 75, 75), (signal.SIGUSR1, 1, 138)],
)
def test_a_signal_goes_on_once_to_all_hosts(start, number: int, status: int, ends: int):
    job, lines = start(*[POLITE.format(status=status)] * 2)
    assert signalled(job, lines, number).status == ends
    assert sorted(lines) == ["[a] ready", "[a] saving", "[b] ready", "[b] saving"]


def test_a_host_that_saves_by_itself_has_all_others_save(start, tmp_path):
    """As when one node is preempted: its ranks' status is no failure."""
    ready = f"__import__('pathlib').Path({str(tmp_path / 'ready')!r})"
    saves = f"import time\nwhile not {ready}.exists(): time.sleep(0.02)\nraise SystemExit(75)"
    job, lines = start(
        saves, POLITE.format(status=75).replace("print('ready')", f"{ready}.touch()")
    )
    assert job.run().status == 75
    assert lines == ["[b] saving"]


def test_hosts_save_when_their_launcher_is_killed(tmp_path):
    job = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_): pathlib.Path({str(tmp_path / 'saved')!r}).touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); print('ready')\n"
        "while True: print('a line that nobody reads'); time.sleep(0.01)\n"
    )
    launcher = (
        "import sys; from launch.fleet import Fleet; from launch.hosts import Hosts\n"
        "hosts = Hosts(['a'], 1, [], env={'PYTHONUNBUFFERED': '1'})\n"
        f"command = [sys.executable, '-c', {job!r}]\n"
        "Fleet(hosts.jobs(lambda i, m: command, ''), print).run()"
    )
    env = environment() | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", launcher], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[a] ready\n"
        process.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (tmp_path / "saved").exists():
        time.sleep(0.05)
    assert (tmp_path / "saved").exists()


def test_a_host_that_cannot_be_reached_is_named(tmp_path, capsys):
    deaf = ["sh", "-c", "echo 'ssh: connect to host b port 22: Connection timed out'; exit 255"]
    with pytest.raises(ConfigError, match=r"host b: cannot run .*\(ssh: connect to host b port 22"):
        Hosts(["b", "c"], 1, deaf).master()
    reached = Hosts(["b"], 1, deaf, port=7)
    assert run_on_hosts(reached, lambda i, m: ["true"], tmp_path) == 255
    shown = capsys.readouterr().err
    assert "error: host b: ended with status 255: ssh: connect to host b port 22" in shown


def test_a_failed_job_is_started_again_but_not_after_an_error_of_the_input(ssh, tmp_path, capsys):
    def job(code: str) -> Callable[[int, str], list[str]]:
        return lambda _, master: [sys.executable, "-c", code, master]

    marks = tmp_path / "marks"
    fails_once = (
        "import sys; from pathlib import Path\n"
        f"marks = Path({str(marks)!r}); marks.open('a').write(sys.argv[1] + '\\n')\n"
        "sys.exit(marks.read_text().count('\\n') < 2)"
    )
    hosts = Hosts(["a"], 1, ssh)
    assert run_on_hosts(hosts, job(fails_once), tmp_path / "run", restarts=5) == 0
    assert len(marks.read_text().splitlines()) == 2
    assert all(line.startswith("a:") for line in marks.read_text().splitlines())
    assert run_on_hosts(hosts, job("raise SystemExit(2)"), tmp_path / "run", restarts=5) == 2
    assert capsys.readouterr().err.count("starting again") == 1


def test_hosts_come_from_a_file_or_a_list(tmp_path):
    (tmp_path / "hosts").write_text("# rack 3\nn1\nme@n2 4  # with a name\n\n")
    assert read_hosts(str(tmp_path / "hosts"), 4) == ["n1", "me@n2"]
    assert read_hosts("n1,n2", 8) == ["n1", "n2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n1\nn2 x\n", r"hosts, line 2: 'n2 x'; allowed: HOST or HOST PROCESSES"),
        ("n1 8 9\n", r"hosts, line 1: 'n1 8 9'"),
        ("-oProxyCommand=x\n", r"hosts, line 1: '-oProxyCommand=x'"),
        ("n1 8\n", r"hosts, line 1: 8 processes on n1; allowed: 4"),
        ("# none\n", r"names no host"),
        ("n1\nn1\n", r"names n1 twice"),
    ],
)
def test_a_wrong_hosts_file_is_refused_by_its_line(tmp_path, text: str, said: str):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_hosts(str(tmp_path / "hosts"), 4)


def test_a_hosts_file_that_is_absent_is_named():
    with pytest.raises(ConfigError, match="no such hosts file"):
        read_hosts("./absent/hosts", 4)


def test_other_hosts_must_be_able_to_reach_the_first():
    with pytest.raises(ConfigError, match="other hosts cannot reach localhost"):
        Hosts(["localhost", "n2"], 1, ["ssh"], port=7).master()
    assert (
        Hosts(["localhost", "n2"], 1, ["ssh"], address="10.0.0.1", port=7).master() == "10.0.0.1:7"
    )
    assert Hosts(["me@n1", "n2"], 1, ["ssh"], port=7).master() == "n1:7"


def test_variables_are_passed_by_name():
    env = {"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "k", "HOME": "/root", "MINE": "1"}
    made = passed_env(["MINE", "OTHER=a=b"], env)
    assert made == {"NCCL_DEBUG": "INFO", "MINE": "1", "OTHER": "a=b", "PYTHONUNBUFFERED": "1"}
    with pytest.raises(ConfigError, match="--env ABSENT: is not set here"):
        passed_env(["ABSENT"], env)


def test_a_dry_run_prints_every_hosts_command_and_leaves_nothing(setup_folder, tmp_path, capsys):
    shutil.copytree(setup_folder, tmp_path, dirs_exist_ok=True)
    config = write_config(tmp_path, "run", global_batch=16)
    words = [config, "--hosts", "n1,n2", "--nproc", "4", "--port", "29501", "--dry-run"]
    assert command_line.main(words, standalone_mode=False) == 0
    shown = capsys.readouterr().out
    for rank in (0, 1):
        node = f"--nodes 2 --node-rank {rank} --nproc 4 --master n1:29501"
        assert f"-m launch.node {tmp_path}/run/launch.yaml {node}" in shown
    assert "ssh -o BatchMode=yes -o ServerAliveInterval=15 n2 'cd " in shown
    assert not (tmp_path / "run").exists()
