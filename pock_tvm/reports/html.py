"""Pages with text, figures and tables, in one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..device.files import replacing
from ..errors import PockError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ heading }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 2px 10px; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f5f5f5 } img { max-width: 100% }
</style></head><body>
<h1>{{ heading }}</h1>
<p>{% for line in lines %}{{ line }}<br>{% endfor %}</p>
{% for title, text, picture in figures %}
<h2>{{ title }}</h2><p>{{ text }}</p><img alt="{{ title }}" src="data:image/png;base64,{{ picture }}">
{% endfor %}
{% for title, header, rows in tables %}
<h2>{{ title }}</h2>
<table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
{% endfor %}
</body></html>
"""


Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def write_page(
    output: str | os.PathLike[str],
    heading: str,
    lines: Sequence[str],
    figures: Sequence[tuple[str, str, Figure]],
    tables: Sequence[Table],
) -> list[bytes]:
    """Write a page: lines of text, figures with title and text, tables. Returns the figures as PNG.

    Raises
    ------
    PockError
        Jinja is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise PockError("reports are made by Jinja and Matplotlib: pip install 'pock-tvm[plot]'") from error
    drawn = [_png(figure) for _, _, figure in figures]
    page = jinja2.Environment(autoescape=True).from_string(PAGE_TEMPLATE)
    pictures = [base64.b64encode(data).decode() for data in drawn]
    described = [(title, text, picture) for (title, text, _), picture in zip(figures, pictures, strict=True)]
    text = page.render(heading=heading, lines=lines, figures=described, tables=tables)
    with replacing(output) as file:
        file.write(text.encode())
    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
