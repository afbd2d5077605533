"""``python -m ovtrain.observability.report PATH ...``; prints the page's path, exits 2 on an input
error."""

from __future__ import annotations

import sys
from pathlib import Path

from ovtrain.observability.report import write_report
from ovtrain.schema.errors import exit_status


def main(argv: list[str]) -> int:
    if not argv:
        print("usage: python -m ovtrain.observability.report PATH ...", file=sys.stderr)
        return 2
    return exit_status(lambda: print(write_report([Path(path) for path in argv])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
