"""Section of the report on episodes without an outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from wpray.report.facts import RunFacts
from wpray.report.sections import section
from wpray.results.summary import retry_line
from wpray.types import EpisodeRow

_MOST_ERRORS = 200


def errors(facts: RunFacts) -> str:
    """List errors by kind, most frequent first and open, each with a traceback; empty if there are none."""
    groups: dict[tuple[str, str], list[EpisodeRow]] = {}
    for row in facts.rows:
        if row["status"] == "error":
            groups.setdefault((row["error_type"] or "Error", _first_line(row["error_message"])), []).append(row)
    if not groups:
        return ""
    kinds = sorted(groups.items(), key=lambda item: -len(item[1]))[:_MOST_ERRORS]
    content = "".join(
        _error(kind, line, _labelled(facts, rows), index == 0) for index, ((kind, line), rows) in enumerate(kinds)
    )
    about = "These episodes have no outcome: neither success nor failure. The same command tries them again."
    return section("Errors", about, content, "errors")


def _error(kind: str, line: str, rows: Sequence[EpisodeRow], shown: bool) -> str:
    where = ", ".join(row["label"] for row in rows[:20])
    more = f" and {len(rows) - 20} more" if len(rows) > 20 else ""
    first = rows[0]
    who = f"{first['node'] or 'an unknown host'}, {first['worker']}, attempt {first['attempt']}"
    ran = f"{len(rows)} episodes: {where}{more}. The traceback is from {who}."
    head = f'<span class="badge error">{len(rows)}</span>{escape(kind)}: {escape(line[:300])}'
    trace = escape(first["error_message"] or "")
    return (
        f"<details{' open' if shown else ''}><summary>{head}</summary><p>{escape(ran)}</p><pre>{trace}</pre></details>"
    )


def retries(facts: RunFacts) -> str:
    """Return the errors of retried attempts, by kind, because outcomes hide a policy that often fails at first."""
    groups: dict[tuple[str, str], list[EpisodeRow]] = {}
    counts: Counter[str] = Counter()
    retried = [row for row in facts.rows if row["attempt_errors"]]
    for row in retried:
        for error in row["attempt_errors"]:
            counts[error["kind"]] += 1
            groups.setdefault((error["kind"], _first_line(error["message"])), []).append({**row, **error})
    if not groups:
        return ""
    kinds = sorted(groups.items(), key=lambda item: -len(item[1]))[:_MOST_ERRORS]
    content = "".join(_retry(kind, line, _labelled(facts, rows)) for (kind, line), rows in kinds)
    about = (
        f"{retry_line(len(retried), counts)}. Each trial then ran again from its start: its row is of the last attempt."
    )
    return section("Retries", about, content, "retries")


def _retry(kind: str, line: str, rows: Sequence[EpisodeRow]) -> str:
    trials = [f"{row['label']} attempt {row['attempt']}" for row in rows]
    where = ", ".join(trials[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
    who = f"the {rows[0]['origin']}, on {rows[0]['worker']}"
    head = f'<span class="badge error">{len(rows)}</span>{escape(kind)}: {escape(line[:300])}'
    ran = escape(f"{where}. The traceback is of {who}.")
    return f"<details><summary>{head}</summary><p>{ran}</p><pre>{escape(rows[0]['message'])}</pre></details>"


def _labelled(facts: RunFacts, rows: Sequence[EpisodeRow]) -> list[EpisodeRow]:
    """Return the rows with the episode's label, which has its suite, too, if there are several."""
    several = len({row["suite"] for row in facts.rows}) > 1
    return [
        {**row, "label": f"{row['suite']} " * several + f"task {row['task_id']} trial {row['trial']}"} for row in rows
    ]


def _first_line(message: str | None) -> str:
    return ((message or "").strip().splitlines() or [""])[0]
