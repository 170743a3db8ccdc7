"""benchmarks/dry_run.py: every row of a table is trained, one is resumed, all land; what does not is named."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import dry_run
import made_data
import pytest
import reproduce
import torchvision.datasets

from distilkit.data import datasets
from distilkit.recipe import load

FIRST = """
title = "First"
protocol = "For the test."
seeds = [3, 4]
figures = ["diversity"]
overrides = ["model.architecture=resnet8"]
[[rows]]
name = "independent"
recipe = "independent_resnet32"
[[rows]]
name = "one"
recipe = "one_resnet32"
"""
SECOND = """
title = "Second"
protocol = "For the test."
seeds = [3]
overrides = ["model.architecture=resnet8"]
[[rows]]
name = "same"
recipe = "independent_resnet32"
[[rows]]
name = "broken"
recipe = "baseline_resnet32"
overrides = ["train.epoch=1"]
"""


STAND_IN = """
import json, signal, sys, time
from pathlib import Path

arguments = sys.argv[2:]
if "train.epoch=1" in arguments:
    sys.exit("error: 1 fault in the recipe\\n  unknown key train.epoch\\n      hint: epochs?\\nhint: try again")
resumed = "--resume" in arguments
run = Path(arguments[arguments.index("--resume" if resumed else "--runs") + 1])
run = run if resumed else run / "run"


def write(state):
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps(RECORD | {"state": state}))


def stop(signum, frame):
    write("interrupted")
    sys.exit(143)


if not resumed and "train.checkpoint_steps=1" in arguments:
    signal.signal(signal.SIGTERM, stop)
    write("running")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last").write_text("step_2")
    time.sleep(60)
