"""A report as one HTML file: tables and figures, without links to anything else."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62em; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; } th, td { padding: .15em .8em .15em 0; text-align: left;
        vertical-align: top; border-bottom: 1px solid #e4e8eb; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f4f6f7; padding: .6em .8em; white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
"""
# Nothing is fetched and nothing runs, whatever the texts say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Table(NamedTuple):
    """A table with a heading."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence]


class Picture(NamedTuple):
    """A figure with a heading and a sentence that explains it."""

    title: str
    caption: str
    content: bytes  # of a PNG file


def html_report(
    title: str, command: str, tables: Iterable[Table], figures: Iterable[Picture]
) -> str:
    """Returns the text of an HTML file; all texts are escaped, figures are inside.

    Args:
      title: of the page.
      command: that repeats the run.
      tables: in their order. Those without rows are left out.
      figures: come after the second table.
    """
    parts = [_table(table) for table in tables if table.rows]
    drawn = [_figure(*figure) for figure in figures]
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<pre>{escape(command)}</pre>",
        *parts[:2],
        *drawn,
        *parts[2:],
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(table):
    # Columns of numbers are aligned with their headings. In a list of names and values of all
    # kinds, numbers would be far from their names.
    columns = list(zip(*table.rows))
    right = [len(columns) > 2 and all(map(_is_number, column)) for column in columns]
    head = "".join(map(_cell, table.headings, right, ["th"] * len(right)))
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, right))}</tr>" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2>\n<table>\n<tr>{head}</tr>\n{rows}\n</table>"


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value, right, kind="td"):
    value = f"{value:.6g}" if isinstance(value, float) else value
    return f"<{kind}{' class=number' if right else ''}>{escape(str(value))}</{kind}>"


def _figure(title, caption, content):
    data = base64.b64encode(content).decode()
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<h2>{escape(title)}</h2>\n<figure>{image}{text}</figure>"
