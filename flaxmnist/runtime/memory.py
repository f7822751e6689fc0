"""The memory that is available to this process."""

from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of the versions 2 and 1 of control groups: directory, limit, usage, and a prefix.
_VERSIONS = {
    "": ("", "memory.max", "memory.current", ""),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def available_memory() -> int:
    """Returns the bytes of host memory that this process can still allocate.

    A container or a batch job may use less than the whole machine.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_cgroups()]))


def _left_in_cgroups() -> Iterator[int]:
    """Yields the bytes left in each control group that limits this process."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _VERSIONS:
            continue
        base, limit, usage, prefix = _VERSIONS[controllers]
        own = _ROOT / base / path.lstrip("/")
        for group in (own, *own.parents):
            try:
                left = int((group / limit).read_text(encoding="utf-8"))
                left -= int((group / usage).read_text(encoding="utf-8"))
                pairs = map(
                    str.split,
                    (group / "memory.stat").read_text(encoding="utf-8").splitlines(),
                )
                stat = {name: int(count) for name, count in pairs}
            except (OSError, ValueError):  # Without a limit, or not a control group.
                continue
            # The system drops cached pages of files when memory is short.
            for name in ("active_file", "inactive_file"):
                left += stat.get(prefix + name, 0)
            yield left
