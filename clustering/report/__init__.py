"""One self-contained HTML page about the labels that ``ovtrain cluster`` wrote.

    python -m clustering.report OUT [OTHER ...] [--shards DIR] [--classes FILE] [--centers N]
                                [--center ID ...] [--page FILE]

reads the files of OUT (docs/data_format.md) and writes ``OUT/report.html``. OTHER: folders of
other seeds or settings over the same shards, which OUT is compared with. What is absent is named as
absent; nothing is fetched. Pictures are decoded from the shards that OUT was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from clustering.quality import purity, read_classes
from clustering.report import sections, sheets
from clustering.report.folder import Folder, named
from clustering.report.nearest import chosen_centers
from ovtrain.data.shards import ShardReader
from ovtrain.observability.history import Row
from ovtrain.observability.report.numbers import number
from ovtrain.observability.report.page import page, tiles
from ovtrain.schema.atomic import atomic_open
from ovtrain.schema.errors import OvtrainError
from ovtrain.schema.labels import LabelStore, check_fingerprint, read_description

REPORT = "report.html"
CENTERS = 16


@dataclass(frozen=True)
class Request:
    """``centers``: how many to show beside those ``named``. ``shards`` None: those that the
    settings of OUT name; ``page`` None: OUT/report.html."""

    out: Path
    others: tuple[Path, ...] = ()
    shards: Path | None = None
    classes: Path | None = None
    centers: int = CENTERS
    named: tuple[int, ...] = ()
    page: Path | None = None


@dataclass(frozen=True)
class Report:
    """Where the page is, agreement with each other folder by its name, purity where asked."""

    page: Path
    agreement: dict[str, Row]
    classes: Row | None


def write_report(request: Request) -> Report:
    """Write the page. Raises OvtrainError where a folder holds no labels, or where shards or
    classes that were asked for are at fault."""
    own, *others = named([request.out, *request.others])
    for folder in (own, *others):
        folder.check()
    reader, why = _open_shards(request, own)
    try:
        agreement = {other.name: own.overlap(other) for other in others}
        names, known = read_classes(request.classes) if request.classes else ([], {})
        classes = None
        if request.classes and reader is not None:
            classes = purity(LabelStore.read(own.labels), reader, request.classes)
        drawn = sheets.Drawn(reader, {stem: names[c] for stem, c in known.items()})
        centers = chosen_centers(own.labels, request.centers, request.named)
        parts = [
            sections.sizes(own.quality),
            sections.distances(own.quality),
            sections.convergence(own.convergence),
            sections.agreement(agreement),
            sections.classes(classes, why if request.classes else ""),
            sheets.section(drawn, centers) if reader is not None else sheets.without_shards(why),
            *([sections.compared([own, *others])] if others else []),
            sections.setup(own),
        ]
    finally:
        if reader is not None:
            reader.close()
    target = request.page or request.out / REPORT
    with atomic_open(target, "w") as handle:
        lead = _lead(own, agreement, classes)
        title = f"ovtrain cluster: {request.out.resolve().name}"
        handle.write(page(title, lead, parts, style=sheets.STYLE, command="ovtrain cluster report"))
    return Report(target, agreement, classes)


def _open_shards(request: Request, own: Folder) -> tuple[ShardReader | None, str]:
    """The shards, or None and why they are not at hand; those asked for by name must be."""
    told = request.shards or own.settings.get("shards")
    if not told:
        return None, "settings.json names no shards; name them with --shards."
    try:
        reader = ShardReader(Path(str(told)))
        about = read_description(own.labels, "labels")
        check_fingerprint(own.labels, about, reader.manifest.fingerprint)
    except OvtrainError as error:
        if request.shards is not None:
            raise
        return None, f"The shards are not at hand: {error}. Name them with --shards."
    return reader, ""


def _lead(own: Folder, agreement: dict[str, Row], classes: Row | None) -> str:
    """Below the title: where it is, the few numbers to see first."""
    about = own.quality
    margin = about.get("margin")
    found: list[tuple[object, str]] = [
        (about.get("samples"), "samples with labels"),
        (about.get("clusters"), "clusters"),
        (about.get("top"), "labels per sample"),
        (about.get("empty"), "empty clusters"),
        (about.get("mean_distance"), "mean distance to the nearest center"),
        (margin.get("mean") if isinstance(margin, dict) else None, "mean margin, 1 - d_1 / d_K"),
    ]
    found += [(row["ari"], f"adjusted Rand index with {name}") for name, row in agreement.items()]
    if classes is not None:
        found.append((classes["purity"], f"purity; permuted {classes['purity_permuted']:.3f}"))
    shown = [(number(value), what) for value, what in found if isinstance(value, (int, float))]
    shards = own.settings.get("shards")
    of = f" of the samples in <code>{escape(str(shards))}</code>" if shards else ""
    return f"<p>Labels in <code>{escape(str(own.out.resolve()))}</code>{of}.</p>{tiles(shown)}"
