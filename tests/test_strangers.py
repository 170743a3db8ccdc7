"""Run folders that somebody else wrote: what they name must not become a path of ours."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, train_tiny

from distilkit.errors import UserError
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.run import Run


@pytest.mark.parametrize(
    "pins",
    [
        {"/tmp/elsewhere": "step_10"},
        {"../../elsewhere": "step_10"},
        {"best": "../../elsewhere"},
        {"best/../x": "step_10"},
        {"last": "step_10"},
        ["best"],
    ],
)
def test_a_checkpoint_that_names_paths_as_pointers_is_damaged(one_run: Path, tmp_path: Path, pins: object) -> None:
    folder = tmp_path / "step_10"
    shutil.copytree(Run.open(one_run).checkpoint("last"), folder)
    state = json.loads((folder / "state.json").read_text())
    del state["digest"]

    def write(changed: dict[str, object]) -> None:
        # A stranger can make the digest, too.
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        (folder / "state.json").write_text(json.dumps(changed | {"digest": digest}))

    write(state | {"pins": pins})
    with pytest.raises(UserError, match="names checkpoints in a way"):
        checkpoints.load(folder)
    write(state | {"pins": {"best": "step_10", "cycle_2": "step_10"}})
    assert checkpoints.load(folder).state["step"] == state["step"]


def test_pruning_into_a_run_is_refused_and_the_run_stays_a_run(
    one_run: Path, tmp_path: Path, distilkit: Callable[..., Result]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_run, run)
    result = distilkit("prune-branches", run, "--output", run)
    assert result.status == 2
    assert "hint" in result.err
    assert distilkit("ensemble-eval", run, "--json").status == 0


def test_runs_that_held_out_other_images_form_no_ensemble_on_them(
    tmp_path: Path, distilkit: Callable[..., Result]
) -> None:
    runs = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        settings = ("method.name=baseline", "train.epochs=1", "data.validation=0.2", f"train.seed={seed}")
        runs.append(train_tiny(tmp_path / str(seed), *settings))
    refused = distilkit("ensemble-eval", *runs, "--split", "validation", "--json")
    assert refused.status == 2
    assert "different validation images" in refused.json["error"]["message"]
    assert distilkit("ensemble-eval", *runs, "--json").status == 0


def test_a_finished_run_takes_no_other_recipe(one_run: Path, tmp_path: Path, distilkit: Callable[..., Result]) -> None:
    """What was asked for would be passed over in silence."""
    words = ("train", one_run / "recipe.toml", "--resume", one_run, "--device", "cpu")
    assert distilkit(*words).status == 0
    result = distilkit(*words, "--set", "train.epochs=9", "--accept-changes")
    assert result.status == 2
    assert "is finished" in result.err
    assert "train.epochs" in result.err


@pytest.mark.parametrize("change", [{"std": [0.0]}, {"std": [float("nan")]}, {"mean": [0.1, 0.2]}, {"size": 0}])
def test_constants_that_no_image_can_have_are_damage(
    one_run: Path, tmp_path: Path, change: dict[str, object], distilkit: Callable[..., Result]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(one_run, run)
    record = json.loads((run / "run.json").read_text())
    record["data"] |= change
    (run / "run.json").write_text(json.dumps(record))
    result = distilkit("evaluate", run)
    assert result.status == 2
    assert "run.json is damaged" in result.err
