"""`names.json`, what the Tab key and `distilkit recipes` know by name, is what the registries and the recipes say."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from distilkit import methods, shipped
from distilkit.errors import UserError
from distilkit.methods.registry import register
from distilkit.models import registry
from distilkit.recipe import listing, load

Command = Callable[..., Result]


def test_the_list_is_what_the_registries_and_the_recipes_say() -> None:
    assert shipped.LIST.read_text(encoding="utf-8") == listing.text(), (
        "distilkit/names.json is stale; renew it with: python -m distilkit.recipe.listing"
    )


def test_the_list_has_every_method_architecture_and_recipe() -> None:
    names = shipped.listed()
    assert names.methods == methods.names()
    assert names.architectures == (*registry.names(), "torchvision:", "timm:")
    assert list(names.recipes) == list(shipped.builtin())


def test_a_name_that_is_new_or_gone_makes_the_list_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "builtin", dict)
    from distilkit.methods import registry as registered

    monkeypatch.setattr(registered, "_methods", dict(registered._methods))
    entry = registered.find("one")
    register("new", entry.options)(entry.method)
    assert '"new"' in listing.text()
    assert "quickstart" not in listing.text()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that was put beside the others; nobody has renewed the list."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "new_one.toml"
    file.write_text('# ONE on digits: about new recipes.\nextends = "quickstart_one"\n[train]\nepochs = 1\n')
    known = shipped.builtin()
    monkeypatch.setattr(shipped, "builtin", lambda: {**known, "new_one": file})
    return file


def test_a_recipe_that_is_not_in_the_list_yet_is_listed_all_the_same(distilkit: Command, beside: Path) -> None:
    (row,) = distilkit("recipes", "--name", "new_*", "--json").json["recipes"]
    assert (row["title"], row["file"]) == ("ONE on digits", str(beside))
    assert (row["method"], row["architecture"], row["dataset"]) == ("one", load("quickstart_one").networks, "digits")


def test_a_file_of_ones_own_hides_a_recipe_of_that_name(
    distilkit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kd_resnet32").write_text('extends = "quickstart"\n')
    shown = distilkit("recipes", "show", "kd_resnet32", "--json").json
    assert (shown["file"], shown["dataset"]) == ("kd_resnet32", "digits")


def test_what_extends_in_a_circle_is_printed_but_not_summed_up(
    distilkit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\n')
    with pytest.raises(UserError, match="cannot be read"):
        listing.summary("a", tmp_path / "a.toml")
    assert distilkit("recipes", "show", "a.toml").out == 'extends = "b.toml"\n'
    assert distilkit("recipes", "show", "a.toml", "--json").status == 2
