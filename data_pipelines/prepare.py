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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines.documents import pages
from data_pipelines.finish import clean, final_line, finish
from data_pipelines.inventory.stage import cuts_rows, inventory_rows, records, videos
from data_pipelines.job import WORK, Job
from data_pipelines.manifests import Journal, Manifest, Part, Row, StageError
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
from ovtrain.schema.sample import MEMBERS

TIMEOUT_S = 300.0
WHOLE = Part()


def _inventory(job: Job, part: Part) -> None:
    listing = [*job.listing.files, ""]  # the last item stands for what is no media
    job.manifest("inventory").write(
        part, job.inventory_from(), listing, lambda _, files: inventory_rows(job, files)
    )


def _cuts(job: Job, part: Part) -> None:
    if not job.config.scene_cuts:
        return
    inventory = job.manifest("inventory")
    job.manifest("cuts").write(
        part,
        job.cuts_from(inventory.made_from()),
        videos(inventory.rows()),
        lambda _, found: cuts_rows(job, found),
    )


def _plan(job: Job, _: Part) -> None:
    inventory, cuts = job.manifest("inventory"), None
    made_from = job.plan_from(inventory.made_from())
    if job.config.scene_cuts:
        cuts = _of(job.manifest("cuts"), job.cuts_from(inventory.made_from()))
    read = {page.image for page in pages(job.config.ocr)}
    rows = plan_rows(records(inventory.rows()), cuts, read, job.config)
    job.manifest("plan").write(WHOLE, made_from, rows, lambda _, rows: rows)


def _samples(job: Job, part: Part) -> None:
    plan = job.manifest("plan")

    def make(journal: Journal, rows: list[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        name = part.file.replace(".jsonl", ".bin")
        store = SampleStore(job.out / WORK / name, journal.rows)
        return sample_rows(job, journal.open_beside.enter_context(store), rows)

    job.manifest("samples").write(part, _planned(job), plan.rows(), make)


def _select(job: Job, _: Part) -> None:
    planned = _planned(job)
    rows = select_rows(lambda: _of(job.manifest("samples"), planned), job.config)
    job.manifest("select").write(WHOLE, planned, rows, lambda _, rows: rows)


def _shards(job: Job, part: Part) -> None:
    chosen = (row for row in _of(job.manifest("select"), _planned(job)) if "shard" in row)
    job.manifest("shards").write(part, _planned(job), chosen, lambda _, rows: shard_rows(job, rows))


def _finish(job: Job, _: Part) -> None:
    made_from = _planned(job)
    for stage in ("samples", "select", "shards"):
        _of(job.manifest(stage), made_from)
    finish(job)
    complete(job.out, made_from)
    clean(job)


STAGES: dict[str, Callable[[Job, Part], None]] = {
    "inventory": _inventory,
    "cuts": _cuts,
    "plan": _plan,
    "samples": _samples,
    "select": _select,
    "shards": _shards,
    "finish": _finish,
}
MERGING = ("plan", "select", "finish")


def _planned(job: Job) -> str:
    """What the plan was made from. Raises StageError where that is not the inventory at hand, or
    other settings."""
    made_from = job.plan_from(job.manifest("inventory").made_from())
    _of(job.manifest("plan"), made_from)
    return made_from


def _of(manifest: Manifest, made_from: str) -> Iterator[Row]:
    """The rows of a manifest that must have been made from this. Raises StageError."""
    if manifest.made_from() != made_from:
        raise StageError(
            str(manifest.folder),
            "made from other files or settings than asked for now",
            fix=f"run --stage {manifest.name} again, or give the settings it was run with",
        )
    return manifest.rows()


def prepare(
    source: Path,
    out: Path,
    config: PrepareConfig,
    timeout_s: float = TIMEOUT_S,
    exclude: Path | None = None,
) -> bool:
    """Run all stages; False where ``out`` already holds the result of the same inputs. Files below
    ``exclude`` (by default ``out``) are no input."""
    job = _job(source, out, config, timeout_s, exclude)
    if _is_done(job, job.inventory_from()):
        return False
    # An interrupted rewrite must not look like the finished preparation of before.
    (out / STAGE).unlink(missing_ok=True)
    for name, stage in STAGES.items():
        if not _is_there(job, name, WHOLE):
            stage(job, WHOLE)
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
    if stage in MERGING:
        if part.number:
            return f"{stage} {part}: the first task does this"
        part = WHOLE
    inventory = job.inventory_from() if stage == "inventory" else _inventory_there(job)
    if _is_done(job, inventory):
        return f"{stage} {part}: unchanged, nothing to do"
    (out / STAGE).unlink(missing_ok=True)
    if _is_there(job, stage, part):
        return f"{stage} {part}: there already"
    STAGES[stage](job, part)
    return final_line(out) if stage == "finish" else f"{stage} {part}: done"


def _job(
    source: Path, out: Path, config: PrepareConfig, timeout_s: float, exclude: Path | None
) -> Job:
    checked("prepare", config)
    check_encodable(config)
    return Job(source, out, config, timeout_s, exclude)


def _inventory_there(job: Job) -> str:
    return job.manifest("inventory").made_from()


def _is_done(job: Job, inventory: str) -> bool:
    """Whether the folder holds the end result of this inventory."""
    found = [f"{kind}/{MANIFEST}" for kind in MEMBERS if (job.out / kind).is_dir()]
    return is_current(job.out, job.plan_from(inventory), found or [MANIFEST])


def _is_there(job: Job, stage: str, part: Part) -> bool:
    """Whether a part was made from what it would be made from now."""
    if stage == "finish":
        return False
    if stage == "inventory":
        return job.manifest(stage).is_current(part, job.inventory_from())
    if stage == "cuts":
        made_from = job.cuts_from(_inventory_there(job))
    else:
        made_from = job.plan_from(_inventory_there(job))
    return job.manifest(stage).is_current(part, made_from)


def main(argv: list[str] | None = None) -> int:
    """Command line; exit status 2 on an error of the user."""
    parser = argparse.ArgumentParser(prog="data_pipelines.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default=None, help="YAML of PrepareConfig")
    parser.add_argument("--stage", choices=STAGES, help="only this stage")
    parser.add_argument("--part", help="I/N, of a stage; default: this SLURM array task's, or all")
    parser.add_argument("--exclude", type=Path, help="folder that is not searched; default: --out")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds per file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        path = find_config(args.config) if args.config else None
        config = load(PrepareConfig, path, args.overrides)
        if args.stage:
            part = Part.parse(args.part) if args.part else Part.of_array()
            where = (args.source, args.out, config, args.stage, part)
            print(prepare_part(*where, args.timeout, args.exclude))
            return
        if args.part:
            raise StageError(f"--part {args.part}", "a part of no stage", fix="name its --stage")
        ran = prepare(args.source, args.out, config, args.timeout, args.exclude)
        print(("" if ran else "unchanged, nothing to do: ") + final_line(args.out))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
