"""Folders of images as people have them: other endings, what other programs leave, validation folders."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from PIL import Image

from distilkit.data import datasets
from distilkit.data.image_folder import find_images

Command = Callable[..., Result]
ENDINGS = {
    "a.png": "PNG",
    "b.jpg": "JPEG",
    "c.JPG": "JPEG",
    "d.jfif": "JPEG",
    "e.jpe": "JPEG",
    "f.gif": "GIF",
    "g.webp": "WEBP",
    "h.bmp": "BMP",
    "i.tif": "TIFF",
    "j.ppm": "PPM",
    "k.tga": "TGA",
    "l.ico": "ICO",
    "no_ending": "PNG",
    "wrong.txt": "JPEG",
    "other.image": "WEBP",
}


def fill(folder: Path, names: dict[str, str] | None = None, level: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, kind) in enumerate((names or {"a.png": "PNG", "b.png": "PNG", "c.png": "PNG"}).items()):
        Image.new("RGB", (8, 8), (level, 9 * number, 5)).save(folder / name, kind)


def make(root: Path, **parts: dict[str, str] | None) -> Path:
    for part, names in parts.items():
        for level, name in enumerate(("cat", "dog")):
            fill(root / part / name, names, 90 * level)
    return root


def test_pictures_count_by_their_content_whatever_their_ending(tmp_path: Path) -> None:
    root = make(tmp_path / "data", train=ENDINGS, test=None)
    for junk in ("Thumbs.db", ".DS_Store", "._a.png"):
        (root / "train" / "cat" / junk).write_bytes(b"x")
    fill(root / "train" / "cat" / "@eaDir")
    fill(root / "train" / "__MACOSX")
    (root / "train" / "cat" / "notes.txt").write_text("of the cat")
    (root / "train" / "dog" / "empty").write_bytes(b"")
    (root / "train" / "dog" / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    layout = find_images(root)
    assert layout.classes == ("cat", "dog")
    assert len(layout.samples["train"]) == 2 * len(ENDINGS)
    assert [Path(path).name for path in layout.passed_over] == ["notes.txt", "drawing.eps", "empty"]
    (note,) = datasets.notes("image-folder", root)
    assert note.startswith("left out, being no pictures that are read: 3 files (1 .txt, 1 .eps, 1 without an ending), ")
    data = datasets.load("image-folder", root, download=False, image_size=8)
    assert len(data.splits["train"].labels) == 2 * len(ENDINGS)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training", "testing")])
def test_a_validation_folder_beside_test_is_the_validation_split(
    validation: str, train: str, test: str, tmp_path: Path
) -> None:
    root = make(
        tmp_path / "data", **{train: None, test: {"a.png": "PNG"}, validation: {"a.png": "PNG", "b.png": "PNG"}}
    )
    assert datasets.counts("image-folder", root) == {"train": 6, "test": 2, "validation": 4}
    splits = ("train", "validation", "test")
    data = datasets.load("image-folder", root, download=False, image_size=8, validation="folder", splits=splits)
    assert {name: len(split.labels) for name, split in data.splits.items()} == {"train": 6, "validation": 4, "test": 2}
    assert data.fingerprints["validation"] != data.fingerprints["test"]


def test_without_a_test_folder_val_is_the_test_set_and_that_is_said(tmp_path: Path) -> None:
    root = make(tmp_path / "data", train=None, val={"a.png": "PNG"})
    assert datasets.counts("image-folder", root) == {"train": 6, "test": 2}
    assert datasets.notes("image-folder", root) == ["there is no folder test: the test images are those in val"]


RECIPE = """
name = "own"
[data]
dataset = "image-folder"
root = "{root}"
image_size = 8
[model]
architecture = "resnet8"
[method]
name = "baseline"
[train]
epochs = 1
batch_size = 4
precision = "fp32"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    root = make(tmp_path / "data", train=None, test={"a.png": "PNG"}, val={"a.png": "PNG", "b.png": "PNG"})
    (tmp_path / "own.toml").write_text(RECIPE.format(root=root), encoding="utf-8")
    return tmp_path / "own.toml"


def test_a_training_takes_the_folder_and_says_so_everywhere(recipe: Path, tmp_path: Path, distilkit: Command) -> None:
    planned = distilkit("train", recipe, "--dry-run", "--json")
    assert planned.json["data"]["images"] == {"train": 6, "test": 2, "validation": 4}
    trained = distilkit("train", recipe, "--runs", tmp_path / "runs", "--device", "cpu", "--json")
    assert trained.status == 0, trained.err
    assert trained.json["selected"]["rule"] == "the epoch with the leader's lowest error on the validation split"
    run = Path(trained.json["run"])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]
    assert record["validation"] == "folder"
    assert record["images"] == {"train": 6, "validation": 4, "test": 2}
    assert distilkit("evaluate", run, "--split", "validation", "--json").json["images"] == 4
    again = distilkit("train", recipe, "--resume", run, "--device", "cpu")
    assert again.status == 0, again.err
    assert "4 images of their own" in (run / "README.md").read_text(encoding="utf-8")


