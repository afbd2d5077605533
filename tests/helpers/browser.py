"""A headless browser that opens a page and says what it saw."""

import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

NARROWEST = 500
"""A window of the browser is at least as wide."""
VOID = {"meta", "img", "line", "polyline", "circle", "rect", "path", "br", "link"}


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium to look at the report")
        pytest.skip("no chromium here")
    return found


def look(page: Path, folder: Path, script: str, width: int = 900) -> str:
    """What ``script``, run when ``page`` has loaded, put into the title; and nothing went wrong."""
    watch = (
        "<script>let wrong=0;addEventListener('error',()=>{wrong++},true);"
        "console.error=()=>{wrong++};</script></head>",
        f"<script>addEventListener('load',()=>{{{script};document.title+=' errors '+wrong;"
        "parent.postMessage(document.title,'*')})"
        "</script></body>",
    )
    text = page.read_text().replace("</head>", watch[0], 1).replace("</body>", watch[1], 1)
    probe = folder / f"look-{width}.html"
    probe.write_text(text)
    if width < NARROWEST:
        probe = _framed(probe, width)
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    flags += ("--virtual-time-budget=5000",)
    command = [browser(), *flags, f"--window-size={width},1200", "--dump-dom", probe.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>(.*?) errors (\d+)</title>", shown)
    assert title is not None
    assert title[2] == "0"
    return unescape(title[1])


def _framed(page: Path, width: int) -> Path:
    """A page that shows ``page`` on a screen of ``width``, and takes over its title."""
    frame = page.with_name(f"frame-{page.name}")
    frame.write_text(
        "<html><head><title>waits</title><script>"
        "addEventListener('message',e=>{document.title=e.data})</script></head>"
        f'<body><iframe src="{page.name}" width="{width}" height="1200"></iframe></body></html>'
    )
    return frame


class Balance(HTMLParser):
    """Open tags must be closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.faults = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.faults.append(tag)


def check_markup(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert not parser.faults
    assert not parser.open


def check_self_contained(page: str) -> None:
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.search(r"url\(|@import|<link", page)
