"""Raw media -> inventory -> clips, pictures, documents -> energy -> shards, in one command.

    python -m data_pipelines.prepare SOURCE --out DIR [--config YAML] [key=value ...]
    python -m data_pipelines.prepare SOURCE --out DIR --stage NAME [--part 3/16] [...]

SOURCE is a folder of videos, pictures and tars of them (img2dataset's), or a .csv list with the
columns path, start, end. Writes to DIR::

    video/ image/ document/    shards and manifest of each source
    labels/document/           labels of documents, with vocabulary.txt
    inventory.jsonl            one record per readable video or picture
    skipped.jsonl              {"file", "reason"} of everything that gives no sample
    duplicates.jsonl           {"file", "duplicate_of", "by"}
    panels/*.png               the four-panel page of a few clips
    summary.json               counts, origins, seconds per step (summed over processes)
    manifests/STAGE/           the rows of each stage, part by part
    stage.json                 what all this was made from; an unchanged second run does nothing

Without --stage all stages run, one behind the other. With it one does, the whole or a part; in a
SLURM array each task does its own part, and the stages that merge are done by the first task:

    inventory   what each file is                          (parts by file)
    cuts        where scenes begin, if scene_cuts > 0      (by video)
    plan        filters, equal files, keys, places         (merges)
    samples     clips with energies, pictures              (by clip and picture)
    select      samples that look alike; which shard       (merges)
    shards      the tars                                   (by shard)
    finish      manifests, labels, counts                  (merges)

A part goes on where it was interrupted. A file that cannot be read, crashes its worker or exceeds
the time limit is named in skipped.jsonl and costs nothing else. Raises MediaError where no file
gives a sample.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.documents import pages, read_vocabulary
from data_pipelines.finish import clean, final_line, finish
from data_pipelines.inventory.stage import cuts_rows, inventory_rows, records, videos
from data_pipelines.job import ORDER, WORK, Job
from data_pipelines.journal import Journal, Row, StageError
from data_pipelines.manifests import Part, may_pass
from data_pipelines.plan import plan_rows
from data_pipelines.samples import sample_rows
from data_pipelines.shards.stage import select_rows, shard_rows
from data_pipelines.stages import STAGE, complete, is_current
from data_pipelines.store import SampleStore
from data_pipelines.transcode import check_encodable
from ovtrain.config.load import checked, find_config, load
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.errors import exit_status
from ovtrain.schema.manifest import MANIFEST
from ovtrain.schema.sample import KINDS

TIMEOUT_S = 300.0
WHOLE = Part()


Made = tuple[
    Iterable[Any], Callable[[Journal, Iterator[tuple[int, Any]]], Iterable[tuple[int, Row]]]
]
"""A stage's items, and what makes rows of them."""


def _inventory(job: Job, _: Part) -> Made:
    # The last item stands for what is no media.
    return [*job.listing.files, ""], lambda _, files: inventory_rows(job, list(files))


def _cuts(job: Job, _: Part) -> Made:
    found = videos(job.rows("inventory")) if job.config.scene_cuts else ()
    return found, lambda _, found: cuts_rows(job, list(found))


def _plan(job: Job, _: Part) -> Made:
    cuts = job.rows("cuts") if job.config.scene_cuts else None
    ocr = job.config.ocr
    if ocr.vocabulary:
        read_vocabulary(Path(ocr.vocabulary))  # refused now rather than when all else is done
    read = {page.image for page in pages(ocr)}
    return plan_rows(records(job.rows("inventory")), cuts, read, job.config), _as_they_are


