"""benchmarks/reproduce.py: tables in slices, nothing in them that was not run, and the same bytes from the JSON."""

import json
import re
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import published
import pytest
import reproduce
import reproduce_figures
import reproduce_tables
import small_data
from PIL import Image
from scipy import stats

from distilkit.recipe import load

ROOT = Path(__file__).parents[1]

TABLE = """
title = "Digits"
protocol = "For the test."
seeds = [0, 1]
overrides = ["model.architecture=resnet8", "train.epochs=2", "train.precision=fp32"]
figures = ["distillation", "perturbation", "diversity"]
[[rows]]
name = "baseline"
recipe = "quickstart_baseline"
published = "28.76"
[[rows]]
name = "kd"
recipe = "quickstart_kd"
needs = "baseline"
[robustness]
rows = ["baseline"]
"""


@pytest.fixture(autouse=True)
def tiny_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of its own, and results of its own; returns the folder of both."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "tiny.toml").write_text(TABLE)
    monkeypatch.setattr(reproduce, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    return tmp_path


def pretend_run(runs: Path, cell: reproduce.Cell, error: float, state: str = "done") -> Path:
    """A run's folder as a training leaves it, as far as the tables read it."""
    folder = runs / cell.folder / f"{cell.row}-20260101T000000Z"
    folder.mkdir(parents=True)
    (runs / cell.folder / reproduce.CODE).write_text("abc\nabc\ndef\n")
    names = ["student_0", "student_1"] if cell.row == "kd" else ["student_0"]
    errors = {name: {"top1": error + index, "top5": 1.0} for index, name in enumerate(names)}
    shown = errors | ({"mean_of_logits": {"top1": error - 1, "top5": 1.0}} if len(names) > 1 else {})
    record = {
        "state": state,
        "leader": "student_0",
        "members": names,
        "ensemble": "mean_of_logits" if len(names) > 1 else None,
        "method": "baseline",
        "data": {"images": {"train": 90, "test": 200}, "fingerprints": {"test": "f"}},
        "flops": {"train": 2, "deploy": 1, "ensemble": None},
        "precision": {"used": "fp32"},
        "device": "cpu (test)",
        "versions": {"python": "3", "torch": "2"},
        "distilkit": "0",
        "final": {
            "errors": shown,
            "best_on_test": {"errors": {"student_0": {"top1": error - 0.5}}},
            "epochs": 2,
            "images_per_second": 100.4,
        },
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [
        {"epoch": 1, "seconds": 30.0, "train": {"errors": errors}},
        {"epoch": 2, "seconds": 30.0, "train": {"errors": errors}, "test": {"errors": shown}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def collected(folder: Path, before: dict[str, Any] | None = None) -> dict[str, Any]:
    table = reproduce.read_table("tiny") | {"robustness": {}}
    return reproduce.collect("tiny", table, reproduce.cells(table, ()), before or {}, folder / "runs", "typed")


def test_nothing_is_written_down_that_was_not_run(tmp_path: Path) -> None:
    todo = reproduce.cells(reproduce.read_table("tiny"), ())
    nothing = collected(tmp_path)
    assert nothing["rows"] == {}
    assert "Nothing has been run yet" in reproduce_tables.markdown(nothing)
    pretend_run(tmp_path / "runs", todo[0], 40.0)
    pretend_run(tmp_path / "runs", todo[1], 39.0, state="interrupted")
    results = collected(tmp_path)
    assert {row: list(seeds) for row, seeds in results["rows"].items()} == {"baseline": ["0"]}
    assert results["rows"]["baseline"]["0"]["leader"] == 40.0
    page = reproduce_tables.markdown(results)
    assert "3 of the table are still to be run" in page
    assert "nothing can be concluded" in page


def test_a_cell_says_with_how_many_threads_and_under_what_load_it_was_trained(tmp_path: Path) -> None:
    todo = reproduce.cells(reproduce.read_table("tiny"), ())
    run = pretend_run(tmp_path / "runs", todo[0], 40.0)
    assert "| load" not in reproduce_tables.markdown(collected(tmp_path))
    (run.parent / reproduce.MACHINE).write_text("2 1.50\n2 4.50\n")
    results = collected(tmp_path)
    assert results["rows"]["baseline"]["0"]["threads"] == "2"
    assert results["rows"]["baseline"]["0"]["load"] == {"mean": 3.0, "most": 4.5}
    assert "| abc, def | 2 | 3.0 (4.5) | 1 |" in reproduce_tables.markdown(results)


def test_a_table_decides_with_how_many_threads_its_trainings_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = "import os, pathlib, sys; pathlib.Path(sys.argv[-1]).write_text(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(reproduce, "command", lambda cell, runs: [sys.executable, "-c", show, str(tmp_path / "seen")])
    todo = reproduce.cells(reproduce.read_table("tiny"), ())[:1]
    assert reproduce.run_slice(todo, tmp_path / "runs", 1.0, 1, threads=2) == []
    assert (tmp_path / "seen").read_text() == "2"
    assert (tmp_path / "runs" / todo[0].folder / reproduce.MACHINE).read_text().startswith("2 ")


def test_what_is_recorded_is_not_trained_again_unless_a_student_needs_its_teacher(tmp_path: Path) -> None:
    todo = reproduce.cells(reproduce.read_table("tiny"), ())
    for cell in todo[:2]:
        pretend_run(tmp_path / "runs", cell, 40.0)
    results = collected(tmp_path)
    assert [cell.folder for cell in todo] == ["baseline/seed0", "kd/seed0", "baseline/seed1", "kd/seed1"]
    left = reproduce.still_to_do(todo, results, [])
    assert [cell.folder for cell in left] == ["baseline/seed1", "kd/seed1"]
    results["rows"]["baseline"]["1"] = results["rows"]["baseline"]["0"] | {"cell": todo[2].digest}
    left = reproduce.still_to_do(todo, results, [])
    assert [cell.folder for cell in left] == ["baseline/seed1", "kd/seed1"], "the teacher's run is needed"
    results["rows"]["kd"]["1"] = results["rows"]["kd"]["0"] | {"cell": todo[3].digest}
    assert reproduce.still_to_do(todo, results, []) == []
    left = reproduce.still_to_do(todo, results, ["baseline"])
    assert [cell.folder for cell in left] == ["baseline/seed0", "baseline/seed1"], "their curves are missing"


def test_the_record_of_another_training_is_not_taken_for_this_one(tmp_path: Path) -> None:
    table = reproduce.read_table("tiny")
    todo = reproduce.cells(table, ())
    pretend_run(tmp_path / "runs", todo[0], 40.0)
    results = collected(tmp_path)
    elsewhere = reproduce.cells(table, ("data.root=elsewhere",))
    assert reproduce.known(results, elsewhere[0]) == results["rows"]["baseline"]["0"]
    longer = reproduce.cells(table, ("train.epochs=3",))
    assert reproduce.known(results, longer[0]) is None


def test_collecting_again_from_the_record_alone_changes_nothing(tmp_path: Path) -> None:
    for index, cell in enumerate(reproduce.cells(reproduce.read_table("tiny"), ())):
        pretend_run(tmp_path / "runs", cell, 40.0 + index)
    first = collected(tmp_path)
    files = {file: file.read_bytes() for file in reproduce.write(first)}
    (tmp_path / "runs").rename(tmp_path / "gone")
    again = collected(tmp_path, reproduce.recorded("tiny"))
    assert again == first
    assert {file: file.read_bytes() for file in reproduce.write(again)} == files


def test_the_page_says_how_much_peers_attend_to_themselves(tmp_path: Path) -> None:
    cell = reproduce.cells(reproduce.read_table("tiny"), ())[0]
    folder = pretend_run(tmp_path / "runs", cell, 40.0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[1]["test"]["weights"] = {"attention": [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.15, 0.15, 0.7]]}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = reproduce_tables.markdown(collected(tmp_path))
    assert "| baseline | 0.333 | 0.800 after 2 epochs |" in page


def test_the_page_gives_means_deviations_and_both_intervals(tmp_path: Path) -> None:
    errors = {"baseline": [], "kd": []}
    for index, cell in enumerate(reproduce.cells(reproduce.read_table("tiny"), ())):
        error = 40.0 + index * index
        pretend_run(tmp_path / "runs", cell, error)
        errors[cell.row].append(error)
    results = collected(tmp_path)
    page = reproduce_tables.markdown(results)
    mean, deviation = statistics.fmean(errors["kd"]), statistics.stdev(errors["kd"])
    assert f"| kd | 2 | {mean:.2f} +- {deviation:.2f} | {mean + 0.5:.2f} +- {deviation:.2f} | {mean - 1:.2f}" in page
    assert "| 28.76 |" in page
    interval = stats.ttest_ind(errors["kd"], errors["baseline"], equal_var=False).confidence_interval(0.95)
    assert f"| kd | {mean - statistics.fmean(errors['baseline']):+.2f} | " in page
    assert f"{interval.low:+.2f} to {interval.high:+.2f}" in page
    # Wilson (1927) by his formula, for 80 wrong of 200.
    wrong, images, z = 80, 200, stats.norm.ppf(0.975)
    centre = (wrong + z * z / 2) / (images + z * z)
    half = z / (images + z * z) * (wrong * (images - wrong) / images + z * z / 4) ** 0.5
    assert f"| baseline | 0 | 40.00 | {100 * (centre - half):.2f} to {100 * (centre + half):.2f} |" in page
    assert "code abc, def." in page


def test_perturbation_curves_are_measured_once_for_each_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = reproduce.cells(reproduce.read_table("tiny"), ())
    run = pretend_run(tmp_path / "runs", todo[0], 40.0)
    asked: list[list[str]] = []
    curves = {"train": [[1.0, 2.0]], "test": [[3.0, 4.0]]}
    document = {"runs": [{"magnitudes": [0.0, 5.0], "curves": curves, "cross_entropy": curves, "images": {"test": 2}}]}
    document["runs"][0] |= {"parameter_norm": 1.23456789, "member": "student_0"}

    def robustness(line: list[str], **_: object) -> SimpleNamespace:
        asked.append(line)
        return SimpleNamespace(returncode=0, stdout=json.dumps(document), stderr="")

    monkeypatch.setattr(subprocess, "run", robustness)
    table = reproduce.read_table("tiny")
    found = reproduce.perturb(table, {}, tmp_path / "runs")
    assert [line[len(reproduce.PROGRAM) :] for line in asked] == [["robustness", str(run), "--json"]]
    assert found["baseline"]["0"]["curves"] == curves
    assert found["baseline"]["0"]["parameter_norm"] == 1.23457
    assert reproduce.perturb(table, {"robustness": found}, tmp_path / "runs") == found
    assert len(asked) == 1


def test_a_signal_keeps_the_curves_there_are_and_an_end_all_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in reproduce.cells(reproduce.read_table("tiny"), ()):
        pretend_run(tmp_path / "runs", cell, 40.0)
    monkeypatch.setattr(reproduce, "run_slice", lambda *_: [])
    names = ("magnitudes", "curves", "cross_entropy", "images", "parameter_norm", "member")
    document = json.dumps({"runs": [dict.fromkeys(names, 1)]})
    signals: list[type[BaseException]] = [KeyboardInterrupt, SystemExit]
    really = subprocess.run

    def robustness(line: list[str], **options: Any) -> Any:
        if line[0] == "git":
            return really(line, **options)
        assert set(reproduce.recorded("tiny")["rows"]) == {"baseline", "kd"}
        if "seed1" in line[-2] and signals:
            raise signals.pop()
        return SimpleNamespace(returncode=0, stdout=document, stderr="")

    monkeypatch.setattr(subprocess, "run", robustness)
    monkeypatch.setattr(reproduce, "draw", lambda *_: [])
    arguments = ["tiny", "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit):
        reproduce.main(arguments)
    assert "robustness" not in reproduce.recorded("tiny")
    assert reproduce.main(arguments) == 0
    assert list(reproduce.recorded("tiny")["robustness"]["baseline"]) == ["0"]
    assert reproduce.main(arguments) == 0
    assert list(reproduce.recorded("tiny")["robustness"]["baseline"]) == ["0", "1"]


ROWS = ("baseline", "independent", "one", "one_without_distillation", "clilr", "okddip", "three_networks")


def pretend_results(names: Sequence[str] = (*ROWS, "okddip_3", "okddip_6", "one_3", "one_6")) -> dict[str, Any]:
    """Two seeds of every row, by default of those that a figure wants, with curves that differ."""
    rows: dict[str, Any] = {}
    for index, row in enumerate(names):
        for seed in (0, 1):
            curve = [90.0 - index - seed, 60.0 - index + seed]
            members = {"student_0": curve, "student_1": [value + 1 for value in curve]}
            curves = {"test_epochs": [2, 4], "train": members, "test": members}
            for split in ("train", "test"):
                curves |= {f"{split}_diversity": [0.1 * index, 0.2], f"{split}_ensemble": curve}
            figures = {"leader": curve[-1], "members": {name: values[-1] for name, values in members.items()}}
            rows.setdefault(row, {})[str(seed)] = figures | {"curves": curves}
    lines = {"train": [[1.0, 2.0], [1.0, 3.0]], "test": [[50.0, 60.0], [50.0, 70.0]]}
    robust = {"magnitudes": [0.0, 5.0], "curves": lines, "cross_entropy": lines}
    return {
        "table": "tiny",
        "rows": rows,
        "figures": list(reproduce_figures.FIGURES),
        "robustness": {row: {"0": robust, "1": robust} for row in ("baseline", "one")},
    }


def test_every_figure_shows_the_curves_of_its_rows(tmp_path: Path) -> None:
    results = pretend_results()
    figures = {name: make(results) for name, make in reproduce_figures.FIGURES.items()}
    assert all(figure is not None for figure in figures.values())
    left, right = figures["distillation"].axes
    test_branches = [line for line in right.lines if line.get_label() == "branches, test"]
    assert [line.get_xydata().tolist() for line in test_branches] == [[[2.0, 88.0], [4.0, 59.0]]]
    assert {line.get_label() for line in left.lines} >= {"gated ensemble, train", "baseline, test"}
    (axis,) = figures["diversity"].axes
    labels = ["independent", "OKDDip", "ONE", "CL-ILR"]
    assert [line.get_label() for line in axis.lines] == labels
    assert [line.get_ydata()[0] for line in axis.lines] == pytest.approx([0.1, 0.5, 0.2, 0.4])
    (axis,) = figures["variance"].axes
    assert [line.get_label() for line in axis.lines] == ["3 networks", "ONE"]
    _, axis = figures["perturbation"].axes
    thick = [line for line in axis.lines if line.get_linewidth() > 2]
    assert [line.get_ydata().tolist() for line in thick] == [[50.0, 65.0]] * 2
    assert len(axis.lines) == 2 + 2 * 2 * 2
    (axis,) = figures["group_size"].axes
    by_label = {container.get_label(): container.lines[0] for container in axis.containers}
    assert set(by_label) == {"OKDDip", "ONE"}
    assert by_label["OKDDip"].get_xydata().tolist() == [[3.0, 53.5], [6.0, 52.5]], "the leader"
    assert by_label["ONE"].get_ydata().tolist() == [52.0, 51.0], "the mean over branches"


def test_a_figure_whose_rows_were_not_run_is_not_drawn(tmp_path: Path) -> None:
    results = pretend_results() | {"rows": {}, "robustness": {}}
    assert reproduce_figures.draw(results, tmp_path) == []
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "tables").glob("*.toml")), ids=lambda file: file.stem)
def test_a_complete_table_gives_every_figure_that_it_names(file: Path) -> None:
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    results = pretend_results([row["name"] for row in table["rows"]])
    results["robustness"] = dict.fromkeys(table.get("robustness", {}).get("rows", []), results["robustness"]["one"])
    for name in table.get("figures", []):
        assert reproduce_figures.FIGURES[name](results) is not None, name


def test_a_figure_drawn_twice_has_the_same_bytes(tmp_path: Path) -> None:
    results = pretend_results() | {"figures": ["diversity"]}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        assert len(reproduce_figures.draw(results, tmp_path / name)) == 2
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def committed() -> list[Path]:
    """The results in the repository that this program wrote."""
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    return [file for file in files if json.loads(file.read_text()).get("format") == reproduce.FORMAT]


@pytest.mark.parametrize("file", committed(), ids=lambda file: file.stem)
def test_the_committed_results_regenerate_their_page_and_figures(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    monkeypatch.setattr(reproduce, "RESULTS", again)
    results = json.loads(file.read_text())
    assert {path.name for path in reproduce.write(results)} >= {file.name, f"{file.stem}.md"}
    drawn = rf"Matplotlib v{re.escape(matplotlib.__version__)}\b"
    for made in again.iterdir():
        kept = file.parent / made.name
        # Another matplotlib draws the same with other bytes.
        if made.suffix in (".json", ".md") or re.search(drawn, kept.with_suffix(".svg").read_text()):
            assert made.read_bytes() == kept.read_bytes(), made.name


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "tables").glob("*.toml")), ids=lambda file: file.stem)
def test_every_row_of_every_committed_table_is_a_recipe_that_loads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "TABLES", file.parent)
    table = reproduce.read_table(file.stem)
    rows = {row["name"] for row in table["rows"]}
    assert len(rows) == len(table["rows"])
    assert set(table.get("figures", [])) <= set(reproduce_figures.FIGURES)
    assert set(table.get("robustness", {}).get("rows", [])) <= rows
    for cell in reproduce.cells(table, ()):
        assert load(cell.recipe, cell.overrides).train.epochs >= 1
        assert cell.needs is None or cell.needs in rows


