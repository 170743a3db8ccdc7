"""Runs that differ in what is not the question: `compare`, `report` and the model cards say so, and say the same."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from made_runs import made

from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.runs.run import Run
from distilkit.runs.weights_digest import weights_digest
from distilkit.workflows.comparison.recipe_groups import grouped
from distilkit.workflows.share.cards import finished_card
from distilkit.workflows.train.teachers import teacher_digests

Command = Callable[..., Result]
SOURCE = Path(__file__).parent / "data" / "old_run_distilled" / "run"
UNTAUGHT = Path(__file__).parent / "data" / "run_format_1" / "run"
PROBED = {"used": "fp32", "probe_seconds": {"fp32": 1.0, "bf16": 1.1}}


def run(folder: Path, name: str, seed: int, error: float, *, epochs: int = 3, **options: Any) -> Path:
    """A finished run with these errors, trained under the source's conditions but for what is named."""
    errors = {
        member: {"top1": error + more, "top5": error / 10}
        for member, more in (("student_0", 0.0), ("student_1", 1.0), ("gated", -1.0))
    }
    final = {
        "epochs": epochs,
        "images_per_second": 1000.0,
        "selected": {"epoch": epochs, "rule": "the last epoch"},
        "errors": errors,
        "best_on_test": {"epoch": epochs, "errors": errors, "note": ""},
    }
    options = {"threads": {"used": 1, "probe_seconds": None}, "created": f"2026-01-01T00:00:0{seed}+00:00", **options}
    return made(SOURCE, folder / f"{name}-{seed}", name=name, seed=seed, state="done", final=final, **options)


def conditions(**changed: Any) -> dict[str, Any]:
    """What run.json says of a training under other conditions."""
    versions = {"python": "3.11.7", "torch": changed.pop("torch", "2.14.1")}
    return {"versions": versions, **changed}


def without_print(folder: Path, split: str) -> None:
    file = folder / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    del record["data"]["fingerprints"][split]
    file.write_text(json.dumps(record), encoding="utf-8")


