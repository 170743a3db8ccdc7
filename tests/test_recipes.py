"""Every recipe that is shipped: it builds, it steps, it says what it stands for; the small ones also learn."""

import importlib.resources
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import published
import pytest
import torch

import distilkit
from distilkit.data import datasets
from distilkit.learners.build import build_learner
from distilkit.observer import Observer
from distilkit.recipe import builtin, load, resolve_epochs
from distilkit.training.optimizer import make_optimizer
from distilkit.workflows.train.train import dry_run, train

FOLDER = Path(__file__).parents[1] / "recipes"
FILES = {path.stem: path for path in sorted(FOLDER.rglob("*.toml"))}
NAMES = sorted(FILES)
QUICKSTARTS = [name for name in NAMES if name.startswith("quickstart")]
MODERN = [name for name in NAMES if name.startswith("modern")]
PUBLISHED = [name for name in NAMES if name not in (*QUICKSTARTS, *MODERN)]
TOP = [name for name in NAMES if FILES[name].parent == FOLDER]
# These train in seconds, after the one that teaches some of them.
SMALL = [name for name in QUICKSTARTS if name not in ("quickstart", "quickstart_baseline", "quickstart_teacher")]
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
DEEP = ("resnet110", "resnet164")
CELLS = list(published.cells())
# One of every family, every folder and every method of the tables; the others are the same code with other words.
SAMPLE = (
    "one_resnet32_cifar10",
    "okddip_vgg16_cifar10",
    "dml_wrn20_8_cifar10",
    "okddip_peers_networks_densenet40_12_cifar10",
    "okddip_kd_resnet32_cifar10",
    "clilr_densenet40_12",
    "independent_wrn20_8",
    "one4_resnet110_bottleneck12",
    "one_resnet32_svhn",
    "one_resnet18_imagenet",
)


def _dataset(name: str) -> str:
    """The data set of a recipe, from its folder: CIFAR-100's are in the outermost one too."""
    folder = FILES[name].parent
    if folder == FOLDER:
        return "digits" if name.startswith("quickstart") else "cifar100"
    return folder.name


def _each(names: Iterable[str], sample: Iterable[str] | None = None) -> list[Any]:
    """Parameters for a test of these recipes, `make test` having those of `sample` (None: all) alone."""
    chosen = None if sample is None else set(sample)
    parameters = []
    for name in names:
        marks = [] if chosen is None or name in chosen else [pytest.mark.long]
        parameters.append(pytest.param(name, marks=marks))
    return parameters


def _header(name: str) -> str:
    """The comment above a recipe, in one line."""
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("# ") for line in header)


def test_all_recipes_of_the_repository_are_built_in() -> None:
    assert len(NAMES) == 176, "a recipe came or went: change this number on purpose"
    assert len(PUBLISHED) == 163
    assert {name: path.resolve() for name, path in builtin().items()} == {n: p.resolve() for n, p in FILES.items()}


def test_no_two_recipes_have_one_name_whatever_their_folder() -> None:
    assert [name for name, count in Counter(path.stem for path in FOLDER.rglob("*.toml")).items() if count > 1] == []


def test_recipes_lie_in_the_folder_of_their_data_set_and_say_so_in_their_names() -> None:
    assert {FILES[name].parent.name for name in NAMES} == {"recipes", "cifar10", "cifar100", "svhn", "imagenet"}
    for name in NAMES:
        assert load(name).data.dataset == _dataset(name), name
    for name in NAMES:
        suffix = "" if _dataset(name) in ("digits", "cifar100") else f"_{_dataset(name)}"
        assert name.endswith(suffix), name


@pytest.mark.parametrize("name", _each(NAMES, [*TOP, *SAMPLE]))
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


@pytest.mark.parametrize("name", _each(PUBLISHED))
def test_header_names_paper_table_students_and_weight_decay(name: str) -> None:
    header, recipe = _header(name), load(name)
    assert recipe.name == name
    assert re.search(r"(OKDDip \(Chen et al\. 2020\)|ONE \(Lan et al\. 2018\)), (Tables? \d|Fig\. 3)", header)
    assert f"Weight decay {recipe.optimizer.weight_decay:.0e}".replace("e-0", "e-") in header
    group = NUMBERS[recipe.group.students - 1]
    kinds = r"networks?" if recipe.group.kind == "networks" else r"branch(es)?"
    assert re.search(rf"\b{group} {kinds}\b", header, flags=re.IGNORECASE), header
    if recipe.teacher is not None:
        assert f"distilkit train {recipe.teacher.run}" in header, "says what has to be trained first"


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.paper[:3]}-{cell.table}-{cell.recipe}")
def test_every_cell_of_the_tables_has_a_recipe_whose_header_has_its_figure(cell: published.Cell) -> None:
    header = _header(cell.recipe)
    assert cell.paper in header
    tables = re.findall(r"Tables? ((?:\d(?:, | and )?)+)", header)
    assert str(cell.table) in "".join(tables)
    assert f"{cell.figure} %" in header