def test_an_unknown_table_is_named_beside_those_there_are() -> None:
    with pytest.raises(SystemExit, match="there are: tiny"):
        reproduce.main(["tinny"])


def test_tables_only_of_a_table_never_run_says_so() -> None:
    with pytest.raises(SystemExit, match="nothing has been run"):
        reproduce.main(["tiny", "--tables-only"])


def test_rows_and_seeds_can_be_chosen_and_bring_their_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(reproduce, "run_slice", lambda todo, *_: trained.extend(cell.folder for cell in todo) or [])
    assert reproduce.main(["tiny", "--rows", "kd", "--seeds", "1"]) == 0
    assert trained == ["baseline/seed1", "kd/seed1"]
    trained.clear()
    assert reproduce.main(["tiny", "--rows", "baseline"]) == 0
    assert trained == ["baseline/seed0", "baseline/seed1"]
    with pytest.raises(SystemExit, match="no row baselin; there are: baseline, kd"):
        reproduce.main(["tiny", "--rows", "baselin"])


def test_a_changed_table_does_not_overwrite_the_committed_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["tiny", "--set", "train.epochs=1"])
    assert "--results" in capsys.readouterr().err
    elsewhere = tmp_path / "elsewhere"
    assert reproduce.main(["tiny", "--set", "train.epochs=1", "--results", str(elsewhere), "--minutes", "0"]) == 0
    assert (elsewhere / "tiny.json").is_file()
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_slices_continue_where_the_last_one_ended_and_each_cell_is_trained_once(tmp_path: Path) -> None:
    arguments = ["tiny", "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    assert reproduce.main([*arguments, "--minutes", "0"]) == 0
    assert reproduce.recorded("tiny")["rows"] == {}
    # A slice that ends in the middle of a training: SIGTERM saves, the next slice resumes it.
    assert reproduce.main([*arguments, "--minutes", "0.12"]) == 0
    for _ in range(5):
        assert reproduce.main([*arguments, "--minutes", "2"]) == 0
        results = reproduce.recorded("tiny")
        if sum(map(len, results["rows"].values())) == 4:
            break
    assert {row: set(seeds) for row, seeds in results["rows"].items()} == {"baseline": {"0", "1"}, "kd": {"0", "1"}}
    for row, seeds in results["rows"].items():
        for seed, figures in seeds.items():
            records = [
                json.loads(file.read_text()) for file in (tmp_path / "runs" / row).glob(f"seed{seed}/*/run.json")
            ]
            done = [record for record in records if record["state"] == "done"]
            assert len(done) == 1, "each cell is trained once"
            assert figures["leader"] == done[0]["final"]["errors"]["student_0"]["top1"]
            assert done[0]["seed"] == int(seed)
    assert set(results["robustness"]["baseline"]) == {"0", "1"}
    page = tmp_path / "results" / "tiny.md"
    before = page.read_bytes()
    page.unlink()
    assert reproduce.main(["tiny", "--tables-only"]) == 0
    assert page.read_bytes() == before


@pytest.mark.long
def test_a_signal_to_the_slice_has_its_trainings_save(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import reproduce; from pathlib import Path;"
        f"reproduce.TABLES = Path({str(tmp_path / 'tables')!r});"
        f"reproduce.RESULTS = Path({str(tmp_path / 'results')!r});"
        f"sys.exit(reproduce.main(['tiny', '--runs', {str(tmp_path / 'runs')!r}]))"
    )
    (tmp_path / "tables" / "tiny.toml").write_text(TABLE.replace("train.epochs=2", "train.epochs=500"))
    slice_ = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not any(file.stat().st_size for file in (tmp_path / "runs").glob("*/*/*/metrics.jsonl")):
        assert slice_.poll() is None
        time.sleep(0.2)
    slice_.send_signal(signal.SIGTERM)
    assert slice_.wait(timeout=60) == 0
    (record,) = (json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*/*/*/run.json"))
    assert record["state"] == "interrupted"
    assert reproduce.recorded("tiny")["rows"] == {}


def test_the_small_protocols_images_depend_on_pixels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_data, "EACH", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 6, 8, 8, 3), dtype=np.uint8)
    orders = {"one": range(6), "other": [5, 2, 0, 1, 4, 3, 3]}
    for source, order in orders.items():
        for split, of_split in zip(("train", "test"), pixels, strict=True):
            for name, of_class in zip(("cat", "dog"), of_split, strict=True):
                (tmp_path / source / split / name).mkdir(parents=True)
                for place, index in enumerate(order):
                    Image.fromarray(of_class[index]).save(tmp_path / source / split / name / f"{place}.png")
    digests = []
    for source in orders:
        target = tmp_path / f"{source}_small"
        assert small_data.main([str(target), "--from-folder", str(tmp_path / source)]) == 0
        digests.append(sorted((file.relative_to(target), file.read_bytes()) for file in target.rglob("*.png")))
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2 * 3 + 2 * 6
    assert small_data.main([str(tmp_path / "none"), "--from-folder", str(tmp_path)]) == 1


