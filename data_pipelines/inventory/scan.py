"""Find the video files of a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ovtrain.schema.errors import MediaError

CONTAINERS = "mp4|m4v|mov|mkv|webm|avi|wmv|flv|mpg|mpeg|ts|m2ts|3gp|ogv|ivf"
RAW_STREAMS = "h265|265|hevc|h264|264|jsv"
VIDEO_NAME = re.compile(rf".*\.({CONTAINERS}|{RAW_STREAMS})", re.IGNORECASE)


def scan(folder: Path, exclude: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Video files and other files under ``folder``, relative to it, sorted.

    Hidden files and the folder ``exclude`` are left out. Raises MediaError where the folder is
    missing or holds no video.
    """
    fix = "name a folder of videos or make one with `python -m data_pipelines.synthetic --out DIR`"
    if not folder.is_dir():
        raise MediaError(str(folder), "no such folder", fix=fix)
    hidden = exclude.resolve() if exclude else None
    videos: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [n for n in folders if n[0] != "." and (here / n).resolve() != hidden]
        for name in names:
            if name.startswith("."):
                continue
            kind = videos if VIDEO_NAME.fullmatch(name) else others
            kind.append((here / name).relative_to(folder))
    if not videos:
        raise MediaError(str(folder), f"no video among {len(others)} files", fix=fix)
    return sorted(videos), sorted(others)
