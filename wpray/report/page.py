"""Report page: one file without scripts that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from wpray.report import activity, facts, sections, tracking, videos, waypoints
from wpray.report.errors import errors, retries
from wpray.report.tracking_section import tracking_section
from wpray.results.atomic import write_for_user
from wpray.results.checkpoints import checkpoints_of
from wpray.results.reader import Run, load

EMBED_BYTES = 8_000_000  # for videos inside the page; base64 makes them a third larger
_BINS = 360
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data: file: http: https:"


def build(run: Run, page: Path, embed_bytes: int = EMBED_BYTES, refresh_s: int | None = None) -> str:
    """Return the HTML of a run's report. Links to videos are relative to `page`, where it will be written.

    With `refresh_s` the browser loads the page again after so many seconds.
    """
    found = facts.collect(run)
    shown = videos.collect(run, found.rows, page, embed_bytes)
    config = run.info["config"]
    missed = waypoints.collect(run)
    title = f"{config.get('policy', 'policy')} on {_suites(config)}"
    parts = [
        _header(title, run),
        sections.headline(found, run.info, [*run.notes, *missed.notes]),
        sections.suites(found),
        sections.perturbations(found, run.info),
        sections.difficulty(found, run.info),
        sections.tasks(found),
        sections.episodes(found, shown),
        errors(found),
        retries(found),
        sections.videos(shown),
        sections.steps(found),
        sections.metrics(found),
        sections.waypoints(missed),
        tracking_section(tracking.collect(run)),
        sections.time(activity.collect(run, found.rows, _BINS)),
        _provenance(run.info),
    ]
    return document(title, parts, refresh_s)


def document(title: str, parts: Iterable[str], refresh_s: int | None = None) -> str:
    """Return a page of `parts` in the report's style; with `refresh_s` the browser loads it again after that time."""
    style = files("wpray.report").joinpath("style.css").read_text()
    refresh = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    head = (
        f'<meta charset="utf-8">{refresh}<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{"".join(parts)}</main></body></html>\n'


def write_report(run_dir: str | Path, page: Path | None = None, embed_bytes: int = EMBED_BYTES) -> Path:
    """Write the report of the run in `run_dir` and return its path.

    Raise BadInputError if there is no run, or the page cannot be written.
    """
    run = load(run_dir)
    page = page or run.path / "report.html"
    html = build(run, page, embed_bytes)
    write_for_user(page, html.encode("utf-8", "replace"), "--out")
    return page


def _suites(config: Mapping[str, Any]) -> str:
    named = config.get("task_suite", "an unknown suite")
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named)


def _header(title: str, run: Run) -> str:
    info = run.info
    state = str(info.get("state", "unknown"))
    when = str(info.get("started_at", "")).replace("T", " ").replace("+00:00", " UTC")
    badge = f'<span class="badge {escape(state)}">{escape(state)}</span>'
    said = f"run {escape(str(info.get('run_id')))}, started {escape(when)}"
    return f'<h1>{escape(title)}</h1><div class="sure">{badge}{said}</div>'


def _provenance(info: Mapping[str, Any]) -> str:
    config = info["config"]
    versions = info.get("versions") or {}
    rows = {
        "policy": config.get("policy"),
        **{f"{role} checkpoint": checkpoint for role, checkpoint in checkpoints_of(info).items()},
        "suite, trials a task": f"{_suites(config)}, {config.get('num_trials_per_task')}",
        "protocol": (config.get("env") or {}).get("protocol"),
        "seed": config.get("seed"),
        "latency": _latency(info),
        "files of the policy (SHA-256)": _files(info.get("policy_files")),
        "commit": info.get("git_commit"),
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "hosts": "; ".join(_host(name, host) for name, host in (info.get("hosts") or {}).items()) or info.get("host"),
        "renderer": info.get("renderer"),
        "system": info.get("platform"),
        "settings that outcomes depend on": info.get("fingerprint"),
        "written": info.get("written_at"),
    }
    table = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    )
    whole = escape(json.dumps(info, indent=2, sort_keys=True))
    content = (
        f"<table>{table}</table><details><summary>Everything that run.json says</summary><pre>{whole}</pre></details>"
    )
    about = (
        "What this result came from. Two runs can be compared trial by trial if protocol, seed and simulator versions "
        "agree."
    )
    return sections.section("Provenance", about, content, "provenance")


def _latency(info: Mapping[str, Any]) -> str | None:
    steps, latency = info.get("latency_steps"), info["config"].get("latency") or {}
    return f"{latency.get('extra_ms'):g} ms, {steps} control steps ({latency.get('mode')})" if steps else None


def _files(hashes: Mapping[str, str] | None) -> str | None:
    return "; ".join(f"{path} {digest}" for path, digest in hashes.items()) if hashes else None


def _host(name: str, host: Mapping[str, Any]) -> str:
    return f"{name} ({host['renderer']})" if host.get("renderer") else name
