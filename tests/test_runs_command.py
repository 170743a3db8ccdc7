"""`distilkit runs`: the list, one run, and away with old ones; nothing that is in use or no run is ever deleted."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import made
from rich.console import Console

import distilkit as package
from distilkit.cli import console
from distilkit.workflows.project import runs as workflow

Command = Callable[..., Result]


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


@contextmanager
def training(run: Path) -> Iterator[None]:
    """As while a training writes to the run."""
    with FileLock(run / ".lock", timeout=0):
        yield


@pytest.fixture
def folder(one_run: Path, baseline_run: Path, tmp_path: Path) -> Path:
    """A runs folder with a run of every state, and with what is no run."""
    runs = tmp_path / "runs"
    made(one_run, runs / "one-new", name="one", created=ago(hours=1))
    made(one_run, runs / "one-old", name="one", created=ago(days=40))
    made(baseline_run, runs / "base", name="base", seed=3, created=ago(days=10))
    for state, days in (("interrupted", 3), ("failed", 4), ("running", 5)):
        run = made(one_run, runs / state, name="part", created=ago(days=days), state=state)
        document = json.loads((run / "run.json").read_text())
        del document["final"]
        (run / "run.json").write_text(json.dumps(document))
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text('{"format": 1, "state": "do')
    (runs / "notes").mkdir()
    (runs / "notes" / "todo.txt").write_text("nothing")
    (runs / "a-file").write_text("nothing")
    return runs


def names(document: dict[str, Any]) -> list[str]:
    return [Path(row["run"]).name for row in document["runs"]]


# The list


def test_the_list_has_every_run_newest_first_with_its_state(folder: Path, distilkit: Command) -> None:
    document = distilkit("runs", "--runs", folder, "--json").json
    states = {Path(row["run"]).name: row["state"] for row in document["runs"]}
    assert states == {
        "one-new": "finished",
        "one-old": "finished",
        "base": "finished",
        "interrupted": "interrupted",
        "failed": "failed",
        "running": "interrupted",  # It was killed: nobody holds its lock.
        "broken": "broken",
    }
    ages = [row["age_seconds"] for row in document["runs"]]
    assert ages == sorted(ages)
    assert document["total"] == 7
    with training(folder / "running"), training(folder / "failed"):
        rows = {Path(row["run"]).name: row for row in distilkit("runs", "--runs", folder, "--json").json["runs"]}
    assert (rows["running"]["state"], rows["failed"]["state"]) == ("running", "running")


def test_the_figures_of_the_list_are_those_of_the_runs(folder: Path, distilkit: Command) -> None:
    rows = {Path(row["run"]).name: row for row in distilkit("runs", "--runs", folder, "--json").json["runs"]}
    for name in ("one-new", "base"):
        record, row = json.loads((folder / name / "run.json").read_text()), rows[name]
        assert row["top1_error"] == record["final"]["errors"][record["leader"]]["top1"]
        assert row["error_epoch"] is None
        for key in ("method", "architecture", "seed", "leader"):
            assert row[key] == record[key]
        assert row["dataset"] == "digits"
        assert row["bytes"] == sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        assert row["epochs"] == {"done": record["final"]["epochs"], "total": record["final"]["epochs"]}
    broken = rows["broken"]
    assert (broken["method"], broken["top1_error"], broken["epochs"]) == (None, None, {"done": 0, "total": None})
    assert "run.json" in broken["problem"]
    shown = distilkit("runs", "--runs", folder).out
    for name, row in rows.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(f" {name} ")]
        assert row["state"] in line
        if row["top1_error"] is not None:
            assert f" {row['top1_error']:.2f} " in line
    assert f"{folder / 'broken'} is broken: its run.json is damaged" in shown


def test_an_unfinished_run_shows_how_far_it_got(folder: Path, distilkit: Command) -> None:
    """Also when a kill cut its last line short, and its last epoch was not tested."""
    file = folder / "interrupted" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()][:4]
    del lines[3]["test"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 5, "lo')
    rows = distilkit("runs", "--runs", folder, "--name", "interrupted", "--json").json["runs"]
    assert rows[0]["epochs"] == {"done": 4, "total": 6}
    assert rows[0]["top1_error"] == lines[2]["test"]["errors"]["student_0"]["top1"]
    assert rows[0]["error_epoch"] == 3


BROKEN: dict[str, Callable[[Path], object]] = {
    "is damaged": lambda run: (run / "run.json").write_text("[1]"),
    "lacks leader": lambda run: change(run, leader=None),
    "lacks final": lambda run: change(run, final=None),
    "has format 3": lambda run: change(run, format=3),
    "its recipe.toml": lambda run: (run / "recipe.toml").unlink(),
}


def change(run: Path, **changes: Any) -> None:
    document = json.loads((run / "run.json").read_text()) | changes
    (run / "run.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_run_says_what_is_wrong(problem: str, one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    BROKEN[problem](made(one_run, tmp_path / "runs" / "one", ensemble="gated"))
    (row,) = distilkit("runs", "--runs", tmp_path / "runs", "--json").json["runs"]
    assert row["state"] == "broken"
    assert problem in row["problem"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--state", "finished"), ["one-new", "base", "one-old"]),
        (("--state", "failed", "--state", "broken"), ["broken", "failed"]),
        (("--method", "baseline"), ["base"]),
        (("--name", "one*"), ["one-new", "one-old"]),
        (("--name", "ONE*"), []),
        (("--name", "*old"), ["one-old"]),
        (("--name", "one*", "--limit", 1), ["one-new"]),
        (("--name", "*one*", "--reverse"), ["one-old", "one-new"]),
        (("--state", "finished", "--sort", "name"), ["base", "one-new", "one-old"]),
        (("--state", "finished", "--sort", "seed", "--reverse", "--limit", 1), ["base"]),
    ],
    ids=str,
)
def test_filters_order_and_limit(
    arguments: tuple[object, ...], expected: list[str], folder: Path, distilkit: Command
) -> None:
    assert names(distilkit("runs", "--runs", folder, *arguments, "--json").json) == expected
    shown = distilkit("runs", "--runs", folder, *arguments)
    assert shown.status == 0
    assert bool(shown.out) == bool(expected)


@pytest.mark.parametrize("key", ["error", "size", "epochs", "state", "method"])
def test_what_has_no_such_figure_goes_last_either_way(key: str, folder: Path, distilkit: Command) -> None:
    figure = {"error": "top1_error", "size": "bytes"}.get(key, key)
    for extra in ((), ("--reverse",)):
        rows = distilkit("runs", "--runs", folder, "--sort", key, *extra, "--json").json["runs"]
        values = [row[figure]["done"] if key == "epochs" else row[figure] for row in rows]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=bool(extra))
        assert values[: len(known)] == known


def test_what_is_asked_for_must_be_there(folder: Path, tmp_path: Path, distilkit: Command) -> None:
    wrong = distilkit("runs", "--state", "finishd", "--json")
    assert wrong.status == 2
    assert "'finished'" in wrong.json["error"]["hint"]
    for missing in (tmp_path / "nowhere", folder / "a-file"):
        refused = distilkit("runs", "--runs", missing, "--json")
        assert refused.status == 2
        assert str(missing) in refused.json["error"]["message"]
        assert "distilkit train" in refused.json["error"]["hint"]
    (tmp_path / "empty").mkdir()
    empty = distilkit("runs", "--runs", tmp_path / "empty")
    assert (empty.status, empty.out) == (0, "")
    assert "no run" in empty.err
    assert distilkit("runs", "--runs", tmp_path / "empty", "--json").json["runs"] == []


def test_options_before_a_subcommand_are_not_ignored(folder: Path, distilkit: Command) -> None:
    for arguments in (("--json", "show"), ("--runs", folder, "prune", "--keep", 1), ("--state", "failed", "prune")):
        refused = distilkit("runs", *arguments)
        assert refused.status == 2
        assert "stands before" in refused.err


@pytest.mark.parametrize("command", ["show", "prune"])
def test_help_shows_examples(command: str, distilkit: Command) -> None:
    result = distilkit("runs", command, "--help")
    assert result.status == 0
    assert f"distilkit runs {command}" in result.out
    assert "Example" in result.out
    assert "--json" in result.out


def test_a_narrow_terminal_has_all_of_it_in_two_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    long = folder / "a_recipe_with_a_long_name-seed0-20260101T120000Z"
    (folder / "one-new").rename(long)
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "stdout", terminal)
    assert distilkit("runs", "--runs", folder).status == 0
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines if line.startswith(" "))
    assert not any("…" in line for line in lines)
    assert any("one, resnet8, digits" in line for line in lines)


def in_new_process(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hundreds_of_runs_are_listed_and_pruned_without_torch(one_run: Path, tmp_path: Path) -> None:
    first = made(one_run, tmp_path / "runs" / "run-000", name="many")
    for number in range(1, 300):
        shutil.copytree(first, tmp_path / "runs" / f"run-{number:03}")
    code = (
        "import sys, time; from distilkit import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = in_new_process(code, "runs", "--runs", tmp_path / "runs")
    assert "300 runs" in shown
    assert sum(line.startswith(" run-") for line in shown.splitlines()) == 300
    in_new_process(code, "runs", "prune", "--runs", tmp_path / "runs", "--keep", 1, "--yes")
    assert len(list((tmp_path / "runs").iterdir())) == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
_KEYS = ("state", "method", "architecture", "architectures", "data", "seed", "leader", "final", "created", "format")


@settings(max_examples=40, deadline=None)
@given(record=st.dictionaries(st.sampled_from(_KEYS), _JSON), line=_JSON, name=st.text(max_size=5))
def test_what_strangers_wrote_is_listed_without_a_fault(
    record: dict[str, Any], line: Any, name: str, one_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("strange")
    run = made(one_run, folder / "a")
    made(one_run, folder / "b")
    known = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(known | record))
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "recipe.toml").write_text(f"name = {json.dumps(name)}\n")
    for sort in ("age", "name", "method", "seed", "state", "epochs", "error", "size"):
        rows = workflow.list_runs(folder, sort=sort)["runs"]
        assert {Path(row["run"]).name for row in rows} == {"a", "b"}
        for row in rows:
            assert all(value.isprintable() for value in row.values() if isinstance(value, str))
            assert row["state"] in workflow.STATES
    workflow.plan_pruning(folder, workflow.Filter(name="*"), keep=1)


# One run


def test_show_has_the_figures_the_changes_and_the_files(
    one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    run = tmp_path / "runs" / one_run.name
    shutil.copytree(one_run, run)
    (run / "exports").mkdir()
    (run / "exports" / "single.onnx").write_bytes(b"x" * 12)
    (run / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    record = json.loads((run / "run.json").read_text())
    document = distilkit("runs", "show", "--json").json
    assert document["run"] == f"runs/{run.name}"
    assert document == distilkit("runs", "show", run.name, "--json").json | {"age_seconds": document["age_seconds"]}
    for name, errors in record["final"]["errors"].items():
        assert document["errors"][name]["top1"] == errors["top1"]
        low, high = document["errors"][name]["interval95"]
        assert low < errors["top1"] < high
    changes = {each["key"]: (each["base"], each["run"]) for each in document["recipe"]["changes"]}
    assert document["recipe"]["base"] is None
    assert changes == {
        "train.batch_size": (128, 256),
        "train.precision": ("auto", "fp32"),
        "optimizer.lr": (0.1, 0.05),
    } or changes == {"train.batch_size": (128, 256), "optimizer.lr": (0.1, 0.05)}
    files = {each["path"]: each for each in document["files"]}
    assert (files["exports"]["bytes"], files["exports"]["command"]) == (12, "export")
    assert files["exports"]["contents"] == ["exports/single.onnx"]
    assert (files["mine.txt"]["command"], files["run.json"]["command"]) == (None, "train")
    assert files["checkpoints"]["files"] == sum(file.is_file() for file in (run / "checkpoints").rglob("*"))
    shown = distilkit("runs", "show").out
    for word in ("optimizer.lr", "0.05", "exports/single.onnx", "student_2", "gated", "resnet8"):
        assert word in shown


def test_show_compares_with_the_built_in_recipe_of_that_name(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    run = made(one_run, tmp_path / "runs" / "a", name="quickstart-seed4", seed=4)
    document = distilkit("runs", "show", run, "--json").json
    assert document["recipe"]["base"] == "quickstart"
    changes = {each["key"]: each["run"] for each in document["recipe"]["changes"]}
    assert changes["model.architecture"] == "resnet8"
    assert "train.seed" not in changes
    assert "name" not in changes


def test_show_shows_an_unfinished_run_too(folder: Path, distilkit: Command) -> None:
    document = distilkit("runs", "show", folder / "failed", "--json").json
    assert (document["state"], document["errors"]) == ("failed", {})
    assert "failed" in distilkit("runs", "show", folder / "failed").out


def test_show_refuses_what_is_no_run(folder: Path, distilkit: Command) -> None:
    for wrong in (folder / "notes", folder / "broken", "nowhere"):
        refused = distilkit("runs", "show", wrong, "--runs", folder, "--json")
        assert refused.status == 2
        assert str(wrong) in refused.json["error"]["message"]
        assert refused.json["error"]["hint"]


# Pruning


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


EVERYTHING = {"one-new", "one-old", "base", "interrupted", "failed", "running", "broken", "notes", "a-file"}


def test_prune_deletes_what_it_was_told_to_and_nothing_else(folder: Path, distilkit: Command) -> None:
    size = sum(file.stat().st_size for file in (folder / "one-old").iterdir())
    document = distilkit("runs", "prune", "--runs", folder, "--older-than", "30d", "--yes", "--json").json
    assert document["deleted"] == [str(folder / "one-old")]
    assert document["bytes"] == size
    assert left(folder) == EVERYTHING - {"one-old"}
    document = distilkit("runs", "prune", "--runs", folder, "--state", "failed", "--state", "broken", "--yes", "--json")
    assert set(document.json["deleted"]) == {str(folder / "failed"), str(folder / "broken")}
    assert left(folder) == EVERYTHING - {"one-old", "failed", "broken"}


def test_a_dry_run_shows_and_deletes_nothing(folder: Path, distilkit: Command) -> None:
    result = distilkit("runs", "prune", "--runs", folder, "--name", "one*", "--dry-run")
    assert result.status == 0
    assert "one-new" in result.out
    assert "nothing was deleted" in result.out
    document = distilkit("runs", "prune", "--runs", folder, "--name", "one*", "--dry-run", "--json").json
    assert [Path(row["run"]).name for row in document["candidates"]] == ["one-new", "one-old"]
    assert document["deleted"] == []
    assert left(folder) == EVERYTHING


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=str)
def test_without_a_terminal_yes_must_be_said(
    flags: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    result = distilkit("runs", "prune", "--runs", folder, "--name", "one*", *flags)
    assert result.status == 2
    assert "nobody is there to ask" in result.err
    assert "--yes" in result.err
    assert left(folder) == EVERYTHING


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_it_asks_first(
    answer: str, gone: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal(answer))
    result = distilkit("runs", "prune", "--runs", folder, "--name", "one-old")
    assert "delete 1 run (" in result.err
    assert result.status == (0 if answer else 130)
    assert left(folder) == EVERYTHING - ({"one-old"} if gone else set())


def test_nothing_said_and_contradictions_are_refused(folder: Path, distilkit: Command) -> None:
    for arguments, word in (
        (("--yes",), "which runs"),
        (("--older-than", "soon", "--yes"), "--older-than"),
        (("--older-than", "-3d", "--yes"), "--older-than"),
        (("--keep", 0, "--yes"), "--keep"),
        (("--keep", 1, "--yes", "--dry-run"), "--dry-run"),
        (("--state", "gone", "--yes"), "--state"),
    ):
        refused = distilkit("runs", "prune", "--runs", folder, *arguments, "--json")
        assert refused.status == 2
        assert word in refused.json["error"]["message"]
        assert refused.json["error"]["hint"]
    assert left(folder) == EVERYTHING


@pytest.mark.parametrize(("text", "expected"), [("90m", 5400), ("12h", 43200), ("1.5d", 129600), ("2w", 1209600)])
def test_ages(text: str, expected: float) -> None:
    assert workflow.seconds(text) == expected


def test_a_run_that_a_training_writes_to_is_never_deleted(folder: Path, distilkit: Command) -> None:
    """Whatever its run.json says: a finished run may just be continued."""
    with training(folder / "running"), training(folder / "one-old"):
        result = distilkit("runs", "prune", "--runs", folder, "--older-than", "1m", "--yes", "--json").json
    assert {spared["run"] for spared in result["spared"]} == {str(folder / "running"), str(folder / "one-old")}
    assert all("training" in spared["reason"] for spared in result["spared"])
    assert left(folder) == {"running", "one-old", "notes", "a-file", "broken"}


def test_a_training_that_begins_after_the_question_keeps_its_run(folder: Path) -> None:
    plan = workflow.plan_pruning(folder, workflow.Filter(name="one*"))
    change(folder / "one-new", state="running", ensemble="gated")
    with training(folder / "one-old"):
        outcome = workflow.prune(plan)
    assert outcome["deleted"] == []
    reasons = {Path(spared["run"]).name: spared["reason"] for spared in outcome["spared"]}
    assert reasons == {"one-new": "it has changed meanwhile", "one-old": "a training is writing to it"}
    assert left(folder) == EVERYTHING


def test_links_are_not_followed(folder: Path, one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    elsewhere = made(one_run, tmp_path / "elsewhere" / "run", name="one")
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("gold")
    (folder / "link").symlink_to(elsewhere)
    (folder / "one-old" / "inside").symlink_to(treasure)
    (folder / "one-old" / "file").symlink_to(treasure / "gold")
    result = distilkit("runs", "prune", "--runs", folder, "--name", "one", "--yes", "--json").json
    assert [spared["reason"] for spared in result["spared"]] == ["a link, which is not followed"]
    assert set(result["deleted"]) == {str(folder / "one-old"), str(folder / "one-new")}
    assert (elsewhere / "run.json").is_file()
    assert (treasure / "gold").read_text() == "gold"
    assert (folder / "link").is_symlink()


def test_the_newest_of_each_recipe_stay_and_its_newest_finished(
    folder: Path, one_run: Path, distilkit: Command
) -> None:
    made(one_run, folder / "other-seed", name="one", seed=9, created=ago(days=90))
    made(one_run, folder / "moved", name="renamed", settings={"data.root": "/there"}, created=ago(days=80))
    result = distilkit("runs", "prune", "--runs", folder, "--keep", 1, "--yes", "--json").json
    # All but "base" and "other-seed" are one recipe, of which "one-new" is the newest and finished.
    assert left(folder) == {"one-new", "base", "other-seed", "notes", "a-file"}
    assert all("newest of its recipe" in spared["reason"] for spared in result["spared"])


def test_an_unfinished_run_does_not_push_out_the_finished_one(one_run: Path, tmp_path: Path) -> None:
    made(one_run, tmp_path / "done", created=ago(days=2))
    made(one_run, tmp_path / "new", created=ago(days=1), state="interrupted")
    made(one_run, tmp_path / "old", created=ago(days=3))
    plan = workflow.plan_pruning(tmp_path, workflow.Filter(), keep=1)
    assert [Path(row["run"]).name for row in plan.candidates] == ["old"]


_RUNS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["done", "interrupted"]), st.integers(0, 50)), min_size=1, max_size=8
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=_RUNS, keep=st.integers(1, 3))
def test_keep_leaves_that_many_of_each_recipe(
    runs: list[tuple[int, str, int]], keep: int, one_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keep")
    for place, (seed, state, age) in enumerate(runs):
        made(one_run, folder / f"{place}", seed=seed, state=state, created=ago(days=age, seconds=place))
    plan = workflow.plan_pruning(folder, workflow.Filter(), keep=keep)
    going = {int(Path(row["run"]).name) for row in plan.candidates}
    for seed in {run[0] for run in runs}:
        mine = [place for place, run in enumerate(runs) if run[0] == seed]
        stay = [place for place in mine if place not in going]
        assert len(stay) >= min(keep, len(mine))
        finished = [place for place in mine if runs[place][1] == "done"]
        assert len([place for place in stay if place in finished]) >= min(keep, len(finished))
        assert len(stay) <= 2 * keep
        newest = sorted(mine, key=lambda place: (runs[place][2], place))[:keep]
        assert set(newest) <= set(stay)


def test_a_deletion_that_is_cut_short_leaves_nothing_that_is_taken_for_a_run(
    one_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    run = Path(shutil.copytree(one_run, tmp_path / "runs" / "one"))
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(shutil, "rmtree", fail)
        result = distilkit("runs", "prune", "--runs", run.parent, "--keep", 1, "--name", "no", "--yes")
        assert result.status == 0
        result = distilkit("runs", "prune", "--runs", run.parent, "--name", "tiny", "--yes")
    assert "Input/output error" in result.err
    (row,) = distilkit("runs", "--runs", run.parent, "--json").json["runs"]
    assert (row["state"], row["problem"]) == ("broken", "its deletion was cut short")
    refused = distilkit("evaluate", "--runs", run.parent, "--json")
    assert refused.status == 2
    assert "no finished run" in refused.json["error"]["message"]
    assert distilkit("runs", "prune", "--runs", run.parent, "--state", "broken", "--yes").status == 0
    assert left(run.parent) == set()