errors = {name: {"top1": 50.0} for name in RECORD["members"]}
split = {"errors": errors, "diversity": 0.5}
line = {"epoch": 1, "step": 4, "seconds": 1.0, "train": split, "test": split}
write("running")
(run / "metrics.jsonl").write_text(json.dumps(line))
write("done")
"""
"""What trains in a moment: it leaves what a training leaves, as far as the tables look, and saves on SIGTERM."""
RECORD: dict[str, Any] = {
    "leader": "student_0",
    "members": ["student_0", "student_1"],
    "ensemble": None,
    "method": "none",
    "data": {"images": {"train": 8, "test": 4}, "fingerprints": {}},
    "flops": {},
    "precision": {"used": "fp32"},
    "device": "none",
    "versions": {"python": "3", "torch": "2"},
    "distilkit": "0",
    "final": {
        "errors": {name: {"top1": 50.0} for name in ("student_0", "student_1")},
        "best_on_test": {"errors": {"student_0": {"top1": 50.0}}},
        "epochs": 1,
        "images_per_second": 1.0,
    },
}


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program changes in its own process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for changed, names in (
        (torchvision.datasets.CIFAR10, ("train_list", "test_list", "meta")),
        (torchvision.datasets.CIFAR100, ("train_list", "test_list", "meta")),
        (torchvision.datasets.SVHN, ("split_list",)),
    ):
        for name in names:
            monkeypatch.setattr(changed, name, getattr(changed, name))


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "first.toml").write_text(FIRST)
    (folder / "second.toml").write_text(SECOND)
    monkeypatch.setattr(reproduce, "TABLES", folder)
    return folder


@pytest.mark.parametrize("really", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_row_is_trained_resumed_and_found_and_one_that_cannot_be_is_named(
    really: bool,
    tables: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not really:
        (tmp_path / "stand_in.py").write_text(f"RECORD = {RECORD!r}\n{STAND_IN}")
        monkeypatch.setattr(made_data, "__file__", str(tmp_path / "stand_in.py"))
    record = tmp_path / "record.json"
    arguments = ["--work", str(tmp_path / "work"), "--record", str(record)]
    assert dry_run.main(["first", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("first/independent: trained, landed, ")
    assert lines[1].startswith("first/one: trained, resumed after step ")
    assert lines[2] == "first: figure diversity drawn"
    found = json.loads(record.read_text())["tables"]["first"]
    assert found["rows"]["one"]["resumed"] in [f"after step {step} of 4" for step in range(1, 4)]
    (run,) = (tmp_path / "work" / "runs" / "first" / "one").glob("seed3/*/run.json")
    assert not really or json.loads(run.read_text())["data"]["dataset"] == "cifar100"
    assert not list((tmp_path / "work" / "runs").rglob("checkpoints")), "weights that nobody needs"

    # Nothing is done twice, not even in another table; of what fails the name and the reason are given.
    kept = run.read_bytes(), run.stat().st_mtime_ns
    assert dry_run.main(["first", "second", *arguments]) == 1
    assert (run.read_bytes(), run.stat().st_mtime_ns) == kept
    said = capsys.readouterr()
    assert "second/same: the run of first/independent, landed" in said.out.splitlines()
    (broken,) = (line for line in said.out.splitlines() if line.startswith("second/broken"))
    assert "NOT TRAINED: " in broken
    assert "train.epoch" in broken
    assert broken.endswith("NOT LANDED")
    assert "second: missing: broken" in said.err.splitlines()
    rows = json.loads(record.read_text())["tables"]["second"]["rows"]
    assert rows["broken"] == {"trained": False, "landed": False}


def test_without_time_nothing_is_begun_and_the_exit_status_says_so(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert dry_run.main(["first", "--minutes", "0", "--work", str(work), "--record", str(tmp_path / "record")]) == 3
    assert "first/one: NOT TRAINED: not begun, NOT LANDED" in capsys.readouterr().out.splitlines()
    assert not work.exists()
    assert not (tmp_path / "record").exists()


def test_asked_to_stop_it_begins_no_other_table(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def asked_to_stop(self: dry_run.DryTable, end: float) -> None:
        begun.append(self.name)
        folder = self.runs / "independent" / "seed3" / "run"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"state": "done"}')

    monkeypatch.setattr(dry_run.DryTable, "run", asked_to_stop)
    arguments = ["--work", str(tmp_path / "work"), "--record", str(tmp_path / "record")]
    monkeypatch.setattr(dry_run, "write_record", lambda *_: None)
    monkeypatch.setattr(dry_run, "_seconds", lambda *_: 1.0)
    assert dry_run.main(["first", "second", *arguments]) == 3
    assert begun == ["first"]


def found(**changes: dict[str, Any]) -> dict[str, Any]:
    rows = {
        "plain": {"trained": True, "landed": True},
        "other": {"trained": True, "landed": True, "resumed": "after 1"},
    }
    return {"rows": {name: row | changes.get(name, {}) for name, row in rows.items()}, "figures": {}}


def test_what_did_not_come_out_is_missing() -> None:
    assert dry_run.missing(found()) == []
    assert dry_run.missing(found(plain={"landed": False})) == ["plain"]
    assert dry_run.missing(found(plain={"trained": False})) == ["plain"]
    assert dry_run.missing(found(other={"resumed": "no"})) == ["a resumed training"]
    assert dry_run.missing(found() | {"figures": {"variance": False}}) == ["figure variance"]


def test_every_row_of_the_queue_is_short_enough_when_reduced() -> None:
    names = dry_run.queue()
    assert names[0] == "cifar100_resnet32"
    assert names[-1] == "imagenet"
    assert set(names) == {
        file.stem for file in reproduce.TABLES.glob("*.toml") if not file.stem.startswith(("small", "middle"))
    }
    for name in names:
        table = dry_run.reduced(reproduce.read_table(name))
        for cell in reproduce.cells(table, dry_run.ALL_ROWS):
            assert load(cell.recipe, cell.overrides).train.epochs <= 2


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "imagenet"])
def test_made_files_are_read_as_the_published_ones(name: str, tmp_path: Path) -> None:
    made_data.write(name, tmp_path, train=12, test=10)
    made_data.expect(tmp_path)
    data = datasets.load(name, tmp_path, download=False)
    assert {split: len(found.labels) for split, found in data.splits.items()} == {"train": 12, "test": 10}
    assert len(data.spec.classes) == {"cifar10": 10, "cifar100": 100, "svhn": 10, "imagenet": 4}[name]
    assert data.splits["train"].images.shape[2:] == ((224, 224) if name == "imagenet" else (32, 32))
    assert len(set(data.splits["train"].labels.tolist())) == min(12, len(data.spec.classes))


QUEUE = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
TRAININGS = sorted({span for span in re.findall(r"`(distilkit train [a-z][^`]*)`", QUEUE) if ";" not in span})


def test_the_queue_has_trainings() -> None:
    assert len(TRAININGS) >= 5


@pytest.mark.parametrize("line", TRAININGS)
def test_a_training_of_the_queue_is_one_that_its_recipe_allows(line: str) -> None:
    words = shlex.split(line)
    settings = [words[at + 1].replace("FOLDER", "images") for at, word in enumerate(words) if word == "--set"]
    assert load(words[2], settings).train.epochs
