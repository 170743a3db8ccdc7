"""Runs of every format that was ever written stay readable: those in tests/data are opened forever after."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from safetensors.torch import load_file

from distilkit.errors import UserError
from distilkit.models import registry
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.run import Run

Command = Callable[..., Result]
DATA = Path(__file__).parent / "data"
FORMATS = sorted(DATA.glob("run_format_*"))
# One image of the 500, where another processor rounds a tie to the other side.
ONE_IMAGE = 0.2 + 1e-9


@pytest.fixture(params=FORMATS, ids=[folder.name for folder in FORMATS])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old run, which may be changed."""
    return Path(shutil.copytree(request.param / "run", tmp_path / "runs" / "old"))


def test_there_is_a_run_of_every_format_and_a_word_on_how_it_was_made() -> None:
    assert [folder.name for folder in FORMATS] == [f"run_format_{number}" for number in range(1, len(FORMATS) + 1)]
    assert len(FORMATS) == 2, "a new format needs its run, and this test its number"
    for number, folder in enumerate(FORMATS, 1):
        assert (folder / "README.md").is_file()
        assert json.loads((folder / "run" / "run.json").read_text())["format"] == number
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 800_000


def test_an_old_run_is_opened_with_all_that_it_says(old: Path) -> None:
    run = Run.open(old)
    assert run.recipe.name == "digits_resnet8"
    assert run.recipe.digest() == Run.open(old).recipe.digest()
    assert run.data.images == {"train": 1297, "test": 500}
    assert not run.data.changed(run.data.load(("train", "test"))), "the images are still the same"
    lines = run.metrics()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["test"]["errors"] == run.record["final"]["errors"]
    saved = checkpoints.load(run.checkpoint("last"))
    assert saved.state["step"] == lines[-1]["step"]
    assert saved.tensors.keys() == {"group", "method", "optimizer"}


def test_an_old_run_is_evaluated_to_its_own_figures(old: Path, distilkit: Command) -> None:
    shown = distilkit("evaluate", old, "--device", "cpu", "--json")
    assert shown.status == 0, shown.err
    recorded, line = Run.open(old).record["final"]["errors"]["student_0"], Run.open(old).metrics()[-1]["test"]
    assert shown.json["images"] == 500
    assert shown.json["same_data"]
    assert shown.json["top1_error"] == pytest.approx(recorded["top1"], abs=ONE_IMAGE)
    assert shown.json["top5_error"] == pytest.approx(recorded["top5"], abs=ONE_IMAGE)
    assert shown.json["cross_entropy"] == pytest.approx(line["cross_entropy"]["student_0"], rel=1e-4)
    newest = distilkit("evaluate", "--runs", old.parent, "--device", "cpu", "--json")
    assert newest.json["run"] == str(old)


def test_an_old_run_is_pruned_and_compared(old: Path, distilkit: Command) -> None:
    pruned = distilkit("prune-branches", old, "--json")
    assert pruned.status == 0, pruned.err
    assert pruned.json["max_abs_difference"] == 0
    stock = registry.create("resnet8", 10, 1)
    stock.load_state_dict(load_file(Path(pruned.json["output"]) / "model.safetensors"), strict=True)
    assert distilkit("evaluate", pruned.json["output"], "--device", "cpu", "--json").status == 0
    assert distilkit("compare", old, "--json").status == 0


def test_an_old_run_goes_on(old: Path, distilkit: Command) -> None:
    record = json.loads((old / "run.json").read_text())
    del record["final"]
    (old / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    longer = ("--set", "train.epochs=3", "--accept-changes")
    result = distilkit("train", old / "recipe.toml", "--resume", old, *longer, "--device", "cpu", "--json")
    assert result.status == 0, result.err
    assert result.json["epochs"] == 3
    assert [line["epoch"] for line in Run.open(old).metrics()] == [1, 2, 3]
    assert result.json["errors"]["student_0"]["top1"] < 25


@pytest.mark.parametrize("file", ["run.json", "checkpoints/step_42/state.json"])
def test_a_format_of_the_future_is_refused_with_what_to_do(file: str, old: Path) -> None:
    document = json.loads((old / file).read_text())
    (old / file).write_text(json.dumps(document | {"format": len(FORMATS) + 1}))
    with pytest.raises(UserError, match=f"has format {len(FORMATS) + 1}; this distilkit reads") as error:
        Run.open(old).learner()
    assert "update distilkit" in str(error.value.hint)
