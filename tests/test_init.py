"""`distilkit init`: whatever a folder of images is, the recipe that is written trains on it."""

import io
import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from distilkit import methods
from distilkit.cli import init as command
from distilkit.recipe import load
from distilkit.workflows.project import init as workflow
from distilkit.workflows.project.init import Found, Sizes, Wishes, decide
from distilkit.workflows.project.recipe_text import slug

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(file: Path, width: int = 12, height: int = 12, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(file)


def class_folders(folder: Path, count: int = 5, **how: int | str) -> Path:
    for name in ("cat", "dog"):
        for index in range(count):
            picture(folder / name / f"{index}.png", **how)  # type: ignore[arg-type]
    return folder


def found(train: int, short: int, name: str = "image-folder", **fields: object) -> Found:
    sizes = Sizes(10, (), short, short, short, False)
    return Found(name, Path("x"), ("a", "b"), train, 10, None, sizes, **fields)  # type: ignore[arg-type]


# What is written


def test_the_written_recipe_is_commented_passes_a_dry_run_and_trains(
    image_folder: Path, here: Path, distilkit: Command
) -> None:
    small = ("--architecture", "resnet8", "--epochs", 1, "--size", 8, "--batch-size", 24)
    written = distilkit("init", image_folder, "--output", "photos.toml", *small)
    assert written.status == 0, written
    assert "2 classes, 48 training, 20 test images" in written.err
    assert "of 48 images that were opened" in written.err
    assert "distilkit train photos.toml" in written.out
    assert distilkit("train", "photos.toml", "--dry-run").status == 0
    trained = distilkit("train", "photos.toml", "--set", "tracking.name=none", "--json")
    assert trained.status == 0, trained
    assert trained.json["epochs"] == 1
    # Two colours: a network that learned nothing of them would be wrong half of the time.
    assert trained.json["errors"]["gated"]["top1"] <= 50


def test_every_line_of_a_recipe_has_a_comment_in_front(image_folder: Path, here: Path, distilkit: Command) -> None:
    assert distilkit("init", image_folder, "-o", "a.toml", "--teacher", "runs/x", "--validation", 0.25).status == 0
    lines = (here / "a.toml").read_text().splitlines()
    settings = [place for place, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert len(settings) >= 18
    for place in settings:
        assert lines[place - 1].startswith("# "), lines[place]
    assert all(len(line) <= 100 for line in lines if line.startswith("#"))
    recipe = load("a.toml")
    assert recipe.data.validation == 0.25
    assert recipe.teacher
    assert recipe.teacher.run == "runs/x"


def test_json_says_what_was_found_and_chosen(image_folder: Path, distilkit: Command) -> None:
    result = distilkit("init", image_folder, "--output", "a.toml", "--method", "dml", "--json")
    assert result.err == ""
    document = result.json
    assert document["found"]["classes"] == 2
    assert (document["found"]["train_images"], document["found"]["test_images"]) == (48, 20)
    assert document["found"]["sizes"]["opened"] == 48
    settings = document["settings"]
    recipe = load("a.toml").settings()
    assert {key: recipe[key] for key in settings} == settings
    assert settings["method.name"] == "dml"
    assert document["built"] is True


@pytest.mark.parametrize("method", [name for name in methods.names() if name != "kd"])
def test_every_method_can_be_chosen(method: str, image_folder: Path, here: Path, distilkit: Command) -> None:
    assert distilkit("init", image_folder, "-o", "a.toml", "--method", method, "--architecture", "resnet8").status == 0
    assert load("a.toml").method.name == method
    assert f"{method}: " in (here / "a.toml").read_text().replace("\n# ", " ")


# What a folder is


def test_grey_images_are_read_as_grey_and_val_is_as_good_as_test(here: Path, distilkit: Command) -> None:
    class_folders(here / "g" / "train", mode="L")
    class_folders(here / "g" / "val", mode="L")
    document = distilkit("init", "g", "--architecture", "resnet8", "--json").json
    assert document["recipe"] == "g.toml"
    assert document["settings"]["data.channels"] == 1
    assert document["settings"]["data.root"] == "g"


def test_arrays_are_known_by_their_file_or_their_folder(here: Path, distilkit: Command) -> None:
    images, labels = np.zeros((20, 10, 12, 3), np.uint8), np.arange(20) % 2
    (here / "d").mkdir()
    np.savez(here / "d" / "a.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    for folder in ("d", "d/a.npz"):
        document = distilkit(
            "init", folder, "--output", "n.toml", "--architecture", "resnet8", "--force", "--json"
        ).json
        assert document["found"]["dataset"] == "npz"
        # They are no squares: the recipe has to say a size.
        assert document["settings"]["data.image_size"] == 10
    assert distilkit("init", "d/a.npz", "--channels", 1).status == 2


def test_published_files_are_known_by_their_names(here: Path, distilkit: Command) -> None:
    (here / "data").mkdir()
    (here / "data" / "cifar-100-python.tar.gz").touch()
    result = distilkit("init", "data")
    assert result.status == 0
    assert "distilkit recipes --dataset cifar100" in result.err
    recipe = load("data.toml")
    assert (recipe.data.dataset, recipe.data.root, recipe.data.image_size) == ("cifar100", "data", None)
    assert distilkit("init", "data", "--size", 64, "--force").status == 2


def test_imagenets_layout_is_known_by_its_folders(here: Path, distilkit: Command) -> None:
    for part in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            picture(here / "i" / part / name / "a.JPEG", 80, 60)
    document = distilkit("init", "i", "--json", "--batch-size", 2).json
    assert document["found"]["dataset"] == "imagenet"
    assert document["settings"]["data.image_size"] == 224
    assert document["settings"]["model.architecture"] == "resnet18"


def test_class_folders_are_divided_alike_every_time_without_taking_room(here: Path, distilkit: Command) -> None:
    class_folders(here / "f", 10)
    picture(here / "f" / "cat" / "deeper" / "0.png")
    picture(here / "f" / "loose.png")
    refused = distilkit("init", "f")
    assert refused.status == 2
    assert "--split 0.2" in refused.err

    document = distilkit("init", "f", "--split", 0.3, "--architecture", "resnet8", "--json").json
    assert document["settings"]["data.root"] == "f-split"
    assert (document["found"]["train_images"], document["found"]["test_images"]) == (15, 6)
    names = {p.relative_to("f-split") for p in Path("f-split").rglob("*.png")}
    originals = {p.relative_to("f") for p in Path("f").rglob("*/*.png")}
    assert {Path(*name.parts[1:]) for name in names} == originals
    assert next(Path("f-split").rglob("cat/deeper/0.png")).samefile("f/cat/deeper/0.png")

    again = distilkit("init", "f", "--split", 0.3, "--output", "b.toml")
    assert again.status == 2
    assert "f-split is there already" in again.err
    assert distilkit("init", "f", "--yes", "--split", 0.3, "--split-into", "g", "--force").status == 0
    assert {p.relative_to("g") for p in Path("g").rglob("*.png")} == names


def test_a_class_of_two_has_one_to_train_and_one_to_test_on(here: Path) -> None:
    undivided = workflow.look(class_folders(here / "f", 2))
    for share in (0.01, 0.99):
        shutil.rmtree(here / "g", ignore_errors=True)
        divided = workflow.divide(undivided, share, here / "g")
        assert (divided.train, divided.test) == (2, 2)


def test_train_alone_is_divided_and_the_folder_itself_can_be_this_one(
    here: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(here / "f" / "train", 4)
    monkeypatch.chdir(here / "f" / "train")
    assert distilkit("init", "--yes", "--output", here / "t.toml", "--architecture", "resnet8").status == 0
    assert load(here / "t.toml").data.root == "../train-split"
    assert {folder.name for folder in (here / "f" / "train-split").iterdir()} == {"train", "test"}


def test_without_links_the_images_are_copied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(Path, "symlink_to", refused)
    divided = workflow.divide(workflow.look(class_folders(here / "f", 3)), 0.3, here / "g")
    assert (divided.train, divided.test) == (4, 2)


# What is wrong


def _empty(folder: Path) -> None:
    folder.mkdir()


def _no_images(folder: Path) -> None:
    (folder / "train" / "cat").mkdir(parents=True)
    (folder / "readme.txt").touch()


def _one_class(folder: Path) -> None:
    picture(folder / "cat" / "a.png")
    picture(folder / "cat" / "b.png")


def _loose(folder: Path) -> None:
    picture(folder / "a.png")


def _nested(folder: Path) -> None:
    class_folders(folder / "inner" / "train")
    class_folders(folder / "inner" / "test")


def _nested_classes(folder: Path) -> None:
    class_folders(folder / "data" / "my images")


def _capitals(folder: Path) -> None:
    class_folders(folder / "Train")
    class_folders(folder / "Validation")


def _lonely(folder: Path) -> None:
    class_folders(folder)
    picture(folder / "fish" / "a.png")


def _no_pictures_inside(folder: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(2):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{index}.png").write_text("no picture")


def _half_downloaded(folder: Path) -> None:
    (folder / "cifar-10-batches-py").mkdir(parents=True)


def _other_classes(folder: Path) -> None:
    class_folders(folder / "train")
    picture(folder / "test" / "cat" / "a.png")


WRONG = {
    "no folder": (lambda folder: None, "there is no folder"),
    "empty": (_empty, "is empty"),
    "no images": (_no_images, "no images"),
    "one class": (_one_class, "one class only"),
    "images in no class folder": (_loose, "in no class folder"),
    "one folder further down": (_nested, "distilkit init f/inner"),
    "class folders further down": (_nested_classes, "distilkit init 'f/data/my images'"),
    "a division with capitals": (_capitals, "mv Train train, mv Validation val"),
    "a class of one image": (_lonely, "fish"),
    "files that are no pictures": (_no_pictures_inside, "can be read"),
    "half of a data set": (_half_downloaded, "cifar"),
    "classes that are not tested": (_other_classes, "no counterpart"),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_a_folder_that_nobody_can_train_on_is_refused_with_what_to_do(
    make: Callable[[Path], None], words: str, here: Path, distilkit: Command
) -> None:
    make(here / "f")
    result = distilkit("init", "f", "--yes", "--json")
    assert result.status == 2
    error = result.json["error"]
    assert words in error["message"] + (error["hint"] or "")
    assert error["hint"]
    assert not list(here.glob("*.toml"))
    assert not (here / "f-split").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--architecture", "resnet9"), "resnet8"),
        (("--architecture", "torchvision:resnet19"), "resnet1"),
        (("--method", "okdip"), "okddip"),
        (("--method", "kd"), "--teacher"),
        (("--students", 1, "--method", "okddip"), "--students"),
        (("--lr", "-1"), "--lr"),
        (("--validation", 1.5), "--validation"),
        (("--channels", 2), "--channels"),
        (("--architecture", "vgg16", "--size", 8), "--architecture"),
        (("--name", "a b"), "name"),
        (("--output", "a.yaml"), ".toml"),
        (("--output", "f"), ".toml"),
        (("--split", 0.5), "divided already"),
    ],
)
def test_a_choice_that_cannot_be_had_is_refused_by_its_option(
    options: tuple[object, ...], words: str, image_folder: Path, here: Path, distilkit: Command
) -> None:
    result = distilkit("init", image_folder, *options)
    assert result.status == 2, result
    assert words in result.err
    assert "hint:" in result.err
    assert not list(here.glob("*.toml"))


def test_nothing_is_overwritten_unless_forced(image_folder: Path, here: Path, distilkit: Command) -> None:
    (here / "a.toml").write_text("mine")
    refused = distilkit("init", image_folder, "--output", "a.toml")
    assert refused.status == 2
    assert "--force" in refused.err
    assert (here / "a.toml").read_text() == "mine"
    assert distilkit("init", image_folder, "--output", "a.toml", "--force", "--architecture", "resnet8").status == 0
    assert load("a.toml").name == "a"


def test_unreadable_and_empty_ones_are_told_of(here: Path, distilkit: Command) -> None:
    class_folders(here / "f" / "train")
    class_folders(here / "f" / "test")
    (here / "f" / "train" / "cat" / "broken.png").write_text("no picture")
    result = distilkit("init", "f", "--architecture", "resnet8")
    assert result.status == 0
    assert "1 of 11 opened images cannot be read" in result.err
    assert "broken.png" in result.err


@pytest.mark.parametrize("name", ['quo"te', "new\nline # x = 1", "größe \u4f60", "back\\slash"])
def test_whatever_a_folder_is_called_the_recipe_stays_a_recipe(name: str, here: Path, distilkit: Command) -> None:
    for part in ("train", "test"):
        picture(here / name / part / name / "a.png")
        picture(here / name / part / "b" / "a.png")
    assert distilkit("init", name, "--output", "x.toml", "--architecture", "resnet8").status == 0
    assert load("x.toml").data.root == name
    assert slug(name)
    tomllib.loads((here / "x.toml").read_text())


# What is chosen


def test_what_is_chosen_follows_the_images_and_the_machine() -> None:
    small, large = decide(found(600, 28), Wishes(), cuda=False), decide(found(40_000, 500), Wishes(), cuda=True)
    assert (small["data.image_size"], large["data.image_size"]) == (32, 224)
    assert (small["model.architecture"], large["model.architecture"]) == ("resnet20", "resnet18")
    assert (small["train.batch_size"], large["train.batch_size"]) == (16, 128)
    assert (small["data.augment"], large["data.augment"]) == ("crop-flip", "random-resized-crop")
    assert (small["data.validation"], large["data.validation"]) == (0, 0.1)
    assert small["optimizer.lr"] == pytest.approx(0.1 * 16 / 128)
    # A CPU would train for weeks on such images.
    assert decide(found(40_000, 500), Wishes(), cuda=False)["data.image_size"] == 64
    assert decide(found(10_000, 60), Wishes(), cuda=False)["data.image_size"] == 64
    assert decide(found(10_000, 50), Wishes(), cuda=False)["data.image_size"] == 48
    assert decide(found(7, 28), Wishes(), cuda=False)["train.batch_size"] == 7


def test_no_more_than_a_sample_is_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(here / "f", 30)
    monkeypatch.setattr(workflow, "OPENED", 7)
    sizes = workflow.look(here / "f").sizes
    assert sizes
    assert sizes.opened == 7


# A terminal


def test_a_person_is_asked_what_is_not_said(here: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts on stderr; Enter takes what is proposed, and what cannot be had is asked again."""
    class_folders(here / "f", 6)
    answers = ["0.5", "okdip", "dml", "", "resnet9", "resnet8", "3", ""]
    monkeypatch.setattr(command, "_somebody_is_there", lambda json_output: not json_output)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))
    result = distilkit("init", "f", "--students", 2)
    assert result.status == 0, result
    recipe = load("f.toml")
    assert (recipe.method.name, recipe.model.architecture, recipe.train.epochs) == ("dml", "resnet8", 3)
    assert (recipe.group.count, recipe.data.root, recipe.data.image_size) == (2, "f-split", 32)
    assert len(list(Path("f-split/test").rglob("*.png"))) == 6
    for question in (
        "share of every class",
        "method",
        "pixels to a side",
        "architecture",
        "epochs",
        "images in a step",
    ):
        assert question in result.err + result.out
    assert "resnet8" in result.err.partition("architecture")[2]


def test_nobody_is_asked_in_a_script(image_folder: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert distilkit("init", image_folder, "--output", "a.toml", "--architecture", "resnet8").status == 0
