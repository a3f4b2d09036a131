"""Render tables as Markdown, LaTeX and plain text, and rows as CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

from cpips.printable import no_formula

if TYPE_CHECKING:
    import pandas

FORMATS = ("text", "markdown", "latex", "csv")
TIED = "*"
ABSENT = "–"
BOLD = " Bold: best of its column."  # a note that plain text, which has no bold, leaves out

Row = tuple[str, str, str, str, float, float, float]


@dataclass(frozen=True)
class Cell:
    """A printed value.

    Args:
        value: the number behind ``text``, for sorting; None where there is none.
        interval: ``(low, high)`` as printed, or None.
        bold: the best of its column.
        mark: not significantly different from the best.
    """

    text: str
    value: float | None = None
    interval: tuple[str, str] | None = None
    bold: bool = False
    mark: bool = False


@dataclass(frozen=True)
class Column:
    """One quantity.

    Args:
        better: 1 the more, -1 the less, 0 neither.
        headline: what metrics are ranked by: formats with little room print the intervals of these columns only.
    """

    title: str
    better: int = 1
    headline: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: the first cell of each row of ``rows`` (metrics) and ``feet`` (ceilings) is its name."""

    title: str
    corner: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    feet: Sequence[Sequence[Cell]]
    notes: Sequence[str]


def as_csv(frame: pandas.DataFrame) -> str:
    """Numbers with all their digits; names, which come from users, on one line and as no formula."""
    words = {name: [no_formula(one_line(cell)) for cell in frame[name]] for name in ("dataset", "metric", "quantity", "group")}
    text: str = frame.assign(**words).to_csv(index=False, lineterminator="\n")
    return text


# ---- Markdown, LaTeX, text ------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Names come from users: what is no printable character becomes a space."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()


def _markdown(grid: Grid) -> str:
    def cell(c: Cell, column: Column | None = None) -> str:
        text = escape_markdown(c.text)
        text = f"**{text}**" if c.bold else text
        if c.interval and column and column.headline:
            text += f" [{c.interval[0]}, {c.interval[1]}]"
        return text + r" \*" * c.mark

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def row(cells: Sequence[Cell]) -> str:
        return line([cell(cells[0]), *(cell(c, column) for c, column in zip(cells[1:], grid.columns))])

    header = line([grid.corner, *(escape_markdown(c.title) for c in grid.columns)])
    lines = [f"**{escape_markdown(grid.title)}**", "", header,
             "|:--|" + "--:|" * len(grid.columns), *map(row, grid.rows)]
    lines += [line([f"*{escape_markdown(foot[0].text)}*", *(escape_markdown(c.text) for c in foot[1:])])
              for foot in grid.feet]
    return "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in grid.notes)]) + "\n"


def escape_markdown(text: str) -> str:
    """``text`` as it is, in GitHub's Markdown, its tables and any other."""
    text = one_line(text).replace("&", "&amp;")
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def _latex(grid: Grid) -> str:
    def number(text: str) -> str:
        return escape_latex(text).replace(ABSENT, "--") if not text[:1] == "-" else f"$-${escape_latex(text[1:])}"

    def cell(c: Cell, column: Column) -> str:
        text = rf"\textbf{{{number(c.text)}}}" if c.bold else number(c.text)
        if c.interval and column.headline:
            text += rf" {{\scriptsize [{number(c.interval[0])}, {number(c.interval[1])}]}}"
        return text + "$^{*}$" * c.mark

    def row(cells: Sequence[Cell]) -> str:
        name = escape_latex(cells[0].text) + "$^{*}$" * cells[0].mark
        return " & ".join([name, *(cell(c, column) for c, column in zip(cells[1:], grid.columns))]) + r" \\"

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(grid.title)}.}}",
             rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}", r"\toprule",
             " & ".join([grid.corner, *(escape_latex(c.title) for c in grid.columns)]) + r" \\", r"\midrule",
             *map(row, grid.rows)]
    if grid.feet:
        lines += [r"\midrule", *map(row, grid.feet)]
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize",
              *(escape_latex(note) + (r" \\" if note is not grid.notes[-1] else "") for note in grid.notes),
              r"\end{minipage}", r"\end{table}"]
    return "\n".join(lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
          "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
          "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "–": "--"}


def escape_latex(text: str) -> str:
    """``text`` as it is, in a LaTeX paragraph or table: after ``\\\\`` a bracket or star would be an argument."""
    text = "".join(_LATEX.get(c, c) for c in one_line(text))
    return f"{{}}{text}" if text[:1] in ("[", "*") else text


def _text(grid: Grid) -> str:
    def cell(c: Cell, column: Column | None = None) -> str:
        text = one_line(c.text)
        if c.interval and column and column.headline:
            text += f" [{c.interval[0]}, {c.interval[1]}]"
        return text + f" {TIED}" * c.mark

    header = [grid.corner, *(one_line(c.title) for c in grid.columns)]
    body = [[cell(row[0]), *(cell(c, column) for c, column in zip(row[1:], grid.columns))]
            for row in (*grid.rows, *grid.feet)]
    widths = [max(map(len, column)) for column in zip(header, *body)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    rows = [line(row) for row in body]
    if grid.feet:
        rows.insert(len(grid.rows), rule)
    told = [one_line(note.replace(BOLD, "")) for note in grid.notes]
    return "\n".join([one_line(grid.title), rule, line(header), rule, *rows, rule, *told]) + "\n"


RENDERERS = {"markdown": _markdown, "latex": _latex, "text": _text}
