"""Where a job's files are, relative to the folder of its node's Ray logs."""

from __future__ import annotations

LOG = "job-driver-{job_id}.log"  # Ray's own name for what the job prints


def manifest_name(job_id: str) -> str:
    """The list of the result folder's files."""
    return f"{job_id}-results.json"


def results_name(job_id: str) -> str:
    """A link to the result folder."""
    return f"{job_id}-results"
