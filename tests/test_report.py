"""`distilkit report`: its figures are the runs' own, its intervals scipy's, and it says what it lacks."""

import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from reporting import change, light_copy, record
from scipy import stats

from distilkit.analysis.metrics import CALIBRATION_BINS, confusion, evaluate_logits, reliability
from distilkit.report.charts import mean_line
from distilkit.report.figures import safe_name
from distilkit.report.history import Line, evenly, thinned
from distilkit.report.scale import Scale, ticks
from distilkit.runs.run import Run

Command = Callable[..., Result]


@pytest.fixture
def copies(six_runs: list[Path], tmp_path: Path) -> list[Path]:
    """The six trainings, to be changed."""
    return [
        Path(shutil.copytree(run, tmp_path / "runs" / run.name, ignore=shutil.ignore_patterns("report")))
        for run in six_runs
    ]


def top1(run: Path, name: str | None = None) -> float:
    found = record(run)
    return float(found["final"]["errors"][name or found["leader"]]["top1"])


# Figures


def test_every_figure_is_the_one_in_run_json(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> None:
    document = distilkit("report", *six_runs, "-o", tmp_path / "page.html", "--no-figures", "--json").json
    assert document["schema"] == 1
    assert [run["run"] for run in document["runs"]] == [str(run) for run in six_runs]
    for path, found in zip(six_runs, document["runs"], strict=True):
        known = record(path)
        assert set(found["classifiers"]) == set(known["final"]["errors"])
        for name, figures in found["classifiers"].items():
            errors = known["final"]["errors"][name]
            assert (figures["top1_error"], figures["top5_error"]) == (errors["top1"], errors["top5"])
            of = {"leader": "deploy", "ensemble": "ensemble"}.get(figures["role"])
            assert figures["parameters"] == (known["parameters"][of] if of else None)
            assert figures["flops"] == (known["flops"][of] if of else None)
        assert found["train_flops"] == known["flops"]["train"]
        assert found["seed"] == known["seed"]


def test_seeds_of_one_recipe_are_one_group_with_mean_and_deviation(
    six_runs: list[Path], distilkit: Command, tmp_path: Path
) -> None:
    document = distilkit("report", *six_runs, "-o", tmp_path / "page.html", "--no-figures", "--json").json
    assert [(group["label"], group["seeds"]) for group in document["groups"]] == [
        (name, [0, 1, 2]) for name in ("baseline", "one")
    ]
    for group, own in zip(document["groups"], (six_runs[:3], six_runs[3:]), strict=True):
        for name, figures in group["classifiers"].items():
            values = [top1(run, name) for run in own]
            assert figures["top1_error"]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-12)
            assert figures["top1_error"]["deviation"] == pytest.approx(statistics.stdev(values), abs=1e-12)
            assert figures["top1_error"]["count"] == 3


