"""``python -m clustering.report``: prints figures, then the page's path."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clustering.report import CENTERS, Request, write_report
from ovtrain.schema.errors import exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m clustering.report")
    parser.add_argument("out", type=Path, help="what `ovtrain cluster --out` wrote")
    parser.add_argument("others", type=Path, nargs="*", help="runs to compare it with")
    parser.add_argument("--shards", type=Path, help="default: those that OUT was made from")
    parser.add_argument("--classes", type=Path, help='{"classes": [name], "labels": {stem: class}}')
    parser.add_argument("--centers", type=int, default=CENTERS, help="centers to show samples of")
    parser.add_argument("--center", type=int, action="append", default=[], help="and of this one")
    parser.add_argument("--page", type=Path, help="default: OUT/report.html")
    given = parser.parse_intermixed_args(arguments)

    def work() -> None:
        request = Request(
            given.out,
            tuple(given.others),
            shards=given.shards,
            classes=given.classes,
            centers=given.centers,
            named=tuple(given.center),
            page=given.page,
        )
        report = write_report(request)
        for name, row in report.agreement.items():
            print(f"{name}: {_with_chance(row, ('nmi', 'ari', 'shared', 'same', 'top'))}")
        if report.classes is not None:
            print(f"classes: {_with_chance(report.classes, ('purity', 'nmi'))}")
        print(report.page)

    return exit_status(work)


def _with_chance(row: dict[str, float | None], names: Sequence[str]) -> str:
    known = [(name, row.get(name), row.get(f"{name}_permuted")) for name in names]
    return ", ".join(
        f"{name} {value:.3f} (chance {chance:.3f})"
        for name, value, chance in known
        if value is not None and chance is not None
    )


if __name__ == "__main__":
    sys.exit(main())