def test_a_share_beside_the_folder_is_a_fault_that_names_both_ways_out(recipe: Path, distilkit: Command) -> None:
    done = distilkit("train", recipe, "--set", "data.validation=0.5", "--dry-run")
    assert done.status == 2
    text = " ".join(done.err.split())
    assert "has a folder of validation images, and validation = 0.5 would hold out training images as well" in text
    assert "leave validation out to use the folder, or give the folder another name" in text


def test_a_folder_that_is_asked_for_and_missing_is_a_fault(recipe: Path, tmp_path: Path, distilkit: Command) -> None:
    (tmp_path / "data" / "val").rename(tmp_path / "elsewhere")
    done = distilkit("train", recipe, "--set", "data.validation=folder", "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.status == 2
    assert "has no folder of validation images" in " ".join(done.err.split())


def test_predict_finds_pictures_by_their_content(tmp_path: Path) -> None:
    from distilkit.workflows.deploy.predict import find

    fill(tmp_path / "photos", ENDINGS)
    fill(tmp_path / "photos" / "@eaDir")
    (tmp_path / "photos" / "notes.txt").write_text("none")
    paths, empty = find([str(tmp_path / "photos")])
    assert [Path(path).name for path in paths] == sorted(ENDINGS)
    assert empty == []


def test_a_test_set_by_itself_serves_every_command_that_evaluates(
    recipe: Path, tmp_path: Path, distilkit: Command
) -> None:
    words = ("--runs", tmp_path / "runs", "--device", "cpu", "--json")
    run, other = (distilkit("train", recipe, "--set", f"train.seed={seed}", *words).json["run"] for seed in (0, 1))
    new = make(tmp_path / "new", test={"x.png": "PNG", "y.jfif": "JPEG"})
    for root in (new, new / "test"):
        found = distilkit("evaluate", run, "--data", root, "--json")
        assert found.status == 0, found.err
        assert found.json["images"] == 4
        assert not found.json["same_data"]
    for command in (
        ["ensemble-eval", run, other],
        ["prune-branches", run],
        ["export", run],
        ["robustness", run, "--steps", "1", "--directions", "1"],
        ["robustness", run, "--no-parameters", "--inputs", "noise"],
    ):
        done = distilkit(*command, "--data", new, "--json")
        assert done.status == 0, done.err
    curves = distilkit("robustness", run, "--steps", "1", "--directions", "1", "--data", new, "--json").json["runs"][0]
    assert list(curves["curves"]) == ["test"]
    refused = distilkit("robustness", run, "--statistics", "recomputed", "--data", new)
    assert refused.status == 2
    assert "has no training images" in refused.err


def test_classes_without_images_are_named_and_unknown_ones_are_an_error(
    recipe: Path, tmp_path: Path, distilkit: Command
) -> None:
    run = distilkit("train", recipe, "--runs", tmp_path / "runs", "--device", "cpu", "--json").json["run"]
    fill(tmp_path / "cats" / "cat")
    found = distilkit("evaluate", run, "--data", tmp_path / "cats", "--json")
    assert found.json["per_class_error"]["dog"] is None
    assert "no test image of class dog" in found.err
    fill(tmp_path / "cats" / "dogs")
    refused = distilkit("evaluate", run, "--data", tmp_path / "cats")
    assert refused.status == 2
    assert "dogs is none of the model's 2 classes" in " ".join(refused.err.split())
    assert "did you mean 'dog'" in refused.err


def test_the_whole_folder_has_the_same_fingerprint_either_way(recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    whole = datasets.load("image-folder", root, download=False, image_size=8)
    alone = datasets.load_test_folder(root, whole.spec, "resident", None)
    assert alone.fingerprints["test"] == whole.fingerprints["test"]


def test_a_pipe_in_a_class_folder_is_not_opened(tmp_path: Path) -> None:
    root = make(tmp_path / "data", train=None, test=None)
    os.mkfifo(root / "train" / "cat" / "pipe")
    layout = find_images(root)
    assert len(layout.samples["train"]) == 6
    assert [Path(path).name for path in layout.passed_over] == ["pipe"]
