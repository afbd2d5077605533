"""The page around the report's sections: style, hover script, tables. Nothing is fetched: the file
works from a mail attachment or an air-gapped machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root{--ink:#0f172a;--soft:#475569;--faint:#94a3b8;--line:#e2e8f0;--wash:#f8fafc;--blue:#1d4ed8}
*{box-sizing:border-box}
html{scroll-padding-top:3.2rem}
body{margin:0;color:var(--ink);background:#fff;font:14px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
header,main{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:22px}
h1{font-size:21px;margin:0;letter-spacing:-.01em}
h2{font-size:16px;margin:34px 0 10px;padding-bottom:5px;border-bottom:1px solid var(--line)}
h3{font-size:13px;margin:16px 0 6px;color:var(--soft);font-weight:600}
p{margin:.4em 0;max-width:82ch}
code,pre{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere}
pre{background:var(--wash);border:1px solid var(--line);border-radius:4px;padding:9px 11px;
overflow:auto;max-height:340px}
.sub{color:var(--soft)}
.absent{color:var(--soft);background:var(--wash);border-left:3px solid var(--line);padding:6px 11px;
max-width:none}
nav{position:sticky;top:0;background:#fffffff2;border-bottom:1px solid var(--line);z-index:2;
margin-top:14px}
nav div{max-width:1180px;margin:0 auto;padding:7px 20px;display:flex;gap:4px 17px;flex-wrap:wrap;
font-size:12.5px}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;
margin:16px 0 4px}
.tile{overflow-wrap:anywhere;border:1px solid var(--line);border-radius:5px;padding:9px 12px}
.tile b{display:block;font-size:19px;letter-spacing:-.01em}
.tile span{font-size:12px;color:var(--soft)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));
gap:14px 26px;align-items:start}
.dense{grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),380px))}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;min-width:50%}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:12px;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
tr.strong td{background:#eff6ff}
td.path{overflow-wrap:anywhere}
figure{margin:0}
figcaption{font-size:12.5px;font-weight:600;color:var(--soft);margin-bottom:3px}
svg{display:block;width:100%;height:auto;max-width:640px;font-family:inherit}
.grid{stroke:var(--line)}.axis{stroke:var(--faint)}
.tick,.axis-label{font-size:10.5px;fill:var(--soft)}
.bar-label,.bar-value{font-size:11.5px;fill:var(--ink)}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}
.whisker{stroke:var(--ink);fill:none;stroke-width:1.2}
.dot{fill:#fff;stroke:var(--ink);stroke-width:1}
.reference{stroke:#b91c1c;stroke-dasharray:4 3;stroke-width:1.2}
.cross{stroke:var(--faint);stroke-dasharray:2 2}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--soft);padding-left:8%}
.legend i{display:inline-block;width:20px;margin-right:6px;vertical-align:middle}
.pictures figure{margin-bottom:16px}
.pictures img{width:100%;height:auto;border:1px solid var(--line);border-radius:3px;display:block}
.share{display:flex;height:17px;border-radius:3px;overflow:hidden;min-width:200px}
.share i{display:block;height:100%}
.failed{color:#b91c1c;font-weight:600}
details{margin:8px 0}summary{cursor:pointer;color:var(--soft)}
#tip{position:fixed;pointer-events:none;background:#fff;border:1px solid var(--faint);
border-radius:4px;padding:4px 8px;font-size:12px;display:none;z-index:3;
box-shadow:0 2px 8px #0f172a22}
footer{color:var(--soft);font-size:12px;padding:26px 0}
@media print{nav{display:none}h2{break-after:avoid}figure{break-inside:avoid}}
"""

SCRIPT = """
const tip=document.getElementById('tip');
const short=v=>Math.abs(v)>=1e4||Math.abs(v)<1e-3&&v!==0?v.toExponential(2):+v.toPrecision(4);
document.querySelectorAll('svg.hover').forEach(svg=>{
  const d=JSON.parse(svg.dataset.series),[x0,x1]=d.frame,[left,right,top,floor]=d.box;
  const cross=document.createElementNS('http://www.w3.org/2000/svg','line');
  cross.setAttribute('class','cross');cross.setAttribute('y1',top);cross.setAttribute('y2',floor);
  svg.addEventListener('mousemove',e=>{
    const at=new DOMPoint(e.clientX,e.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if(at.x<left||at.x>right)return;
    const x=x0+(at.x-left)/(right-left)*(x1-x0);
    const near=d.series.map(s=>s.points.reduce((a,b)=>Math.abs(b[0]-x)<Math.abs(a[0]-x)?b:a));
    const step=near.reduce((a,b)=>Math.abs(b[0]-x)<Math.abs(a[0]-x)?b:a)[0];
    const px=left+(step-x0)/(x1-x0)*(right-left);
    cross.setAttribute('x1',px);cross.setAttribute('x2',px);svg.appendChild(cross);
    tip.textContent='';
    const head=document.createElement('b');head.textContent=d.x+' '+short(step);tip.append(head);
    d.series.forEach((s,i)=>{const row=document.createElement('div');row.style.color=s.color;
      row.textContent=s.name+'  '+short(near[i][1]);tip.append(row)});
    tip.style.display='block';
    tip.style.left=Math.min(e.clientX+14,innerWidth-tip.offsetWidth-8)+'px';
    tip.style.top=(e.clientY+14)+'px';
  });
  svg.addEventListener('mouseleave',()=>{tip.style.display='none';cross.remove()});
});
"""


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
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{lead}</header><nav><div>{links}</div></nav>"
        f"<main>{body}<footer>Written by <code>{escape(command)}</code>.</footer></main>"
        '<div id="tip">'
        f"</div><script>{SCRIPT}</script></body></html>\n"
    )
