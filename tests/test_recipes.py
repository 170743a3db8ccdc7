"""Every recipe that is shipped: it builds, it steps, it says what it stands for; the small ones also learn."""

import importlib.resources
import math
import re
from pathlib import Path

import pytest
import torch

import distilkit
from distilkit.data import datasets
from distilkit.observer import Observer
from distilkit.recipe import builtin, load
from distilkit.training.build import build_learner
from distilkit.training.trainer import make_optimizer
from distilkit.workflows.train import dry_run, train

FOLDER = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
QUICKSTARTS = [name for name in NAMES if name.startswith("quickstart")]
PUBLISHED = [name for name in NAMES if name not in QUICKSTARTS]
# These train in seconds, after the one that teaches some of them.
SMALL = [name for name in QUICKSTARTS if name not in ("quickstart", "quickstart_baseline", "quickstart_teacher")]
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
DEEP = ("resnet110", "resnet164")


def _header(name: str) -> str:
    """The comment above a recipe, in one line."""
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("# ") for line in header)


def test_all_recipes_of_the_repository_are_built_in() -> None:
    assert len(NAMES) == 62, "a recipe came or went: change this number on purpose"
    assert len(PUBLISHED) == 50
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
    count = 2 if recipe.model.architecture.startswith(DEEP) else 4
    images = torch.randint(0, 256, (count, spec.channels, spec.size, spec.size), dtype=torch.uint8, generator=generator)
    taught = None if recipe.teacher is None else torch.randn(count, len(spec.classes), generator=generator)
    output = learner(images, torch.arange(count), 1.0, taught)
    assert ("teacher" in output.terms) == (recipe.teacher is not None)
    assert math.isfinite(output.loss.item())
    output.loss.backward()
    optimizer.step()
    unmoved = [key for key, value in learner.named_parameters() if torch.equal(before[key], value)]
    assert unmoved == []


# ----------------------------------------------------------------------------------------- recipes of the papers' cells


@pytest.mark.parametrize("name", PUBLISHED)
def test_header_names_paper_table_students_and_weight_decay(name: str) -> None:
    header, recipe = _header(name), load(name)
    assert re.search(r"(OKDDip \(Chen et al\. 2020\)|ONE \(Lan et al\. 2018\)), (Tables? \d|Fig\. 3)", header)
    assert f"Weight decay {recipe.optimizer.weight_decay:.0e}".replace("e-0", "e-") in header
    group = NUMBERS[recipe.group.students - 1]
    kinds = r"networks?" if recipe.group.kind == "networks" else r"branch(es)?"
    assert re.search(rf"\b{group} {kinds}\b", header, flags=re.IGNORECASE), header
    if recipe.teacher is not None:
        assert f"distilkit train {recipe.teacher.run}" in header, "says what has to be trained first"


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_of_a_table_differs_from_the_baseline_in_what_the_table_compares(name: str) -> None:
    recipe, baseline = load(name), load("baseline_resnet32")
    changed = {difference.split()[0] for difference in recipe.differences(baseline)}
    sections = {key.partition(".")[0] for key in changed}
    assert sections <= {"group", "method"} | _also_changed(name), changed


def _also_changed(name: str) -> set[str]:
    """Sections that a recipe's name says are others."""
    also = {"model"} if name.endswith("resnet110") else set()
    also |= {"schedule"} if name.startswith("snapshot") else set()
    return also | ({"teacher"} if re.search(r"(^|_)kd", name) else set())


def test_names_mean_the_networks_that_their_tables_mean() -> None:
    for name in PUBLISHED:
        if name.endswith("_resnet32"):
            expected = "resnet32"
        else:
            # ResNet-110 in ONE's code is ResNet-164; in OKDDip's, from which one recipe comes, something else again.
            expected = "resnet110_bottleneck12" if name == "teacher_resnet110" else "resnet164_bottleneck"
        assert load(name).model.architecture == expected, name


def test_one_keeps_its_authors_target_in_its_own_tables_and_okddips_in_theirs() -> None:
    for name in PUBLISHED:
        method = load(name).method.model_dump()
        if method["name"] == "one":
            assert method["detach_target"] == ("ONE (Lan et al. 2018)" in _header(name)), name


def test_teachers_are_recipes_for_the_same_images() -> None:
    taught = {name: recipe for name in NAMES if (recipe := load(name)).teacher is not None}
    assert len(taught) == 5
    for name, recipe in taught.items():
        assert recipe.teacher is not None
        assert isinstance(recipe.teacher.run, str)
        teacher = load(recipe.teacher.run)
        assert (teacher.data.dataset, teacher.teacher, teacher.group.students) == (recipe.data.dataset, None, 1), name


# --------------------------------------------------------------------------------------------- recipes for a first look


def test_every_method_has_a_small_recipe() -> None:
    from distilkit import methods

    assert {load(name).method.name for name in [*SMALL, "quickstart_teacher"]} == set(methods.names())


def test_the_page_about_methods_has_each_method_and_only_recipes_that_exist() -> None:
    from distilkit import methods

    page = (FOLDER.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in methods.names():
        assert f'`name = "{name}"`' in page
    named = set(re.findall(r"`([a-z0-9_]+_resnet\d+|quickstart\w*)`", page))
    assert named <= set(NAMES), named - set(NAMES)
    assert {load(name).method.name for name in named} == set(methods.names())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs among which the small recipes find their teacher."""
    runs = tmp_path_factory.mktemp("quickstarts") / "runs"
    recipe = load("quickstart_teacher")
    done = train(recipe, runs, device="cpu", command="distilkit train quickstart_teacher", observer=Observer())
    assert done["errors"]["student_0"]["top1"] < 20
    return runs


@pytest.mark.parametrize("name", SMALL)
def test_small_recipe_learns_to_read_digits(name: str, taught: Path) -> None:
    done = train(load(name), taught, device="cpu", command=f"distilkit train {name}", observer=Observer())
    wrong = {member: errors["top1"] for member, errors in done["errors"].items() if errors["top1"] >= 20}
    assert wrong == {}


# ------------------------------------------------------------------------------------------------------------- dry runs


def test_parts_add_up_to_the_whole() -> None:
    plan = dry_run(load("one_resnet32"))
    assert plan["parameters"]["deploy"] == 472_756
    parts = plan["parts"]
    assert set(parts) == {"trunk", "student_0", "student_1", "student_2", "method"}
    for unit in ("parameters", "flops", "activations"):
        assert sum(part[unit] for part in parts.values()) == plan[unit]["train"]
        assert parts["trunk"][unit] + parts["student_0"][unit] == plan[unit]["deploy"]
    # The gate: a linear layer from 32 pooled channels to 3 weights, with biases and a batch norm.
    assert parts["method"]["parameters"] == 32 * 3 + 3 + 2 * 3
    assert parts["method"]["flops"] == 2 * 32 * 3


def test_dry_run_says_whether_the_data_is_there(tmp_path: Path) -> None:
    plan = dry_run(load("one_resnet32", [f"data.root={tmp_path}", "data.download=false"]))
    assert plan["data"]["present"] is False
    assert "cifar-100-python" in plan["data"]["where"]
    assert dry_run(load("quickstart"))["data"]["present"] is True


def test_the_package_declares_its_types() -> None:
    assert importlib.resources.files(distilkit).joinpath("py.typed").is_file()
