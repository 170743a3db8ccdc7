"""`distilkit recipes`: the list says what the recipes say, and a copy is a recipe."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import published
import pytest
from conftest import Result
from rich.console import Console

from distilkit.cli import console
from distilkit.recipe import builtin, load

Command = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_says_of_every_recipe_what_the_recipe_itself_says(distilkit: Command) -> None:
    document = distilkit("recipes", "--json").json
    rows = {row["name"]: row for row in document["recipes"]}
    assert list(rows) == list(builtin())
    assert document["total"] == len(rows)
    for name in ("one_resnet32", "baseline_vgg16_cifar10", "quickstart", "kd_resnet32", "okddip_resnet34_imagenet"):
        recipe, row = load(name), rows[name]
        assert (row["method"], row["dataset"]) == (recipe.method.name, recipe.data.dataset)
        assert row["architecture"] == recipe.networks
        assert row["teacher"] == (recipe.teacher.run if recipe.teacher else None)
    assert all(row["title"] and len(row["title"]) < 300 for row in rows.values())
    assert rows["quickstart"]["cells"] == []
    assert rows["one_resnet32"]["cells"] == ["ONE Tables 1, 3 and 4"]
    assert rows["baseline_resnet32"]["title"] == "ResNet-32 on CIFAR-100, one network alone"


def test_every_recipe_of_a_papers_cell_is_listed_with_a_cell_of_that_paper(distilkit: Command) -> None:
    rows = {row["name"]: row for row in distilkit("recipes", "--json").json["recipes"]}
    cells = list(published.cells())
    assert len(cells) > 100
    for cell in cells:
        papers = {each.split()[0] for each in rows[cell.recipe]["cells"]}
        assert papers, cell


def test_filters_narrow_the_list_and_an_unknown_word_has_its_nearest_named(distilkit: Command) -> None:
    rows = distilkit("recipes", "list", "--method", "okddip", "--dataset", "imagenet", "--json").json["recipes"]
    assert {row["name"] for row in rows} == {"okddip_resnet34_imagenet", "okddip_networks_resnet34_imagenet"}
    assert len(distilkit("recipes", "--name", "one_b?_*", "--json").json["recipes"]) == 5
    for options, word in (
        (("--method", "okdip"), "okddip"),
        (("--dataset", "cifar1000"), "cifar100"),
        (("--name", "x*"), "*"),
    ):
        refused = distilkit("recipes", "list", *options)
        assert refused.status == 2
        assert word in refused.err.partition("hint:")[2]
    swallowed = distilkit("recipes", "--method", "one", "list")
    assert swallowed.status == 2
    assert "--method stands before list" in swallowed.err


def test_people_see_a_table_in_which_nothing_is_cut(distilkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    out = distilkit("recipes", "--dataset", "digits").out
    assert all(name in out for name in builtin() if name.startswith("quickstart"))
    assert "12 shown" in out
    monkeypatch.setattr(console, "stdout", Console(highlight=False, width=70, force_terminal=True, color_system=None))
    narrow = distilkit("recipes", "--name", "one_resnet32").out
    assert "ONE Tables 1, 3 and 4" in narrow
    assert "one, resnet32, cifar100" in narrow


def test_show_prints_the_file_as_it_is_and_in_colours_in_a_terminal(
    distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = builtin()["one_resnet32"].read_text(encoding="utf-8")
    assert distilkit("recipes", "show", "one_resnet32").out == text
    assert distilkit("recipes", "show", "one_resnet32.toml", "--json").json["text"] == text
    terminal = Console(highlight=False, width=200, force_terminal=True, color_system="standard")
    monkeypatch.setattr(console, "stdout", terminal)
    coloured = distilkit("recipes", "show", "one_resnet32").out
    assert "\x1b[" in coloured
    assert "temperature" in coloured


def test_show_resolved_is_the_whole_recipe(distilkit: Command) -> None:
    assert distilkit("recipes", "show", "one_resnet32", "--resolved").out == load("one_resnet32").to_toml()


def test_a_recipe_that_is_not_there_is_refused_with_the_nearest_name(distilkit: Command, here: Path) -> None:
    for words in (["show", "one_resnet23"], ["copy", "one_resnet23"]):
        refused = distilkit("recipes", *words)
        assert refused.status == 2
        assert "one_resnet32" in refused.err
    assert distilkit("recipes", "show", "x" * 5000).status == 2
    (here / "broken.toml").write_text("name = ")
    assert distilkit("recipes", "show", "broken.toml").status == 2


def test_a_copy_trains_the_same_under_its_own_name_and_nothing_is_overwritten(distilkit: Command, here: Path) -> None:
    assert distilkit("recipes", "copy", "one_resnet32").status == 0
    assert (here / "one_resnet32.toml").read_bytes() == builtin()["one_resnet32"].read_bytes()
    again = distilkit("recipes", "copy", "one_resnet32", "--json")
    assert again.status == 2
    assert "--force" in again.json["error"]["hint"]

    document = distilkit("recipes", "copy", "one_resnet32", "mine.toml", "--json").json
    assert (document["written"], document["name"]) == ("mine.toml", "mine")
    copied, original = load("mine.toml"), load("one_resnet32")
    assert copied.name == "mine"
    assert original.differences(copied) == []

    (here / "mine.toml").write_text("")
    assert distilkit("recipes", "copy", "quickstart", "mine.toml", "--resolved", "--force").status == 0
    assert tomllib.loads((here / "mine.toml").read_text())["train"]["checkpoint_epochs"] == 1
    assert load("mine.toml").differences(load("quickstart")) == []


def test_a_copy_goes_into_a_folder_and_no_further_than_it_may(distilkit: Command, here: Path) -> None:
    (here / "to").mkdir()
    assert distilkit("recipes", "copy", "quickstart", "to").status == 0
    assert load(here / "to" / "quickstart.toml") == load("quickstart")
    for to in ("quickstart.yaml", "missing/quickstart.toml"):
        refused = distilkit("recipes", "copy", "quickstart", to)
        assert refused.status == 2
        assert "hint:" in refused.err
    itself = distilkit("recipes", "copy", "to/quickstart.toml", "to", "--force")
    assert itself.status == 2
    assert "itself" in itself.err


def test_list_and_show_import_no_torch() -> None:
    code = (
        "import sys, distilkit.cli\n"
        "for words in (['recipes'], ['recipes', 'show', 'one_resnet32'], ['recipes', 'list', '--method', 'one']):\n"
        "    try: distilkit.cli.main(words)\n"
        "    except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'numpy', 'torchvision', 'onnxruntime', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