def test_the_cells_are_as_many_as_the_tables_have() -> None:
    counts = Counter((cell.paper[:3], cell.table) for cell in CELLS)
    assert counts == {
        ("ONE", 1): 4 * 2 * 3,
        ("ONE", 2): 3 * 2,
        ("OKD", 1): 5 * 7,
        ("OKD", 2): 5 * 7,
        ("OKD", 3): 6,
        ("OKD", 4): 3 * 4,
        ("OKD", 7): 5 * 3,
        ("OKD", 8): 5 * 3,
        ("OKD", 9): 5 * 4,
    }


@pytest.mark.parametrize("name", _each(PUBLISHED))
def test_recipe_of_a_paper_has_nothing_of_the_modern_ones(name: str) -> None:
    recipe = load(name)
    assert (recipe.data.rand_augment, recipe.data.random_erasing, recipe.data.mixup, recipe.data.cutmix) == (0,) * 4
    assert (recipe.train.ema, recipe.train.label_smoothing) == (0, 0)
    assert recipe.optimizer.decay_norms_and_biases


@pytest.mark.parametrize("name", _each(PUBLISHED))
def test_recipe_of_a_table_differs_from_the_baseline_in_what_the_table_compares(name: str) -> None:
    recipe, baseline = load(name), load("baseline_resnet32")
    changed = {difference.split()[0] for difference in recipe.differences(baseline)}
    assert {key for key in changed if key.partition(".")[0] not in ("group", "method")} == _also_changed(name), changed


def _also_changed(name: str) -> set[str]:
    """Keys outside of [group] and [method] that a recipe's name says are others."""
    also = set() if "_resnet32" in name else {"model.architecture"}
    also |= (
        {"schedule.name", "schedule.cycles", "schedule.milestones", "schedule.gamma"} if "snapshot" in name else set()
    )
    if re.search(r"(^|_)kd", name):
        also |= {f"teacher{key}" for key in ("", ".run", ".temperature", ".weight", ".rampup_epochs", ".allow_weak")}
        also -= {"teacher"}
    also |= set() if _dataset(name) == "cifar100" else {"data.dataset"}
    if _dataset(name) in ("svhn", "imagenet"):
        also |= {"data.augment", "train.epochs", "optimizer.weight_decay"}
    if _dataset(name) == "imagenet":
        also |= {"data.image_size", "train.batch_size"} | ({"schedule.milestones"} if "resnet34" in name else set())
    return also


@pytest.mark.parametrize("name", _each(PUBLISHED))
def test_settings_are_those_of_the_paper(name: str) -> None:
    recipe = load(name)
    epochs, batch_size, weight_decay = {
        "svhn": (40, 128, 1e-4),
        "imagenet": (90, 256, 1e-4),
    }.get(_dataset(name), (300, 128, 5e-4))
    assert (recipe.train.epochs, recipe.train.batch_size) == (epochs, batch_size)
    optimizer = recipe.optimizer.model_dump()
    assert (optimizer["lr"], optimizer["momentum"], optimizer["nesterov"]) == (0.1, 0.9, True)
    assert optimizer["weight_decay"] == weight_decay
    schedule = recipe.schedule.model_dump()
    if schedule["name"] == "step":
        assert schedule["milestones"] == ((30, 60) if "resnet34" in name else (0.5, 0.75))
    augment = {"svhn": "none", "imagenet": "random-resized-crop"}.get(_dataset(name), "crop-flip")
    assert (recipe.data.augment, recipe.data.validation) == (augment, 0)
    method = recipe.method.model_dump()
    if method["name"] in ("one", "cl-ilr", "okddip"):
        assert method["temperature"] == 3.0
        assert resolve_epochs(method["rampup_epochs"], epochs) == round(epochs * 80 / 300)
    if method["name"] == "dml" and "OKDDip" in _header(name):
        assert (method["rampup_epochs"], method["target"], method["detach_targets"]) == (0, "leave-one-out-mean", False)
    if method["name"] == "cl-ilr":
        assert (method["label_weight"], method["distillation_weight"], method["detach_target"]) == (1.0, 1.0, False)
    if method["name"] == "okddip":
        assert (method["mix"], method["target_gradient"]) == ("logits", "full")
        assert method["leader"] != ("_peers_" in name or "onelevel" in name)


