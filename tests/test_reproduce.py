"""benchmarks/reproduce.py: tables in slices, nothing in them that was not run, and the same bytes from the JSON."""

import importlib.util
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest
from scipy import stats

from distilkit.recipe import load

ROOT = Path(__file__).parents[1]

TABLE = """
title = "Digits"
protocol = "For the test."
seeds = [0, 1]
overrides = ["model.architecture=resnet8", "train.epochs=2", "train.precision=fp32"]
[[rows]]
name = "baseline"
recipe = "quickstart_baseline"
published = "28.76"
[[rows]]
name = "kd"
recipe = "quickstart_kd"
needs = "baseline"
"""


@pytest.fixture
def reproduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "benchmarks" / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "reproduce", module)
    spec.loader.exec_module(module)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "tiny.toml").write_text(TABLE)
    monkeypatch.setattr(module, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


@pytest.mark.long
def test_slices_continue_where_the_last_one_ended_and_only_what_ran_is_written(
    reproduce: ModuleType, tmp_path: Path
) -> None:
    arguments = ["tiny", "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    assert reproduce.main([*arguments, "--minutes", "0"]) == 0
    nothing = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert nothing["rows"] == {}
    assert "Nothing has been run yet" in (tmp_path / "results" / "tiny.md").read_text()
    # A slice that ends in the middle of a training: SIGTERM saves, the next slice resumes it.
    assert reproduce.main([*arguments, "--minutes", "0.12"]) == 0
    for _ in range(5):
        assert reproduce.main([*arguments, "--minutes", "2"]) == 0
        results = json.loads((tmp_path / "results" / "tiny.json").read_text())
        if sum(map(len, results["rows"].values())) == 4:
            break
    assert {row: set(seeds) for row, seeds in results["rows"].items()} == {"baseline": {"0", "1"}, "kd": {"0", "1"}}
    for row, seeds in results["rows"].items():
        for seed, figures in seeds.items():
            done = [
                record
                for file in (tmp_path / "runs" / row / f"seed{seed}").glob("*/run.json")
                if (record := json.loads(file.read_text()))["state"] == "done"
            ]
            assert len(done) == 1, "each cell is trained once"
            assert figures["leader"] == done[0]["final"]["errors"]["student_0"]["top1"]
            assert done[0]["seed"] == int(seed)
    _check_page(reproduce, tmp_path, results)


def _check_page(
    reproduce: ModuleType, tmp_path: Path, results: dict[str, dict[str, dict[str, dict[str, float]]]]
) -> None:
    page = tmp_path / "results" / "tiny.md"
    before = page.read_bytes()
    page.unlink()
    assert reproduce.main(["tiny", "--tables-only"]) == 0
    assert page.read_bytes() == before
    errors = {row: [run["leader"] for run in seeds.values()] for row, seeds in results["rows"].items()}
    interval = stats.ttest_ind(errors["kd"], errors["baseline"], equal_var=False).confidence_interval(0.95)
    text = before.decode()
    assert f"{interval.low:+.2f} to {interval.high:+.2f}" in text
    assert f"{statistics.fmean(errors['kd']):.2f} +- {statistics.stdev(errors['kd']):.2f}" in text
    assert "| 28.76 |" in text


def test_an_unknown_table_is_named_beside_those_there_are(reproduce: ModuleType) -> None:
    with pytest.raises(SystemExit, match="there are: tiny"):
        reproduce.main(["tinny"])


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "tables").glob("*.toml")), ids=lambda file: file.stem)
def test_every_row_of_every_committed_table_is_a_recipe_that_loads(
    reproduce: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "TABLES", file.parent)
    table = reproduce.read_table(file.stem)
    rows = {row["name"] for row in table["rows"]}
    for cell in reproduce.cells(table, ()):
        assert load(cell.recipe, cell.overrides).train.epochs >= 1
        assert cell.needs is None or cell.needs in rows
