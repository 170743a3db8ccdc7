"""`compare`, `report` and the model cards say the same of the same runs."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from made_runs import made
from scipy import stats

from distilkit.observer import Observer
from distilkit.runs.run import Run
from distilkit.workflows.share.cards import finished_card

Command = Callable[..., Result]
SOURCE = Path(__file__).parent / "data" / "old_run_distilled" / "run"
LEADER, ENSEMBLE = "student_0", "gated"
UNKNOWN = "no-print"


def _run(runs: Path, folder: str, name: str, seed: int, error: float, month: int = 1, **options: Any) -> None:
    """A finished run whose leader has this error, begun in this month."""
    top1 = {LEADER: error, "student_1": error + 1.0, ENSEMBLE: error - 1.5}
    errors = {member: {"top1": value, "top5": value / 10} for member, value in top1.items()}
    final = {
        "epochs": 3,
        "images_per_second": 1000.0,
        "selected": {"epoch": 3, "rule": "the last epoch"},
        "errors": errors,
        "best_on_test": {"epoch": 3, "errors": errors, "note": ""},
    }
    begun = f"2026-{month:02}-01T00:00:00+00:00"
    made(SOURCE, runs / folder, name=name, seed=seed, created=begun, state="done", final=final, **options)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four recipes: repeated seeds, fp32 and bf16, and one of which nobody knows what images it was tested on."""
    folder = tmp_path / "runs"
    warm: dict[str, Any] = {"method.temperature": 4.0}
    # The newest training of a seed counts, whatever its folder is called.
    _run(folder, "a-plain-0", "plain", 0, 30.0, month=3)
    _run(folder, "b-plain-0-before", "plain", 0, 50.0)
    _run(folder, "c-plain-1", "plain", 1, 32.0)
    _run(folder, "d-warm-0-before", "warm", 0, 40.0, settings=warm)
    _run(folder, "e-warm-0", "warm", 0, 11.0, month=2, settings=warm)
    _run(folder, "f-warm-0-first", "warm", 0, 3.0, settings=warm)
    _run(folder, "g-warm-1", "warm", 1, 12.5, settings=warm)
    half = warm | {"train.precision": "bf16"}
    _run(folder, "h-half-0", "warm", 0, 21.0, settings=half)
    _run(folder, "i-half-1", "warm", 1, 20.0, settings=half)
    _run(folder, "j-half-2", "warm", 2, 23.0, settings=half)
    for seed, error in ((0, 14.0), (1, 15.0)):
        _run(folder, f"k-{UNKNOWN}-{seed}", UNKNOWN, seed, error, settings={"method.temperature": 2.0})
        file = folder / f"k-{UNKNOWN}-{seed}" / "run.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        del record["data"]["fingerprints"]["test"]
        file.write_text(json.dumps(record), encoding="utf-8")
    return folder


def documents(runs: Path, distilkit: Command) -> tuple[dict[str, Any], dict[str, Any]]:
    compared = distilkit("compare", "--runs", runs, "--json").json
    return compared, distilkit("report", "--runs", runs, "--no-figures", "--no-evaluate", "--json").json


def test_compare_and_report_have_the_same_means_over_the_same_trainings(runs: Path, distilkit: Command) -> None:
    compared, reported = documents(runs, distilkit)
    groups = {group["label"]: group for group in reported["groups"]}
    assert {group["group"] for group in compared["groups"]} == set(groups)
    assert sorted(map(len, (group["seeds"] for group in groups.values()))) == [2, 2, 2, 3]
    for ours in compared["groups"]:
        theirs = groups[ours["group"]]
        assert (theirs["seeds"], theirs["finished"]) == (ours["seeds"], len(ours["seeds"]))
        for kind in ("top1_error", "top5_error"):
            assert theirs["classifiers"][ours["deployed"]][kind] == ours[kind]
    assert groups["plain"]["classifiers"][LEADER]["top1_error"]["mean"] == 31.0
    assert groups["plain"]["classifiers"][ENSEMBLE]["top1_error"]["mean"] == 29.5


