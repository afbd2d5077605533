"""Not a timing: faults at random moments of short real runs, and what became of each.

    python benchmarks/faults --runs 500 --seed 1 --out benchmarks/results/faults

Writes FOLDER/runs.jsonl, a line per run, and FOLDER/table.md. Stopped and started again, it goes on
where it was. Exit status 1 where a run ended wrong, or did not end; its folder then stays in
``--work``. docs/faults.md has the rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import line

from faults.campaign import FAULTS, campaign, left_out, of_another, rows_of, schedule
from faults.fault import Fault
from faults.site import Site
from faults.table import failed, table


def _chosen(only: list[str]) -> list[Fault]:
    unknown = [name for name in only if name not in FAULTS]
    if unknown:
        sys.exit(f"error: no fault is called {', '.join(unknown)}; --list names them")
    asked = [fault for fault in FAULTS.values() if not only or fault.name in only]
    without = left_out(asked)
    for right, names in without.items():
        print(f"this process may not {right}, so left out: {', '.join(names)}", file=sys.stderr)
    return [fault for fault in asked if fault.needs not in without]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required="--list" not in sys.argv)
    parser.add_argument("--work", type=Path, help="for runs; a temporary folder by default")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{fault.family:14}{fault.name}" for fault in FAULTS.values()))
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    work = given.work or Path(tempfile.mkdtemp(prefix="faults-"))
    work.mkdir(parents=True, exist_ok=True)
    found = given.out / "runs.jsonl"
    plan = schedule(_chosen(given.only), given.runs)
    if of_another(rows_of(found), plan, given.seed):
        sys.exit(f"error: {found} is of another seed, or of other kinds; name another --out")
    with closing(Site(work)) as site:
        campaign(site, plan, given.seed, found)
    rows = rows_of(found)
    (given.out / "table.md").write_text(table(rows))
    bad = failed(rows)
    shown = {
        "runs": len(rows),
        "kinds": len({row["fault"] for row in rows}),
        "failed": len(bad),
        "repeats": sum(row["repeats"] for row in rows),
    }
    print(line("faults", seed=given.seed, **shown, seconds=round(sum(r["seconds"] for r in rows))))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