def test_intervals_are_those_of_scipy(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> None:
    document = distilkit("report", *six_runs, "-o", tmp_path / "page.html", "--no-figures", "--json").json
    (found,) = document["differences"]  # The baseline has no ensemble to compare.
    ours, theirs = [top1(run) for run in six_runs[3:]], [top1(run) for run in six_runs[:3]]
    test = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert (found["ours"], found["theirs"], found["role"]) == ("one", "baseline", "leader")
    assert found["difference"] == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs), abs=1e-12)
    assert (found["low"], found["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found["counts"] == [3, 3]
    assert found["conclusive"] == (test.pvalue < 0.05)


def test_with_one_seed_nothing_can_be_concluded(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> None:
    document = distilkit(
        "report", six_runs[0], six_runs[3], "-o", tmp_path / "page.html", "--no-figures", "--json"
    ).json
    assert "nothing can be concluded" in " ".join(document["summary"])
    (found,) = document["differences"]
    assert (found["low"], found["high"], found["conclusive"]) == (None, None, False)
    assert "nothing can be concluded" in found["verdict"]
    assert all(g["classifiers"]["student_0"]["top1_error"]["deviation"] is None for g in document["groups"])


def test_a_seed_that_was_trained_twice_is_named(copies: list[Path], distilkit: Command, tmp_path: Path) -> None:
    again = light_copy(copies[0], tmp_path / "again", name="again", seed=0)
    document = distilkit("report", *copies[:3], again, "--no-figures", "--no-evaluate", "--json").json
    assert any("seed 0 was trained more than once" in note for note in document["notes"])


def test_an_unfinished_run_is_shown_and_counts_in_no_mean(copies: list[Path], distilkit: Command) -> None:
    known = record(copies[2])
    del known["final"]
    (copies[2] / "run.json").write_text(json.dumps(known | {"state": "interrupted"}))
    document = distilkit("report", *copies, "--no-figures", "--json").json
    assert document["groups"][0]["seeds"] == [0, 1]
    assert document["differences"][0]["counts"] == [3, 2]
    assert document["runs"][2]["classifiers"]["student_0"]["top1_error"] is None
    assert "not finished" in document["runs"][2]["missing"]["errors"]
    page = Path(document["output"]).read_text()
    assert f"{copies[2].name} is not finished (interrupted)" in page
    assert 'id="r2-errors"' in page


def test_runs_with_other_test_images_are_not_compared(copies: list[Path], distilkit: Command) -> None:
    data = record(copies[3])["data"]
    for run in copies[3:]:
        change(run, data=data | {"fingerprints": {**data["fingerprints"], "test": "0" * 64}})
    document = distilkit("report", *copies, "--no-figures", "--no-evaluate", "--json").json
    assert document["differences"] == []
    assert any("not tested on the same images" in note for note in document["notes"])


# Where it goes


def test_without_a_run_all_finished_ones_are_reported_beside_them(copies: list[Path], distilkit: Command) -> None:
    folder = copies[0].parent
    result = distilkit("report", "--runs", folder)
    assert result.status == 0, result.err
    assert (folder / "report.html").is_file()
    assert str(folder / "report.html") in result.out
    names = {file.name for file in (folder / "report_figures").iterdir()}
    for stem in ("error-against-cost", "test-error", "training-error", "variance", "diversity"):
        assert {f"{stem}.svg", f"{stem}.png"} <= names
    assert any("confusion" in name for name in names)
    assert any("gate-epochs" in name for name in names)
    assert distilkit("compare", "--runs", folder).status == 0  # The report's folder is taken for no run.


def test_the_same_runs_give_the_same_page(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        assert distilkit("report", *six_runs, "--output", tmp_path / name, "--no-figures").status == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_what_cannot_be_is_refused(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> None:
    cases = {
        ("--figures", tmp_path, "--no-figures"): "--no-figures",
        ("--output", tmp_path): str(tmp_path),
        ("--benchmark", tmp_path / "none.json"): "none.json",
        ("--benchmark", six_runs[0] / "run.json"): "benchmark",
        ("--output", six_runs[0] / "run.json" / "page.html"): "run.json",
    }
    for options, word in cases.items():
        result = distilkit("report", six_runs[0], *options, "--no-evaluate", "--json")
        assert result.status == 2, options
        assert word in result.json["error"]["message"]
        assert result.json["error"]["hint"]


# What other commands left


def test_sizes_and_latencies_are_taken_from_where_they_are(
    copies: list[Path], distilkit: Command, tmp_path: Path
) -> None:
    for stem, size in (("single", 1234), ("ensemble", 5678)):
        (copies[3] / "exports").mkdir(exist_ok=True)
        (copies[3] / "exports" / f"{stem}.onnx").write_bytes(bytes(size))
    timed = {"kind": "onnxruntime", "threads": 1, "batch": 1, "median_ms": 0.125}
    name = str(copies[3] / "exports" / "single.onnx")
    results = [{**timed, "name": name}, {**timed, "name": name, "batch": 32, "median_ms": 9.0}]
    file = tmp_path / "latency.json"
    file.write_text(json.dumps({"schema": 1, "results": results, "machine": {"cores": 2, "load": 0.1}}))
    document = distilkit("report", *copies, "--benchmark", file, "--no-figures", "--no-evaluate", "--json").json
    found = document["runs"][3]["classifiers"]
    assert (found["student_0"]["onnx_bytes"], found["student_0"]["latency_ms"]) == (1234, 0.125)
    assert (found["gated"]["onnx_bytes"], found["gated"]["latency_ms"]) == (5678, None)
    assert document["runs"][0]["classifiers"]["student_0"]["onnx_bytes"] is None
    assert "not exported" in document["runs"][0]["missing"]["onnx of student_0"]
    assert "not timed" in document["runs"][3]["missing"]["latency of gated"]


def test_robustness_curves_are_drawn_and_a_damaged_file_is_named(copies: list[Path], distilkit: Command) -> None:
    for run in copies[:2]:
        measure = ("--steps", 2, "--directions", 2, "--images", 50, "--inputs", "noise")
        assert distilkit("robustness", run, *measure).status == 0
    (copies[1] / "robustness" / "robustness.json").write_text('{"runs": [{"magnitudes": "<script>"}]}')
    document = distilkit("report", *copies[:3], "--no-figures", "--no-evaluate", "--json").json
    page = Path(document["output"]).read_text()
    assert 'id="r0-perturbation"' in page
    assert 'id="r0-perturbed-images"' in page
    assert 'id="data0-perturbation"' in page
    assert 'id="r1-perturbation"' not in page
    assert "damaged" in document["runs"][1]["missing"]["perturbation curves"]
    assert "distilkit robustness" in document["runs"][2]["missing"]["perturbation curves"]


# The test images


def test_what_the_test_images_say_is_computed_once(
    copies: list[Path], distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, opened = copies[3], []
    learner = Run.learner

    def counted(self: Run, checkpoint: str | None = None) -> Any:
        opened.append(self.path)
        return learner(self, checkpoint)

    monkeypatch.setattr(Run, "learner", counted)

    def report() -> dict[str, Any]:
        return distilkit("report", run, "--no-figures", "--json").json

    report()
    report()
    assert len(opened) == 1
    kept = run / "report" / "test.json"
    found = json.loads(kept.read_text())
    for name, errors in record(run)["final"]["errors"].items():
        assert found["classifiers"][name]["top1_error"] == pytest.approx(errors["top1"], abs=1e-9)
    for damage in ("{", json.dumps(found | {"weights": "other"}), json.dumps(found | {"classifiers": {}})):
        kept.write_text(damage)
        report()
        assert json.loads(kept.read_text()) == found
    assert len(opened) == 4


def test_other_images_than_in_training_are_noticed(copies: list[Path], distilkit: Command) -> None:
    data = record(copies[0])["data"]
    change(copies[0], data=data | {"fingerprints": {**data["fingerprints"], "test": "0" * 64}})
    document = distilkit("report", copies[0], "--no-figures", "--json").json
    assert any("not the ones that it was trained beside" in note for note in document["notes"])


def test_without_images_or_weights_the_report_is_made_and_says_so(copies: list[Path], distilkit: Command) -> None:
    data = record(copies[0])["data"]
    change(copies[0], data=data | {"dataset": "image-folder", "root": "no/such/images"})
    shutil.rmtree(copies[1] / "checkpoints")
    (copies[2] / "metrics.jsonl").write_text("{broken}\n")
    result = distilkit("report", *copies[:3], "--no-figures", "--json")
    assert result.status == 0, result.err
    why = [run["missing"] for run in result.json["runs"]]
    section = "errors by class, confusion, reliability"
    assert "no/such/images" in why[0][section]
    assert "checkpoint" in why[1][section]
    assert "damaged" in why[2]["curves"]
    assert section not in why[2]
    assert all(reason in " ".join(result.json["notes"]) for reason in (why[0][section], why[1][section]))


def test_no_evaluate_leaves_the_sections_out(copies: list[Path], distilkit: Command) -> None:
    document = distilkit("report", copies[0], "--no-figures", "--no-evaluate", "--json").json
    page = Path(document["output"]).read_text()
    assert 'id="r0-confusion"' not in page
    assert "--no-evaluate" in page
    assert not (copies[0] / "report").exists()


ODD = ["text", None, [], {}, [[1], [2, 3]], 1e308, -1e308, True, "<script>"]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_figures_of_the_wrong_kind_are_left_out(odd: object, copies: list[Path], distilkit: Command) -> None:
    lines = [json.loads(line) for line in (copies[3] / "metrics.jsonl").read_text().splitlines()]
    lines[1] |= {"lr": odd, "ramp": odd, "loss": {"total": odd, "distillation": 1.0}}
    lines[1]["test"] |= {"diversity": odd, "weights": {"gate": odd, "other": [odd, odd]}}
    lines[2] |= {"train": odd, "loss": odd, "epoch": odd}
    lines[2]["test"]["errors"]["student_0"]["top1"] = odd
    (copies[3] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = distilkit("report", *copies[2:4], "--no-figures", "--no-evaluate", "--json")
    assert result.status == 0, result.err
    page = Path(result.json["output"]).read_text()
    assert 'd="M' in page
    assert "nan" not in page.split("<main")[1].split("Recipe</summary>")[0]
    assert page.count("<script>") == 1


# Large


def test_two_hundred_runs_make_a_page_of_bounded_size(six_runs: list[Path], distilkit: Command, tmp_path: Path) -> None:
    for number in range(200):
        method = six_runs[3 * (number % 2)]
        light_copy(method, tmp_path / "runs" / f"run-{number}", name=f"recipe-seed{number // 2}", seed=number // 2)
    document = distilkit("report", "--runs", tmp_path / "runs", "--no-figures", "--json").json
    page = Path(document["output"])
    assert len(document["runs"]) == 200
    assert sorted(group["finished"] for group in document["groups"]) == [100, 100]
    assert page.stat().st_size < 10e6
    text = page.read_text()
    assert text.count('<details class="run"') == 24
    assert text.count("data-toggle-run=") == 200
    assert "176 of 200 runs are not shown in full" in text


def test_two_hundred_recipes_are_compared_with_the_first_alone(
    six_runs: list[Path], distilkit: Command, tmp_path: Path
) -> None:
    for number in range(40):
        copy = light_copy(six_runs[0], tmp_path / "runs" / f"run-{number}", name=f"n{number}", seed=0)
        text = (copy / "recipe.toml").read_text().replace("lr = 0.05", f"lr = {0.05 + number / 1000}")
        (copy / "recipe.toml").write_text(text)
    document = distilkit("report", "--runs", tmp_path / "runs", "--no-figures", "--no-evaluate", "--json").json
    assert len(document["groups"]) == 40
    assert len(document["differences"]) == 39
    assert {difference["theirs"] for difference in document["differences"]} == {document["groups"][0]["label"]}


def test_ten_thousand_epochs_are_thinned_and_no_peak_is_lost(
    six_runs: list[Path], distilkit: Command, tmp_path: Path
) -> None:
    copy = light_copy(six_runs[3], tmp_path / "runs" / "long", name="long", seed=0)
    lines = [json.loads(line) for line in (six_runs[3] / "metrics.jsonl").read_text().splitlines()]
    with (copy / "metrics.jsonl").open("w") as stream:
        for epoch in range(1, 10_001):
            line = lines[epoch % len(lines)] | {"epoch": epoch, "lr": 9.5 if epoch == 7777 else 0.1}
            stream.write(json.dumps(line) + "\n")
    document = distilkit("report", copy, "--no-figures", "--no-evaluate", "--json").json
    page = Path(document["output"]).read_text()
    assert len(page) < 1e6
    assert "10000 of 3 epochs" in page
    assert "lowest 0.1" in page
    assert "7777" in page


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=700))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float | None]) -> None:
    line = Line(tuple(range(len(values))), tuple(values))
    found = thinned(line, 100)
    assert len(found.x) <= 160
    assert (found.x[0], found.x[-1]) == (0, len(values) - 1)
    assert set(zip(found.x, found.y, strict=True)) <= set(enumerate(values))
    known = [value for value in values if value is not None]
    if known:
        assert {min(known), max(known)} <= set(found.y)


# Parts


def test_the_mean_of_curves_is_over_the_epochs_that_all_have() -> None:
    line, low, high = mean_line([Line((1, 2, 3), (4.0, 2.0, 1.0)), Line((1, 3), (6.0, 3.0))])
    assert (line.x, line.y) == ((1, 3), (5.0, 2.0))
    assert low == (pytest.approx(5 - math.sqrt(2)), pytest.approx(2 - math.sqrt(2)))
    assert high == (pytest.approx(5 + math.sqrt(2)), pytest.approx(2 + math.sqrt(2)))
    assert mean_line([Line((1,), (4.0,))])[1:] == ((), ())


@given(st.integers(1, 500), st.integers(2, 60))
def test_evenly_spread_places_begin_and_end_where_the_whole_does(count: int, most: int) -> None:
    places = evenly(count, most)
    assert len(places) <= most
    assert (places[0], places[-1]) == (0, count - 1)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_lie_within_the_axis(low: float, span: float, about: int) -> None:
    scale = Scale(low, low + span, 0, 100)
    found = ticks(scale, about)
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= value <= low + span + slack for value in found)
    assert len(found) <= 2 * about + 2


def test_confusion_and_reliability_say_what_the_errors_say() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(400, 7, generator=generator)
    labels = torch.randint(6, (400,), generator=generator)  # One class has no images.
    logits[:20] = 0.0  # Ties count against the classifier.
    figures = evaluate_logits(logits, labels)
    table = confusion(logits, labels)
    assert int(table.sum()) == 400
    for of, error in enumerate(figures.per_class_error):
        total = int(table[of].sum())
        assert error == (pytest.approx(100 * (1 - int(table[of, of]) / total)) if total else None)
    bins = reliability(logits, labels)
    assert len(bins) == CALIBRATION_BINS
    assert sum(b.images for b in bins) == 400
    gaps = [
        b.images * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None
    ]
    assert sum(gaps) / 400 == pytest.approx(figures.calibration_error, abs=1e-9)


def test_logits_that_are_not_finite_are_in_no_bin() -> None:
    logits = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    assert sum(b.images for b in reliability(logits, torch.tensor([0, 1]))) == 1
    assert confusion(logits, torch.tensor([0, 1])).tolist() == [[1, 0], [1, 0]]


def test_names_of_files_are_harmless() -> None:
    assert safe_name("../<script>\n a$(b)") == "script-a-b"
    assert safe_name("???") == "figure"
