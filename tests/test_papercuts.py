"""What people type by mistake gets the words that help."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

Command = Callable[..., Result]


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--epochs", "train.epochs"),
        ("--lr", "optimizer.lr"),
        ("--batch-size", "train.batch_size"),
        ("--image-size", "data.image_size"),
    ],
)
def test_a_key_that_is_typed_as_an_option_is_set_with_set(option: str, setting: str, distilkit: Command) -> None:
    done = distilkit("train", "quickstart", option, "5")
    assert done.status == 2
    assert f"--set {setting}=" in done.err


def test_another_unknown_option_names_the_help(distilkit: Command) -> None:
    done = distilkit("train", "quickstart", "--frobnicate", "5")
    assert done.status == 2
    assert "train --help lists what there is" in done.err


def test_a_folder_in_the_recipes_place_names_init(tmp_path: Path, distilkit: Command) -> None:
    (tmp_path / "my photos").mkdir()
    done = distilkit("train", tmp_path / "my photos")
    assert done.status == 2
    assert f"distilkit init '{tmp_path / 'my photos'}'" in " ".join(done.err.split())
