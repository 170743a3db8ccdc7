"""TrCost and TeCost as ONE (Lan et al. 2018) prints them in its Tables 3 and 4, against the recipes of these cells.

In 1e8 FLOPs for one image, two for a multiply-add of convolutions and linear layers. OKDDip's paper prints no costs.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from distilkit.recipe import load
from distilkit.workflows.train import dry_run

ROUNDING = 0.0025  # Three digits, and multiples of figures that have been rounded: 2.76 is 2 x 1.38.
# Their 5.05 is neither ResNet-110 of He et al. (5.06) nor the ResNet-164 with bottlenecks that ONE's code calls
# ResNet-110 (4.95), while their 8.29 is the latter's: see `test_no_single_network_has_both_of_resnet110s_costs`.
NEITHER_VARIANT = 0.02

Costs = Callable[[str], dict[str, Any]]


class Cell(NamedTuple):
    """`published` = sum of times x cost of the recipe; `tolerance` is relative."""

    row: str
    column: str
    published: float
    sum: Sequence[tuple[int, str, str]]
    tolerance: float = ROUNDING


CELLS = [
    # Table 3, distillation
    Cell(
        "KD",
        "ResNet-32 TrCost",
        6.43,
        [(1, "kd164_resnet32", "train"), (1, "baseline_resnet110", "deploy")],
        NEITHER_VARIANT,
    ),
    Cell("KD", "ResNet-32 TeCost", 1.38, [(1, "kd164_resnet32", "deploy")]),
    Cell("DML", "ResNet-32 TrCost", 2.76, [(1, "dml2_resnet32", "train")]),
    Cell("DML", "ResNet-32 TeCost", 1.38, [(1, "dml2_resnet32", "deploy")]),
    Cell("DML", "ResNet-110 TrCost", 10.10, [(1, "dml2_resnet110", "train")], NEITHER_VARIANT),
    Cell("DML", "ResNet-110 TeCost", 5.05, [(1, "dml2_resnet110", "deploy")], NEITHER_VARIANT),
    Cell("ONE", "ResNet-32 TrCost", 2.28, [(1, "one_resnet32", "train")]),
    Cell("ONE", "ResNet-32 TeCost", 1.38, [(1, "one_resnet32", "deploy")]),
    Cell("ONE", "ResNet-110 TrCost", 8.29, [(1, "one_resnet110", "train")]),
    Cell("ONE", "ResNet-110 TeCost", 5.05, [(1, "one_resnet110", "deploy")], NEITHER_VARIANT),
    # Table 4, ensembles
    Cell("Snapshot", "ResNet-32 TrCost", 1.38, [(1, "snapshot_resnet32", "train")]),
    Cell("Snapshot", "ResNet-32 TeCost", 6.90, [(5, "snapshot_resnet32", "deploy")]),
    Cell("Snapshot", "ResNet-110 TrCost", 5.05, [(1, "snapshot_resnet110", "train")], NEITHER_VARIANT),
    Cell("Snapshot", "ResNet-110 TeCost", 25.25, [(5, "snapshot_resnet110", "deploy")], NEITHER_VARIANT),
    Cell("2-Net", "ResNet-32 TrCost", 2.76, [(2, "baseline_resnet32", "train")]),
    Cell("2-Net", "ResNet-32 TeCost", 2.76, [(2, "baseline_resnet32", "deploy")]),
    Cell("2-Net", "ResNet-110 TrCost", 10.10, [(2, "baseline_resnet110", "train")], NEITHER_VARIANT),
    Cell("2-Net", "ResNet-110 TeCost", 10.10, [(2, "baseline_resnet110", "deploy")], NEITHER_VARIANT),
    Cell("3-Net", "ResNet-32 TrCost", 4.14, [(3, "baseline_resnet32", "train")]),
    Cell("3-Net", "ResNet-32 TeCost", 4.14, [(3, "baseline_resnet32", "deploy")]),
    Cell("3-Net", "ResNet-110 TrCost", 15.15, [(3, "baseline_resnet110", "train")], NEITHER_VARIANT),
    Cell("3-Net", "ResNet-110 TeCost", 15.15, [(3, "baseline_resnet110", "deploy")], NEITHER_VARIANT),
    Cell("ONE-E", "ResNet-32 TrCost", 2.28, [(1, "one_resnet32", "train")]),
    Cell("ONE-E", "ResNet-32 TeCost", 2.28, [(1, "one_resnet32", "ensemble")]),
    Cell("ONE-E", "ResNet-110 TrCost", 8.29, [(1, "one_resnet110", "train")]),
    Cell("ONE-E", "ResNet-110 TeCost", 8.29, [(1, "one_resnet110", "ensemble")]),
]


@pytest.fixture(scope="module")
def flops(tmp_path_factory: pytest.TempPathFactory) -> Costs:
    """A recipe's FLOPs; each network is traced once. There are no runs, so a teacher is never part of them."""
    no_runs = tmp_path_factory.mktemp("no_runs")

    @cache
    def of(recipe: str) -> dict[str, Any]:
        plan = dry_run(load(recipe), no_runs)
        assert plan["uncounted"] == {}
        assert (plan["teacher_missing"] is None) == (load(recipe).teacher is None)
        flops: dict[str, Any] = plan["flops"]
        return flops

    return of


@pytest.mark.parametrize("cell", CELLS, ids=[f"{cell.row}-{cell.column.replace(' ', '-')}" for cell in CELLS])
def test_cost_is_the_published_one(cell: Cell, flops: Costs) -> None:
    ours = sum(times * flops(recipe)[which] for times, recipe, which in cell.sum)
    assert ours / 1e8 == pytest.approx(cell.published, rel=cell.tolerance)


def test_snapshots_are_as_many_as_their_published_cost_says() -> None:
    for name in ("snapshot_resnet32", "snapshot_resnet110"):
        assert load(name).schedule.model_dump()["cycles"] == round(6.90 / 1.38) == round(25.25 / 5.05)


def test_the_teacher_of_ones_kd_is_the_one_whose_cost_is_counted() -> None:
    teacher = load("kd164_resnet32").teacher
    assert teacher is not None
    assert teacher.run == "baseline_resnet110"


def test_no_single_network_has_both_of_resnet110s_costs(tmp_path: Path) -> None:
    """Each variant of ResNet-110 alone and with ONE's three branches: basic, bottlenecks of ONE's and OKDDip's code."""
    costs = {}
    for name in ("resnet110", "resnet164_bottleneck", "resnet110_bottleneck12"):
        plan = dry_run(load("one_resnet32", [f"model.architecture={name}"]), tmp_path)["flops"]
        costs[name] = (plan["deploy"] / 1e8, plan["train"] / 1e8)
    assert costs["resnet110"] == pytest.approx((5.063, 8.419), abs=0.001)
    assert costs["resnet164_bottleneck"] == pytest.approx((4.953, 8.289), abs=0.001)
    assert costs["resnet110_bottleneck12"] == pytest.approx((3.349, 5.615), abs=0.001)
    alone = [name for name, (deploy, _) in costs.items() if deploy == pytest.approx(5.05, rel=0.005)]
    branched = [name for name, (_, train) in costs.items() if train == pytest.approx(8.29, rel=0.005)]
    assert (alone, branched) == (["resnet110"], ["resnet164_bottleneck"])
