"""Resident memory of this process; imports nothing that would add to it."""

from pathlib import Path


def peak_mb() -> float:
    """Peak resident set of this process since it began, MB; Linux only.

    `getrusage` will not do: a child inherits its parent's peak through fork and exec.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
