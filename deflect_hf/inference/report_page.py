"""The page of a report: what it shows as data, and that as HTML."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass

Facts = tuple[tuple[str, str], ...]

OPACITY = 70  # of the map over the picture, in percent, before anybody moves the slider


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, what it is for those who do not see it, and its width over its height."""

    uri: str
    text: str
    aspect: float


@dataclass(frozen=True)
class ClassRow:
    """A line of the table: its colour (None: transparent), its size, and its share (of 1)."""

    name: str
    colour: str | None
    size: float
    share: float


@dataclass(frozen=True)
class Page:
    """Everything a report shows.

    Attributes:
        rows: one per class, and last what has no class.
        unit: of the sizes, ``ha`` or ``pixels``.
        measured_by: one sentence on how they were found.
        scale_bar: its length in words and its share of the map's width.
    """

    title: str
    picture: Picture
    overlay: Picture
    rows: tuple[ClassRow, ...]
    unit: str
    measured_by: str
    scale_bar: tuple[str, float] | None
    facts: Facts


STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d5dae0;--paper:#fff;--panel:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebee;--soft:#9aa4af;--line:#3a424b;--paper:#15191d;--panel:#1e2429}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 24px 48px;max-width:1120px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:24px;line-height:1.25;margin:0 0 18px;overflow-wrap:anywhere}
h2{font-size:16px;margin:32px 0 10px}
p{color:var(--soft);margin:8px 0}
.controls{display:flex;flex-wrap:wrap;gap:8px 22px;align-items:center;padding:8px 12px;background:var(--panel);
border:1px solid var(--line);border-bottom:0;border-radius:8px 8px 0 0}
.controls label{display:inline-flex;gap:7px;align-items:center}
.controls output{min-width:3.4em;font-variant-numeric:tabular-nums}
.stage{display:grid;grid-template-columns:1fr;gap:10px;padding:10px;border:1px solid var(--line);
border-bottom:0;background:var(--panel)}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;margin:0;padding:2px 12px 10px;list-style:none;font-size:13px;
border:1px solid var(--line);border-top:0;border-radius:0 0 8px 8px;background:var(--panel)}
.layer{grid-area:1/1;position:relative;margin:0}
.layer img{display:block;width:100%}
body:has(#beside:checked) .stage{grid-template-columns:1fr 1fr}
body:has(#beside:checked) .layer{grid-area:auto}
body:has(#beside:checked) #map{opacity:1!important}
body:has(#beside:checked) .fade{visibility:hidden}
figcaption{position:absolute;z-index:1;left:0;top:0;padding:1px 7px;font-size:12px;color:#fff;background:#000a}
.layer+.layer figcaption{display:none}
body:has(#beside:checked) .layer+.layer figcaption{display:block}
.bar{margin-top:4px;border:1px solid var(--ink);border-top:0;height:6px}
.barlabel{font-size:12px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-weight:600;color:var(--soft);font-size:13px}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tbody th{font-weight:400;min-width:8em}
.key{display:inline-block;width:15px;height:15px;margin-right:9px;border:1px solid #0006;border-radius:3px;
vertical-align:-2px}
.none{background:repeating-linear-gradient(45deg,#bbb 0 3px,#fff 3px 6px)}
.track{width:34%;min-width:120px}
.track div{height:13px;margin-top:5px;min-width:1px;border:1px solid #0005;border-radius:2px}
@media(max-width:640px){.track{display:none}body{padding:18px 10px}}
.facts th{width:170px;color:var(--soft)}
.facts td{overflow-wrap:anywhere}
@media print{.controls{display:none}.stage{grid-template-columns:1fr 1fr;border:0}.layer{grid-area:auto}
#map{opacity:1!important}}
"""

SCRIPT = """
const map = document.getElementById("map"), slider = document.getElementById("opacity");
const say = document.getElementById("percent");
function fade() { map.style.opacity = slider.value / 100; say.textContent = slider.value + " %"; }
slider.addEventListener("input", fade);
fade();
"""


def as_html(page: Page) -> str:
    """The page as one HTML document, every text escaped."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{script}'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(page.title)} - map</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(page.title)}</h1>
<div class="controls">
<label><input type="radio" name="view" id="over" checked> Map over picture</label>
<label><input type="radio" name="view" id="beside"> Side by side</label>
<label class="fade">Map's opacity
<input type="range" id="opacity" min="0" max="100" value="{OPACITY}"> <output id="percent"></output></label>
</div>
<div class="stage">
{_figure(page.picture, "picture", page.scale_bar)}
{_figure(page.overlay, "map", None)}
</div>
{_legend(page.rows)}
<h2>Areas</h2>
{_table(page)}
<p>{_text(page.measured_by)}</p>
<h2>How it was made</h2>
<div class="scroll"><table class="facts"><tbody>
{_facts(page.facts)}
</tbody></table></div>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _text(value: str) -> str:
    # the words of a command line need not be text
    return html.escape(value.encode("utf-8", "replace").decode("utf-8"), quote=True)


def _figure(picture: Picture, name: str, scale_bar: tuple[str, float] | None) -> str:
    bar = ""
    if scale_bar is not None:
        words, share = scale_bar
        bar = f'<div class="bar" style="width:{100 * share:.3f}%"></div><div class="barlabel">{_text(words)}</div>'
    return (
        f'<figure class="layer" style="max-width:calc({picture.aspect:.4f} * 82vh)">'
        f'<img id="{name}" src="{picture.uri}" alt="{_text(picture.text)}">'
        f"<figcaption>{_text(picture.text)}</figcaption>{bar}</figure>"
    )


def _key(row: ClassRow) -> str:
    """A small square of the class's colour, hatched where the map is transparent."""
    return (
        f'<span class="key" style="background:{row.colour}"></span>' if row.colour else '<span class="key none"></span>'
    )


def _legend(rows: Sequence[ClassRow]) -> str:
    """What can be seen on the map: the classes that it has."""
    items = [f"<li>{_key(row)}{_text(row.name)}</li>" for row in rows if row.size]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(page: Page) -> str:
    whole = sum(row.size for row in page.rows)
    *classes, nodata = page.rows
    lines = [_row(row, page.unit) for row in classes]
    lines.append(_row(nodata, page.unit, note=" of the scene"))
    lines.append(
        f'<tr><th scope="row">scene</th><td class="number">{_number(whole, page.unit)}</td><td></td><td></td></tr>'
    )
    return (
        '<div class="scroll"><table id="areas"><thead><tr><th scope="col">Class</th>'
        f'<th scope="col" class="number">Area ({_text(page.unit)})</th>'
        '<th scope="col" class="number">Share of the mapped area</th><th class="track"></th></tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _row(row: ClassRow, unit: str, note: str = "") -> str:
    bar = ""
    if row.colour is not None and row.size:
        bar = f'<div style="width:{100 * row.share:.2f}%;background:{row.colour}"></div>'
    return (
        f'<tr><th scope="row">{_key(row)}{_text(row.name)}</th><td class="number">{_number(row.size, unit)}</td>'
        f'<td class="number">{100 * row.share:.2f} %{note}</td><td class="track">{bar}</td></tr>'
    )


def _number(size: float, unit: str) -> str:
    """Sizes with thousands apart; small areas keep three digits."""
    if unit == "pixels":
        return f"{size:,.0f}"
    return f"{size:,.2f}" if size >= 1 or size == 0 else f"{size:.3g}"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in facts)
