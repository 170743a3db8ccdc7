"""`distilkit runs` and `distilkit runs prune`: which runs there are, and away with old ones. Imports no torch.

A run is a folder right below the runs folder that holds a run.json. Nothing else is listed or touched.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from distilkit.errors import UserError, did_you_mean, parse_json, require_plain_file
from distilkit.reading import LARGEST_JSON, UnreadableError, read_bytes, read_json, read_toml
from distilkit.runs import layout as files
from distilkit.runs.atomic import lock

State = Literal["finished", "running", "interrupted", "failed", "broken"]
STATES = ("finished", "running", "interrupted", "failed", "broken")
SortKey = Literal["age", "name", "method", "seed", "state", "epochs", "error", "size"]

DELETED = "deleted"
"""The state of a run whose deletion has begun: no other command takes it any more."""

_STATES: dict[str, State] = {"done": "finished", "running": "running", "interrupted": "interrupted"}
_TAIL = 1 << 18  # bytes; many epochs' lines
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WRITTEN_TO = "a training is writing to it"


@dataclass(frozen=True)
class Filter:
    """Which runs are meant; what is left out does not matter.

    `name`: a pattern with `*` and `?`, of the recipe's or the folder's name. Raises `UserError` for a state that there
    is not.
    """

    states: Sequence[str] = ()
    method: str | None = None
    name: str | None = None
    older_than: float | None = None

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in STATES:
                raise UserError(
                    f"--state {state} is none of {', '.join(STATES)}",
                    did_you_mean(state, STATES) or "--state finished",
                )

    def fits(self, row: dict[str, Any]) -> bool:
        """Whether a run, as `list_runs` describes it, is meant. Seconds count from `created`."""
        names = (str(row["name"]), Path(row["run"]).name)
        return (
            (not self.states or row["state"] in self.states)
            and (self.method is None or row["method"] == self.method)
            and (self.name is None or any(fnmatchcase(name, self.name) for name in names))
            and (self.older_than is None or row["age_seconds"] > self.older_than)
        )


@dataclass
class Plan:
    """What a pruning would delete, as `list_runs` describes runs, and what it spares, with the reason."""

    runs: Path
    candidates: list[dict[str, Any]]
    spared: list[dict[str, str]]
    records: dict[str, bytes] = field(default_factory=dict)
    """What each run.json said when the plan was made."""

    @property
    def bytes(self) -> int:
        """Of all candidates."""
        return sum(row["bytes"] for row in self.candidates)


def list_runs(
    runs: Path, chosen: Filter | None = None, *, sort: SortKey = "age", reverse: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Every run right below `runs`, newest first unless `sort` says otherwise; figures from its own small files.

    `state`: "finished", "running" (a training holds its lock), "interrupted" (it can be resumed; one that was killed is
    too), "failed", or "broken" with `problem`. `top1_error`: the leader's on the test set in percent, of a run that is
    not finished after `error_epoch`. `bytes`: of all its files. `total`: how many there were before `limit`. Raises
    `UserError` when there is no such folder.
    """
    rows = [row for row in map(_described, _folders(runs)) if (chosen or Filter()).fits(row)]
    rows.sort(key=lambda row: row["run"])
    known, unknown = _sorted_out(rows, sort)
    known.sort(key=_SORTS[sort], reverse=reverse)
    rows = [*known, *unknown]
    shown = rows if limit is None else rows[:limit]
    return {
        "runs_folder": str(runs),
        "runs": shown,
        "total": len(rows),
        "bytes": sum(row["bytes"] for row in shown),
    }


def plan_pruning(runs: Path, chosen: Filter, *, keep: int | None = None) -> Plan:
    """Choose the runs to delete: those that fit, but neither the `keep` newest of a recipe nor its newest finished.

    A recipe with another seed is another recipe here, and a broken run is of none. Never chosen: a run that a training
    writes to, and a link. Raises `UserError` where nothing says which runs are meant.
    """
    if chosen == Filter() and keep is None:
        raise UserError(
            "which runs are to go? Nothing says so, and all of them is no answer",
            "distilkit runs prune --older-than 30d, --state interrupted, --name 'try*' or --keep 1",
        )
    if keep is not None and keep < 1:
        raise UserError(f"--keep must be 1 or more, not {keep}", "leave it out to keep none")
    rows = list_runs(runs)["runs"]
    kept = _kept(rows, keep) if keep is not None else set()
    plan = Plan(runs, [], [])
    for row in rows:
        if not chosen.fits(row):
            continue
        path = Path(row["run"])
        if path.is_symlink():
            plan.spared.append({"run": row["run"], "reason": "a link, which is not followed"})
        elif row["state"] == "running" or locked(path):
            plan.spared.append({"run": row["run"], "reason": _WRITTEN_TO})
        elif row["run"] in kept:
            plan.spared.append({"run": row["run"], "reason": f"among the {keep} newest of its recipe"})
        else:
            plan.candidates.append(row)
            plan.records[row["run"]] = _read(path / files.RECORD)
    return plan


