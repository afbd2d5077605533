"""The last stage: manifests of the sources, labels of documents, lists and counts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.documents import label_documents
from data_pipelines.job import WORK, Job
from data_pipelines.journal import Row
from data_pipelines.manifests import MANIFESTS
from data_pipelines.samples import FileReport
from data_pipelines.shards.writer import write_manifest
from data_pipelines.viz import write_panels
from ovtrain.config.prepare import PrepareConfig
from ovtrain.schema.atomic import atomic_open, write_json
from ovtrain.schema.errors import MediaError
from ovtrain.schema.isolated import category
from ovtrain.schema.manifest import MANIFEST, ShardInfo, ShardManifest, fingerprint
from ovtrain.schema.sample import KINDS, Kind

PANELS = 4
LABELS = "labels/document"
OF_WORK = ("samples", "select", "shards")
"""Stages whose manifests name what is in the work folder; they go with it."""


def finish(job: Job) -> None:
    """Raises MediaError where nothing gave a sample."""
    job.rows("shards")  # raises where a stage is missing, or was made from something else
    skipped, duplicates = _lists(job)
    samples = {kind: _write_source(job, kind) for kind in KINDS}
    if not any(samples.values()):
        _write_skips(job.out, skipped)
        raise _nothing_left(job.source, skipped)
    summary: dict[str, Any] = {"samples": {kind: n for kind, n in samples.items() if n}}
    if samples["document"]:
        summary["documents"] = _label_documents(job, skipped)
    elif (job.out / LABELS).exists():
        shutil.rmtree(job.out / LABELS)  # of an earlier run
    _write_rows(job.out / "inventory.jsonl", _media(job))
    _write_rows(job.out / "duplicates.jsonl", duplicates)
    _write_skips(job.out, skipped)
    if samples["video"]:
        budget = panel_budget(job.config)
        summary["panels"] = write_panels(job.out / "video", job.out / "panels", PANELS, budget)
    summary |= _counts(job, skipped, duplicates)
    write_json(job.out / "summary.json", summary)


def clean(job: Job) -> None:
    """Remove what only the stages need."""
    for stage in OF_WORK:
        shutil.rmtree(job.out / MANIFESTS / stage, ignore_errors=True)
    shutil.rmtree(job.out / WORK, ignore_errors=True)


def panel_budget(config: PrepareConfig) -> int:
    """An eighth of the clip's patches, the paper's share (2,048 of 16,384)."""
    per_frame = (config.size // config.patch) ** 2
    return max(config.frames * per_frame // 8, per_frame)


def _media(job: Job) -> Iterable[Row]:
    for row in job.manifest("inventory").rows():
        yield from row["media"]


def _lists(job: Job) -> tuple[dict[str, str], list[Row]]:
    """Skipped files with their reasons, and duplicates, of all stages."""
    skipped, duplicates = dict[str, str](), list[Row]()
    for stage in ("inventory", "plan", "samples", "select"):
        for row in job.manifest(stage).rows():
            skipped.update(row.get("skipped", ()))
            if "duplicate" in row:
                name, of = row["duplicate"]
                by = "content" if stage == "plan" else "hash"
                duplicates.append({"file": name, "duplicate_of": of, "by": by})
    return skipped, duplicates


def _write_source(job: Job, kind: Kind) -> int:
    """The manifest of one kind; how many samples there are. Without any its folder goes."""
    folder = job.out / kind
    rows = [row for row in job.manifest("shards").rows() if row.get("kind") == kind]
    if not rows:
        if (folder / MANIFEST).exists():
            shutil.rmtree(folder)  # of an earlier run
        return 0
    chosen = [row for row in job.manifest("select").rows() if row.get("kind") == kind]
    keys = [sample["key"] for row in chosen for sample in row["samples"]]
    video, config = kind == "video", job.config
    side = config.size if video else config.picture_side or config.size
    manifest = ShardManifest(
        source=kind,
        kind=kind,
        frames=config.frames if video else 1,
        height=side,
        width=side,
        patch=config.patch,
        fingerprint=fingerprint(keys),
        shards=tuple(ShardInfo(**row["info"]) for row in rows),
    )
    write_manifest(folder, manifest)
    return manifest.samples


def _label_documents(job: Job, skipped: dict[str, str]) -> Row:
    documents = [
        (sample["name"], sample["key"])
        for row in job.manifest("select").rows()
        if row.get("kind") == "document"
        for sample in row["samples"]
    ]
    manifest = ShardManifest.read(job.out / "document")
    out, ocr = job.out / LABELS, job.config.ocr
    return asdict(label_documents(ocr, documents, manifest.fingerprint, out, skipped))


def _counts(job: Job, skipped: Mapping[str, str], duplicates: list[Row]) -> Row:
    report, media, kept = FileReport(), 0, set[str]()
    for row in job.manifest("inventory").rows():
        if row["spans"]:  # not the row of what is no media
            media += len(row["media"]) + len(row["skipped"])
    for row in job.manifest("samples").rows():
        if "report" in row:
            report.add(FileReport(**row["report"]))
            kept.update(sample["name"] for sample in row["samples"])
    counts = asdict(report)
    seconds = {step: round(value, 2) for step, value in counts.pop("seconds").items()}
    return {
        **counts,
        "files": {"read": media, "kept": len(kept), "skipped": len(skipped)},
        "skipped_by_reason": reasons(skipped),
        "duplicates": dict(Counter(row["by"] for row in duplicates)),
        "seconds": seconds,
    }


def reasons(skipped: Mapping[str, str]) -> dict[str, int]:
    """Skipped files by category: the reason without its details in parentheses."""
    return dict(Counter(map(category, skipped.values())).most_common())


def _nothing_left(source: Path, skipped: Mapping[str, str]) -> MediaError:
    counts = ", ".join(f"{n} x {reason}" for reason, n in reasons(skipped).items())
    return MediaError(
        str(source),
        f"no file gave a sample: {counts}",
        fix="see skipped.jsonl in the output folder for the reason of each file",
    )


def _write_skips(out: Path, skipped: Mapping[str, str]) -> None:
    rows = ({"file": file, "reason": reason} for file, reason in sorted(skipped.items()))
    _write_rows(out / "skipped.jsonl", rows)


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_open(path, "w") as handle:
        handle.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def final_line(out: Path) -> str:
    """One line of counts, from ``summary.json``."""
    summary = json.loads((out / "summary.json").read_text())
    files = summary["files"]
    origins = ", ".join(f"{name} {count}" for name, count in summary["origins"].items())
    samples = ", ".join(f"{count} {kind}" for kind, count in summary["samples"].items())
    return (
        f"{out}: {samples} samples from {files['kept']} of {files['read']} files "
        f"({files['skipped']} skipped, {sum(summary['duplicates'].values())} duplicates; "
        f"{summary['passed_through']} clips passed through, {summary['transcoded']} transcoded"
        + (f"; energy from {origins})" if origins else ")")
    )
