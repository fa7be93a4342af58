"""The bricks of a self-contained HTML page: everything that is not ``Markup`` is escaped."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from universal_model_hub.fit.reporting.charts import Chart


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--page:#fff;--card:#f6f8fa;
--line:#d1d9e0;--note:#fff8e1;--noteline:#e6b800;--accent:#b4401c}
@media(prefers-color-scheme:dark){:root{--ink:#e2e6ea;--soft:#9aa4af;--page:#14171b;--card:#1d2227;
--line:#353c44;--note:#2e2812;--noteline:#b08d00;--accent:#ff8a65}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);
background:var(--page);max-width:62rem;margin:0 auto;padding:2rem 1rem 4rem}
body.wide{max-width:88rem}
h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}h4{font-size:.9rem;margin:1rem 0 0;color:var(--soft)}
p{max-width:46rem;margin:.5rem 0}
.eyebrow,.soft,figcaption,small{color:var(--soft)}.eyebrow{font-size:.85rem}
small{display:block;font-size:.78rem;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:.8rem;
margin:1.4rem 0}.tile{background:var(--card);border:1px solid var(--line);border-radius:.5rem;
padding:.8rem 1rem}.tile b{display:block;font-size:1.9rem;line-height:1.25;
font-variant-numeric:tabular-nums}.tile span{display:block;font-size:.85rem;color:var(--soft);
overflow-wrap:anywhere}
.note{background:var(--note);border-left:4px solid var(--noteline);border-radius:.3rem;
padding:.6rem .9rem;margin:.6rem 0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.9rem;
font-variant-numeric:tabular-nums;min-width:40%}
th,td{padding:.4rem .8rem .4rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}td:last-child,th:last-child{padding-right:.2rem}
th{font-weight:600;color:var(--soft);font-size:.82rem;max-width:9rem;vertical-align:bottom}
td.number,th.number{text-align:right}td.figure{white-space:nowrap}tr.total td{font-weight:600}
tr.total small{font-weight:400}
td.text{max-width:38rem}td.words{min-width:8rem}td.long{overflow-wrap:anywhere}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer}
th button::after{content:"\\2195";opacity:.45;padding-left:.25rem}
th[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
th[aria-sort=descending] button::after{content:"\\2193";opacity:1}
button:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
figure{margin:1rem 0}img{max-width:100%;height:auto;display:block;border-radius:.3rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.85rem;margin:.4rem 0}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.15rem;margin-right:.4rem;
vertical-align:-.08rem}
pre{background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.7rem .9rem;
font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;font-weight:600;margin:.8rem 0}
figure picture{display:block;overflow-x:auto}
@media(max-width:40rem){figure img{max-width:none;width:38rem}}
@media print{body{max-width:none}.scroll{overflow:visible}}
"""
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
      return rising ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


def text(value: Any) -> Markup:
    """Return a value as HTML text; ``Markup`` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, content: Any, css: str = "") -> Markup:
    """Return an element around text or ``Markup``."""
    start = f"<{name} class='{css}'>" if css else f"<{name}>"
    return Markup(f"{start}{text(content)}</{name}>")


def joined(parts: Sequence[Markup]) -> Markup:
    """Return parts one behind the other."""
    return Markup("".join(parts))


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> Markup:
    """Return a number as a sortable cell shows it; None as a dash."""
    if value is None:
        return Markup("<span title='not defined'>&ndash;</span>")
    written = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return Markup(written.replace("-", "&minus;"))


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numeric: Sequence[int] = (),
    sort_keys: Sequence[Sequence[Any]] | None = None,
    total_last: bool = False,
) -> Markup:
    """Return a table in a box of its own that scrolls.

    Args:
        head: Names of the columns.
        rows: Their cells.
        numeric: Columns that are written to the right.
        sort_keys: What each cell is sorted by; None: the table cannot be sorted.
        total_last: Whether the last row sums up the others.
    """
    titles = [
        f"<th scope='col'{' class=number' if i in numeric else ''}>"
        + (f"<button type='button'>{text(name)}</button>" if sort_keys else text(name))
        + "</th>"
        for i, name in enumerate(head)
    ]
    body = []
    for place, row in enumerate(rows):
        cells = []
        for i, cell in enumerate(row):
            key = ""
            if sort_keys:
                value = sort_keys[place][i]
                key = f' data-sort="{html.escape("" if value is None else str(value))}"'
            css = "number" if i in numeric else text_class(cell)
            if i in numeric and any(letter.isdigit() for letter in str(cell)):
                css += " figure"  # words there may be broken into lines, figures not
            cells.append(f"<td class='{css}'{key}>{text(cell)}</td>")
        total = " class='total'" if total_last and place == len(rows) - 1 else ""
        body.append(f"<tr{total}>{''.join(cells)}</tr>")
    css = " class='sortable'" if sort_keys else ""
    return Markup(
        f"<div class='scroll' tabindex='0'><table{css}><thead><tr>{''.join(titles)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def text_class(cell: Any) -> str:
    """Return the CSS classes of a cell of text: only words longer than a name may be broken."""
    words = re.sub("<[^>]*>", " ", str(cell)).split()
    if any(len(word) > 20 for word in words):
        return "text words long"
    return "text words" if len(" ".join(words)) > 10 else "text"


def facts(values: Mapping[str, Any]) -> Markup:
    """Return names and values as a table of two columns."""
    rows = "".join(
        f"<tr><th scope='row'>{text(name)}</th>"
        f"<td class='{text_class(value)}'>{text(value)}</td></tr>"
        for name, value in values.items()
    )
    return Markup(f"<div class='scroll' tabindex='0'><table><tbody>{rows}</tbody></table></div>")


def legend(entries: Mapping[str, str]) -> Markup:
    """Return names with their colors."""
    items = "".join(
        f"<span><i style='background:{text(color)}'></i>{text(name)}</span>"
        for name, color in entries.items()
    )
    return Markup(f"<div class='legend'>{items}</div>")


def picture(png: bytes | Chart, caption: str) -> Markup:
    """Return a PNG file within the page, or the two of a chart, with a caption."""
    dark, width = "", ""
    if isinstance(png, Chart):
        dark = f"<source media='(prefers-color-scheme:dark)' srcset='{_data(png.dark)}'>"
        width = f" width='{png.width}'"
        png = png.light
    image = f"<img{width} alt='{text(caption)}' src='{_data(png)}'>"
    return Markup(
        f"<figure><picture>{dark}{image}</picture><figcaption>{text(caption)}</figcaption></figure>"
    )


def page(title: str, body: Sequence[Markup], *, wide: bool = False) -> str:
    """Return the whole page, ``wide`` for broad tables; it may load nothing from anywhere."""
    policy = "default-src 'none';img-src data:;style-src 'unsafe-inline';script-src 'unsafe-inline'"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
        f"<body{' class=wide' if wide else ''}>{''.join(body)}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
