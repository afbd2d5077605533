"""Find the media of a folder, of tars (as img2dataset writes them) and of a list, in an order that
does not depend on the file system.

A list is a .csv with the columns ``path``, ``start`` and ``end``: paths relative to the list, times
in seconds or H:MM:SS; without an end, one clip at the start; without both, anywhere.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.inventory.media import MediaFile
from ovtrain.schema.errors import MediaError

CONTAINERS = "mp4|m4v|mov|mkv|webm|avi|wmv|flv|mpg|mpeg|ts|m2ts|3gp|ogv|ivf"
RAW_STREAMS = "h265|265|hevc|h264|264|jsv"
PICTURES = "jpg|jpeg|png|webp|bmp|tif|tiff|gif"
VIDEO_NAME = re.compile(rf".*\.({CONTAINERS}|{RAW_STREAMS})", re.IGNORECASE | re.DOTALL)
PICTURE_NAME = re.compile(rf".*\.({PICTURES})", re.IGNORECASE | re.DOTALL)
TAR_NAME = re.compile(r".*\.tar", re.IGNORECASE | re.DOTALL)
NO_SUFFIX = "no media suffix"
LIST_COLUMNS = ("path", "start", "end")
CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")

FIX = (
    "name a folder of videos or pictures, or make one with "
    "`python -m data_pipelines.synthetic --out DIR`"
)

Span = tuple[float, float | None] | None
"""Seconds (start, end) of a video; end None: from the start on; None: the whole video."""


@dataclass
class Listing:
    """files: relative to ``folder``, sorted: media and tars of media; skipped: why others are none;
    spans: of the files of a list, in its order."""

    folder: Path
    files: list[str] = field(default_factory=list[str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    spans: dict[str, list[Span]] = field(default_factory=dict[str, list[Span]])


def scan(source: Path, exclude: Path | None = None, *, pictures: bool = True) -> Listing:
    """The media that ``source``, a folder or a .csv list, names. Hidden files and the folder
    ``exclude`` are left out, pictures without ``pictures``. Raises MediaError where ``source`` is
    missing or names no media."""
    if source.is_file() and source.suffix.lower() == ".csv":
        listing = _read_list(source, pictures)
    elif source.is_dir():
        listing = _walk(source, exclude, pictures)
    else:
        raise MediaError(str(source), "no such folder or .csv list", fix=FIX)
    if not listing.files:
        names = sorted(listing.skipped)
        first = f", the first {names[0]}: {listing.skipped[names[0]]}" if names else ""
        raise MediaError(str(source), f"no media among {len(names)} files{first}", fix=FIX)
    return listing


def _walk(folder: Path, exclude: Path | None, pictures: bool) -> Listing:
    listing = Listing(folder)
    hidden = exclude.resolve() if exclude else None

    def unlisted(error: OSError) -> None:
        name = os.path.relpath(os.fsdecode(error.filename), folder)
        listing.skipped[readable(Path(name))] = f"folder cannot be listed ({error.strerror})"

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        here = Path(parent)
        folders[:] = [n for n in folders if n[0] != "." and (here / n).resolve() != hidden]
        for name in names:
            if name.startswith("."):
                continue
            path = (here / name).relative_to(folder)
            reason = why_not(here / name, pictures)
            if reason:
                listing.skipped[readable(path)] = reason
            else:
                listing.files.append(str(path))
    listing.files.sort()
    return listing


def why_not(path: Path, pictures: bool = True) -> str:
    """Why a file is not taken, told from its name and kind; "" where it is."""
    name = readable(path.name)
    if not (is_media(name, pictures) or TAR_NAME.fullmatch(name)):
        return NO_SUFFIX
    if readable(path) != str(path):
        return "its path is not UTF-8"
    return "" if path.is_file() else "not a regular file (a dangling link, a pipe or a device)"


def is_media(name: str, pictures: bool = True) -> bool:
    return bool(VIDEO_NAME.fullmatch(name) or (pictures and PICTURE_NAME.fullmatch(name)))


def is_picture(name: str) -> bool:
    return bool(PICTURE_NAME.fullmatch(name))


def media_in(
    folder: Path, file: str, skipped: dict[str, str], *, pictures: bool = True
) -> Iterator[MediaFile]:
    """The file itself, or a tar's members that are media, in the tar's order; what a tar that is
    damaged does not show goes to ``skipped``. Other members (captions, parquet) are passed over."""
    if not TAR_NAME.fullmatch(file):
        yield MediaFile(file, file)
        return
    size, seen = (folder / file).stat().st_size, set[str]()
    try:
        with tarfile.open(folder / file, mode="r:") as tar:
            for info in tar:
                name = f"{file}/{posixpath.normpath(info.name)}"
                if not info.isreg() or not is_media(info.name, pictures):
                    continue
                if info.offset_data + info.size > size:
                    skipped[name] = "its tar is cut short"
                elif readable(info.name) != info.name:
                    skipped[readable(name)] = "its path is not UTF-8"
                elif info.sparse:
                    skipped[name] = "a sparse member of a tar"
                elif name in seen:
                    skipped[f"{name} at {info.offset}"] = "its name stands twice in its tar"
                else:
                    seen.add(name)
                    yield MediaFile(name, file, info.offset_data, info.size)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        skipped[file] = f"not a readable tar from here on ({error})"


def _read_list(path: Path, pictures: bool) -> Listing:
    """Raises MediaError where the list has no header; a bad row is skipped by its number."""
    listing = Listing(path.parent)
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        table = csv.DictReader(handle)
        missing = set(LIST_COLUMNS) - {name.strip() for name in table.fieldnames or ()}
        if missing:
            raise MediaError(
                str(path),
                f"a list without the column {', '.join(sorted(missing))}",
                allowed=f"a first line with {','.join(LIST_COLUMNS)}, in any order",
            )
        for row in _rows(table, path):
            cells = {(name or "").strip(): (cell or "") for name, cell in row.items() if name}
            try:
                name, span = _row(listing.folder, cells, pictures)
            except ValueError as error:
                listing.skipped[f"{path.name}, line {table.line_num}"] = f"bad row ({error})"
                continue
            listing.spans.setdefault(name, []).append(span)
    listing.files = sorted(listing.spans)
    return listing


def _rows(table: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from table
    except csv.Error as error:
        raise MediaError(f"{path}, line {table.line_num}", f"not a list ({error})") from error


def _row(folder: Path, cells: dict[str, str], pictures: bool) -> tuple[str, Span]:
    """Raises ValueError with what is wrong."""
    name = cells["path"].strip()
    if not name:
        raise ValueError("no path")
    reason = why_not(folder / name, pictures)
    if reason:
        raise ValueError(f"{readable(name)}: {reason}")
    if TAR_NAME.fullmatch(name):
        raise ValueError(f"{name}: a tar, where a list names media")
    start, end = (_seconds(cells[key].strip()) for key in ("start", "end"))
    if start is None and end is None:
        return name, None
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {cells['end']} is not behind start {cells['start'] or 0}")
    return name, (start or 0.0, end)


def _seconds(text: str) -> float | None:
    if not text:
        return None
    found = CLOCK.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time in seconds or H:MM:SS")
    hours, minutes, seconds = found.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds)


def readable(path: Path | str) -> str:
    """The path as text that can be printed: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")
