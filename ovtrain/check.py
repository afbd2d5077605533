"""Health check of a job's devices and links, before it trains.

    torchrun --nproc-per-node 8 -m ovtrain.check --out RUN/logs/health.json

One process per device under RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; a single
process without them. Exit status 0 sound, 76 a rank or a link is not (the report names the nodes),
2 on an error of the input. See docs/health_check.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

from ovtrain.observability.logger import job_logger
from ovtrain.schema.errors import ConfigError, exit_status

SHARE = {"cuda": 0.5, "cpu": 0.1}
"""Of the peers' median. CPUs share their cores and caches with whatever else runs."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ovtrain.check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the report, beside which ranks write"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="about, of each measure")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the whole check")
    parser.add_argument("--share", type=float, help="of the peers' median, at least")
    parser.add_argument(
        "--peak-share", type=float, default=0.0, help="of the data sheet's, at least"
    )
    parser.add_argument("--hosts", default="", help="names of the nodes in order, comma-separated")
    given = parser.parse_args(argv)
    if not (given.seconds > 0 and given.timeout > 0):
        raise ConfigError(
            "--seconds, --timeout", f"{given.seconds}, {given.timeout}", allowed="above 0"
        )
    for name in ("share", "peak_share"):
        if not 0 <= (getattr(given, name) or 0.0) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')}", f"{getattr(given, name)}", allowed="0 to below 1"
            )
    return given


def host() -> str:
    """The name that a launcher knows this node by."""
    named = os.environ.get("OVTRAIN_HOST") or os.environ.get("SLURMD_NODENAME")
    return named or platform.node()


def check(given: argparse.Namespace) -> int:
    import torch

    from ovtrain.distributed.context import die_with_launcher
    from ovtrain.distributed.health_check.local import Place
    from ovtrain.distributed.health_check.session import Limits, run_check

    die_with_launcher()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # A task that was given one GPU of its own sees that one alone.
        seen = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        device = torch.device("cuda", seen)
    job_logger("ovtrain", rank, size)
    place = Place(rank, size, host(), device, given.out.absolute().parent, given.seconds)
    hosts = tuple(given.hosts.split(",")) if given.hosts else ()
    share = SHARE[device.type] if given.share is None else given.share
    limits = Limits(given.timeout, share, given.peak_share, hosts)
    return run_check(place, limits, given.out)


def main(argv: list[str] | None = None) -> int:
    return exit_status(lambda: check(parse(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread may wait for a device or a rank that never answers.
    os._exit(status)
