"""The faults that are the user's to mend. Everything else that is raised is a fault of ours."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
        return f"{self.place}: {self.problem}" + (f" (hint: {self.hint})" if self.hint else "")


class UserError(Exception):
    """What the user asked for cannot be done as asked: exit status 2, one message, no traceback.

    `problem`: what was wrong and what is allowed. `hint`: what to type. `faults`: where a recipe has several, all
    of them.
    """

    kind = "user"

    def __init__(self, problem: str, hint: str | None = None, faults: Sequence[Fault] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = [self.problem, *(f"  {fault}" for fault in self.faults)]
        return "\n".join([*lines, f"hint: {self.hint}"] if self.hint else lines)


class SettingError(UserError):
    """A recipe's setting that only shows itself as wrong while something is built; `key` names it, dotted.

    Whoever holds the recipe turns it into a `Fault` with its place.
    """

    def __init__(self, key: str, problem: str, hint: str | None = None) -> None:
        super().__init__(problem, hint)
        self.key = key


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is the want of memory, of a device or of the machine; asked without importing torch."""
    # torch's own class for devices; its allocator on the CPU raises a plain RuntimeError.
    told = "DefaultCPUAllocator" in str(error) or "not enough memory: you tried to allocate" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or told


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
