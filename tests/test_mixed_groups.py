"""Students of different architectures: each is trained, counted, evaluated, pruned and exported as what it is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from comparing import Crash, CrashAt, assert_same_run
from conftest import Result
from safetensors.torch import load_file
from torch import nn

from distilkit.analysis.cost import measure
from distilkit.analysis.learner_cost import learner_cost
from distilkit.data import datasets
from distilkit.errors import UserError
from distilkit.learners.build import build_learner
from distilkit.models import registry
from distilkit.observer import Observer
from distilkit.recipe import Recipe, load
from distilkit.runs.run import Run
from distilkit.workflows.train.train import resume, train

Command = Callable[..., Result]
STUDENTS = {"student_0": "resnet8", "student_1": "slim", "student_2": "resnet14"}
WIDTHS = {"resnet8": 64, "slim": 12, "resnet14": 64}

RECIPE = """
[data]
dataset = "digits"
[group]
students = ["resnet8", "slim", "resnet14"]
[method]
name = "one"
[train]
epochs = 2
batch_size = 256
precision = "fp32"
"""


@pytest.fixture(scope="module", autouse=True)
def _slim() -> Iterator[None]:
    """A third architecture, whose features are narrower."""
    registry.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_architectures", dict(registry._architectures))

        @registry.register(split_at="3")
        def slim(num_classes: int, channels: int = 3) -> nn.Module:
            stem = (nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            body = (nn.Conv2d(6, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return nn.Sequential(*stem, *body, nn.Linear(12, num_classes))

        yield


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    file = folder / "mixed.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return load(file, overrides)


def trained(folder: Path, *overrides: str, observer: Observer | None = None) -> Path:
    recipe = recipe_of(folder, *overrides)
    document = train(recipe, folder / "runs", device="cpu", command="distilkit", observer=observer or Observer())
    return Path(document["run"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ONE over three architectures, without sharing; to be read, not changed."""
    return trained(tmp_path_factory.mktemp("mixed"))


def learner_of(tmp_path: Path, *overrides: str) -> Any:
    recipe = recipe_of(tmp_path, *overrides)
    return build_learner(recipe, datasets.spec("digits", Path("data")))


# What the run says