def test_every_published_cell_and_every_recipe_of_the_papers_is_in_a_table() -> None:
    said: dict[str, str] = {}
    for file in (ROOT / "benchmarks" / "tables").glob("*.toml"):
        for row in tomllib.loads(file.read_text(encoding="utf-8"))["rows"]:
            if "overrides" not in row:
                said[row["recipe"]] = said.get(row["recipe"], "") + row.get("published", "")
    for cell in published.cells():
        assert cell.figure in said[cell.recipe], f"{cell.recipe}: {cell.figure} of {cell.paper}, Table {cell.table}"
    ours = ("quickstart", "modern")
    recipes = {file.stem for file in (ROOT / "recipes").rglob("*.toml") if not file.stem.startswith(ours)}
    assert recipes <= said.keys()


def test_a_plan_says_what_a_table_costs_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "TABLES", ROOT / "benchmarks" / "tables")
    assert reproduce.main(["cifar100_resnet32", "--plan", "--rows", "baseline,one", "--rate", "1e12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 300 epochs of 50,000 images of 1.383e8 FLOPs each, three seeds of each row.
    assert lines[0] == "baseline: 1.383e+08 FLOPs an image, 50,000 images, 300 epochs: 35 min a seed"
    assert lines[1].startswith("one: 2.285e+08 FLOPs an image")
    assert lines[2].startswith("all 6 trainings: 275 min at 1.00e+12")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"], "the fixture's own"
