"""TrCost and TeCost as ONE (Lan et al. 2018) prints them in its Tables 3 and 4, against the recipes of these cells.

The cells are those of benchmarks/costs.py. OKDDip's paper prints no costs.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distilkit.recipe import load

ROOT = Path(__file__).parents[1]
ROUNDING = 0.0025  # Three digits, and multiples of figures that have been rounded: 2.76 is 2 x 1.38.
# Their 5.05 is neither ResNet-110 of He et al. (5.06) nor the ResNet-164 with bottlenecks that ONE's code calls
# ResNet-110 (4.95), while their 8.29 is the latter's: see `test_no_single_network_has_both_of_resnet110s_costs`.
NEITHER_VARIANT = 0.02


def _script() -> ModuleType:
    """The same one for all tests of this file, for it counts every network once."""
    spec = importlib.util.spec_from_file_location("costs", ROOT / "benchmarks" / "costs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


costs = _script()
PUBLISHED = [cell for cell in costs.CELLS if cell.published is not None]


def _label(cell: Any) -> str:
    return f"{cell.method}-{cell.network}-{cell.column}"


@pytest.mark.parametrize("cell", PUBLISHED, ids=_label)
def test_the_recipes_cost_is_the_published_one(cell: Any) -> None:
    of_one_resnet110 = len(cell.meanings) > 1 and cell.published != 8.29
    tolerance = NEITHER_VARIANT if of_one_resnet110 else ROUNDING
    assert costs.ours(cell) / 1e8 == pytest.approx(cell.published, rel=tolerance)


def test_every_figure_of_the_tables_is_there() -> None:
    """As many as the tables print: three and five methods, two networks, two costs; KD has no ResNet-110."""
    cells = Counter((table, cell.published is None) for cell in costs.CELLS for table in cell.tables)
    assert cells == {(3, False): 10, (3, True): 2, (4, False): 20}
    assert len({(cell.method, cell.network, cell.column) for cell in costs.CELLS}) == len(costs.CELLS)


def test_snapshots_are_as_many_as_their_published_cost_says() -> None:
    for name in ("snapshot_resnet32", "snapshot_resnet110"):
        assert load(name).schedule.model_dump()["cycles"] == round(6.90 / 1.38) == round(25.25 / 5.05)


def test_the_teacher_of_ones_kd_is_the_one_whose_cost_is_counted() -> None:
    teacher = load("kd164_resnet32").teacher
    assert teacher is not None
    assert teacher.run == costs.TEACHER.recipe == "baseline_resnet110"


def test_no_single_network_has_both_of_resnet110s_costs() -> None:
    """Each meaning of ResNet-110 alone and with ONE's three branches: He et al.'s, ONE's code's and OKDDip's code's."""
    plans = {name: costs.flops("one_resnet110", name) for name in costs.MEANINGS}
    found = {name: (plan["deploy"] / 1e8, plan["train"] / 1e8) for name, plan in plans.items()}
    assert found["resnet110"] == pytest.approx((5.063, 8.419), abs=0.001)
    assert found["resnet164_bottleneck"] == pytest.approx((4.953, 8.289), abs=0.001)
    assert found["resnet110_bottleneck12"] == pytest.approx((3.349, 5.615), abs=0.001)
    alone = [name for name, (deploy, _) in found.items() if deploy == pytest.approx(5.05, rel=0.005)]
    branched = [name for name, (_, train) in found.items() if train == pytest.approx(8.29, rel=0.005)]
    assert (alone, branched) == (["resnet110"], ["resnet164_bottleneck"])
    # He et al.'s two projections, 16 -> 32 channels at 16 x 16 pixels and 32 -> 64 at 8 x 8, left out.
    padded = plans["resnet110"]["deploy"] - 2 * (16 * 32 * 16**2 + 32 * 64 * 8**2)
    assert f"would cost {padded / 1e8:.3f}" in costs.WHY["b"]


def test_the_committed_tables_are_what_the_script_writes() -> None:
    """Byte for byte, on any machine: they are whole numbers of FLOPs and what is divided from them."""
    for name, text in costs.files().items():
        assert (ROOT / "docs" / "results" / name).read_text(encoding="utf-8") == text, (
            f"python benchmarks/costs.py: {name}"
        )


def test_every_figure_that_is_not_the_papers_has_its_sentence() -> None:
    figures = json.loads((ROOT / "docs" / "results" / "costs.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "results" / "costs.md").read_text(encoding="utf-8")
    for cell in figures["cells"]:
        assert bool(cell["ours"]) == (cell["published"] is not None)
        for entry in cell["ours"].values():
            theirs = f"{entry['flops'] / 1e8:.2f}" == f"{cell['published']:.2f}"
            assert theirs == (entry["why"] is None)
            assert entry["difference_percent"] == pytest.approx(
                100 * (entry["flops"] / cell["published"] / 1e8 - 1), abs=0.005
            )
            assert entry["why"] is None or entry["why"] in text
            if entry["agrees"]:
                assert abs(entry["difference_percent"]) < 100 * ROUNDING


@contextmanager
def _unexplained() -> Iterator[None]:
    before = dict(costs.MEANINGS)
    costs.MEANINGS["resnet32"] = "not a ResNet-110 at all"
    try:
        yield
    finally:
        costs.MEANINGS.clear()
        costs.MEANINGS.update(before)


def test_a_difference_without_a_reason_stops_the_script() -> None:
    with _unexplained(), pytest.raises(RuntimeError, match="nobody has said why: resnet32"):
        costs.document()
