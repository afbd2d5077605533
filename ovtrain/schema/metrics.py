"""``metrics.jsonl`` as it lies on disk: one JSON object per line, metric rows and events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

METRICS = "metrics.jsonl"
EVENT = "event"
"""A key that events have and metric rows have not."""
Row = dict[str, Any]


def read_lines(path: Path) -> Iterator[Row]:
    """Objects of a JSON-lines file; lines that do not parse (a torn last line) are left out."""
    if not path.is_file():
        return
    with open(path, errors="replace") as handle:
        for line in handle:
            if (row := parse_row(line)) is not None:
                yield row


def parse_row(line: str) -> Row | None:
    """A JSON object, None where ``line`` is none."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return cast(Row, value) if isinstance(value, dict) else None
