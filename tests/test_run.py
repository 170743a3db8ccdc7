"""The run folder: what is in it, what it says, and what happens to it when things go wrong."""

import hashlib
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Result, train_tiny
from safetensors.torch import load_file

import distilkit as package
from distilkit.errors import UserError
from distilkit.recipe import Recipe, load
from distilkit.runs.run import Run

Command = Callable[..., Result]

# What TINY leaves unsaid, by the documents' defaults, and what it says.
COMPLETE = {
    "name": "tiny",
    "data": {"dataset": "digits", "root": "data", "download": True, "validation": 0},
    "model": {"architecture": "resnet8"},
    "group": {"kind": "branches", "students": 3, "split_at": "layer3"},
    "method": {"name": "one", "temperature": 3.0, "distillation": True, "gate": True, "detach_target": True},
    "train": {"epochs": 6, "batch_size": 256, "seed": 0, "precision": "fp32"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "step", "milestones": [0.5, 0.75], "gamma": 0.1},
}


def record_of(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return document


def lines_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, where NaN and Infinity, which JSON does not know, are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def pointed(run: Path, name: str = "last") -> Path:
    return run / "checkpoints" / (run / "checkpoints" / name).read_text().strip()


@pytest.fixture
def changed(one_run: Path, tmp_path: Path) -> Path:
    """A copy of the run of ONE, to be changed."""
    return Path(shutil.copytree(one_run, tmp_path / "runs" / one_run.name))


# What is in it


def test_the_folder_is_named_after_the_recipe_and_the_time(one_run: Path, baseline_run: Path):
    for run in (one_run, baseline_run):
        assert re.fullmatch(r"tiny-\d{8}T\d{6}Z", run.name)
        assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
            "README.md",
            "checkpoints",
            "metrics.jsonl",
            "recipe.toml",
            "run.json",
            "tensorboard",
        ]


def test_the_recipe_in_the_run_is_complete_and_the_one_that_was_trained(
    one_run: Path, tiny: Callable[..., Recipe], tmp_path: Path
):
    used = Run.open(one_run).record["threads"]["used"]
    trained = tiny("train.epochs=6", "data.storage=resident", f"train.threads={used}")
    kept = load(one_run / "recipe.toml")
    assert kept == trained
    assert kept.digest() == trained.digest()
    assert kept != tiny("train.epochs=6", "data.storage=resident", "method.temperature=4")
    written = tomllib.loads((one_run / "recipe.toml").read_text(encoding="utf-8"))
    for section, keys in COMPLETE.items():
        if isinstance(keys, dict):
            assert keys.items() <= written[section].items(), section
        else:
            assert written[section] == keys
    # Loading it and writing it again changes nothing.
    (tmp_path / "again.toml").write_text(kept.to_toml(), encoding="utf-8")
    assert (tmp_path / "again.toml").read_bytes() == (one_run / "recipe.toml").read_bytes()


def test_the_recipe_in_the_run_says_which_precision_auto_became(tmp_path: Path):
    run = train_tiny(tmp_path, "train.precision=auto", "train.epochs=1", "method.name=baseline")
    assert load(run / "recipe.toml").train.precision in ("fp32", "bf16")
    assert record_of(run)["precision"]["used"] == load(run / "recipe.toml").train.precision


def test_the_recipe_in_the_run_trains_the_same_weights_again(one_run: Path, tmp_path: Path, distilkit: Command):
    document = distilkit("train", one_run / "recipe.toml", "--runs", tmp_path, "--device", "cpu", "--json").json
    first, second = (load_file(pointed(Path(run)) / "group.safetensors") for run in (one_run, document["run"]))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_run_json_says_what_ran_where_on_what_and_how_it_ended(one_run: Path, baseline_run: Path):
    record = record_of(one_run)
    assert record["format"] == 2
    assert record["distilkit"] == package.__version__
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "numpy", "safetensors", "onnxruntime"} <= set(record["versions"])
    assert record["seed"] == 0
    assert record["command"] == "distilkit train tiny.toml"
    assert record["device"].startswith("cpu")
    assert record["state"] == "done"
    assert record["members"] == ["student_0", "student_1", "student_2"]
    assert record["leader"] == "student_0"
    assert record["data"]["dataset"] == "digits"
    assert record["data"]["images"] == {"train": 1297, "test": 500}
    assert datetime.fromisoformat(record["created"]).tzinfo is not None
    held_out = record_of(baseline_run)
    assert held_out["data"]["images"] == {"train": 1038, "validation": 259, "test": 500}
    prints, others = record["data"]["fingerprints"], held_out["data"]["fingerprints"]
    assert prints["test"] == others["test"]
    assert prints["train"] != others["train"]
    assert set(others) == {"train", "validation", "test"}
    last = lines_of(one_run)[-1]
    assert record["final"]["epochs"] == 6
    assert record["final"]["errors"] == last["test"]["errors"]