WARM = {"method.temperature": 4.0}
OTHERS: dict[str, dict[str, Any]] = {
    "threads": conditions(threads={"used": 2, "probe_seconds": None}),
    "torch": conditions(torch="2.13.0"),
    "device": conditions(device="NVIDIA H200"),
    "epochs": {"epochs": 2},
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two recipes with repeated seeds and mixed precision, and a third whose fingerprints are missing."""
    runs = tmp_path / "runs"
    run(runs, "plain", 0, 30.0)
    run(runs, "plain", 1, 32.0, **OTHERS["threads"])
    again = run(runs / "again", "plain", 0, 50.0, created="2027-01-01T00:00:00+00:00")
    again.rename(runs / "plain-again")
    again.parent.rmdir()
    half = {"used": "bf16", "probe_seconds": PROBED["probe_seconds"]}
    run(runs, "warm", 0, 20.0, settings=WARM, precision=PROBED, **OTHERS["torch"])
    run(runs, "warm", 1, 21.0, settings=WARM | {"train.precision": "bf16"}, precision=half, **OTHERS["torch"])
    for seed in range(2):
        without_print(run(runs, "lost", seed, 10.0 + seed, settings={"method.temperature": 2.0}), "test")
    return runs


def kinds(remarks: list[dict[str, Any]]) -> list[str]:
    return [remark["kind"] for remark in remarks]


def test_compare_and_report_remark_on_the_same_differences(mixed: Path, distilkit: Command) -> None:
    compared = distilkit("compare", "--runs", mixed, "--json").json
    reported = distilkit("report", "--runs", mixed, "--no-figures", "--no-evaluate", "--json").json
    assert compared["remarks"] == reported["remarks"]
    assert kinds(compared["remarks"]) == ["unknown-test-images", "precision", "torch", "threads", "repeated-seed"]
    notes = [note.lower() for note in reported["notes"]]
    assert all(f"{remark['text']}.".lower() in notes for remark in compared["remarks"])
    by_label = {group["label"]: group for group in reported["groups"]}
    for group in compared["groups"]:
        assert by_label[group["group"]]["remarks"] == group["remarks"]
    ours = {
        (pair["group"], pair["baseline"]): pair["remarks"] for pair in compared["differences"] if pair["comparable"]
    }
    theirs = {(pair["ours"], pair["theirs"]): pair["remarks"] for pair in reported["differences"]}
    assert ours == theirs
    ((pair, remarks),) = ours.items()
    assert set(pair) == {"plain", "warm"}
    assert kinds(remarks) == ["precision", "torch", "threads"]
    assert {group["group"]: kinds(group["remarks"]) for group in compared["groups"]} == {
        "plain": ["threads", "repeated-seed"],
        "warm": ["precision"],
        "lost": [],
    }


def test_seeds_for_which_auto_was_decided_otherwise_are_one_recipe(mixed: Path, distilkit: Command) -> None:
    groups = {group["group"]: group for group in distilkit("compare", "--runs", mixed, "--json").json["groups"]}
    assert groups["warm"]["seeds"] == [0, 1]
    assert groups["warm"]["top1_error"]["mean"] == 19.5  # the last of them: of the ensemble
    page = distilkit("report", "--runs", mixed, "--no-figures", "--no-evaluate", "--json").json["output"]
    assert "they differ in precision" in Path(page).read_text(encoding="utf-8")


def test_precisions_that_the_recipes_ask_for_are_two_recipes_and_the_machines_choice_joins_its_own(
    tmp_path: Path,
) -> None:
    fp32 = [run(tmp_path, "a", 0, 10.0), run(tmp_path, "a", 1, 10.0, precision=PROBED)]
    bf16 = run(tmp_path, "b", 2, 10.0, settings={"train.precision": "bf16"}, precision={"used": "bf16"})
    found = grouped([Run.open(path) for path in (*fp32, bf16)])
    assert [group.seeds for group in found] == [(0, 1), (2,)]


@pytest.mark.parametrize("kind", OTHERS)
def test_each_kind_is_remarked_within_a_recipe_and_between_two(kind: str, tmp_path: Path, distilkit: Command) -> None:
    within, between = tmp_path / "within", tmp_path / "between"
    run(within, "plain", 0, 30.0)
    run(within, "plain", 1, 31.0, **OTHERS[kind])
    document = distilkit("compare", "--runs", within, "--json").json
    (remark,) = document["remarks"]
    assert (remark["kind"], remark["groups"]) == (kind, ["plain"])
    finished_card(Run.open(within / "plain-0"), Observer())
    assert "differs between its trainings" in (within / "plain-0" / "README.md").read_text(encoding="utf-8")
    run(between, "plain", 0, 30.0)
    run(between, "warm", 0, 31.0, settings=WARM, **OTHERS[kind])
    document = distilkit("compare", "--runs", between, "--json").json
    (pair,) = document["differences"]
    assert kinds(document["remarks"]) == kinds(pair["remarks"]) == [kind]
    assert {group["group"]: group["remarks"] for group in document["groups"]} == {"plain": [], "warm": []}


def test_precision_and_training_images_are_remarked_between_recipes(tmp_path: Path, distilkit: Command) -> None:
    run(tmp_path, "plain", 0, 30.0)
    half = WARM | {"train.precision": "bf16"}
    run(tmp_path, "warm", 0, 31.0, settings=half, precision={"used": "bf16"}, fingerprints={"train": "e" * 64})
    without_print(run(tmp_path, "lost", 0, 32.0, settings={"method.temperature": 2.0}), "train")
    document = distilkit("compare", "--runs", tmp_path, "--json", "--baseline", "plain").json
    assert {pair["group"]: kinds(pair["remarks"]) for pair in document["differences"]} == {
        "warm": ["precision", "data"],
        "lost": ["unknown-data"],
    }
    shown = distilkit("compare", "--runs", tmp_path, "--baseline", "plain").out
    assert "differ in" in shown
    assert "precision, data" in shown


def test_what_a_run_does_not_say_is_no_difference(tmp_path: Path, distilkit: Command) -> None:
    run(tmp_path, "plain", 0, 30.0)
    nothing: dict[str, Any] = {"threads": {}, "versions": {}, "device": "", "precision": {}}
    run(tmp_path, "warm", 0, 31.0, settings=WARM, **nothing)
    assert distilkit("compare", "--runs", tmp_path, "--json").json["remarks"] == []


def test_a_missing_fingerprint_is_not_called_other_images(tmp_path: Path, distilkit: Command) -> None:
    run(tmp_path, "plain", 0, 30.0)
    without_print(run(tmp_path, "warm", 0, 31.0, settings=WARM), "test")
    document = distilkit("compare", "--runs", tmp_path, "--json").json
    (pair,) = document["differences"]
    assert (pair["comparable"], pair["difference"]) == (False, None)
    assert pair["reason"] == "perhaps other test images: a fingerprint is missing"
    assert kinds(document["remarks"]) == kinds(pair["remarks"]) == ["unknown-test-images"]
    assert "cannot be known" in document["remarks"][0]["text"]


def test_strict_ends_with_status_1_where_there_is_a_remark(tmp_path: Path, distilkit: Command) -> None:
    run(tmp_path, "plain", 0, 30.0)
    run(tmp_path, "warm", 0, 31.0, settings=WARM)
    assert distilkit("compare", "--runs", tmp_path, "--strict").status == 0
    run(tmp_path, "warm", 1, 31.0, settings=WARM, **OTHERS["torch"])
    assert distilkit("compare", "--runs", tmp_path).status == 0
    strict = distilkit("compare", "--runs", tmp_path, "--strict")
    assert strict.status == 1
    assert "version of PyTorch differs" in strict.out


def taught(folder: Path, seed: int, weights: Path, digest: str) -> Path:
    teacher = {"architecture": "resnet20", "weights": str(weights), "temperature": 3.0, "weight": 1.0}
    settings = {f"teacher.{key}": value for key, value in teacher.items()}
    return made(UNTAUGHT, folder / f"{seed}", name="taught", seed=seed, settings=settings, teacher_sha256=[digest])


def test_teachers_count_by_their_weights_and_not_by_their_path(tmp_path: Path) -> None:
    there, moved = tmp_path / "there.safetensors", tmp_path / "moved.safetensors"
    paths = [taught(tmp_path, 0, there, "1" * 64), taught(tmp_path, 1, moved, "1" * 64)]
    # Other weights were put at the same path.
    paths.append(taught(tmp_path, 2, there, "2" * 64))
    assert [group.seeds for group in grouped([Run.open(path) for path in paths])] == [(0, 1), (2,)]


def test_a_training_writes_down_the_digest_of_its_teachers_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    assert teacher_digests(load(Path("quickstart_one"))) == []
    keys = {"architecture": "resnet20", "weights": file, "temperature": 3.0, "weight": 1.0}
    recipe = load(Path("quickstart_one"), [f"teacher.{key}={value}" for key, value in keys.items()])
    assert teacher_digests(recipe) == [hashlib.sha256(b"weights").hexdigest()]


def test_a_folder_that_holds_another_teacher_now_does_not_stand_for_the_one_that_taught(tmp_path: Path) -> None:
    paths = [
        run(tmp_path, "plain", seed, 10.0, settings={"teacher.run": str(UNTAUGHT)}, teacher_sha256=[digest])
        for seed, digest in enumerate((weights_digest(UNTAUGHT), "2" * 64))
    ]
    assert [group.seeds for group in grouped([Run.open(path) for path in paths])] == [(0,), (1,)]
