"""Data that nobody would want: one class, one image, classes without images, images that change behind one's back."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Result
from PIL import Image

from distilkit.data import image_folder
from distilkit.training.trainer import Trainer

Command = Callable[..., Result]


@pytest.fixture
def train(tmp_path: Path, distilkit: Command) -> Callable[..., Result]:
    """train(root, ...): the tiny recipe for one epoch on a folder, or a file, of one's own."""

    def run(root: Path, *changes: str) -> Result:
        (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
        kind = "npz" if root.suffix == ".npz" else "image-folder"
        fixed = [f"data.dataset={kind}", f"data.root={root}", "train.epochs=1", "tracking.name=none"]
        fixed += ["method.name=baseline", "train.batch_size=8", *(["data.image_size=8"] if kind != "npz" else [])]
        words = [word for change in (*fixed, *changes) for word in ("--set", change)]
        return distilkit("train", tmp_path / "tiny.toml", *words, "--runs", tmp_path / "runs", "--device", "cpu")

    return run


def images(root: Path, **counts: int) -> Path:
    """images(root, train_cat=3): so many pictures in root/train/cat."""
    generator = np.random.default_rng(0)
    for place, count in counts.items():
        folder = root.joinpath(*place.split("_"))
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def refused(result: Result, tmp_path: Path, *words: object) -> None:
    assert result.status == 2, result
    for word in words:
        assert str(word) in result.err, (word, result.err)
    assert not (tmp_path / "runs").exists(), "a run folder was left behind"


def test_an_empty_class_is_refused(tmp_path: Path, train: Callable[..., Result]) -> None:
    root = images(tmp_path / "data", train_cat=6, train_dog=6, train_owl=0, test_cat=2, test_dog=2, test_owl=1)
    refused(train(root), tmp_path, "no images in", "owl")


def test_one_class_is_refused(tmp_path: Path, train: Callable[..., Result]) -> None:
    refused(train(images(tmp_path / "data", train_cat=6, test_cat=2)), tmp_path, "class")


def test_one_image_is_refused(tmp_path: Path, train: Callable[..., Result]) -> None:
    root = images(tmp_path / "data", train_cat=1, train_dog=0, test_cat=1, test_dog=1)
    refused(train(root), tmp_path, "image")


def test_no_test_images_are_refused(tmp_path: Path, train: Callable[..., Result]) -> None:
    refused(train(images(tmp_path / "data", train_cat=4, train_dog=4)), tmp_path, "test")


def test_a_class_of_the_test_images_that_training_lacks_is_refused(
    tmp_path: Path, train: Callable[..., Result]
) -> None:
    root = images(tmp_path / "data", train_cat=4, train_dog=4, test_cat=2, test_dog=2, test_emu=2)
    refused(train(root), tmp_path, "emu")


def test_a_class_that_the_test_images_lack_is_refused(tmp_path: Path, train: Callable[..., Result]) -> None:
    root = images(tmp_path / "data", train_cat=5, train_dog=5, train_emu=5, test_cat=2, test_dog=2)
    refused(train(root), tmp_path, "emu", "no counterpart")


def test_unreadable_files_are_named_before_anything_is_trained(
    tmp_path: Path, train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("it was trained"))
    root = images(tmp_path / "data", train_cat=4, train_dog=4, test_cat=2, test_dog=2)
    (root / "train" / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    (root / "train" / "dog" / "empty.jpg").write_bytes(b"")
    (root / "train" / "dog" / "gone.png").symlink_to("nowhere.png")
    result = train(root)
    refused(result, tmp_path, "broken.png", "empty.jpg")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_pipes_and_devices_among_the_images_are_named(
    storage: str, tmp_path: Path, train: Callable[..., Result], distilkit: Command
) -> None:
    root = images(tmp_path / "data", train_cat=4, train_dog=4, test_cat=2, test_dog=2)
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    (root / "train" / "dog" / "zero.png").symlink_to("/dev/zero")
    refused(train(root, f"data.storage={storage}", "data.workers=0"), tmp_path, "pipe.png", "zero.png", "no plain file")
    assert distilkit("init", root, "--architecture", "resnet8", "--output", tmp_path / "new.toml").status in (0, 2)


def test_a_link_that_leads_back_up_adds_no_images(tmp_path: Path) -> None:
    """Followed, it would lead to the other classes' images, under this one's name, forty times."""
    root = images(tmp_path / "data", train_cat=4, train_dog=4, test_cat=2, test_dog=2)
    (root / "train" / "cat" / "round").symlink_to("..")
    (root / "train" / "dog" / "again").symlink_to(".")
    elsewhere = images(tmp_path / "elsewhere", cat_more=3)
    (root / "train" / "cat" / "linked").symlink_to(elsewhere / "cat" / "more")
    layout = image_folder.find_images(root)
    assert layout.labels("train").tolist() == 7 * [0] + 4 * [1]


def test_files_of_one_name_are_different_images(tmp_path: Path, train: Callable[..., Result]) -> None:
    """In several classes, in both splits, and but for the case of their endings: each counts once."""
    root = images(tmp_path / "data", train_cat=4, train_dog=4, test_cat=2, test_dog=2)
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "0.PNG")
    result = train(root)
    assert result.status == 0, result.err
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["data"]["images"] == {"train": 9, "test": 4}


def test_arrays_of_one_name_are_refused(tmp_path: Path, train: Callable[..., Result]) -> None:
    np.savez(tmp_path / "set.npz", **arrays())
    second = io.BytesIO()
    np.save(second, np.arange(20)[::-1] % 2)
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("y_train.npy", second.getvalue())
    refused(train(tmp_path / "set.npz"), tmp_path, "set.npz", "y_train", "there twice")


def test_folders_that_look_alike_and_are_spelled_otherwise_are_told_apart(
    tmp_path: Path, train: Callable[..., Result]
) -> None:
    root = images(tmp_path / "data", train_dog=4, test_dog=2, **{"train_caf\u00e9": 4, "test_cafe\u0301": 2})
    if len({folder.name for part in ("train", "test") for folder in (root / part).iterdir()}) < 3:
        pytest.skip("this file system spells all names alike")
    refused(train(root), tmp_path, "no counterpart", "spelled with other characters")


def arrays(**changed: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    given = {
        "x_train": generator.integers(0, 256, (20, 8, 8), dtype=np.uint8),
        "y_train": np.arange(20) % 2,
        "x_test": generator.integers(0, 256, (6, 8, 8), dtype=np.uint8),
        "y_test": np.arange(6) % 2,
    }
    return given | changed


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"x_train": np.full((20, 8, 8), np.nan)}, "uint8"),
        ({"x_test": np.full((6, 8, 8), np.inf, np.float32)}, "uint8"),
        ({"y_train": np.full(20, -1)}, "y_train"),
        ({"y_train": np.full(20, 2**40)}, "y_train"),
        ({"y_train": np.full(20, np.nan)}, "integers"),
        ({"x_train": np.zeros((20, 0, 8), np.uint8)}, "empty"),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(
    changed: dict[str, Any], word: str, tmp_path: Path, train: Callable[..., Result]
) -> None:
    np.savez(tmp_path / "set.npz", **arrays(**changed))
    refused(train(tmp_path / "set.npz"), tmp_path, "set.npz", word)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, "no train image of classes 2, 3"),
        ({"y_train": np.arange(20) % 3}, "no test image of class 2"),
    ],
)
def test_labels_that_only_one_split_has_are_said(
    changed: dict[str, Any], words: str, tmp_path: Path, train: Callable[..., Result]
) -> None:
    """Arrays name their classes by numbers, of which some may be missing on purpose."""
    np.savez(tmp_path / "set.npz", **arrays(**changed))
    result = train(tmp_path / "set.npz")
    assert result.status == 0, result.err
    assert words in result.err
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["data"]["balance"]["train"]