def test_compare_and_report_have_the_same_differences_of_the_same_pairs(runs: Path, distilkit: Command) -> None:
    compared, reported = documents(runs, distilkit)
    comparable = {(pair["group"], pair["baseline"]): pair for pair in compared["differences"] if pair["comparable"]}
    found = {(pair["ours"], pair["theirs"]): pair for pair in reported["differences"] if pair["role"] == "leader"}
    assert set(found) == set(comparable)
    assert len(found) == 3
    assert not any(UNKNOWN in pair for pair in found)
    for names, pair in found.items():
        ours = comparable[names]
        assert (pair["difference"], [pair["low"], pair["high"]]) == (ours["difference"], ours["interval95"])
        assert (pair["counts"], pair["conclusive"]) == (ours["seeds"], ours["conclusive"])
    (pair,) = (pair for names, pair in found.items() if pair["counts"] == [2, 2])
    interval = stats.ttest_ind([11.0, 12.5], [30.0, 32.0], equal_var=False).confidence_interval(0.95)
    assert pair["difference"] == -19.25
    assert (pair["low"], pair["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_the_ensembles_of_a_report_are_compared_over_the_same_trainings(runs: Path, distilkit: Command) -> None:
    _, reported = documents(runs, distilkit)
    by_role: dict[str, list[Any]] = {"leader": [], "ensemble": []}
    for pair in reported["differences"]:
        by_role[pair["role"]].append([pair["ours"], pair["theirs"], pair["counts"], round(pair["difference"], 9)])
    assert by_role["ensemble"] == by_role["leader"]  # Every ensemble of these makes 1.5 points fewer errors.


def test_compare_and_report_remark_alike_on_repeated_seeds(runs: Path, distilkit: Command) -> None:
    compared, reported = documents(runs, distilkit)
    repeated = [remark["text"] for remark in compared["remarks"] if remark["kind"] == "repeated-seed"]
    assert len(repeated) == 2
    said = [note.lower() for note in reported["notes"] if "trained more than once" in note]
    assert said == [f"{each.lower()}." for each in repeated]


def test_every_card_has_the_spread_that_compare_prints(runs: Path, distilkit: Command) -> None:
    groups = distilkit("compare", "--runs", runs, "--json").json["groups"]
    repeated = [group for group in groups if group["repeated"]]
    assert {group["deployed"] for group in repeated} == {LEADER, ENSEMBLE}
    for path in {path for group in repeated for path in (group["runs"][1], group["repeated"][0])}:
        finished_card(Run.open(Path(path)), Observer())
    for group in repeated:
        mean, deviation = group["top1_error"]["mean"], group["top1_error"]["deviation"]
        for path, counted in ((group["runs"][1], True), (group["repeated"][0], False)):
            text = (Path(path) / "README.md").read_text(encoding="utf-8")
            assert f"| {group['deployed']} | {mean:.2f} | {deviation:.2f} |" in text, path
            assert "2 trainings of this recipe, seeds 0, 1" in text
            assert ("of which a newer training counts" in text) != counted


def test_the_page_shows_the_mean_of_the_trainings_that_count(runs: Path, distilkit: Command) -> None:
    _, reported = documents(runs, distilkit)
    page = Path(reported["output"]).read_text(encoding="utf-8")
    assert f'data-value="{statistics.fmean([30.0, 32.0])}"' in page
    assert f'data-value="{statistics.fmean([30.0, 50.0, 32.0])}"' not in page


def test_a_run_named_in_two_spellings_is_one_run(
    runs: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    names = ("c-plain-1", runs / "c-plain-1")
    assert len(distilkit("report", *names, "--no-figures", "--no-evaluate", "--json").json["runs"]) == 1
    compared = distilkit("compare", *names, "--json").json
    assert [row["deployed"] for row in compared["rows"]] == [LEADER, ENSEMBLE]
    assert compared["remarks"] == []
