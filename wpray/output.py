"""Which folder a run writes to, and what its run.json says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wpray import provenance
from wpray.config import Config, fingerprint, outcome_fields
from wpray.errors import BadInputError
from wpray.results.writer import RunFolder, safe_name

_ROOT = Path("runs")


def choose_folder(config: Config) -> RunFolder:
    """The configured folder; else the newest unfinished one of the same configuration; else a new one under runs/."""
    if config.output_dir is not None:
        return RunFolder(Path(config.output_dir))
    stem = safe_name(f"{config.task_suite}_{config.policy}")
    if config.resume != "never":
        for path in sorted(_ROOT.glob(f"{stem}_*"), reverse=True):
            if _is_unfinished(path, fingerprint(config)):
                return RunFolder(path)
    return RunFolder(_ROOT / f"{stem}_{datetime.now():%Y%m%d-%H%M%S}")


def check_resume(config: Config, folder: RunFolder) -> dict[str, Any] | None:
    """run.json of the run that is to go on, None for a new one.

    Raises BadInputError if the folder holds results that this configuration must not mix with.
    """
    info = folder.read_info()
    if info is None:
        if any((folder.path / "parts").glob("*/*.parquet")):
            raise BadInputError(f"output_dir: {folder.path} holds parts but no run.json; choose another output_dir")
        if config.resume == "only":
            raise BadInputError(f"resume only: {folder.path} holds no run to go on with")
        return None
    if config.resume == "never":
        raise BadInputError(f"output_dir: {folder.path} holds another run's results; choose another, or resume auto")
    theirs, ours = info.get("outcome_fields", {}), outcome_fields(config)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        listed = ", ".join(f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)" for name in different[:5])
        raise BadInputError(f"output_dir: {folder.path} holds results of another configuration: {listed}")
    return info


def describe_run(config: Config, run_id: str, details: dict[str, Any]) -> dict[str, Any]:
    """run.json of a run that starts now; `details` are facts that only the run knows (renderer, hosts, policy)."""
    return {
        "run_id": run_id,
        "state": "running",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "outcome_fields": outcome_fields(config),
        "fingerprint": fingerprint(config),
        **provenance.collect().as_dict(),
        **details,
    }


def _is_unfinished(path: Path, wanted: str) -> bool:
    try:
        info = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and info.get("fingerprint") == wanted and info.get("state") != "finished"