@pytest.mark.parametrize("name", _each(PUBLISHED))
def test_names_mean_the_networks_that_their_tables_mean(name: str) -> None:
    network = re.search(r"_((?:se_)?(?:resnet|vgg|densenet|wrn|resnext)\w*?)(?:_(?:cifar10|svhn|imagenet))?$", name)
    assert network is not None
    recipe = load(name)
    # ResNet-110 in ONE's code is ResNet-164; in OKDDip's, from which one recipe without its name comes, something else.
    expected = {"resnet110": "resnet164_bottleneck"}.get(network[1], network[1])
    if name == "teacher_resnet110":
        expected = "resnet110_bottleneck12"
    if network[1] == "vgg16" and recipe.group.kind == "branches":
        expected = "vgg16_dropout"
    assert recipe.model.architecture == expected


def test_one_training_under_two_names_is_the_same() -> None:
    for one, other in (("teacher_resnet110", "baseline_resnet110_bottleneck12"), ("one_resnet32", "one_b3_resnet32")):
        assert load(one).differences(load(other)) == []


def test_one_keeps_its_authors_target_in_its_own_tables_and_okddips_in_theirs() -> None:
    for name in PUBLISHED:
        method = load(name).method.model_dump()
        if method["name"] == "one":
            assert method["detach_target"] == ("ONE (Lan et al. 2018)" in _header(name)), name


def test_teachers_are_recipes_for_the_same_images() -> None:
    taught = {name: recipe for name in NAMES if (recipe := load(name)).teacher is not None}
    assert len(taught) == 7
    for name, recipe in taught.items():
        assert recipe.teacher is not None
        assert isinstance(recipe.teacher.run, str)
        teacher = load(recipe.teacher.run)
        assert (teacher.data.dataset, teacher.teacher, teacher.group.students) == (recipe.data.dataset, None, 1), name


# --------------------------------------------------------------------------------------------- recipes for a first look


def test_every_method_has_a_small_recipe() -> None:
    from distilkit import methods

    assert {load(name).method.name for name in [*SMALL, "quickstart_teacher"]} == set(methods.names())


def test_every_method_has_a_page_and_pages_name_only_recipes_that_exist() -> None:
    from distilkit import methods

    docs = FOLDER.parent / "docs"
    for name in methods.names():
        assert f'`name = "{name}"`' in (docs / "methods" / f"{name}.md").read_text(encoding="utf-8")
    pages = [docs / "methods.md", *sorted((docs / "methods").glob("*.md"))]
    page = "\n".join(file.read_text(encoding="utf-8") for file in pages)
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


# ---------------------------------------------------------------------------------------------------- modern recipes


@pytest.mark.parametrize("name", MODERN)
def test_modern_recipe_says_that_it_is_no_papers_and_uses_what_it_is_an_example_of(name: str) -> None:
    assert "It stands for no cell of any paper" in _header(name)
    recipe = load(name)
    assert all((recipe.data.rand_augment, recipe.data.random_erasing, recipe.data.mixup, recipe.data.cutmix))
    assert all((recipe.train.ema, recipe.train.label_smoothing))
    assert not recipe.optimizer.decay_norms_and_biases
    assert dry_run(recipe)["parameters"]["deploy"] > 0


@pytest.mark.parametrize("name", MODERN)
def test_modern_recipe_learns_to_read_digits(name: str, tmp_path: Path) -> None:
    # An average of the weights of 200 steps has a shorter memory than one of 100,000.
    shorter = ("train.epochs=8", "train.batch_size=64", "train.ema=0.95", "schedule.warmup_epochs=1")
    digits = ("data.dataset=digits", "data.augment=crop", "model.architecture=resnet8", "train.precision=fp32")
    done = train(load(name, (*digits, *shorter)), tmp_path, device="cpu", command="test", observer=Observer())
    assert max(errors["top1"] for errors in done["errors"].values()) < 20


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


@pytest.mark.parametrize("name", _each([name for name in NAMES if name not in TOP], SAMPLE[:5]))
def test_dry_run_builds_every_recipe_in_a_folder(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    plan = dry_run(recipe, tmp_path)
    assert plan["uncounted"] == {}
    assert len(plan["members"]) == recipe.group.students
    assert plan["parameters"]["train"] >= plan["parameters"]["deploy"]
    if recipe.group.kind == "networks":
        assert plan["flops"]["train"] >= recipe.group.students * plan["flops"]["deploy"]
    else:
        assert plan["flops"]["train"] < recipe.group.students * plan["flops"]["deploy"]


def test_dry_run_says_whether_the_data_is_there(tmp_path: Path) -> None:
    plan = dry_run(load("one_resnet32", [f"data.root={tmp_path}", "data.download=false"]))
    assert plan["data"]["present"] is False
    assert "cifar-100-python" in plan["data"]["where"]
    assert dry_run(load("quickstart"))["data"]["present"] is True


def test_the_package_declares_its_types() -> None:
    assert importlib.resources.files(distilkit).joinpath("py.typed").is_file()