def prune(plan: Plan, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Delete what a plan names. Returns `deleted`, `bytes` that were freed, and `spared` with reasons.

    A run that a training has taken up again, or that has changed since the plan was made, is left alone.
    """
    deleted, freed, spared = [], 0, list(plan.spared)
    for done, row in enumerate(plan.candidates, start=1):
        reason = _delete(Path(row["run"]), plan.records[row["run"]])
        if reason is None:
            deleted.append(row["run"])
            freed += row["bytes"]
        else:
            spared.append({"run": row["run"], "reason": reason})
        if progress is not None:
            progress("runs deleted", done, len(plan.candidates))
    return {"deleted": deleted, "bytes": freed, "spared": spared}


def seconds(text: str, option: str = "--older-than") -> float:
    """ "30d" -> 2592000.0; units: m(inutes), h, d, w. Raises `UserError` naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip())
    if found is None:
        raise UserError(
            f"{option} takes a number with m (minutes), h, d or w, not {text!r}", f"{option} 30d is thirty days"
        )
    return float(found[1]) * _UNITS[found[2]]


def locked(path: Path) -> bool:
    """Whether a training holds the run's lock."""
    if not (path / files.LOCK).is_file():
        return False
    try:
        with lock(path):
            return False
    except Timeout:
        return True
    except OSError:
        # Where nothing can be written, or the lock is a link, nobody trains.
        return False


# ------------------------------------------------------------------------------------------------------------- listing


def _folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        raise UserError(
            f"there is no folder {runs}/" if not runs.exists() else f"{runs} is a file, not a folder of runs",
            "name it with --runs, or train a first run: distilkit train quickstart",
        )
    try:
        return [Path(runs, entry.name) for entry in os.scandir(runs) if _holds_record(Path(runs, entry.name))]
    except OSError as error:
        raise UserError(f"{runs} cannot be read: {error.strerror or error}", "choose another with --runs") from error


def _holds_record(path: Path) -> bool:
    try:
        return (path / files.RECORD).is_file()
    except OSError:
        return False


def _described(path: Path) -> dict[str, Any]:
    record, problem = _record(path)
    recipe = _recipe(path)
    if problem is None and recipe is None:
        problem = f"its {files.RECIPE} is missing or damaged"
    train = _table(recipe, "train")
    line, tested = _last_lines(path / files.METRICS)
    state: State = "broken" if problem is not None else _STATES.get(str(record.get("state")), "failed")
    if state in ("running", "interrupted", "failed"):
        alive = locked(path)
        # A training that was killed had no time to say so.
        state = "running" if alive else "interrupted" if state == "running" else state
    error, error_epoch = _error(record, tested)
    done = _table(record, "final").get("epochs", line.get("epoch", 0))
    created = _created(record, path)
    return {
        "run": str(path),
        "name": _word((recipe or {}).get("name")) or path.name,
        "method": _word(record.get("method")),
        "architecture": _architecture(record),
        "dataset": _word(_table(record, "data").get("dataset")),
        "seed": _count(record.get("seed")),
        "state": state,
        "epochs": {"done": _count(done) or 0, "total": _count(train.get("epochs"))},
        "leader": _word(record.get("leader")),
        "top1_error": error,
        "error_epoch": error_epoch,
        "created": created.isoformat(),
        "after": _moment(record.get("after")),
        "age_seconds": max(0.0, (datetime.now(UTC) - created).total_seconds()),
        "bytes": _size(path),
        "problem": problem,
    }


def _record(path: Path) -> tuple[dict[str, Any], str | None]:
    """run.json and what is wrong with it."""
    try:
        record = read_json(path / files.RECORD)
    except UnreadableError:
        return {}, f"its {files.RECORD} is damaged"
    if not isinstance(record, dict):
        return {}, f"its {files.RECORD} is damaged"
    if record.get("state") == DELETED:
        return record, "its deletion was cut short"
    if record.get("format") not in files.READABLE:
        return record, f"it {files.other_format(record)}; this distilkit reads up to {files.FORMAT}"
    missing = [key for key in files.REQUIRED if key not in record]
    if record.get("state") == "done" and "final" not in record:
        missing.append("final")
    return record, f"its {files.RECORD} lacks {', '.join(missing)}" if missing else None


def _recipe(path: Path) -> dict[str, Any] | None:
    try:
        return read_toml(path / files.RECIPE) or None
    except UnreadableError:
        return None


def _read(file: Path) -> bytes:
    """What a file holds; nothing where it cannot be read."""
    try:
        return read_bytes(file, LARGEST_JSON)
    except UnreadableError:
        return b""


