"""Reads what jobs wrote: metrics.jsonl, JSON files. A missing or torn file is not an error here.

``metrics.jsonl`` holds one object per logged step: step, time (s), loss, loss/<source>, lr,
grad_norm, samples_per_s, tokens_per_s, flops_per_s, data_wait and comm (shares 0..1), views (counts
so far), filled, bad_samples, bad_reasons (category -> count); and, between them, events: objects
with a key ``event``, which is ``start``, ``stop`` or ``fault``. See docs/run_directory.md.
"""

from __future__ import annotations

from pathlib import Path

from ovtrain.schema.metrics import EVENT, METRICS, Row, parse_row, read_lines

__all__ = ["ATTEMPTS", "EVENT", "METRICS", "Row", "Tail", "column", "read_lines", "read_object"]
__all__ += ["read_events", "read_rows"]
ATTEMPTS = Path("logs") / "attempts.jsonl"


class Tail:
    """Objects of JSON-lines files that grow: each line is parsed once, a file that was written anew
    is read anew."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int, list[Row]]] = {}

    def read(self, path: Path) -> list[Row]:
        """All so far, but for a last line without its end."""
        about = path.stat()
        inode, at, rows = self._known.get(path, (0, 0, []))
        if inode != about.st_ino or about.st_size < at:
            at, rows = 0, []
        with open(path, "rb") as handle:
            handle.seek(at)
            raw = handle.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").splitlines()
        rows = rows + [row for line in lines if (row := parse_row(line)) is not None]
        self._known[path] = (about.st_ino, at + len(whole), rows)
        return rows


def read_rows(path: Path) -> list[Row]:
    """Those that are no events: of a metrics.jsonl, its metric rows."""
    return [row for row in read_lines(path) if EVENT not in row]


def read_events(path: Path) -> list[Row]:
    """The events of a metrics.jsonl."""
    return [row for row in read_lines(path) if EVENT in row]


def read_object(path: Path) -> Row | None:
    """A JSON object, or None where the file is absent or not one."""
    return parse_row(path.read_text(errors="replace")) if path.is_file() else None


def column(rows: list[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) of every row that has ``key`` as a finite number."""
    points: list[tuple[float, float]] = []
    for row in rows:
        value = row.get(key)
        if isinstance(value, (int, float)) and abs(value) < float("inf"):
            points.append((float(row.get("step", 0)), float(value)))
    return points
