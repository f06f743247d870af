"""Section of the report on episodes without an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wpray.report.facts import Facts, Row
from wpray.report.sections import section

_MOST_ERRORS = 200


def errors(facts: Facts) -> str:
    """List errors by kind, most frequent first and open, each with a traceback; empty if there are none."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in facts.rows:
        if row["status"] == "error":
            message = (row["error_message"] or "").strip()
            groups.setdefault((row["error_type"] or "Error", (message.splitlines() or [""])[0]), []).append(row)
    if not groups:
        return ""
    kinds = sorted(groups.items(), key=lambda item: -len(item[1]))[:_MOST_ERRORS]
    content = "".join(_error(kind, line, rows, index == 0) for index, ((kind, line), rows) in enumerate(kinds))
    about = "These episodes have no outcome: neither success nor failure. The same command tries them again."
    return section("Errors", about, content, "errors")


def _error(kind: str, line: str, rows: Sequence[Row], shown: bool) -> str:
    where = ", ".join(f"task {row['task_id']} trial {row['trial']}" for row in rows[:20])
    more = f" and {len(rows) - 20} more" if len(rows) > 20 else ""
    first = rows[0]
    who = f"{first['node'] or 'an unknown host'}, {first['worker']}, attempt {first['attempt']}"
    ran = f"{len(rows)} episodes: {where}{more}. The traceback is from {who}."
    head = f'<span class="badge error">{len(rows)}</span>{escape(kind)}: {escape(line[:300])}'
    trace = escape(first["error_message"] or "")
    return (
        f"<details{' open' if shown else ''}><summary>{head}</summary><p>{escape(ran)}</p><pre>{trace}</pre></details>"
    )
