"""Whether the pixels of a set are kept in memory or read from disk again in each pass."""

import os
from pathlib import Path

from fspmu.errors import choose
from fspmu.preprocessing import Geometry

STORAGES = {
    "auto": "in memory as long as they take no more than a quarter of what is free, and no more than 4 GiB",
    "memory": "in memory",
    "disk": "read again in each pass",
}
MOST_IN_MEMORY = 4 * 2**30
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def choose_storage(count: int, geometry: Geometry, wanted: str = "auto") -> tuple[str, tuple[str, ...]]:
    """Return "memory" or "disk" for `count` images, and a note where it is the disk.

    Raises InputError when `wanted` is no key of STORAGES.
    """
    choose(STORAGES, wanted, "storage")
    height, width = geometry.size
    needed = count * geometry.channels * height * width
    free = available_memory()
    if wanted == "memory" or (wanted == "auto" and needed <= min(MOST_IN_MEMORY, free // 4 if free is not None else MOST_IN_MEMORY)):
        return "memory", ()
    told = f"streamed from disk: {count:,} images of {height} x {width} pixels need {needed / 2**30:.3g} GiB"
    because = f" of memory, and {free / 2**30:.3g} GiB are free" if wanted == "auto" and free is not None else " of memory"
    return "disk", (told + because,)


def available_memory() -> int | None:
    """Return how many bytes are free for this process now; None where nobody says."""
    found = [number for number in (_free_on_machine(), _free_in_group()) if number is not None]
    return min(found) if found else None


def _free_on_machine() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # all there is, where what is free cannot be known
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_group() -> int | None:
    """Return what a container's limit leaves; files that are merely cached give way."""
    try:
        limit, used = int((_CGROUP / "memory.max").read_text()), int((_CGROUP / "memory.current").read_text())
        cached = next((int(line.split()[1]) for line in (_CGROUP / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError):  # "max": no limit
        return None
    return max(0, limit - used + cached)
