"""A study as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator

from wpray.results.statistics import Rate
from wpray.results.variations import Perturbed, points_text
from wpray.table.notes import legend, sources
from wpray.table.study import Study, StudyCell, StudyEntry, graded, perturbations

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
_LAST_OF_FONT = "\u017f"  # the Latin letters of LaTeX's default fonts; others stop the compiler
_CSV_COLUMNS = ("policy", "suite", "rate", "low", "high", "successes", "trials", "errors", "best", "runs")


def markdown(study: Study) -> str:
    """Return the table with its footnotes, as GitHub renders it."""
    rows = [["policy", *study.columns], ["---", *["---:"] * len(study.columns)]]
    for number, (entry, cells) in enumerate(zip(study.entries, study.cells, strict=True), 1):
        shown = (f"**{_text(cell.rate)}**" if cell.best else _text(cell.rate) for cell in cells)
        rows.append([f"{_escaped_markdown(entry.name)} [{number}]", *shown])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [*legend(study)]
    for number, its in enumerate(sources(study), 1):
        notes += [f"[{number}] {text}" for text in its]
    for number, entry in enumerate(study.entries, 1):
        lines += _markdown_grids(number, entry)
    return "\n".join([*lines, "", *(f"- {_escaped_markdown(note)}" for note in notes)]) + "\n"


def _markdown_grids(number: int, entry: StudyEntry) -> list[str]:
    lines = []
    for columns, its in _grids(entry):
        rows = [[f"{_escaped_markdown(entry.name)} [{number}]", *columns], ["---", *["---:"] * len(columns)]]
        rows += [[name, *texts] for name, texts in its.items()]
        lines += ["", *(f"| {' | '.join(row)} |" for row in rows)]
    return lines


def _grids(entry: StudyEntry) -> Iterator[tuple[list[str], dict[str, list[str]]]]:
    """Yield the columns and rows of the tables of one policy alone: by perturbation and by difficulty."""
    if (found := perturbations(entry)) is not None:
        yield found.columns, {base: [_perturbed(cell) for cell in cells] for base, cells in found.rows.items()}
    if (levels := graded(entry)) is not None:
        columns = [f"level {level}" for level in levels.columns]
        yield columns, {name: [_text(rate) for rate in rates] for name, rates in levels.rows.items()}


def _perturbed(cell: Perturbed | None) -> str:
    if cell is None or not cell.rate.trials:
        return "-"
    drop = "" if cell.drop is None or math.isnan(cell.drop.value) else f", {points_text(cell.drop)}"
    return f"{100 * cell.rate.rate:.1f}{drop}"


def latex(study: Study) -> str:
    """Return a `table` environment that needs the package booktabs and any LaTeX of 2020 or later."""
    rows = [_latex_row(["policy", *study.columns], escape=True)]
    for number, (entry, cells) in enumerate(zip(study.entries, study.cells, strict=True), 1):
        name = f"{_escaped_latex(entry.name)}\\textsuperscript{{{number}}}"
        rows.append(_latex_row([name, *(_latex_cell(cell) for cell in cells)]))
    others = [line for number, entry in enumerate(study.entries, 1) for line in _latex_grids(number, entry)]
    notes = [_escaped_latex(note) for note in legend(study)]
    for number, its in enumerate(sources(study), 1):
        notes += [f"\\textsuperscript{{{number}}}{_escaped_latex(text)}" for text in its]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        *_tabular(rows, len(study.columns)),
        *others,
        "\\par\\smallskip",
        "\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright",
        *(f"{note}\\par" for note in notes),
        "\\end{minipage}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tabular(rows: list[str], columns: int) -> list[str]:
    start = [f"\\begin{{tabular}}{{l{'r' * columns}}}", "\\toprule", rows[0], "\\midrule"]
    return [*start, *rows[1:], "\\bottomrule", "\\end{tabular}"]


def _latex_grids(number: int, entry: StudyEntry) -> list[str]:
    lines = []
    for columns, its in _grids(entry):
        name = f"{_escaped_latex(entry.name)}\\textsuperscript{{{number}}}"
        rows = [_latex_row([name, *map(_escaped_latex, columns)])]
        rows += [_latex_row([name, *texts], escape=True) for name, texts in its.items()]
        lines += ["\\par\\medskip", *_tabular(rows, len(columns))]
    return lines


def comma_separated(study: Study) -> str:
    """Return a line for every policy and column, as numbers; rates are shares, empty where nothing was tried."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for entry, cells in zip(study.entries, study.cells, strict=True):
        runs = " ".join(str(run.info.get("run_id")) for run in entry.runs)
        for column, cell in zip(study.columns, cells, strict=True):
            rate = cell.rate
            numbers = (rate.rate, rate.low, rate.high) if rate.trials else ("", "", "")
            counts = (rate.successes, rate.trials, cell.errors, str(cell.best).lower())
            writer.writerow((entry.name, column, *numbers, *counts, runs))
    return text.getvalue()


FORMATS: dict[str, Callable[[Study], str]] = {"md": markdown, "latex": latex, "csv": comma_separated}


def _text(rate: Rate) -> str:
    return f"{100 * rate.rate:.1f} [{_bounds(rate)}]" if rate.trials else "-"


def _bounds(rate: Rate) -> str:
    return f"{100 * rate.low:.1f}, {100 * rate.high:.1f}"


def _latex_cell(cell: StudyCell) -> str:
    if not cell.rate.trials:
        return "--"
    number = f"{100 * cell.rate.rate:.1f}"
    shown = f"\\textbf{{{number}}}" if cell.best else number
    return f"{shown} {{\\footnotesize [{_bounds(cell.rate)}]}}"


def _latex_row(cells: list[str], escape: bool = False) -> str:
    return " & ".join(_escaped_latex(cell) if escape else cell for cell in cells) + r" \\"


def _escaped_latex(text: str) -> str:
    readable = (char if char <= _LAST_OF_FONT else ascii(char)[1:-1] for char in _printable(text))
    escaped = "".join(_LATEX.get(char, char) for part in readable for char in part)
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash


def _escaped_markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_{}<>|#" else char for char in _printable(text))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