def test_figures_are_those_of_the_epoch_that_validation_chose(baseline_run: Path):
    lines, final = lines_of(baseline_run), record_of(baseline_run)["final"]
    validation = [line["validation"]["errors"]["student_0"]["top1"] for line in lines]
    chosen = lines[validation.index(min(validation))]
    assert final["errors"] == chosen["test"]["errors"]
    assert pointed(baseline_run, "best").name == f"step_{chosen['step']}"
    on_test = min(line["test"]["errors"]["student_0"]["top1"] for line in lines)
    assert final["best_on_test"]["errors"]["student_0"]["top1"] == on_test
    assert "test" in final["best_on_test"]["note"]


def test_metrics_have_a_line_for_every_epoch(one_run: Path, baseline_run: Path):
    for run, epochs, steps in ((one_run, 6, 6), (baseline_run, 3, 5)):
        lines = lines_of(run)
        assert [line["epoch"] for line in lines] == list(range(1, epochs + 1))
        # 1297 and 1038 images in batches of 256; the last, smaller one is kept.
        assert [line["step"] for line in lines] == [steps * epoch for epoch in range(1, epochs + 1)]
        assert all(line["lr"] > 0 and line["images_per_second"] > 0 for line in lines)
        assert all(line["lr"] >= later["lr"] for line, later in pairwise(lines))
    terms = {"total", "cross_entropy", "ensemble_cross_entropy", "distillation"}
    for line in lines_of(one_run):
        assert set(line["loss"]) == terms
        assert set(line["test"]["errors"]) == {"student_0", "student_1", "student_2", "gated"}
        weighted = line["loss"]["cross_entropy"] + line["loss"]["ensemble_cross_entropy"]
        weighted += line["ramp"] * line["loss"]["distillation"]
        assert line["loss"]["total"] == pytest.approx(weighted, rel=1e-4)
    for line in lines_of(baseline_run):
        assert set(line["loss"]) == {"total", "cross_entropy"}
        assert set(line["validation"]["errors"]) == {"student_0"}


def test_the_card_has_the_figures_of_the_run(one_run: Path, baseline_run: Path):
    for run in (one_run, baseline_run):
        card, record = (run / "README.md").read_text(encoding="utf-8"), record_of(run)
        assert card.startswith("---\nlibrary_name: distilkit\n")
        assert f"\n# {load(run / 'recipe.toml').name}\n" in card
        for name, errors in record["final"]["errors"].items():
            (row,) = [line for line in card.splitlines() if line.startswith(f"| {name}")]
            assert f"{errors['top1']:.2f}" in row
            assert f"{errors['top5']:.2f}" in row
        for number in filter(None, record["parameters"].values()):
            assert f"{number:,}" in card
        for word in ("resnet8", record["method"], "digits", "1,297" if run == one_run else "1,038", "500"):
            assert word in card
        assert package.__version__ in card
        assert "Intended use" in card


# Checkpoints


def test_pointers_name_complete_checkpoints_with_true_digests(one_run: Path, baseline_run: Path):
    for run, pointers in ((one_run, ["last"]), (baseline_run, ["best", "last"])):
        entries = list((run / "checkpoints").iterdir())
        assert sorted(path.name for path in entries if path.is_file()) == pointers
        folders = [path for path in entries if path.is_dir()]
        assert {pointed(run, name) for name in pointers} <= set(folders)
        assert pointed(run, "last").name == f"step_{lines_of(run)[-1]['step']}"
        for folder in folders:
            assert re.fullmatch(r"step_\d+", folder.name)
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            assert f"step_{state['step']}" == folder.name
            weights = sorted(path.name for path in folder.iterdir() if path.name != "state.json")
            assert weights == ["group.safetensors", "method.safetensors", "optimizer.safetensors"]
            assert state["sha256"] == {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in weights
            }


