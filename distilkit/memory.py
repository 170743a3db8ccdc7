"""How much memory there is still to take. Imports no torch."""

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# By version of the control groups: the limit, what is used of it, and how `memory.stat` calls the files kept in it.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_memory() -> int | None:
    """Bytes that this process can still take: what the system has available, within its control group's limit.

    None where the system does not say.
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for limit, used, stat, kept in _LIMITS:
        try:
            limited = int((_CGROUP / limit).read_text(encoding="ascii"))
            taken = int((_CGROUP / used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # "max": no limit
            continue
        # Files that were read count as used and are given back when memory is wanted.
        found.append(limited - taken + _kept_files(_CGROUP / stat, kept))
    return max(0, min(found)) if found else None


def _kept_files(stat: Path, names: tuple[str, ...]) -> int:
    try:
        figures = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
        return sum(int(figures.get(name, 0)) for name in names)
    except (OSError, ValueError):
        return 0
