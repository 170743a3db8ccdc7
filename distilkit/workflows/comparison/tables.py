"""A table as text for other programs: Markdown, LaTeX with booktabs, CSV. Every cell is escaped."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilkit.spelling import csv_cell, escape_latex, escape_markdown, plain


@dataclass(frozen=True)
class Table:
    """Cells as a person reads them. The first column is text, the others are figures. `note`: what they mean."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def plain(self) -> "Table":
        """The table without what a name may hold that steers a terminal, hides itself or begins a line."""
        rows = tuple(tuple(map(plain, row)) for row in self.rows)
        return Table(plain(self.title), tuple(map(plain, self.columns)), rows, plain(self.note))


_MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def markdown(tables: Sequence[Table]) -> str:
    """Tables as GitHub's Markdown has them, each under its title."""
    return "\n\n".join(_markdown(table.plain()) for table in tables) + "\n"


def latex(tables: Sequence[Table]) -> str:
    r"""A `table` environment for each, for a document with \usepackage{booktabs} and \usepackage{textcomp}."""
    header = "% needs \\usepackage[T1]{fontenc}, \\usepackage{textcomp} and \\usepackage{booktabs}\n"
    return header + "\n".join(_latex(table.plain()) for table in tables)


def spreadsheet_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """`csv_text` of rows in which names are plain, and no formulas."""
    safe = [{key: csv_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in rows]
    return csv_text(safe, columns)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """One line per row under a line of names; what is not known is empty, lists are joined by spaces."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_value(row.get(column)) for column in columns] for row in rows)
    return stream.getvalue()


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [
        f"**{escape_markdown(table.title)}**",
        "",
        line([escape_markdown(column) for column in table.columns]),
        line(["---", *("---:" for _ in table.columns[1:])]),
        *(line([escape_markdown(cell) for cell in row]) for row in table.rows),
    ]
    if table.note:
        lines += ["", escape_markdown(table.note)]
    return "\n".join(lines)


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        line([escape_latex(column) for column in table.columns]),
        r"\midrule",
        *(line([escape_latex(row[0]), *(_figure(cell) for cell in row[1:])]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.note:
        lines += [r"\par\smallskip", rf"\footnotesize {escape_latex(table.note)}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _figure(cell: str) -> str:
    """A figure's cell, with a minus sign for a hyphen before a number."""
    parts = _MINUS.split(" ".join(cell.split()))
    return "$-$".join(escape_latex(part) for part in parts)


def _csv_value(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return round(value, 6) if isinstance(value, float) else value
