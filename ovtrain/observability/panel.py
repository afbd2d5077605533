"""What a terminal shows of one run: lines of text, none wider than asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from textwrap import wrap

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ovtrain.observability.history import Row, column
from ovtrain.observability.report.numbers import number
from ovtrain.observability.runs import VIDEO_VIEWS, Run, is_number, part, why

BLOCKS = "▁▂▃▄▅▆▇█"
NAMES = 16
"""Cells of the column of names; longer ones are cut."""
RECENT = 10
"""Rows whose mean is called the present loss."""
OVERDUE, LEAST_OVERDUE = 5.0, 120.0
"""Times the usual time between rows, and seconds, after which a run is called silent."""
START_OVERDUE = 3600.0
"""Least seconds after a start, which loads and compiles, or where no usual time is known."""
MOST_LINES = 3
"""Of one fact."""
SHOWN = 8
"""Sources, and stages of loading, that are shown."""


def describe(run: Run, width: int, now: float) -> list[Text]:
    """Lines of at most ``width`` cells about one run; ``now``: seconds since the epoch."""
    lines = [_title(run), *_progress(run, width, now)]
    if run.rows:
        last = run.rows[-1]
        lines += _curves(run, width)
        lines += _facts("speed", _speed(last), width)
        lines += _facts("step", _step(run, last), width)
        lines += _facts("memory", _memory(last), width)
        lines += _facts("loading", _loading(last), width)
        lines += _facts("views", _views(run), width)
        lines += _facts("samples", _samples(run, last), width)
    lines += _facts("restarts", _restarts(run), width) + _facts("faults", _faults(run), width)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _title(run: Run) -> Text:
    title = Text(run.name, style="bold")
    about = run.about
    hosts = about.get("hosts")
    size = about.get("world_size")
    ranks = f"{size} rank{'s' * (size != 1)}" if is_number(size) else ""
    nodes = f"{len(hosts)} hosts" if isinstance(hosts, list) and len(hosts) > 1 else ""
    device = str(about.get("device") or "")
    found = [word for word in (ranks, nodes, device) if word]
    return title.append("  " + ", ".join(found), style="dim") if found else title


def _progress(run: Run, width: int, now: float) -> list[Text]:
    """The bar, then how far, how long still, and whether it goes on."""
    total, step = run.total_steps, run.step
    lines: list[Text] = []
    if total:
        share = min(step / total, 1.0)
        cells = width - 8
        done = int(share * cells)
        bar = Text("━" * done, style="green").append("━" * (cells - done), style="bright_black")
        lines.append(bar.append(f" {100 * share:5.1f} %"))
    line = Text(f"step {step:,}" + (f" of {total:,}" if total else "") + "   ")
    pace = run.seconds_per_step()
    state, goes_on = _state(run, now)
    line.append_text(state)
    if total and goes_on and pace is not None:
        line.append(f"   {duration(pace * (total - step))} to go")
    if run.samples:
        line.append(f"   {number(run.samples)} samples")
    return [*lines, line]


def _state(run: Run, now: float) -> tuple[Text, bool]:
    """How the run stands, and whether it seems to go on."""
    if not run.lines:
        return Text("no rows yet", style="yellow"), False
    end = run.ended_by or run.heard
    age = now - end["time"] if is_number(end.get("time")) else None
    ago = f"{duration(age)} ago" if age is not None else "at an unknown time"
    if run.ended_by is not None:
        return Text(f"ended by a fault {ago}", style="red"), False
    if run.finished:
        return Text(f"finished {ago}", style="green"), False
    if end.get("event") == "stop":
        return Text(f"stopped after saving, {ago}", style="yellow"), False
    started = not run.rows or end.get("event") == "start"
    line = f"{'started' if started else 'last row'} {ago}"
    usual = run.seconds_between_rows()
    least = START_OVERDUE if started or usual is None else LEAST_OVERDUE
    if age is not None and age > max(OVERDUE * (usual or 0.0), least):
        return Text(f"{line}: silent", style="red"), False
    return Text(line), True


def _curves(run: Run, width: int) -> list[Text]:
    named = [("loss", "loss"), *((name, f"loss/{name}") for name in run.sources[:SHOWN])]
    lines = [_curve(run, name, key, width, "cyan") for name, key in named]
    left = len(run.sources) - SHOWN
    lines += [Text(f"  and {left} more sources", style="dim")] if left > 0 else []
    lines += [_curve(run, "gradient norm", "grad_norm", width, "magenta")]
    return [line for line in lines if line is not None]


def _curve(run: Run, name: str, key: str, width: int, style: str) -> Text | None:
    values = [value for _, value in column(run.rows, key)]
    tail = [row[key] for row in run.rows[-1:] if key in row]
    if not values and not tail:
        return None
    recent = values[-RECENT:]
    numbers = f" {values[0]:.4g} → {sum(recent) / len(recent):.4g}" if values else ""
    if tail and tail[0] not in values[-1:]:
        numbers += f" (now {tail[0]})"
    line = Text(set_cell_size(name, NAMES) + " ")
    room = max(width - NAMES - 1 - max(cell_len(numbers), 20), 8)
    return line.append(sparkline(values, room).ljust(room), style=style).append(numbers)


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """Means of ``width`` equal pieces as block characters."""
    if not values:
        return ""
    pieces = min(width, len(values))
    cuts = [round(i * len(values) / pieces) for i in range(pieces + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BLOCKS[int((m - low) / span * (len(BLOCKS) - 1))] for m in means)


def _facts(name: str, facts: Sequence[str], width: int) -> list[Text]:
    """``facts`` side by side after the name, on as many lines as they need; a long one is cut."""
    room = max(width - NAMES - 1, 1)
    rows: list[str] = []
    for fact in facts:
        if rows and cell_len(f"{rows[-1]}   {fact}") <= room:
            rows[-1] += f"   {fact}"
        else:
            rows += wrap(fact, room, max_lines=MOST_LINES, placeholder=" …")
    heads = [name, *[""] * len(rows)]
    return [
        Text().append(set_cell_size(head, NAMES) + " ", style="dim").append(row)
        for head, row in zip(heads, rows, strict=False)
    ]


def _speed(last: Row) -> list[str]:
    facts = [_unit(last, "samples_per_s", "samples/s"), _unit(last, "tokens_per_s", "tokens/s")]
    mfu = _percent(last, "mfu")
    facts.append(f"MFU {mfu}" if mfu else _unit(last, "flops_per_s", "FLOP/s"))
    facts.append(f"lr {last['lr']:.3g}" if is_number(last.get("lr")) else "")
    return [fact for fact in facts if fact]


def _step(run: Run, last: Row) -> list[str]:
    facts = [_unit(last, "step_ms", "ms")]
    if share := _percent(last, "data_wait"):
        facts.append(f"data wait {share}")
        if is_number(last.get("data_wait_ms")):
            facts[-1] += f" ({last['data_wait_ms']:.3g} ms)"
    if share := _percent(last, "comm"):
        facts.append(f"communication {share}")
    if is_number(last.get("slowest_rank")) and run.about.get("world_size") != 1:
        facts.append(f"slowest rank {last['slowest_rank']}")
    return [fact for fact in facts if fact]


def _memory(last: Row) -> list[str]:
    if not is_number(last.get("memory_mib_max")):
        return []
    rank = f", rank {last['memory_rank']}" if "memory_rank" in last else ""
    return [f"{last['memory_mib_max'] / 1024:.1f} GiB at most{rank}"]


def _loading(last: Row) -> list[str]:
    """What the loader says of itself."""
    stages = [
        f"{key.removeprefix('data_ms/')} {value:.3g} ms"
        for key, value in last.items()
        if key.startswith("data_ms/") and is_number(value)
    ][:SHOWN]
    ready = [f"{last['batches_ready']} batches ready"] if "batches_ready" in last else []
    return [*stages, *ready]


def _views(run: Run) -> list[str]:
    """Shares of the video samples, the asked ones in brackets."""
    views, asked = run.views, run.asked_views
    video = sum(views.get(name, 0) for name in VIDEO_VIEWS)
    facts = [
        f"{name} {views[name] / video:.3f}" + (f" ({asked[name]:g})" if name in asked else "")
        for name in VIDEO_VIEWS
        if video and name in views
    ]
    return [*facts, f"image {number(views['image'])}"] if views.get("image") else facts


def _samples(run: Run, last: Row) -> list[str]:
    facts: list[str] = []
    if last.get("bad_samples"):
        reasons = ", ".join(f"{name} {n}" for name, n in part(last, "bad_reasons").items())
        facts.append(f"bad {last['bad_samples']}" + (f": {reasons}" if reasons else ""))
    if last.get("unlabelled_samples"):
        facts.append(f"without labels {number(last['unlabelled_samples'])}")
    if last.get("filled"):
        facts.append(f"tokens filled {number(last['filled'])}")
    return facts


def _restarts(run: Run) -> list[str]:
    if not run.restarts:
        return []
    last = run.restarts[-1]
    reason = why(last)
    return [f"{len(run.restarts)}, the last at step {last.get('step')}"] + [reason] * bool(reason)


def _faults(run: Run) -> list[str]:
    faults = run.of("fault")
    skipped = run.rows[-1].get("skipped_steps") if run.rows else 0
    facts = [f"skipped steps {skipped}"] if skipped else []
    if faults:
        facts.append(f"{len(faults)} on record")
        facts.append(str(faults[-1].get("message", "")))
    return facts


def _unit(last: Row, key: str, unit: str) -> str:
    return f"{number(last[key])} {unit}" if is_number(last.get(key)) else ""


def _percent(last: Row, key: str) -> str:
    return f"{100 * last[key]:.1f} %" if is_number(last.get(key)) else ""


def duration(seconds: float) -> str:
    """Two units at most: 3 h 12 min."""
    whole = max(int(seconds), 0)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{whole} s"
