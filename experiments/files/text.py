"""Text from files and of their names, made harmless for terminals, tables and pages."""

import html as _html
from typing import Any


def one_line(text: Any) -> str:
    r"""Returns text without what moves the cursor of a terminal: ``\x1b`` in place of an escape.

    Letters, including those beyond ASCII, stay; control characters, line breaks, marks that turn
    the direction of writing, and bytes that are no UTF-8 are written as escapes.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def formula_free(text: Any) -> str:
    """Returns a cell of CSV that no spreadsheet takes for a formula: with ``'`` before one."""
    cell = one_line(text)
    return (
        "'" + cell if cell.lstrip()[:1] in ("=", "+", "-", "@") and not _is_number(cell) else cell
    )


def html(text: Any) -> str:
    """Returns text for HTML and Markdown, without tags and line breaks."""
    return _html.escape(one_line(text), quote=False)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
