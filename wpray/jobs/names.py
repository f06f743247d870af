"""Names of a job's files in the Ray log folder of its node."""

from __future__ import annotations

LOG = "job-driver-{job_id}.log"  # Ray's own name for the job's output


def manifest_name(job_id: str) -> str:
    """Return the name of the manifest of the result folder."""
    return f"{job_id}-results.json"


def results_name(job_id: str) -> str:
    """Return the name of the link to the result folder."""
    return f"{job_id}-results"
