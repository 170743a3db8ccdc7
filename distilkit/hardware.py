"""What rules ask of this machine: its cores, and whether its CPU computes in bfloat16. Nothing is timed.

torch says that bfloat16 is supported on CPUs that only emulate it, where a step takes up to ten times as long; the
kernel's list of what the CPU can do does not.
"""

import contextlib
import os
import re
from pathlib import Path

BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""In /proc/cpuinfo: two of x86 processors, one of ARM's."""

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_ISAS_WITH_BF16 = {
    *("ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16"),
    *("AVX10_1_512", "AVX10_1_512_AMX", "AVX10_1_512_AMX_FP16"),
}


def bf16_in_cpu(cpuinfo: str | None, max_isa: str | None) -> tuple[bool | None, str]:
    """Whether the CPU computes in bfloat16 by itself, None where nobody says, and why, in a few words.

    `cpuinfo`: the text of /proc/cpuinfo, None where there is none. `max_isa`: the environment's ONEDNN_MAX_CPU_ISA,
    with which oneDNN takes the CPU for a lesser one.
    """
    if max_isa and max_isa.upper() not in _ISAS_WITH_BF16:
        return False, f"{ISA_VARIABLE}={max_isa} leaves bfloat16 out"
    lines = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", cpuinfo or "", re.MULTILINE)
    if not lines:
        return None, "nothing says whether this CPU computes in bfloat16"
    # A machine may have cores of two kinds.
    shared = set.intersection(*(set(line.split()) for line in lines))
    found = [flag for flag in BF16_FLAGS if flag in shared]
    return bool(found), f"the CPU has {' and '.join(found)}" if found else "the CPU has no bfloat16"


def native_bf16() -> tuple[bool | None, str]:
    """`bf16_in_cpu` of this machine."""
    return bf16_in_cpu(cpuinfo(), os.environ.get(ISA_VARIABLE))


def cpuinfo() -> str | None:
    """What Linux says of the processors; None elsewhere."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return None


def affinity() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processor time that the control group grants, in cores; None: no limit, or nobody says."""
    path = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = re.search(r"^0::/(.*)$", own.read_text(encoding="utf-8"), re.MULTILINE)
        path = found[1] if found else ""
    limits = []
    # Every group above has its word too. In a container the own path may be the host's, of which nothing is there.
    for folder in [groups / path, *(groups / path).parents][: len(Path(path).parts) + 1]:
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            limits.append(int(quota) / int(period))  # "max": no limit, and no number
    return min(limits, default=None)


def usable_cores() -> int:
    """Cores that this process may keep busy, within its control group's quota."""
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), int(quota)))


def processes_here() -> int:
    """How many processes of this training share this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