def _table(tree: object, key: str) -> dict[str, Any]:
    value = tree.get(key) if isinstance(tree, dict) else None
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str | None:
    """Text that somebody else may have written, without what would steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in value) if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _architecture(record: dict[str, Any]) -> str | None:
    each = _table(record, "architectures")
    return _word(" + ".join(dict.fromkeys(map(str, each.values()))) if each else record.get("architecture"))


def _error(record: dict[str, Any], tested: dict[str, Any]) -> tuple[float | None, int | None]:
    """The leader's top-1 test error and, where the run is not finished, the epoch that it is of."""
    final, leader = _table(record, "final"), str(record.get("leader"))
    source = final or _table(tested, "test")
    error = _table(_table(source, "errors"), leader).get("top1")
    if not isinstance(error, int | float) or not 0 <= error <= 100:
        return None, None
    return float(error), None if final else _count(tested.get("epoch"))


def _last_lines(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last epoch's line and the last with test errors; empty where there is none. Reads the file's end alone."""
    try:
        require_plain_file(file)
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL))
            lines = stream.read().split(b"\n")
    except OSError:
        return {}, {}
    last: dict[str, Any] = {}
    # What follows the last end of a line was cut short.
    for text in reversed(lines[:-1]):
        try:
            line = parse_json(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and "epoch" in line:
            last = last or line
            if "test" in line:
                return last, line
    return last, {}


def _created(record: dict[str, Any], path: Path) -> datetime:
    try:
        created = datetime.fromisoformat(str(record.get("created")))
        return created if created.tzinfo else created.replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp((path / files.RECORD).stat().st_mtime, UTC)


def _size(path: Path) -> int:
    """Bytes of all files; links count as themselves."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(Path(folder, name)).st_size
            except OSError:
                # A file of a training that goes on may be gone by now.
                continue
    return total


def _moment(text: object) -> str | None:
    """A time as run.json has it, None where there is none."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return None


def _youth(row: dict[str, Any]) -> float:
    """The newest first, in the order of `files.begun`: the age alone would not do where a clock was set back."""
    return -max(datetime.fromisoformat(row[time]).timestamp() for time in ("created", "after") if row[time])


_SORTS: dict[SortKey, Callable[[dict[str, Any]], Any]] = {
    "age": lambda row: _youth(row),
    "name": lambda row: row["name"],
    "method": lambda row: row["method"],
    "seed": lambda row: row["seed"],
    "state": lambda row: row["state"],
    "epochs": lambda row: row["epochs"]["done"],
    "error": lambda row: row["top1_error"],
    "size": lambda row: row["bytes"],
}


def _sorted_out(rows: Iterable[dict[str, Any]], sort: SortKey) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that have what is sorted by, and those that do not, which go last either way."""
    known: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    for row in rows:
        (unknown if _SORTS[sort](row) is None else known).append(row)
    return known, unknown


# ------------------------------------------------------------------------------------------------------------- pruning


def _kept(rows: Sequence[dict[str, Any]], keep: int) -> set[str]:
    """The newest of every recipe, and its newest finished; `rows` newest first."""
    seen: dict[tuple[str, bool], int] = {}
    kept = set()
    for row in rows:
        identity = _identity(Path(row["run"]))
        if identity is None:
            continue
        for finished_only in (False, True):
            if finished_only and row["state"] != "finished":
                continue
            seen[identity, finished_only] = seen.get((identity, finished_only), 0) + 1
            if seen[identity, finished_only] <= keep:
                kept.add(row["run"])
    return kept


def _identity(path: Path) -> str | None:
    """The recipe, seed included, apart from its name and from where and how the images are read."""
    recipe = _recipe(path)
    if recipe is None:
        return None
    data = {key: value for key, value in _table(recipe, "data").items() if key not in ("root", "download", "workers")}
    return json.dumps({**recipe, "name": None, "data": data}, sort_keys=True, default=str)


def _delete(path: Path, known: bytes) -> str | None:
    """Delete a run's folder; why it was not deleted, None where it was.

    Its run.json goes last and says before all else that the run is no more: a deletion that is cut short leaves what no
    command takes for a run, and what the next pruning can name.
    """
    if path.is_symlink() or not _holds_record(path):
        return "it is no run any more"
    try:
        with lock(path):
            if _read(path / files.RECORD) != known:
                return "it has changed meanwhile"
            record, _ = _record(path)
            partial = path / f".partial-{files.RECORD}"
            partial.write_text(json.dumps({**record, "state": DELETED}) + "\n", encoding="utf-8")
            partial.replace(path / files.RECORD)
            for entry in list(os.scandir(path)):
                if entry.name in (files.RECORD, files.LOCK):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    Path(entry.path).unlink()
        (path / files.LOCK).unlink(missing_ok=True)
        (path / files.RECORD).unlink()
        path.rmdir()
    except Timeout:
        return _WRITTEN_TO
    except OSError as error:
        return f"it cannot be deleted: {error.strerror or error}"
    return None
