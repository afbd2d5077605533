"""Raw media -> inventory -> clips -> energy -> shards, in one command.

    python -m data_pipelines.prepare VIDEOS_DIR --out DIR [--config YAML] [key=value ...]

writes to DIR::

    inventory.jsonl            one VideoRecord per readable video
    skipped.jsonl              {"file", "reason"} of every file that gives no sample
    video/ image/              shards and manifest of each source (image: images_per_clip > 0)
    panels/*.png               the four-panel page of a few clips
    summary.json               counts, origins, seconds per step (summed over processes)
    stage.json                 what all this was made from; an unchanged second run does nothing

A file that cannot be read, crashes its worker or exceeds the time limit is named in skipped.jsonl
and costs nothing else. Raises MediaError where no file gives a sample.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.inventory.probe import VideoRecord, probe
from data_pipelines.inventory.scan import scan
from data_pipelines.progress import Progress
from data_pipelines.samples import (
    REPORT,
    FileReport,
    FileTask,
    parse_report,
    prepare_file,
    read_samples,
    staged_path,
    unique_keys,
)
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.stages import STAGE, complete, file_state, fingerprint, is_current
from data_pipelines.transcode import check_encodable
from data_pipelines.viz import write_panels
from data_pipelines.workers import Failure, Workers
from ovtrain.config.load import checked, find_config, load
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.atomic import atomic_open, write_json
from ovtrain.schema.errors import MediaError, exit_status
from ovtrain.schema.manifest import MANIFEST
from ovtrain.schema.sample import Kind
from ovtrain.schema.versions import PIPELINE

TIMEOUT_S = 300.0
WORK = ".work"
PANELS = 4


@dataclass
class Outcome:
    """What is known so far: records and skips by file name, and the sum of the file reports."""

    records: dict[str, VideoRecord] = field(default_factory=dict[str, VideoRecord])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    report: FileReport = field(default_factory=FileReport)


def prepare(
    folder: Path,
    out: Path,
    config: PrepareConfig,
    timeout_s: float = TIMEOUT_S,
    exclude: Path | None = None,
) -> bool:
    """Run the stage; False where ``out`` already holds the result of the same inputs. Files
    below ``exclude`` (by default ``out``) are no input."""
    checked("prepare", config)
    check_encodable(config)
    began = time.perf_counter()
    videos, others = scan(folder, exclude=exclude or out)
    states = [file_state(folder / name) for name in videos]
    # The number of workers changes nothing in the result.
    settings = asdict(replace(config, workers=0))
    made_from = fingerprint(PIPELINE, states, settings)
    kinds: list[Kind] = ["video", "image"] if config.images_per_clip else ["video"]
    if is_current(out, made_from, [f"{kind}/{MANIFEST}" for kind in kinds]):
        return False
    # An interrupted rewrite must not look like the finished stage of before.
    (out / STAGE).unlink(missing_ok=True)
    outcome = Outcome(skipped=others)
    names = [str(name) for name in videos]
    _take_inventory(folder, names, config, timeout_s, outcome)
    _write_rows(out / "inventory.jsonl", map(asdict, outcome.records.values()))
    staged = _make_samples(folder, out / WORK, config, timeout_s, outcome)
    skips = [{"file": file, "reason": reason} for file, reason in sorted(outcome.skipped.items())]
    _write_rows(out / "skipped.jsonl", skips)
    if not staged:
        raise _nothing_left(folder, outcome)
    if "image" not in kinds and (out / "image" / MANIFEST).exists():
        shutil.rmtree(out / "image")  # of an earlier run with images
    samples: dict[Kind, int] = {
        kind: _write_shards(out, kind, staged, config, outcome) for kind in kinds
    }
    panels = write_panels(out / "video", out / "panels", PANELS, panel_budget(config))
    summary = _summary(outcome, names, samples, time.perf_counter() - began)
    write_json(out / "summary.json", {**summary, "panels": panels})
    complete(out, made_from)
    shutil.rmtree(out / WORK)
    return True


def panel_budget(config: PrepareConfig) -> int:
    """An eighth of the clip's patches, the paper's share (2,048 of 16,384)."""
    per_frame = (config.size // config.patch) ** 2
    return max(config.frames * per_frame // 8, per_frame)


def _take_inventory(
    folder: Path, names: list[str], config: PrepareConfig, timeout_s: float, outcome: Outcome
) -> None:
    answers: dict[str, VideoRecord] = {}
    with (
        Workers(partial(probe, folder), config.workers, timeout_s) as pool,
        Progress("inventory", len(names)) as progress,
    ):
        for index, answer in pool.run(names):
            if isinstance(answer, Failure):
                outcome.skipped[names[index]] = answer.reason
            else:
                answers[names[index]] = answer
            progress.advance()
    outcome.records = {name: answers[name] for name in names if name in answers}


def _make_samples(
    folder: Path, work: Path, config: PrepareConfig, timeout_s: float, outcome: Outcome
) -> list[Path]:
    """Stage the samples of every readable file; the tars that are there, in file order."""
    tasks = [
        FileTask(folder, record, key, staged_path(work, key, folder / name, config), config)
        for (name, record), key in zip(
            outcome.records.items(), unique_keys(list(outcome.records)), strict=True
        )
    ]
    wanted = {task.out for task in tasks}
    for path in work.glob("*.tar") if work.is_dir() else ():
        if path not in wanted:
            path.unlink()
    missing = [task for task in tasks if not task.out.exists()]
    with (
        Workers(prepare_file, config.workers, timeout_s) as pool,
        Progress("clips and energy", len(missing)) as progress,
    ):
        for index, answer in pool.run(missing):
            if isinstance(answer, Failure):
                outcome.skipped[missing[index].record.path] = answer.reason
            progress.advance()
    return [task.out for task in tasks if task.out.exists()]


def _write_shards(
    out: Path, kind: Kind, staged: list[Path], config: PrepareConfig, outcome: Outcome
) -> int:
    """All staged samples of one kind into ``out/kind``; how many there were."""
    writer = ShardWriter(
        out / kind,
        kind,
        source=kind,
        frames=config.frames if kind == "video" else 1,
        size=config.size,
        patch=config.patch,
        samples_per_shard=config.samples_per_shard,
    )
    for path in staged:
        for key, members in read_samples(path):
            if REPORT in members:
                if kind == "video":
                    outcome.report.add(parse_report(members[REPORT]))
            elif ("jpg" in members) == (kind == "image"):
                writer.add(key, members)
    return writer.close().samples


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_open(path, "w") as handle:
        handle.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def reasons(skipped: Mapping[str, str]) -> dict[str, int]:
    """Skipped files by category: the reason without its details in parentheses."""
    return dict(Counter(reason.split(" (")[0] for reason in skipped.values()).most_common())


def _nothing_left(folder: Path, outcome: Outcome) -> MediaError:
    counts = ", ".join(f"{n} x {reason}" for reason, n in reasons(outcome.skipped).items())
    return MediaError(
        str(folder),
        f"no file gave a clip: {counts}",
        fix="see skipped.jsonl in the output folder for the reason of each file",
    )


def _summary(
    outcome: Outcome, names: list[str], samples: Mapping[Kind, int], wall: float
) -> dict[str, Any]:
    report = asdict(outcome.report)
    seconds = {step: round(value, 2) for step, value in report.pop("seconds").items()}
    kept = len(set(names) - set(outcome.skipped))
    return {
        **report,
        "files": {"read": len(names), "kept": kept, "skipped": len(outcome.skipped)},
        "skipped_by_reason": reasons(outcome.skipped),
        "samples": dict(samples),
        "seconds": {**seconds, "wall": round(wall, 2)},
    }


def final_line(out: Path) -> str:
    """One line of counts, from ``summary.json``."""
    summary = json.loads((out / "summary.json").read_text())
    files = summary["files"]
    origins = ", ".join(f"{name} {count}" for name, count in summary["origins"].items())
    samples = ", ".join(f"{count} {kind}" for kind, count in summary["samples"].items())
    return (
        f"{out}: {samples} samples from {files['kept']} of {files['read']} videos "
        f"({files['skipped']} files skipped; {summary['passed_through']} clips passed through, "
        f"{summary['transcoded']} transcoded; energy from {origins})"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on an error of the user."""
    parser = argparse.ArgumentParser(prog="data_pipelines.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("videos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default=None, help="YAML of PrepareConfig")
    parser.add_argument("--exclude", type=Path, help="folder that is not searched; default: --out")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds per file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        path = find_config(args.config) if args.config else None
        config = load(PrepareConfig, path, args.overrides)
        ran = prepare(args.videos, args.out, config, args.timeout, args.exclude)
        print(("" if ran else "unchanged, nothing to do: ") + final_line(args.out))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
