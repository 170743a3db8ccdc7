"""A learner's costs: the sum of its parts is the whole, each structure is counted once, and files are as large as said.

Also that what is not counted is said wherever costs are shown.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, train_tiny
from torch import Tensor, nn

from distilkit.analysis import cost as costs
from distilkit.analysis import learner_cost as module
from distilkit.analysis.cost import measure, parameter_count
from distilkit.analysis.learner_cost import learner_cost
from distilkit.data import datasets
from distilkit.groups.group import NetworkGroup
from distilkit.groups.normalize import Normalize
from distilkit.groups.outputs import GroupShape
from distilkit.groups.split.cut import whole
from distilkit.learners.build import build_learner
from distilkit.learners.learner import Learner
from distilkit.methods import create
from distilkit.methods.dml import DmlOptions
from distilkit.models import registry
from distilkit.recipe import Recipe
from distilkit.runs.run import Run

Command = Callable[..., Result]
Tiny = Callable[..., Recipe]

LEARNERS = {
    "baseline": ("method.name=baseline",),
    "independent": ("method.name=independent",),
    "one": (),
    "one-five-branches": ("group.students=5",),
    "one-no-sharing": ("group.kind=networks",),
    "one-no-gate": ("method.gate=false",),
    "dml": ("method.name=dml",),
    "dml-branches": ("method.name=dml", "group.kind=branches"),
    "cl-ilr": ("method.name=cl-ilr",),
    "okddip": ("method.name=okddip",),
    "okddip-networks": ("method.name=okddip", "group.kind=networks"),
    "okddip-peers": ("method.name=okddip", "method.leader=false"),
    "okddip-random": ("method.name=okddip", "method.peer_targets=random"),
    "okddip-symmetric": ("method.name=okddip", "method.peer_targets=symmetric"),
    "deep": ("model.architecture=resnet110_bottleneck12",),
}


class Whole(nn.Module):
    """All that training computes of a learner, without its losses, in one piece."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.learner.group(images)
        return outputs.logits_SBC, *self.learner.method.weights(outputs).values()


def built(recipe: Recipe) -> Learner:
    return build_learner(recipe, datasets.spec(recipe.data.dataset, Path(recipe.data.root), None))


@pytest.mark.parametrize("settings", LEARNERS.values(), ids=LEARNERS)
def test_the_parts_add_up_to_what_the_whole_is_found_to_cost(settings: tuple[str, ...], tiny: Tiny) -> None:
    """The whole, traced at once, is how costs were counted before structures were counted once."""
    recipe = tiny(*settings)
    learner = built(recipe)
    cost = learner_cost(learner, 1, 8)
    traced = measure(Whole(learner), torch.zeros(1, 1, 8, 8))
    assert cost.train.flops == traced.flops == sum(part.flops for part in cost.parts.values())
    assert cost.train.activations == traced.activations == sum(part.activations for part in cost.parts.values())
    assert cost.train.parameters == traced.parameters == sum(part.parameters for part in cost.parts.values())
    assert cost.train.uncounted == traced.uncounted == {}
    for name in learner.group.members:
        alone = registry.create(recipe.model.architecture, 10, 1)
        stock = measure(alone, torch.zeros(1, 1, 8, 8))
        parts = [cost.parts[part] for part in ("trunk", name) if part in cost.parts]
        assert sum(part.flops for part in parts) == stock.flops
        assert sum(part.activations for part in parts) == stock.activations
        assert sum(part.parameters for part in parts) == stock.parameters == parameter_count(alone)
    assert (cost.deploy.flops, cost.deploy.activations, cost.deploy.bytes) == (
        stock.flops,
        stock.activations,
        stock.bytes,
    )


def mixed(*architectures: str | nn.Module) -> Learner:
    """Whole networks of several kinds that learn from one another."""
    networks = {
        f"student_{i}": whole(registry.create(kind, 10, 1) if isinstance(kind, str) else kind)
        for i, kind in enumerate(architectures)
    }
    shape = GroupShape("networks", tuple(networks), None, (64,) * len(networks), 10)
    group = NetworkGroup(networks, Normalize([0.5], [0.5]), shape)
    return Learner(group, create(DmlOptions(name="dml"), shape))


