"""The processor, the caches and the memory of this machine."""

import contextlib
import ctypes
import math
import os
import platform
import re
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cpu_model() -> str:
    """What the processor calls itself; its architecture where that is not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def caches() -> dict[str, int]:
    """Bytes of the caches of a core: l1d, l2, l3; 0 where they are not known."""
    found = {"l1d": 0, "l2": 0, "l3": 0}
    for folder in sorted(_CACHES.glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
            name = "l1d" if level == "1" else f"l{level}"
            if kind != "Instruction" and name in found:
                found[name] = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
        except (OSError, ValueError):
            continue
    return found


def processor() -> str:
    """Its model, or "unknown"."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next result, as allocators of servers do.

    By default a large result is given back to the system and its pages are zeroed anew for each
    call, which takes longer than to normalize them: whoever is timed.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        never = -1  # 2 GB, the most that there is, are less than a heap of large tensors holds
        for parameter, value in ((mmap_max, 0), (trim_threshold, never), (top_pad, 1 << 26)):
            mallopt(parameter, value)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cgroup_memory(root: Path = Path("/")) -> float:
    """What the control groups of Linux, v1 and v2, leave to this process: the engine's cgroup.cpp."""
    least = math.inf
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            mounts, limit, taken = ["", "unified"], "memory.max", "anon"
        elif "memory" in controllers.split(","):
            mounts, limit, taken = ["memory"], "memory.limit_in_bytes", "total_rss"
        else:
            continue
        group = Path(path.lstrip("/"))
        for mount in mounts:
            for around in (group, *group.parents):
                folder = root / "sys/fs/cgroup" / mount / around
                most = _read(folder / limit).strip()
                used = re.search(rf"^{taken} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                if most.isdigit():
                    least = min(least, int(most) - (int(used[1]) if used else 0))
    return least


def allowed_memory() -> float:
    """Bytes that this process may still take; infinity where the system does not say.

    The least of the machine's memory, what its control groups leave it and what its own limits do
    (ulimit -v, -d).
    """
    least = _cgroup_memory()
    with contextlib.suppress(AttributeError, ValueError, OSError):
        least = min(least, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ImportError, AttributeError):
        import resource

        page = resource.getpagesize()
        # Pages: all of its address space, resident, shared, code, 0, data and stack.
        sizes = [int(size) * page for size in _read(Path("/proc/self/statm")).split()]
        for kind, used in ((resource.RLIMIT_AS, sizes[:1]), (resource.RLIMIT_DATA, sizes[5:6])):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                least = min(least, limit - sum(used))
    return max(least, 0)
