"""A teacher's file that is read wrongly ends a training before it begins, and a dry run too."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured import IMAGENET, coloured, trained_elsewhere
from conftest import Result
from safetensors.torch import save_file

Command = Callable[..., Result]
RECIPE = """
name = "taught"
[data]
dataset = "npz"
root = "{root}"
augment = "none"
validation = 0.2
[model]
architecture = "resnet8"
[method]
name = "kd"
[teacher]
architecture = "resnet8"
weights = "{weights}"
[optimizer]
name = "sgd"
lr = 0.05
[train]
epochs = 1
precision = "fp32"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A network trained elsewhere, with ImageNet's constants, on images a quarter as bright as usual."""
    images, labels = coloured(1000, 1)
    arrays = {"train": (images, labels), "test": (images[:200], labels[:200])}
    named = {}
    for part, (pixels, classes) in arrays.items():
        named[f"{part}_images"] = pixels.permute(0, 2, 3, 1).numpy()
        named[f"{part}_labels"] = classes.numpy()
    np.savez(tmp_path / "data.npz", **named)
    save_file(
        {k: v.contiguous() for k, v in trained_elsewhere().state_dict().items()}, tmp_path / "teacher.safetensors"
    )
    file = tmp_path / "taught.toml"
    text = RECIPE.format(root=tmp_path / "data.npz", weights=tmp_path / "teacher.safetensors")
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_teacher_read_with_other_constants_is_refused(
    words: tuple[str, ...], recipe: Path, tmp_path: Path, distilkit: Command
) -> None:
    done = distilkit("train", recipe, "--runs", tmp_path / "runs", "--device", "cpu", *words)
    assert done.status == 2, done.err
    assert "with ImageNet's constants: its weights are read wrongly" in " ".join(done.err.split())
    assert "teacher.mean = [0.485, 0.456, 0.406] and teacher.std = [0.229, 0.224, 0.225]" in " ".join(done.err.split())
    assert not (tmp_path / "runs").exists()


def test_with_its_own_constants_it_teaches_and_its_measurement_is_kept(
    recipe: Path, tmp_path: Path, distilkit: Command
) -> None:
    constants = [f"teacher.{key}={list(numbers)}" for key, numbers in zip(("mean", "std"), IMAGENET, strict=True)]
    changes = [word for change in constants for word in ("--set", change)]
    planned = distilkit("train", recipe, *changes, "--dry-run", "--json")
    assert planned.json["teachers"][0]["error"] < 10
    done = distilkit("train", recipe, *changes, "--runs", tmp_path / "runs", "--device", "cpu", "--json")
    assert done.status == 0, done.err
    (measured,) = json.loads((Path(done.json["run"]) / "run.json").read_text(encoding="utf-8"))["teachers"]
    assert measured["split"] == "validation"
    assert measured["images"] == 200
    assert measured["error"] < 10
    assert measured["name"].endswith("teacher.safetensors")
    assert "error 0." in done.err


def test_a_weak_teacher_is_allowed_where_the_recipe_says_so(recipe: Path, tmp_path: Path, distilkit: Command) -> None:
    words = ("--set", "teacher.allow_weak=true", "--runs", tmp_path / "runs", "--device", "cpu", "--json")
    done = distilkit("train", recipe, *words)
    assert done.status == 0, done.err
    assert "with ImageNet's constants: its weights are read wrongly" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("teacher.mean=[0.5, 0.5, 0.5]", "teacher.std is missing"),
        ("teacher.classes=['a', 'b']", "the data's class '0' is not among the 2 that are given for the teacher"),
        ("teacher.classes=missing.txt", "missing.txt cannot be read"),
        ("teacher.image_size=0", "teacher.image_size"),
        ("teacher.weights=taught.toml", "taught.toml cannot be read: the file is damaged"),
    ],
)
def test_bad_settings_of_a_teacher_are_one_message(
    setting: str, problem: str, recipe: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = distilkit("train", recipe, "--set", setting, "--dry-run")
    assert done.status == 2, done.out
    assert problem in " ".join(done.err.split())


def test_a_teacher_may_know_more_classes_and_larger_images(
    recipe: Path,
    tmp_path: Path,
    distilkit: Command,
) -> None:
    state = {name: value.clone().contiguous() for name, value in trained_elsewhere().state_dict().items()}
    # Two more classes before the data's ten, which it never answers.
    state["fc.weight"] = torch.cat([torch.zeros(2, 64), state["fc.weight"]])
    state["fc.bias"] = torch.cat([torch.full((2,), -99.0), state["fc.bias"]])
    save_file(state, tmp_path / "more.safetensors")
    (tmp_path / "classes.txt").write_text("\n".join(["cat", "dog", *map(str, range(10))]), encoding="utf-8")
    settings = {
        "teacher.weights": tmp_path / "more.safetensors",
        "teacher.classes": tmp_path / "classes.txt",
        "teacher.image_size": 24,
        "teacher.mean": list(IMAGENET[0]),
        "teacher.std": list(IMAGENET[1]),
    }
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = distilkit("train", recipe, *changes, "--runs", tmp_path / "runs", "--device", "cpu", "--json")
    assert done.status == 0, done.err
    text = (Path(done.json["run"]) / "recipe.toml").read_text(encoding="utf-8")
    assert '"cat"' in text
    assert "classes.txt" not in text


def test_no_message_quotes_the_file_of_classes(recipe: Path, tmp_path: Path, distilkit: Command) -> None:
    (tmp_path / "secret").write_text("hunter2\n0\nhunter3\n", encoding="utf-8")
    done = distilkit("train", recipe, "--set", f"teacher.classes={tmp_path / 'secret'}", "--dry-run")
    assert done.status == 2
    assert "is not among the 3 that are given for the teacher" in " ".join(done.err.split())
    assert "hunter" not in done.err + done.out
