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
        self._known: dict[Path, tuple[int, bytes, list[Row]]] = {}

    def read(self, path: Path) -> list[Row]:
        """All so far, but for a last line without its end."""
        at, last, rows = self._known.get(path, (0, b"", []))
        with open(path, "rb") as handle:
            # An inode may be given again, and a new file be longer: only the last line that was
            # read, still in its place, says that what is before it is the same. Lines hold times.
            handle.seek(at - len(last))
            if handle.read(len(last)) != last:
                handle.seek(0)
                at, last, rows = 0, b"", []
            raw = handle.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").splitlines()
        rows = rows + [row for line in lines if (row := parse_row(line)) is not None]
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :] or last
        self._known[path] = (at + len(whole), last, rows)
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
