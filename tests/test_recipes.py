"""Every recipe that is shipped, and the costs that the papers print for its network."""

import importlib.resources
import math
from pathlib import Path

import pytest
import torch

import distilkit
from distilkit.data import datasets
from distilkit.recipe import builtin, load
from distilkit.training.build import build_learner
from distilkit.training.trainer import make_optimizer
from distilkit.workflows.train import dry_run

FOLDER = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


def test_all_recipes_of_the_repository_are_built_in() -> None:
    assert len(NAMES) == 5, "a recipe came or went: change this number on purpose"
    assert sorted(builtin()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recipe_builds_and_takes_one_training_step(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    spec = datasets.spec(recipe.data.dataset, Path(recipe.data.root))
    learner = build_learner(recipe, spec)
    optimizer = make_optimizer(recipe.optimizer, learner)
    before = {key: value.clone() for key, value in learner.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, spec.channels, spec.size, spec.size), dtype=torch.uint8, generator=generator)
    loss = learner(images, torch.arange(4), 1.0).loss
    assert math.isfinite(loss.item())
    loss.backward()
    optimizer.step()
    unmoved = [key for key, value in learner.named_parameters() if torch.equal(before[key], value)]
    assert unmoved == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("quickstart")])
def test_header_names_the_paper_its_table_and_the_weight_decay(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "Table" in header
    assert "eight decay" in header


@pytest.mark.parametrize(
    ("recipe", "architecture", "train", "deploy"),
    [
        ("one_resnet32", "resnet32", 2.285e8, 1.383e8),
        ("one_resnet32", "resnet110", 8.42e8, 5.06e8),
        ("one_resnet32", "resnet164_bottleneck", 8.29e8, 4.95e8),
        ("baseline_resnet32", "resnet32", 1.383e8, 1.383e8),
    ],
)
def test_costs_are_those_of_the_papers(recipe: str, architecture: str, train: float, deploy: float) -> None:
    plan = dry_run(load(recipe, [f"model.architecture={architecture}"]))
    assert plan["flops"]["train"] == pytest.approx(train, rel=0.005)
    assert plan["flops"]["deploy"] == pytest.approx(deploy, rel=0.005)
    assert plan["uncounted"] == {}


def test_parts_add_up_to_the_whole() -> None:
    plan = dry_run(load("one_resnet32"))
    assert plan["parameters"]["deploy"] == 472_756
    parts = plan["parts"]
    assert set(parts) == {"trunk", "student_0", "student_1", "student_2", "method"}
    for unit in ("parameters", "flops"):
        assert sum(part[unit] for part in parts.values()) == plan[unit]["train"]
        assert parts["trunk"][unit] + parts["student_0"][unit] == plan[unit]["deploy"]
    # The gate: a linear layer from 32 pooled channels to 3 weights, with biases and a batch norm.
    assert parts["method"] == {"parameters": 32 * 3 + 3 + 2 * 3, "flops": 2 * 32 * 3}


def test_dry_run_says_whether_the_data_is_there(tmp_path: Path) -> None:
    plan = dry_run(load("one_resnet32", [f"data.root={tmp_path}", "data.download=false"]))
    assert plan["data"]["present"] is False
    assert "cifar-100-python" in plan["data"]["where"]
    assert dry_run(load("quickstart"))["data"]["present"] is True


def test_the_package_declares_its_types() -> None:
    assert importlib.resources.files(distilkit).joinpath("py.typed").is_file()
