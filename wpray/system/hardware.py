"""Cores and memory that this process may use; a container or a scheduler's job may have a part of the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_STAT = Path("/proc/stat")
_STATUS = Path("/proc/self/status")
# Files of a control group in either version: limit, use, and the part of the use that is reclaimable cache.
_MEMORY = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)


def cores() -> int:
    """Return the CPUs of this process, at least 1: its affinity, or fewer if its share of time is limited."""
    present = len(os.sched_getaffinity(0))
    shares = [share for group in _own_groups("cpu") if (share := _share(group)) is not None]
    return max(1, int(min([present, *shares])))


def busy_seconds() -> float | None:
    """Return the seconds that this process's CPUs have worked so far; None if the system hides them.

    Where a group's share of time is limited, they are that group's.
    """
    limited = [(share, group) for group in _own_groups("cpu") if (share := _share(group)) is not None]
    allowed = os.sched_getaffinity(0)
    if limited and min(limited)[0] < len(allowed):
        return _used(min(limited)[1])
    times = [line.split() for line in _read(_STAT).splitlines() if re.match(r"cpu\d", line)]
    mine = [row for row in times if int(row[0][3:]) in allowed]
    ticks = sum(int(number) for row in mine for number in (*row[1:4], *row[6:9]))  # all but idle and iowait
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def memory_left() -> int | None:
    """Return the bytes that a limit on this process's group leaves to it; None if there is no limit."""
    left = [bytes_ for group in _own_groups("memory") if (bytes_ := _left(group)) is not None]
    return min(left, default=None)


def free_memory() -> int | None:
    """Return the bytes that new processes can use within a container's limit; None if the system hides them."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    known = [None if found is None else int(found) * 1024, memory_left()]
    return min((free for free in known if free is not None), default=None)


def own_memory() -> int:
    """Return the bytes that this process holds in memory; 0 if the system hides them."""
    found = next((line.split()[1] for line in _read(_STATUS).splitlines() if line.startswith("VmRSS:")), "0")
    return int(found) * 1024


def _own_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those above it, as far as they are visible here."""
    for line in _read(_OWN).splitlines():
        number, names, path = line.split(":", 2)
        if controller not in names.split(",") and number != "0":
            continue
        root = _GROUPS if number == "0" else _GROUPS / controller
        group = Path(path)
        for place in (group, *group.parents):
            yield root / place.relative_to("/")


def _share(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not period:
        quota, period = (_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _used(group: Path) -> float | None:
    """Return the CPU seconds of a control group."""
    found = re.search(r"^usage_usec (\d+)$", _read(group / "cpu.stat"), re.MULTILINE)
    if found:
        return int(found[1]) / 1e6
    nanoseconds = _read(group / "cpuacct.usage").strip()
    return int(nanoseconds) / 1e9 if nanoseconds.isdecimal() else None


def _left(group: Path) -> int | None:
    for limit, used, cache in _MEMORY:
        allowed = _read(group / limit).strip()
        if allowed.isdecimal():
            cached = next((line for line in _read(group / "memory.stat").splitlines() if line.startswith(cache)), "0")
            return max(0, int(allowed) - int(_read(group / used) or 0) + int(cached.split()[-1]))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
