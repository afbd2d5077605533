"""The page around the report's sections: style, the charts' script, tables. Nothing is fetched: the
file works from a mail attachment or an air-gapped machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files


@dataclass(frozen=True)
class Section:
    """One heading of the page; ``body`` is HTML."""

    title: str
    body: str

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def absent(text: str) -> str:
    """A sentence that says what is not there (plain text)."""
    return f'<p class="absent">{escape(text)}</p>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    strong: Sequence[int] = (),
) -> str:
    """Cells are HTML; ``numbers`` are right-aligned columns, ``strong`` tinted rows."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{' class=strong' if i in strong else ''}>{cells('td', row)}</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """The few numbers to see first: (value, what it is), plain text."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in entries
    )
    return f'<div class="tiles">{cells}</div>'


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    style: str = "",
    command: str = "ovtrain report",
) -> str:
    """The whole document; ``lead`` is the header's HTML below the title, ``style`` more CSS,
    ``command`` what its footer names."""
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    body = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_text('page.css')}{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{lead}</header><nav><div>{links}</div></nav>"
        f"<main>{body}<footer>Written by <code>{escape(command)}</code>.</footer></main>"
        '<div id="tip">'
        f"</div><script>{_text('charts.js')}</script></body></html>\n"
    )


@cache
def _text(name: str) -> str:
    return (files("ovtrain.observability.report") / name).read_text()