def _samples(job: Job, part: Part) -> Made:
    def make(journal: Journal, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        name = part.file.replace(".jsonl", ".bin")
        store = SampleStore(job.out / WORK / name, journal.rows)
        return sample_rows(job, journal.open_beside.enter_context(store), list(rows))

    return job.rows("plan"), make


def _select(job: Job, _: Part) -> Made:
    return select_rows(lambda: job.rows("samples"), job.config), _as_they_are


def _shards(job: Job, _: Part) -> Made:
    chosen = (row for row in job.rows("select") if "shard" in row)
    return chosen, lambda _, rows: shard_rows(job, list(rows))


def _as_they_are(_: Journal, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    return rows


STAGES: dict[str, Callable[[Job, Part], Made]] = {
    "inventory": _inventory,
    "cuts": _cuts,
    "plan": _plan,
    "samples": _samples,
    "select": _select,
    "shards": _shards,
}
MERGING = ("plan", "select", "finish")


def run_stage(job: Job, stage: str, part: Part) -> bool:
    """Do a part of a stage; False where it is there already. Raises StageError."""
    if stage == "finish":
        finish(job)
        complete(job.out, job.made_from("samples"))
        clean(job)
        return True
    made_from = job.made_from(stage)
    if job.manifest(stage).is_there(part, made_from):
        return False
    # A rewrite that is cut short must not look like the finished preparation of before.
    (job.out / STAGE).unlink(missing_ok=True)
    job.manifest(stage).write(part, made_from, *STAGES[stage](job, part))
    return True


def prepare(
    source: Path,
    out: Path,
    config: PrepareConfig,
    timeout_s: float = TIMEOUT_S,
    exclude: Path | None = None,
    *,
    retry: bool = False,
) -> bool:
    """Run all stages; False where ``out`` already holds the result of the same inputs. Files below
    ``exclude`` (by default ``out``) are no input. ``retry``: try again what failed for want of
    time, memory or storage."""
    job = _job(source, out, config, timeout_s, exclude)
    job.folder  # noqa: B018 - raises where there is none
    if retry:
        forget_failures(job)
    if job.manifest("inventory").is_there(WHOLE, job.inventory_from()) and is_done(job):
        return False
    for stage in ORDER:
        run_stage(job, stage, WHOLE)
    return True


def prepare_part(
    source: Path,
    out: Path,
    config: PrepareConfig,
    stage: str,
    part: Part,
    timeout_s: float = TIMEOUT_S,
    exclude: Path | None = None,
) -> str:
    """Run a part of one stage; a line that says what became of it. Raises StageError."""
    job = _job(source, out, config, timeout_s, exclude)
    job.folder  # noqa: B018 - raises where there is none
    if stage in MERGING:
        if part.number:
            return f"{stage} {part}: the first task does this"
        part = WHOLE
    if ORDER.index(stage) > ORDER.index("plan") and is_done(job):
        return f"{stage} {part}: unchanged, nothing to do"
    if not run_stage(job, stage, part):
        return f"{stage} {part}: there already"
    return final_line(out) if stage == "finish" else f"{stage} {part}: done"


def forget_failures(job: Job) -> None:
    """Have the next run try again what failed for want of time, memory or storage."""
    found = {stage: job.manifest(stage).forget_failures() for stage in ORDER}
    said = ", ".join(f"{count} of {stage}" for stage, count in found.items() if count)
    if said:
        print(f"tried again: {said}", flush=True)
    elif any(map(may_pass, _reasons(job))):
        # The samples' own manifest is gone with the finished preparation: all are made again.
        (job.out / STAGE).unlink(missing_ok=True)


def _reasons(job: Job) -> list[str]:
    """Why a finished preparation left files out."""
    path = job.out / "skipped.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line)["reason"] for line in lines]


def _job(
    source: Path, out: Path, config: PrepareConfig, timeout_s: float, exclude: Path | None
) -> Job:
    checked("prepare", config)
    check_encodable(config)
    return Job(source, out, config, timeout_s, exclude)


def is_done(job: Job) -> bool:
    """Whether the folder holds the end result of the plan that is there, and that of these
    settings."""
    if not (job.out / STAGE).is_file():
        return False
    found = [f"{kind}/{MANIFEST}" for kind in KINDS if (job.out / kind).is_dir()]
    try:
        return is_current(job.out, job.made_from("samples"), found or [MANIFEST])
    except StageError:
        return False


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on an error of the user."""
    parser = argparse.ArgumentParser(prog="data_pipelines.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default=None, help="YAML of PrepareConfig")
    parser.add_argument("--stage", choices=ORDER, help="only this stage")
    parser.add_argument("--part", help="I/N, of a stage; default: this SLURM array task's, or all")
    parser.add_argument(
        "--retry", action="store_true", help="try again what failed by time, memory or storage"
    )
    parser.add_argument("--exclude", type=Path, help="folder that is not searched; default: --out")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds per file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        path = find_config(args.config) if args.config else None
        config = load(PrepareConfig, path, args.overrides)
        if args.stage and args.retry:
            forget_failures(_job(args.source, args.out, config, args.timeout, args.exclude))
        if args.stage:
            part = Part.parse(args.part) if args.part else Part.of_array()
            where = (args.source, args.out, config, args.stage, part)
            print(prepare_part(*where, args.timeout, args.exclude))
            return
        if args.part:
            raise StageError(f"--part {args.part}", "a part of no stage", fix="name its --stage")
        where = (args.source, args.out, config, args.timeout, args.exclude)
        ran = prepare(*where, retry=args.retry)
        print(("" if ran else "unchanged, nothing to do: ") + final_line(args.out))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