def test_nothing_in_a_run_is_pickled(one_run: Path, baseline_run: Path):
    """Weights are safetensors, a pointer is a word, all else is text, but for TensorBoard's records."""
    for run in (one_run, baseline_run):
        for file in (path for path in run.rglob("*") if path.is_file()):
            if file.suffix == ".safetensors":
                load_file(file)
            elif file.parent.name == "checkpoints":
                assert re.fullmatch(r"step_\d+\n?", file.read_text(encoding="ascii"))
            elif file.parent.name == "tensorboard":
                assert file.name.startswith("events.out.tfevents.")
            else:
                assert file.suffix in (".json", ".jsonl", ".toml", ".md") or file.name == ".lock"
                file.read_text(encoding="utf-8")


def test_the_gate_is_among_the_weights_and_in_the_optimizer(one_run: Path, baseline_run: Path):
    gate = load_file(pointed(one_run) / "method.safetensors")
    assert gate["gate.fc.weight"].shape == (3, 32)
    assert gate["gate.bn.num_batches_tracked"] == 36
    trained = load_file(pointed(one_run) / "optimizer.safetensors")
    assert any("gate.fc.weight" in key for key in trained)
    assert load_file(pointed(baseline_run) / "method.safetensors") == {}


def test_an_early_checkpoint_is_another_network_than_the_last(one_run: Path):
    steps = sorted(int(path.name[5:]) for path in (one_run / "checkpoints").glob("step_*"))
    assert len(steps) > 1
    early, last = (load_file(one_run / "checkpoints" / f"step_{step}" / "group.safetensors") for step in steps[-2:])
    assert early.keys() == last.keys()
    assert not all(torch.equal(early[key], last[key]) for key in early)


# Where it is


def test_a_run_can_be_moved(changed: Path, one_run: Path, tmp_path: Path, distilkit: Command):
    there = changed.rename(tmp_path / "elsewhere with a space")
    for text in (there / "recipe.toml", there / "run.json", there / "README.md"):
        assert str(one_run.parent) not in text.read_text(encoding="utf-8")
    before, after = (distilkit("evaluate", run, "--json").json for run in (one_run, there))
    assert after.pop("run") == str(there)
    before.pop("run")
    assert after == before


def test_the_newest_run_is_the_one_that_began_last_and_has_finished(changed: Path):
    runs = changed.parent
    times = {"c": "2026-01-02T00:00:00+00:00", "a": "2026-01-03T00:00:00+00:00", "b": "2026-01-01T00:00:00+00:00"}
    for name, created in times.items():
        copy = shutil.copytree(changed, runs / name)
        (copy / "run.json").write_text(json.dumps(record_of(copy) | {"created": created}))
    shutil.rmtree(changed)
    assert Run.newest(runs).path == runs / "a"
    (runs / "a" / "run.json").write_text(json.dumps(record_of(runs / "a") | {"state": "interrupted"}))
    assert Run.newest(runs).path == runs / "c"


def test_runs_that_begin_within_one_second_do_not_meet(tiny: Callable[..., Recipe], tmp_path: Path):
    paths = [Run.create(tiny(), tmp_path / "runs", {"state": "running", "number": number}).path for number in range(5)]
    assert len(set(paths)) == 5
    assert [record_of(path)["number"] for path in paths] == list(range(5))
    assert all(load(path / "recipe.toml") == tiny() for path in paths)


# When things go wrong


def test_a_training_that_diverges_leaves_a_failed_run_that_no_command_takes(tmp_path: Path, distilkit: Command):
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    changes = ("--set", "optimizer.lr=1e30")
    result = distilkit("train", tmp_path / "tiny.toml", "--runs", tmp_path / "runs", *changes, "--json")
    assert result.status == 2
    assert "not finite" in result.json["error"]["message"]
    assert result.json["error"]["hint"]
    (run,) = (tmp_path / "runs").iterdir()
    assert record_of(run)["state"] == "failed"
    assert "final" not in record_of(run)
    assert not (run / "README.md").exists()
    assert distilkit("evaluate", "--runs", tmp_path / "runs").status == 2
    assert distilkit("compare", "--runs", tmp_path / "runs").status == 2


def test_a_recipe_that_cannot_be_built_leaves_no_run(tmp_path: Path, distilkit: Command):
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    wrong = ("--set", "group.split_at=layer9")
    result = distilkit("train", tmp_path / "tiny.toml", "--runs", tmp_path / "runs", *wrong, "--json")
    assert result.status == 2
    (fault,) = result.json["error"]["faults"]
    assert (fault["key"], fault["place"]) == ("group.split_at", "--set group.split_at=layer9")
    assert "layer3" in json.dumps(result.json)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["not json\n", '{"epoch": 3, "lo\n', "\n", "[1, 2]\n"])
