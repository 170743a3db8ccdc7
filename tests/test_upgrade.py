"""Recipes of earlier versions: keys that have left, keys that were born later, and what run.json holds beside ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from distilkit.errors import UserError
from distilkit.recipe import load
from distilkit.runs import upgrade
from distilkit.runs.run import Run

Command = Callable[..., Result]
DATA = Path(__file__).parent / "data"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of a finished run of format 1, which has one epoch more to go."""
    run = Path(shutil.copytree(DATA / "run_format_1" / "run", tmp_path / "runs" / "old"))
    record = json.loads((run / "run.json").read_text())
    del record["final"]
    (run / "run.json").write_text(json.dumps(record | {"state": "interrupted", "of_another_version": [1, 2]}))
    change(run, "epochs = 2", "epochs = 3")
    return run


def change(run: Path, text: str, other: str) -> None:
    recipe = (run / "recipe.toml").read_text()
    assert text in recipe
    (run / "recipe.toml").write_text(recipe.replace(text, other))


def test_a_key_that_left_is_dropped_from_a_run_and_noted_where_it_said_something(old: Path, distilkit: Command) -> None:
    change(old, "[train]\n", '[train]\nbranches = "one-by-one"\n')
    assert Run.open(old).notes == ()
    change(old, '"one-by-one"', '"grouped"')
    note = "train.branches = 'grouped' was removed in this version; leave it out"
    assert note in Run.open(old).notes[0]
    resumed = distilkit("train", "--resume", old, "--device", "cpu", "--json")
    assert resumed.status == 0, resumed.err
    assert " ".join(note.split()) in " ".join(resumed.err.split())


def test_a_key_that_left_is_a_fault_in_a_users_own_recipe(tmp_path: Path, distilkit: Command) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "quickstart_one"\n[train]\nbranches = "one-by-one"\n')
    refused = distilkit("train", recipe, "--json")
    assert refused.status == 2
    (fault,) = refused.json["error"]["faults"]
    assert fault["key"] == "train.branches"
    assert fault["place"].endswith("mine.toml:3")
    assert fault["problem"] == "train.branches was removed in this version"
    assert "leave it out" in fault["hint"]
    with pytest.raises(UserError, match="1 fault in the recipe"):
        load("quickstart_one", ["train.branches=streams"])


def test_a_runs_own_recipe_can_be_trained_again(old: Path, distilkit: Command) -> None:
    change(old, "[train]\n", '[train]\nbranches = "grouped"\n')
    planned = distilkit("train", old / "recipe.toml", "--dry-run", "--json")
    assert planned.status == 0, planned.err


def test_a_key_born_later_means_what_the_version_without_it_did(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(old, "clip_norm = 0.0\n", "")
    monkeypatch.setattr(upgrade, "BORN_LATER", {("train", "clip_norm"): 7.0, ("train", "epochs"): 9})
    recipe = Run.open(old).recipe
    assert recipe.train.clip_norm == 7.0, "not today's default"
    assert recipe.train.epochs == 3, "what a run says stays"
    assert load("quickstart_one").train.clip_norm == 0.0, "a user's recipe gets today's default"


def test_what_run_json_holds_beside_our_keys_is_kept(old: Path, distilkit: Command) -> None:
    assert distilkit("train", "--resume", old, "--device", "cpu").status == 0
    record = json.loads((old / "run.json").read_text())
    assert record["state"] == "done"
    assert record["of_another_version"] == [1, 2]
    assert record["format"] == 1
