"""Data that nobody would want: one class, one image, classes without images, images that change behind one's back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Result
from PIL import Image

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


def test_an_empty_class_is_refused_or_said(tmp_path: Path, train: Callable[..., Result]) -> None:
    root = images(tmp_path / "data", train_cat=6, train_dog=6, train_owl=0, test_cat=2, test_dog=2, test_owl=1)
    result = train(root)
    assert "owl" in result.err
    assert result.status in (0, 2)


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


def test_a_class_that_the_test_images_lack_is_said(tmp_path: Path, train: Callable[..., Result]) -> None:
    root = images(tmp_path / "data", train_cat=5, train_dog=5, train_emu=5, test_cat=2, test_dog=2)
    result = train(root)
    assert "emu" in result.err
    assert result.status in (0, 2)


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
        ({"y_test": np.array([0, 1, 2, 9, 0, 1])}, "9"),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(
    changed: dict[str, Any], word: str, tmp_path: Path, train: Callable[..., Result]
) -> None:
    np.savez(tmp_path / "set.npz", **arrays(**changed))
    result = train(tmp_path / "set.npz")
    if "y_test" in changed and result.status == 0:
        assert word in result.err  # classes that training lacks are said
        return
    refused(result, tmp_path, "set.npz", word)


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