def test_a_damaged_line_in_the_metrics_is_named_with_its_number(damage: str, changed: Path):
    lines = (changed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (changed / "metrics.jsonl").write_text("".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(UserError) as raised:
        Run.open(changed).metrics()
    assert "metrics.jsonl" in raised.value.problem
    assert "3" in raised.value.problem


def test_a_last_line_that_a_kill_cut_short_is_left_out(changed: Path):
    text = (changed / "metrics.jsonl").read_text()
    (changed / "metrics.jsonl").write_text(text + '{"epoch": 7, "los')
    assert Run.open(changed).metrics() == [json.loads(line) for line in text.splitlines()]


def test_resuming_with_a_damaged_line_is_refused_and_leaves_it_as_it_is(changed: Path, distilkit: Command):
    (changed / "run.json").write_text(json.dumps(record_of(changed) | {"state": "interrupted"}))
    lines = (changed / "metrics.jsonl").read_text().splitlines(keepends=True)
    text = "".join([*lines[:2], "damaged\n", *lines[3:]])
    (changed / "metrics.jsonl").write_text(text)
    result = distilkit("train", "--resume", changed)
    assert result.status == 2
    assert "metrics.jsonl" in result.err
    assert (changed / "metrics.jsonl").read_text() == text


def test_a_training_that_was_killed_before_its_first_checkpoint_can_be_resumed(
    tiny: Callable[..., Recipe], one_run: Path, tmp_path: Path, distilkit: Command
):
    """As a kill -9 leaves it: the folder is there, nothing in checkpoints/."""
    run = Path(shutil.copytree(one_run, tmp_path / "killed"))
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    (run / "README.md").unlink()
    record = record_of(run) | {"state": "running"}
    del record["final"]
    (run / "run.json").write_text(json.dumps(record))
    result = distilkit("train", "--resume", run, "--json")
    assert result.status == 0, result.err
    assert result.json["errors"] == record_of(one_run)["final"]["errors"]
    assert (run / "README.md").is_file()


def test_a_half_written_checkpoint_is_passed_over(changed: Path, one_run: Path, distilkit: Command):
    """As a kill in the middle of writing leaves it: a folder without its pointer, and a partial file."""
    (changed / "checkpoints" / "step_42").mkdir()
    (changed / "checkpoints" / "step_42" / "group.safetensors").write_bytes(b"\0" * 10)
    (changed / "checkpoints" / ".partial-step_48").mkdir()
    before, after = (distilkit("evaluate", run, "--json").json for run in (one_run, changed))
    assert before["top1_error"] == after["top1_error"]
    result = distilkit("evaluate", changed, "--checkpoint", "step_42")
    assert result.status == 2
    assert "step_42" in result.err


def test_evaluation_every_so_many_epochs_and_after_the_last(tmp_path: Path):
    run = train_tiny(
        tmp_path, "train.evaluate_epochs=2", "train.epochs=5", "method.name=baseline", "data.validation=0.2"
    )
    lines, final = lines_of(run), record_of(run)["final"]
    assert [line["epoch"] for line in lines if "test" in line] == [2, 4, 5]
    assert [line["epoch"] for line in lines if "validation" in line] == [2, 4, 5]
    assert all("student_0" in line["train"]["errors"] for line in lines)
    evaluated = [line for line in lines if "test" in line]
    chosen = min(evaluated, key=lambda line: line["validation"]["errors"]["student_0"]["top1"])
    assert (final["selected"]["epoch"], final["errors"]) == (chosen["epoch"], chosen["test"]["errors"])
    assert pointed(run, "best").name == f"step_{chosen['step']}"
    best = min(evaluated, key=lambda line: line["test"]["errors"]["student_0"]["top1"])
    assert final["best_on_test"]["epoch"] == best["epoch"]


def test_what_is_evaluated_when_does_not_change_the_training(tmp_path: Path):
    weights = []
    for name, every in (("often", 1), ("seldom", 3)):
        (tmp_path / name).mkdir()
        run = train_tiny(tmp_path / name, f"train.evaluate_epochs={every}", "train.epochs=3")
        weights.append(load_file(pointed(run) / "group.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