def test_members_that_differ_are_costed_by_their_own_architecture() -> None:
    learner = mixed("resnet8", "resnet32", "resnet8")
    cost = learner_cost(learner, 1, 8)
    alone = {name: measure(registry.create(name, 10, 1), torch.zeros(1, 1, 8, 8)) for name in ("resnet8", "resnet32")}
    kinds = ("resnet8", "resnet32", "resnet8")
    for index, kind in enumerate(kinds):
        assert cost.parts[f"student_{index}"] == alone[kind]
    assert cost.deploy == alone["resnet8"]
    assert cost.train.flops == measure(Whole(learner), torch.zeros(1, 1, 8, 8)).flops
    assert cost.train.flops == sum(alone[kind].flops for kind in kinds)
    assert cost.ensemble is not None
    assert cost.ensemble.flops == cost.train.flops


@pytest.mark.parametrize(
    ("architectures", "traces"),
    [(("resnet8",) * 4, 1), (("resnet8", "resnet32", "resnet8"), 2)],
    ids=["alike", "of-two-kinds"],
)
def test_each_structure_is_traced_once(
    architectures: tuple[str, ...], traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []

    def counting(part: nn.Module, *args: Any) -> Any:
        traced.append(type(part).__name__)
        return measure(part, *args)

    monkeypatch.setattr(module, "measure", counting)
    learner_cost(mixed(*architectures), 1, 8)
    assert sorted(traced) == ["_Logits"] * traces + ["_Weights"]


def test_branches_on_one_trunk_are_one_structure(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []

    def counting(part: nn.Module, *args: Any) -> Any:
        calls.append(part)
        return measure(part, *args)

    monkeypatch.setattr(module, "measure", counting)
    learner_cost(built(tiny("group.students=5")), 1, 8)
    assert len(calls) == 3  # the trunk, a branch, the gate


def test_a_stride_tells_networks_with_the_same_weights_apart() -> None:
    def network(stride: int) -> nn.Module:
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
        return nn.Sequential(nn.Conv2d(1, 64, 3, stride, 1), nn.ReLU(), *pooled)

    cost = learner_cost(mixed(network(1), network(2), network(1)), 1, 8)
    flops = [cost.parts[f"student_{i}"].flops for i in range(3)]
    assert flops == [2 * (64 * 9 * 64 + 640), 2 * (64 * 9 * 16 + 640), 2 * (64 * 9 * 64 + 640)]


def test_looking_leaves_a_learner_as_it_was(tiny: Tiny) -> None:
    learner = built(tiny())
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.group.trunk.eval()  # type: ignore[union-attr]
    modes = [each.training for each in learner.modules()]
    assert learner_cost(learner, 1, 8) == learner_cost(learner, 1, 8)
    assert [each.training for each in learner.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


# -------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("method.name=okddip",),
        ("method.name=baseline", "optimizer.momentum=0.0", "optimizer.nesterov=false"),
        ("method.name=dml", "optimizer.name=adamw", "optimizer.lr=0.001"),
        ("train.ema=0.9",),
    ],
    ids=["sgd", "okddip", "no-momentum", "adamw", "moving-average"],
)
def test_files_are_as_large_as_the_run_says_from_its_start(
    settings: tuple[str, ...], tmp_path: Path, distilkit: Command
) -> None:
    path = train_tiny(tmp_path, *settings, "train.epochs=1")
    run = Run.open(path)
    said = run.record["bytes"]
    files = {file.stem: file.stat().st_size for file in run.checkpoint("last").glob("*.safetensors")}
    assert said["checkpoint"] == sum(files.values())
    assert said["train"] == files["group"] + files["method"]
    distilkit("prune-branches", path)
    assert said["deploy"] == (path / "pruned" / "model.safetensors").stat().st_size
    assert run.record["parts"].keys() >= set(run.record["members"])
    plan = distilkit("train", path / "recipe.toml", "--dry-run", "--json").json
    assert {key: plan[key] for key in ("bytes", "activations", "parts", "uncounted")} == {
        key: run.record[key] for key in ("bytes", "activations", "parts", "uncounted")
    }


# ------------------------------------------------------------------------------------------------ what people are shown


def test_a_dry_run_shows_every_cost_of_every_part(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    tiny()
    monkeypatch.chdir(tmp_path)
    plan = distilkit("train", "tiny.toml", "--dry-run", "--json").json
    assert set(plan["activations"]) == set(plan["flops"]) == {"train", "deploy", "ensemble"}
    assert set(plan["bytes"]) == {"train", "deploy", "ensemble", "checkpoint"}
    lines = distilkit("train", "tiny.toml", "--dry-run").out.splitlines()
    for name, part in plan["parts"].items():
        (line,) = [line for line in lines if line.strip().startswith(f"{name} ")]
        assert line.split()[1:] == [
            f"{part['parameters']:,}",
            f"{part['flops']:.3e}".replace("e+0", "e"),
            f"{part['activations']:,}",
            f"{part['bytes']:,}",
        ]
    text = "\n".join(lines)
    assert f"a checkpoint has {plan['bytes']['checkpoint']:,}" in text
    assert "2 per multiply-add" in text
    assert "numbers that convolutions and linear layers put out" in text
    assert "not counted" not in text


def test_a_teachers_cost_is_shown_beside_the_students(tmp_path: Path, tiny: Tiny, distilkit: Command) -> None:
    mentor = train_tiny(tmp_path, "method.name=baseline", "train.epochs=1")
    tiny("method.name=kd", f"teacher.run={mentor}")
    plan = distilkit(
        "train",
        tmp_path / "tiny.toml",
        "--set",
        "method.name=kd",
        "--set",
        f"teacher.run={mentor}",
        "--dry-run",
        "--json",
    ).json
    student, teacher = plan["parts"]["student_0"], plan["parts"]["teacher"]
    assert (teacher["flops"], teacher["activations"]) == (student["flops"], student["activations"])
    assert teacher["parameters"] == 0
    assert teacher["bytes"] > 0
    assert plan["flops"]["train"] == student["flops"] + teacher["flops"]
    assert plan["activations"]["train"] == student["activations"] + teacher["activations"]
    assert plan["parameters"]["train"] == student["parameters"]


def test_what_is_not_counted_is_said_wherever_costs_are(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, distilkit: Command
) -> None:
    """As if the additions of the residual blocks were an operator that nobody has looked at."""
    tiny()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "_FREE", costs._FREE - {"add"})
    plan = distilkit("train", "tiny.toml", "--dry-run", "--json").json
    # Three blocks: two in the trunk, and the last one in each of three branches.
    assert list(plan["uncounted"].values()) == [2 + 3]
    (name,) = plan["uncounted"]
    said = f"too low: {name} (5 times)"
    assert f"not counted, so the costs are {said}" in distilkit("train", "tiny.toml", "--dry-run").out
    trained = distilkit("train", "tiny.toml", "--set", "train.epochs=1")
    assert f"warning: the costs are too low, these are not counted: {name} (5 times)" in trained.err
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["uncounted"] == plan["uncounted"]
    assert f"too low: `{name} (5 times)`" in (run / "README.md").read_text()
    compared = distilkit("compare")
    assert f"runs/{run.name}: not counted, so its costs are {said}" in compared.out
    assert all(row["uncounted"] == plan["uncounted"] for row in distilkit("compare", "--json").json["rows"])


def test_the_card_has_the_costs_of_every_part(one_run: Path) -> None:
    record, card = Run.open(one_run).record, (one_run / "README.md").read_text()
    for name, part in record["parts"].items():
        cells = [
            f"`{name}`",
            f"{part['parameters']:,}",
            f"{part['flops']:.4g}",
            f"{part['activations']:,}",
            f"{part['bytes']:,}",
        ]
        assert f"| {' | '.join(cells)} |" in card
    assert f"the deployed file has {record['bytes']['deploy']:,}" in card
    assert "ot counted" not in card


def test_compare_shows_bytes_and_can_do_without_them(
    one_run: Path, baseline_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    """A run of before there were any has none in its run.json."""
    old = tmp_path / "runs" / "old"
    old.mkdir(parents=True)
    for file in ("recipe.toml", "metrics.jsonl"):
        (old / file).write_bytes((baseline_run / file).read_bytes())
    record = Run.open(baseline_run).record
    for key in ("activations", "bytes", "parts", "uncounted"):
        del record[key]
    (old / "run.json").write_text(json.dumps(record))
    rows = distilkit("compare", old, one_run, "--json").json["rows"]
    assert [(row["bytes"], row["activations"], row["uncounted"]) for row in rows[:1]] == [(None, None, {})]
    new = Run.open(one_run).record
    assert [row["bytes"] for row in rows[1:]] == [new["bytes"]["deploy"], new["bytes"]["ensemble"]]
    assert [row["activations"] for row in rows[1:]] == [new["activations"]["deploy"], new["activations"]["ensemble"]]
    table = distilkit("compare", old, one_run).out
    assert f"{new['bytes']['ensemble'] / 1e6:.{1 if new['bytes']['ensemble'] >= 1e6 else 2}f}" in table.split()