def test_images_that_change_between_training_and_evaluation_are_told_of(
    tmp_path: Path, train: Callable[..., Result], distilkit: Command
) -> None:
    np.savez(tmp_path / "set.npz", **arrays())
    assert train(tmp_path / "set.npz").status == 0
    [run] = (tmp_path / "runs").iterdir()
    document = distilkit("evaluate", run, "--device", "cpu", "--json").json
    assert document["same_data"] is True
    other = arrays()
    other["x_test"][0, 0, 0] ^= 255
    np.savez(tmp_path / "set.npz", **other)
    changed = distilkit("evaluate", run, "--device", "cpu", "--json")
    assert changed.json["same_data"] is False
    assert "not the ones" in changed.err
    # Other classes, other shapes, nothing at all.
    np.savez(tmp_path / "set.npz", **arrays(classes=np.array(["a", "b", "c"])))
    assert distilkit("evaluate", run, "--device", "cpu").status == 2
    np.savez(tmp_path / "set.npz", **arrays(x_test=np.zeros((6, 9, 9), np.uint8)))
    assert distilkit("evaluate", run, "--device", "cpu").status == 2
    (tmp_path / "set.npz").unlink()
    gone = distilkit("evaluate", run, "--device", "cpu")
    assert gone.status == 2
    assert "--data" in gone.err
    shutil.rmtree(tmp_path / "runs")
