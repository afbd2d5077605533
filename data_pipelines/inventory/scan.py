"""Find the video files of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ovtrain.schema.errors import MediaError

CONTAINERS = "mp4|m4v|mov|mkv|webm|avi|wmv|flv|mpg|mpeg|ts|m2ts|3gp|ogv|ivf"
RAW_STREAMS = "h265|265|hevc|h264|264|jsv"
VIDEO_NAME = re.compile(rf".*\.({CONTAINERS}|{RAW_STREAMS})", re.IGNORECASE | re.DOTALL)


def scan(folder: Path, exclude: Path | None = None) -> tuple[list[Path], dict[str, str]]:
    """Video files under ``folder``, relative to it and sorted; and why each other file, and each
    folder that cannot be listed, is none.

    Hidden files and the folder ``exclude`` are left out. Raises MediaError where the folder is
    missing or holds no video.
    """
    fix = "name a folder of videos or make one with `python -m data_pipelines.synthetic --out DIR`"
    if not folder.is_dir():
        raise MediaError(str(folder), "no such folder", fix=fix)
    hidden = exclude.resolve() if exclude else None
    videos: list[Path] = []
    others: dict[str, str] = {}

    def unlisted(error: OSError) -> None:
        name = os.path.relpath(os.fsdecode(error.filename), folder)
        others[readable(Path(name))] = f"folder cannot be listed ({error.strerror})"

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        here = Path(parent)
        folders[:] = [n for n in folders if n[0] != "." and (here / n).resolve() != hidden]
        for name in names:
            if name.startswith("."):
                continue
            path = (here / name).relative_to(folder)
            reason = why_not(here / name)
            if reason:
                others[readable(path)] = reason
            else:
                videos.append(path)
    if not videos:
        first = "".join(f", the first {name}: {others[name]}" for name in sorted(others)[:1])
        raise MediaError(str(folder), f"no video among {len(others)} files{first}", fix=fix)
    return sorted(videos), others


def why_not(path: Path) -> str:
    """Why a file is not taken for a video, told from its name and kind; "" where it is."""
    if not VIDEO_NAME.fullmatch(readable(path.name)):
        return "no video suffix"
    if readable(path) != str(path):
        return "its path is not UTF-8"
    return "" if path.is_file() else "not a regular file (a dangling link, a pipe or a device)"


def readable(path: Path | str) -> str:
    """The path as text that can be printed: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")
