"""``python -m ovtrain.observability.report OUT``; prints the path, exits 2 on an input error."""

from __future__ import annotations

import sys
from pathlib import Path

from ovtrain.observability.report import write_report
from ovtrain.schema.errors import exit_status


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m ovtrain.observability.report OUT", file=sys.stderr)
        return 2
    return exit_status(lambda: print(write_report(Path(argv[0]))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
