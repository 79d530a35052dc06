"""Tables as text: Markdown, CSV and LaTeX."""

import csv
import io
import re

from experiments.files import formula_free, html, one_line


def markdown(headings: list[str], lines: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    body = [headings, ["---"] * len(headings), *lines]
    return "\n".join(
        "| " + " | ".join(html(c).replace("|", "\\|") for c in row) + " |" for row in body
    )


def comma_separated(headings: list[str], lines: list[list[str]]) -> str:
    """Returns a table in CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[formula_free(cell) for cell in row] for row in [headings, *lines]]
    )
    return text.getvalue()


def latex(headings: list[str], lines: list[list[str]], caption: str) -> str:
    """Returns a table in LaTeX that needs no package."""
    body = [" & ".join(map(escape, row)) + r" \\" for row in [headings, *lines]]
    columns = "l" + "r" * (len(headings) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            body[0],
            r"\hline",
            *body[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Escapes text for LaTeX."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    named |= {"±": r"$\pm$", "<": "$<$", ">": "$>$"}
    return re.sub(r"[\\~^±<>&%$#_{}]", lambda m: named.get(m[0], "\\" + m[0]), one_line(text))
