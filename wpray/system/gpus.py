"""NVIDIA GPUs of this machine, without a CUDA context, which would itself take memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_PRESENT = Path("/proc/driver/nvidia/gpus")


def num_gpus() -> int:
    """Return the number of GPUs that Ray would find on this machine."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(_PRESENT.glob("*")))
    return present if hidden is None else min(present, len([part for part in hidden.split(",") if part.strip()]))


def gpu_model() -> str:
    """Return the model of the first GPU that is present, such as NVIDIA H200; empty if the driver does not say."""
    for path in sorted(_PRESENT.glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return ""
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")), "")
    return ""


def free_gpu_memory() -> dict[str, float]:
    """Return free bytes by GPU, as the driver's tool reports them; empty if there is none."""
    command = ["nvidia-smi", "--query-gpu=index,name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(", ") for line in done.stdout.splitlines())
    return {f"GPU {row[0]} ({row[1]})": float(row[2]) * 2**20 for row in rows if len(row) == 3 and row[2].isdecimal()}
