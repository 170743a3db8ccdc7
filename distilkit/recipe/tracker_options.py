"""Which options of trackers a file may set, and which are the user's alone.

A recipe or a run may come from a stranger, and a tracker runs with the user's credentials. So a file may say how a run
is labelled and shown, and whether it stays offline. What names a server, an account or a project of others, a folder,
a file, another run or code counts only where the user has typed it: `--set tracking.options...`, or the tracker's own
environment variables. The list says what is allowed, so that what a tracker will know one day is not.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError

from distilkit.recipe.toml_lines import Key, dotted
from distilkit.recipe.wording import shown


class Kind(NamedTuple):
    """What an option takes: its type, and in words."""

    type: Any
    words: str


_TEXT = Kind(str, "text")
_TEXTS = Kind(list[str], "a list of texts")
_TABLE = Kind(dict[str, str | int | float | bool], "a table of texts and numbers")
_NUMBER = Kind(int | float, "a number")
_COUNT = Kind(PositiveInt, "an integer of 1 or more")
_SWITCH = Kind(bool, "true or false")
_OFF = Kind(Literal[False], "false")

# By tracker, what a file may set, and to what.
ALLOWED: dict[str, dict[str, Kind]] = {
    "aim": {"experiment": _TEXT, "capture_terminal_logs": _OFF, "system_tracking_interval": _NUMBER},
    "clearml": {
        "task_name": _TEXT,
        "tags": _TEXTS,
        "auto_connect_frameworks": _OFF,
        "auto_connect_streams": _OFF,
        "auto_resource_monitoring": _SWITCH,
    },
    "comet_ml": {"online": _OFF},
    "dvclive": {
        "exp_message": _TEXT,
        "monitor_system": _SWITCH,
        "report": Kind(Literal["html", "md"], '"html" or "md"'),
    },
    "mlflow": {"description": _TEXT, "run_name": _TEXT, "tags": _TABLE},
    "swanlab": {
        "experiment_name": _TEXT,
        "description": _TEXT,
        "group": _TEXT,
        "job_type": _TEXT,
        "tags": _TEXTS,
        # "online" would overrule a user whose environment says otherwise; so it would with W&B.
        "mode": Kind(Literal["offline", "local", "disabled"], '"offline", "local" or "disabled"'),
    },
    "tensorboard": {"flush_secs": _COUNT, "max_queue": _COUNT},
    "trackio": {"group": _TEXT},
    "wandb": {
        "name": _TEXT,
        "notes": _TEXT,
        "group": _TEXT,
        "job_type": _TEXT,
        "tags": _TEXTS,
        "mode": Kind(Literal["offline", "disabled"], '"offline" or "disabled"'),
    },
}


def typed_by_the_user(lines: Mapping[Key, int | None]) -> frozenset[Key]:
    """The keys of `[tracking]` that no file has set. `lines`: by key, its line, None where it stands in no file."""
    return frozenset(key for key, line in lines.items() if key[:1] == ("tracking",) and line is None)


def withheld(tracking: Mapping[str, Any], typed: Collection[Key]) -> Iterator[tuple[Key, str]]:
    """What a `[tracking]` says that a file may not say and the user has not typed: key, and what is wrong with it."""
    if tracking.get("name") == "none":
        return
    project = tracking.get("project")
    if isinstance(project, str) and ("tracking", "project") not in typed and not _is_plain(project):
        yield (
            ("tracking", "project"),
            f"tracking.project in a file must be a plain name, without any of / \\ : ? # % ' \" and no dot in front, "
            f"not {shown(project)}",
        )
    options = tracking.get("options")
    for tracker, table in options.items() if isinstance(options, Mapping) else ():
        for option, value in table.items() if isinstance(table, Mapping) else ():
            key = ("tracking", "options", tracker, option)
            untyped = [leaf for leaf in _leaves(value, key) if leaf not in typed]
            if untyped and (problem := _refused(tracker, option, value, untyped[0])):
                yield untyped[0], problem


def to_type(key: Key, source: str) -> str:
    """What the user types to say it himself. `source`: the file that says it, which may be a run's own recipe."""
    file = Path(source)
    option = f"--set {dotted(key)}=..."
    if file.name == "recipe.toml" and (file.parent / "run.json").is_file():
        return f"the run had it typed by its user; for a new one type it again: {option}"
    return option


def _refused(tracker: str, option: str, value: object, leaf: Key) -> str | None:
    known = ALLOWED.get(tracker, {})
    if option not in known:
        allowed = f"a file may set {', '.join(known)} there" if known else "a file may set none there"
        return (
            f"{dotted(leaf)} may decide where figures and credentials go or what is read and written, and counts "
            f"only where you type it; {allowed}"
        )
    try:
        TypeAdapter(known[option].type, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return f"{dotted(leaf)} in a file must be {known[option].words}, not {shown(value)}"
    return None


def _leaves(value: object, key: Key) -> Iterator[Key]:
    if isinstance(value, Mapping) and value:
        for part, inner in value.items():
            yield from _leaves(inner, (*key, part))
    else:
        yield key


def _is_plain(name: str) -> bool:
    return name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:?#%'\"")