def test_the_run_says_who_is_what_and_its_recipe_is_complete(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["architectures"] == STUDENTS
    assert record["architecture"] == "resnet8", "the leader's"
    recipe = load(run / "recipe.toml")
    assert recipe.group.kind == "networks"
    assert recipe.group.students == tuple(STUDENTS.values())
    assert recipe.model.architecture == "resnet8"
    assert recipe == Run.open(run).recipe
    card = (run / "README.md").read_text()
    assert "`resnet8 + slim + resnet14` trained with `one`" in card
    assert "student_1 (`slim`)" in card


def test_every_student_starts_as_the_plain_network_of_its_architecture(tmp_path: Path) -> None:
    from distilkit.randomness import seeded

    group = learner_of(tmp_path).group
    for index, (name, architecture) in enumerate(STUDENTS.items()):
        with seeded(0, "init", index):
            plain = registry.create(architecture, 10, 1)
        state = group.member_state_dict(name)
        assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    assert group.shape.feature_widths == tuple(WIDTHS[each] for each in STUDENTS.values())
    two = group.only(["student_2", "student_1"])
    assert two.architectures == ("resnet14", "slim")
    assert two.shape.feature_widths == (64, 12)


def test_a_list_of_one_architecture_means_what_its_length_means(tmp_path: Path) -> None:
    listed = learner_of(tmp_path, 'group.students=["resnet8", "resnet8", "resnet8"]')
    counted = learner_of(tmp_path, "group.students=3", "model.architecture=resnet8", "group.kind=networks")
    assert listed.state_dict().keys() == counted.state_dict().keys()
    for key, value in counted.state_dict().items():
        assert torch.equal(listed.state_dict()[key], value), key


# Costs


def test_each_member_costs_what_its_own_architecture_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilkit.analysis import learner_cost as module

    learner = learner_of(tmp_path, 'group.students=["slim", "resnet8", "slim"]', "method.name=dml")
    counted: list[nn.Module] = []
    monkeypatch.setattr(module, "measure", lambda part, images: counted.append(part) or measure(part, images))
    cost = learner_cost(learner, 1, 8)
    assert len(counted) == 3, "two architectures and the whole"
    images = torch.zeros(1, 1, 8, 8)
    alone = {name: measure(registry.create(name, 10, 1), images) for name in ("resnet8", "slim")}
    for name, architecture in zip(learner.group.members, ("slim", "resnet8", "slim"), strict=True):
        assert cost.parts[name] == alone[architecture]
    assert cost.deploy == alone["slim"]
    assert cost.train.flops == alone["resnet8"].flops + 2 * alone["slim"].flops
    assert cost.ensemble is not None
    assert cost.ensemble.parameters == alone["resnet8"].parameters + 2 * alone["slim"].parameters


def test_a_dry_run_shows_every_member_with_its_architecture(tmp_path: Path, distilkit: Command) -> None:
    recipe_of(tmp_path)
    shown = distilkit("train", tmp_path / "mixed.toml", "--dry-run")
    assert shown.status == 0, shown.err
    assert "resnet8 + slim + resnet14, one" in shown.out
    for name, architecture in STUDENTS.items():
        assert f"{name} ({architecture})" in shown.out
    document = distilkit("train", tmp_path / "mixed.toml", "--dry-run", "--json").json
    assert document["architectures"] == STUDENTS
    assert document["architecture"] == "resnet8"
    parameters = {name: document["parts"][name]["parameters"] for name in STUDENTS}
    assert len(set(parameters.values())) == 3
    assert document["parameters"]["deploy"] == parameters["student_0"]
    gate = 3 * (64 + 12 + 64) + 3 + 2 * 3
    assert document["parameters"]["train"] == sum(parameters.values()) + gate


# Downstream


def test_every_member_is_evaluated_to_what_the_training_ended_with(run: Path, distilkit: Command) -> None:
    errors = Run.open(run).record["final"]["errors"]
    for name in STUDENTS:
        shown = distilkit("evaluate", run, "--member", name, "--device", "cpu", "--json")
        assert shown.status == 0, shown.err
        assert shown.json["top1_error"] == pytest.approx(errors[name]["top1"])
    ensembles = distilkit("ensemble-eval", run, "--device", "cpu", "--json").json
    assert ensembles["ensembles"]["gated"]["top1_error"] == pytest.approx(errors["gated"]["top1"])
    assert ensembles["members"].keys() == STUDENTS.keys()


@pytest.mark.parametrize("name", [None, *STUDENTS])
def test_every_member_is_pruned_to_its_own_stock_architecture(
    name: str | None, run: Path, tmp_path: Path, distilkit: Command
) -> None:
    chosen = ("--member", name) if name else ()
    result = distilkit("prune-branches", run, *chosen, "--output", tmp_path / "pruned", "--json")
    assert result.status == 0, result.err
    architecture = STUDENTS[name or "student_0"]
    assert result.json["architecture"] == architecture
    assert result.json["max_abs_difference"] == 0
    stock = registry.create(architecture, 10, 1)
    stock.load_state_dict(load_file(tmp_path / "pruned" / "model.safetensors"), strict=True)
    assert result.json["parameters"]["after"] == sum(parameter.numel() for parameter in stock.parameters())
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert (config["architecture"], config["code"]) == (architecture, None)
    shown = distilkit("evaluate", tmp_path / "pruned", "--device", "cpu", "--json")
    recorded = Run.open(run).record["final"]["errors"][name or "student_0"]["top1"]
    assert shown.json["top1_error"] == pytest.approx(recorded)


def test_members_and_the_ensemble_are_exported_as_what_they_are(run: Path, tmp_path: Path, distilkit: Command) -> None:
    single = distilkit("export", run, "--member", "student_1", "--output", tmp_path / "one.onnx", "--json")
    assert single.status == 0, single.err
    whole = distilkit("export", run, "--mode", "ensemble", "--members", "--output", tmp_path / "all.onnx", "--json")
    assert whole.status == 0, whole.err
    assert whole.json["passed"]
    assert whole.json["outputs"][2:] == [f"logits_{name}" for name in STUDENTS]
    named = [
        next(entry.value for entry in onnx.load(tmp_path / file).metadata_props if entry.key == "architecture")
        for file in ("one.onnx", "all.onnx")
    ]
    assert named == ["slim", "resnet8 + slim + resnet14"]


def test_robustness_moves_the_chosen_member(run: Path, tmp_path: Path, distilkit: Command) -> None:
    settings = ("--steps", 1, "--directions", 1, "--images", 50, "--output", tmp_path, "--json")
    result = distilkit("robustness", run, "--member", "student_1", *settings)
    assert result.status == 0, result.err
    state = Run.open(run).model("student_1").classifier.backbone.parameters()
    norm = torch.stack([parameter.detach().norm() for parameter in state]).norm()
    assert result.json["runs"][0]["parameter_norm"] == pytest.approx(float(norm))


def test_compare_names_what_is_deployed(run: Path, distilkit: Command) -> None:
    rows = {row["deployed"]: row for row in distilkit("compare", run, "--json").json["rows"]}
    assert rows["student_0"]["architecture"] == "resnet8"
    assert rows["gated"]["architecture"] == "resnet8 + slim + resnet14"
    assert rows["student_0"]["parameters"] < rows["gated"]["parameters"]


@pytest.mark.parametrize("command", ["evaluate", "prune-branches", "export"])
def test_an_empty_member_is_no_member(command: str, run: Path, tmp_path: Path, distilkit: Command) -> None:
    result = distilkit(command, run, "--member", "")
    assert result.status == 2
    assert "this group has no member ''; it has student_0, student_1, student_2" in result.err
    assert distilkit("export", run, "--member", "", "--mode", "ensemble").status == 2


def test_a_mixed_group_teaches_and_can_be_taught(run: Path, tmp_path: Path, distilkit: Command) -> None:
    recipe_of(tmp_path)
    taught = ("--set", f"teacher.run={run}", "--dry-run", "--json")
    document = distilkit("train", tmp_path / "mixed.toml", *taught).json
    assert document["parts"]["teacher"]["flops"] == document["flops"]["deploy"], "the leader teaches"


def test_an_interrupted_run_goes_on_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        trained(tmp_path, observer=CrashAt(2, 3))
    (broken,) = (tmp_path / "runs").iterdir()
    resume(broken, device="cpu", observer=Observer())
    assert_same_run(run, broken)


def test_another_list_of_students_is_another_recipe(run: Path, tmp_path: Path, distilkit: Command) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    recipe_of(tmp_path)
    changed = ("--set", 'group.students=["resnet8", "resnet14", "slim"]')
    result = distilkit("train", tmp_path / "mixed.toml", *changed, "--resume", copy)
    assert result.status == 2
    assert "group.students was ('resnet8', 'slim', 'resnet14'), now ('resnet8', 'resnet14', 'slim')" in result.err


# Methods


def test_the_leader_is_the_method_s_own(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "method.name=okddip", "method.peer_targets=mean")
    assert recipe.model.architecture == "resnet14", "okddip's leader is the last"
    learner = build_learner(recipe, datasets.spec("digits", Path("data")))
    assert dict(zip(learner.group.members, learner.group.architectures, strict=True))["leader"] == "resnet14"
    cost = learner_cost(learner, 1, 8)
    assert cost.deploy == measure(registry.create("resnet14", 10, 1), torch.zeros(1, 1, 8, 8))
    without = recipe_of(tmp_path, "method.name=okddip", "method.peer_targets=mean", "method.leader=false")
    assert without.model.architecture == "resnet8"


@pytest.mark.parametrize("targets", ["attention", "symmetric"])
def test_okddip_s_attention_wants_peers_of_one_width(targets: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        learner_of(tmp_path, "method.name=okddip", f"method.peer_targets={targets}")
    (fault,) = refusal.value.faults
    assert fault.key == "method.peer_targets"
    assert "features have one width, not [12, 64]" in fault.problem
    # The leader's width is free, and architectures of one width are no matter.
    peers = 'group.students=["resnet8", "resnet14", "slim"]'
    learner = learner_of(tmp_path, "method.name=okddip", f"method.peer_targets={targets}", peers)
    assert learner.group.shape.feature_widths == (64, 64, 12)


@pytest.mark.parametrize("method", ["independent", "dml", "one", "okddip"])
def test_every_student_learns_whatever_its_architecture(method: str, tmp_path: Path) -> None:
    peers = 'group.students=["resnet8", "resnet14", "slim"]'
    learner = learner_of(tmp_path, f"method.name={method}", peers)
    images = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    learner(images, torch.arange(16) % 10, 1.0).loss.backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


# What can be wrong

FAULTS = {
    "branches": (("group.kind=branches",), "group.kind", "must be networks where group.students lists", "networks"),
    "a split": (("group.split_at=layer3",), "group.split_at", 'only for kind = "branches"', "leave split_at out"),
    "a method that shares": (
        ("method.name=cl-ilr",),
        "group.students",
        "method 'cl-ilr' has its students share a trunk, so that group.students must be a number",
        "students = 3",
    ),
    "one student only": (("method.name=baseline",), "group.students", "must be 1 for method", "fewer architectures"),
    "too few": (('group.students=["slim"]', "method.name=dml"), "group.students", "must be 2 or more", "more arch"),
    "an unknown one": (
        ('group.students=["slim", "resnet9"]',),
        "group.students",
        "unknown architecture 'resnet9'",
        "'",
    ),
    "an unknown first": (('group.students=["resnet9", "slim"]',), "group.students", "unknown architecture", "mean"),
    "a bad form": (('group.students=["slim", "a-b:c"]',), "group.students", "not of the form package.module:b", ""),
    "a number in the list": (('group.students=["slim", 3]',), "group.students", "an integer from 1 to 100, or a l", ""),
    "no list": (("group.students=slim",), "group.students", "a list, each item an architecture's name", ""),
    "an empty list": (("group.students=[]",), "group.students", "a list, each item an architecture's name", ""),
    "another's architecture": (
        ("model.architecture=slim",),
        "model.architecture",
        'must be the leader\'s, which is number 1 in group.students, "resnet8", not "slim"',
        "resnet8",
    ),
    "the wrong leader's": (
        ("model.architecture=resnet8", "method.name=okddip"),
        "model.architecture",
        'must be the leader\'s, which is number 3 in group.students, "resnet14", not "resnet8"',
        "or leave it out",
    ),
    "no architecture at all": (("group.students=2",), "model.architecture", "is missing", "architecture = ..."),
    "no form without batch norm": (("model.norm=none",), "model.norm", "slim has no form without batch norm", "leave"),
}


@pytest.mark.parametrize(("overrides", "key", "problem", "hint"), FAULTS.values(), ids=FAULTS.keys())
def test_what_does_not_go_together_is_one_fault_with_its_place(
    overrides: tuple[str, ...], key: str, problem: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refusal:
        learner_of(tmp_path, *overrides)
    (fault,) = refusal.value.faults
    assert fault.key == key
    assert problem in fault.problem
    assert hint in (fault.hint or "")
    typed = [override for override in overrides if override.startswith(f"{key}=")]
    if typed:
        assert fault.place == f"--set {typed[0]}"
    else:
        assert "mixed.toml" in fault.place or fault.place.startswith("--set")


def test_an_architecture_that_does_not_suit_blames_the_list(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_architectures", dict(registry._architectures))

        @registry.register(split_at="0")
        def wide_eyed(num_classes: int, channels: int = 3) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, 4, 9), nn.Flatten(), nn.Linear(4, num_classes))

        with pytest.raises(UserError) as refusal:
            learner_of(tmp_path, 'group.students=["resnet8", "wide_eyed"]')
    (fault,) = refusal.value.faults
    assert fault.key == "group.students"
    assert "wide_eyed cannot take images of 8x8 pixels" in fault.problem
