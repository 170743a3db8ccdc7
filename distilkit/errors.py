"""The faults that are the user's to mend. Everything else that is raised is a fault of ours."""

import difflib
import errno
import functools
import json
import os
import stat
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from distilkit.spelling import plain

_KERNEL = {
    *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "pstore"),
    *("efivarfs", "binfmt_misc", "mqueue", "devpts", "fusectl", "nsfs", "selinuxfs"),
}
"""The file systems that the kernel makes up: what is read from them lies on no disk."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a recipe.

    `place`: file and line ("one.toml:12"), or the `--set` as typed. `key`: dotted ("method.temperature").
    `problem`: what is wrong and what is allowed. `hint`: what to type instead.
    """

    place: str
    key: str
    problem: str
    hint: str | None = None

    def __str__(self) -> str:
        return plain(f"{self.place}: {self.problem}" + (f" (hint: {self.hint})" if self.hint else ""))


class UserError(Exception):
    """What the user asked for cannot be done as asked: exit status 2, one message, no traceback.

    `problem`: what was wrong and what is allowed. `hint`: what to type. `faults`: where a recipe has several, all
    of them. `files`: where files are at fault, a line for each.
    """

    kind = "user"

    def __init__(
        self, problem: str, hint: str | None = None, faults: Sequence[Fault] = (), files: Sequence[str] = ()
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.faults = tuple(faults)
        self.files = tuple(files)

    def __str__(self) -> str:
        lines = [plain(self.problem), *(f"  {plain(file)}" for file in self.files)]
        lines += [f"  {fault}" for fault in self.faults]
        return "\n".join([*lines, plain(f"hint: {self.hint}")] if self.hint else lines)


class SettingError(UserError):
    """A setting that only shows itself as wrong while something is built.

    `setting`: the argument, by its own name ("split_at"); what holds the recipe may say the key, dotted.
    `recipe.placed` alone turns it into a `Fault` of the recipe, with its key and place.
    """

    def __init__(self, setting: str, problem: str, hint: str | None = None) -> None:
        super().__init__(problem, hint)
        self.setting = setting


def require_plain_file(path: str | os.PathLike[str], most_bytes: int | None = None) -> None:
    """Raise `OSError` where `path` is a pipe, a socket, a device or a file of the kernel's, such as those in /proc.

    A stranger's archive may hold them, and a stranger's recipe may name them. To open one may wait for ever, to read
    it may never end, and what it says is nobody else's business. A file of more than `most_bytes` is refused too: a
    terabyte of zeros takes no room. A folder passes: `open` refuses it by itself.
    """
    found = os.stat(path)  # noqa: PTH116 - for every picture of a data set
    plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    if not plain or found.st_dev in _kernel_devices():
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    if most_bytes is not None and found.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, and {most_bytes:,} are the most", str(path))


def is_plain_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file that `require_plain_file` lets pass; a folder is none."""
    try:
        require_plain_file(path)
    except (OSError, ValueError):
        return False
    return os.path.isfile(path)  # noqa: PTH113


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """The device numbers of such file systems here. Their files seem plain, and mostly empty."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            mounts = [line.split() for line in file]
    except OSError:  # another system than Linux
        return frozenset()
    numbers = [mount[2].split(":") for mount in mounts if mount[mount.index("-") + 1] in _KERNEL]
    return frozenset(os.makedev(int(major), int(minor)) for major, minor in numbers)


def parse_json(content: str | bytes) -> Any:
    """Read JSON. Raises `ValueError`, without a word of the content, where it is none or an object has a key twice.

    Of two values of one key Python takes the last, other readers the first: what is checked would not be what is used.
    """
    try:
        return json.loads(content.decode() if isinstance(content, bytes) else content, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("an object in it has a key twice")
    return document


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is the want of memory, of a device or of the machine; asked without importing torch."""
    # torch's own class for devices; its allocator on the CPU raises a plain RuntimeError.
    told = "DefaultCPUAllocator" in str(error) or "not enough memory: you tried to allocate" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or told


def broken_package(error: BaseException) -> str | None:
    """The package of others whose import raised the error, by what it is or by what surrounds it; None for any else."""
    frames = [(str(f.f_globals.get("__name__")), f.f_code.co_name) for f, _ in traceback.walk_tb(error.__traceback__)]
    ours = [place for place, (module, _) in enumerate(frames) if module.partition(".")[0] == "distilkit"]
    after = frames[ours[-1] + 1 :] if ours else []
    return next((module.partition(".")[0] for module, function in after if function == "<module>"), None)


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word most like `word`, or None if none is like it."""
    by_folded = {name.casefold().replace("-", "_"): name for name in allowed}
    matches = difflib.get_close_matches(word.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, allowed: Iterable[str]) -> str | None:
    """A hint that names the nearest allowed word, or None."""
    match = nearest(word, allowed)
    return f"did you mean {match!r}?" if match else None
