"""`distilkit init`: a recipe for the user's own images, from what their folder shows.

`look` finds out what a folder is, `decide` chooses what the user has not, `divide` parts class folders into training
and test images where nobody has, and `write` leaves the recipe, which has been read back and built by then.
"""

import hashlib
import os
import re
import shlex
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from distilkit import methods
from distilkit.data import datasets, npz
from distilkit.data.base import DataSpec
from distilkit.data.decoding import default_workers
from distilkit.data.image_folder import find_images
from distilkit.data.listing import TEST_FOLDERS, TRAIN_FOLDERS, VALIDATION_FOLDERS, divided, named_by_ending
from distilkit.data.pictures import evenly
from distilkit.data.pixels import FORMATS, UNREADABLE, is_left_behind, open_image
from distilkit.data.storage import choose, pixel_bytes
from distilkit.errors import Fault, SettingError, UserError, did_you_mean
from distilkit.hardware import processes_here
from distilkit.learners.build import build_learner
from distilkit.models import own, registry
from distilkit.recipe import key_of, load
from distilkit.workflows.project import recipe_text

_DEEPEST = 10  # folders in folders that are looked into

OPENED = 200
"""Of a folder's images so many are opened to see their size, evenly spread."""

SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
MOST_ON_CPU = 64
"""Pixels to a side beyond which a CPU would train for weeks."""

SMALL_SIDE = 64
"""Up to this size the architectures made for 32 x 32 pixels suit; beyond, those made for 224 x 224."""

SHARE = 0.2
"""Of the images of class folders that nobody has divided, what is put aside for testing."""

_TRAIN_ALIKE = ("train", "training", "trn")
_VAL_ALIKE = ("val", "valid", "validation", "dev")
_TEST_ALIKE = ("test", "testing", "eval", *_VAL_ALIKE)
_WORDNET = re.compile(r"n\d{8}")
_ARCHIVES = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz"),
    "svhn": ("train_32x32.mat",),
    "imagenet": ("ILSVRC2012_img_train.tar",),
}
_LAYOUT = (
    "images go into FOLDER/train/<class>/ and FOLDER/test/<class>/, or into FOLDER/<class>/, to be divided; .npz "
    "files, CIFAR, SVHN and ImageNet are known too"
)


@dataclass(frozen=True)
class Sizes:
    """What opening some of the images showed: how many, how many could not be read, their sides in pixels.

    `short`, `long`: the medians of the shorter and the longer side. `smallest`: the smallest side of all. `grey`:
    whether no opened image has colours.
    """

    opened: int
    unreadable: tuple[str, ...]
    short: int
    long: int
    smallest: int
    grey: bool


@dataclass(frozen=True)
class Found:
    """What a folder is.

    `dataset`: as a recipe spells it. `root`: what its `data.root` is to be. `train`, `test`: numbers of images; `test`
    is 0 where class folders are `undivided`, whose files `files` lists by class. `side`: pixels to a side where the
    data set has a size of its own. `sizes`: None where no image was opened.
    """

    dataset: str
    root: Path
    classes: tuple[str, ...]
    train: int
    test: int
    side: int | None = None
    sizes: Sizes | None = None
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    has_validation: bool = False

    @property
    def undivided(self) -> bool:
        """Whether the images have yet to be divided into those to train and those to test on."""
        return bool(self.files)

    def described(self) -> dict[str, Any]:
        """What a document says of it."""
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "classes": len(self.classes),
            "class_names": list(self.classes[:100]),
            "train_images": self.train,
            "test_images": self.test,
            "divided": not self.undivided,
            "sizes": asdict(self.sizes) if self.sizes else None,
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True)
class Wishes:
    """What the user has chosen; None leaves it to `decide`."""

    name: str | None = None
    architecture: str | None = None
    method: str | None = None
    students: int | None = None
    image_size: int | None = None
    channels: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    lr: float | None = None
    augment: str | None = None
    validation: float | None = None
    teacher: str | None = None


# ------------------------------------------------------------------------------------------------------------- looking


def look(folder: Path) -> Found:
    """Find out what a folder, or a file, is. Raises `UserError` where it is nothing to train on, and says why."""
    folder = folder.expanduser()
    if folder.is_file():
        if folder.suffix == ".npz":
            return _arrays(folder)
        raise UserError(f"{folder} is a file, and no .npz", f"name the folder that the images are in: {_LAYOUT}")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", did_you_mean(folder.name, _beside(folder)) or _LAYOUT)
    if published := _published(folder):
        return published
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if not entries:
        raise UserError(f"{folder} is empty", _LAYOUT)
    if any((folder / name).is_dir() for name in TRAIN_FOLDERS):
        if any((folder / name).is_dir() for name in (*TEST_FOLDERS, *VALIDATION_FOLDERS)):
            return _folders(folder)
        _refuse_other_names(folder, entries)
        return _class_folders(folder / "train")
    _refuse_other_names(folder, entries)
    if any(name.endswith(".npz") for name in entries):
        return _arrays(folder)
    return _class_folders(folder)


def _refuse_other_names(folder: Path, entries: Sequence[str]) -> None:
    """Raise `UserError` where folders that seem to hold a division would be taken for classes, or for nothing."""
    folders = [name for name in entries if (folder / name).is_dir()]
    train = next((name for name in folders if name.lower() in _TRAIN_ALIKE), None)
    test = next((name for name in folders if name.lower() in _TEST_ALIKE), None)
    if train is None or test is None:
        return
    right = {train: "train", test: "val" if test.lower() in _VAL_ALIKE else "test"}
    known = (*TRAIN_FOLDERS, *TEST_FOLDERS, *VALIDATION_FOLDERS)
    moves = [f"mv {name} {to}" for name, to in right.items() if name not in known]
    raise UserError(
        f"{folder} has {train} and {test}; training images are looked for in train, test images in test or val",
        f"give the folders those names: {', '.join(moves)}",
    )


def _published(folder: Path) -> Found | None:
    """A data set whose files have published names, in `folder` or as `folder` itself; None where there is none."""
    for name, files in _ARCHIVES.items():
        root = next((root for root in (folder, folder.parent) if any((root / file).exists() for file in files)), None)
        if root is None or (root != folder and folder.name not in files):
            continue
        spec = datasets.spec(name, root)
        there, where = datasets.presence(name, root, download=False)
        if not there:
            raise UserError(f"the files of {name} in {root} are not complete", where)
        return Found(name, root, spec.classes, spec.train_images or 0, spec.test_images or 0, spec.size)
    return None


def _arrays(root: Path) -> Found:
    height, width = npz.image_shape(root)
    side = min(height, width)
    spec = datasets.spec("npz", root, side)
    opened = (spec.train_images or 0) + (spec.test_images or 0)
    sizes = Sizes(opened, (), side, max(height, width), side, spec.channels == 1)
    remarks = datasets.remarks(datasets.balances("npz", root, spec.classes))
    known = (spec.classes, spec.train_images or 0, spec.test_images or 0)
    return Found("npz", root, *known, side if height == width else None, sizes, remarks=tuple(remarks))


def _folders(root: Path) -> Found:
    layout = find_images(root)
    is_imagenet = layout.folders["test"].name == "val" and all(_WORDNET.fullmatch(name) for name in layout.classes)
    name = "imagenet" if is_imagenet else "image-folder"
    paths = [path for path, _ in layout.samples["train"]]
    sizes = measured(paths)
    balance = {part: datasets.balance(layout.labels(part), layout.classes) for part in layout.samples}
    counts = (len(paths), len(layout.samples["test"]))
    remarks = (*_unreadable(sizes), *datasets.notes("image-folder", root), *datasets.remarks(balance))
    if "validation" in layout.samples:
        held = (
            f"{len(layout.samples['validation']):,} validation images are those in {layout.folders['validation'].name}"
        )
        remarks = (held, *remarks)
    known = "validation" in layout.samples
    return Found(name, root, layout.classes, *counts, None, sizes, remarks=remarks, has_validation=known)


def _class_folders(folder: Path) -> Found:
    """A folder of class folders that nobody has divided into images to train and to test on."""
    files: dict[str, list[str]] = {}
    loose, passed_over = 0, []
    for place, inside, names in os.walk(folder, followlinks=True):
        inside[:] = sorted(name for name in inside if not is_left_behind(name))
        parts = Path(place).relative_to(folder).parts
        pictures, others = divided(place, names)
        images = [Path(picture).name for picture in pictures]
        passed_over += others
        if parts:
            files.setdefault(parts[0], []).extend(str(Path(*parts[1:], name)) for name in images)
        else:
            loose = len(images)
    filled = {name: found for name, found in sorted(files.items()) if found}
    if not filled:
        if loose:
            raise UserError(f"{loose} images lie in {folder} itself, in no class folder", _LAYOUT)
        raise UserError(f"there are no images in {folder}", _LAYOUT)
    if len(filled) == 1:
        (only,) = filled
        if inner := _further_down(folder / only):
            raise UserError(f"the images are further down, in {inner}", f"distilkit init {shlex.quote(str(inner))}")
        raise UserError(f"{folder} has one class only, {only}; a classifier needs at least 2", _LAYOUT)
    if few := [name for name, found in filled.items() if len(found) < 2]:
        raise UserError(
            f"{', '.join(few[:5])} in {folder}: one image only, where one is needed to train and one to test on",
            "add images, or take the folder away",
        )
    sizes = measured([str(folder / name / path) for name, found in filled.items() for path in found])
    remarks = [*_unreadable(sizes), *named_by_ending(passed_over)]
    if loose:
        remarks.append(f"warning: {loose} images lie in {folder} itself, in no class folder, and are left out")
    if empty := sorted(set(files) - set(filled)):
        remarks.append(f"warning: no images in {', '.join(empty[:5])}: no class is made of such a folder")
    count = sum(map(len, filled.values()))
    return Found("image-folder", folder, tuple(filled), count, 0, None, sizes, filled, tuple(remarks))


def _further_down(folder: Path) -> Path | None:
    """Below folders that hold one folder each: the first that holds several, or a division; None where images come."""
    for _ in range(_DEEPEST):
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        folders = [entry for entry in entries if entry.is_dir()]
        if len(folders) > 1 or any(entry.name in ("train", *TEST_FOLDERS) for entry in folders):
            return folder
        if len(folders) != len(entries) or not folders:
            break
        (folder,) = folders
    return None


def measured(paths: Sequence[str]) -> Sizes:
    """Open up to `OPENED` images, evenly spread, as far as their heads. Raises `UserError` where none can be read."""
    shorts, longs, unreadable, grey = [], [], [], True
    chosen = evenly(len(paths), OPENED)
    for place in chosen:
        try:
            with open_image(paths[place]) as image:
                width, height = image.size
                grey = grey and image.mode in ("1", "L", "LA", "I", "I;16", "F")
        except UNREADABLE:
            unreadable.append(paths[place])
            continue
        shorts.append(min(width, height))
        longs.append(max(width, height))
    if not shorts:
        raise UserError(
            f"none of {len(chosen)} image files can be read, the first is {paths[chosen[0]]}",
            f"are they images? read are: {', '.join(FORMATS.values())}",
        )
    middle = (round(statistics.median(shorts)), round(statistics.median(longs)))
    return Sizes(len(chosen), tuple(unreadable), *middle, min(shorts), grey)


def _unreadable(sizes: Sizes) -> tuple[str, ...]:
    count = len(sizes.unreadable)
    if not count:
        return ()
    named = ", ".join(sizes.unreadable[:3])
    return (
        f"warning: {count} of {sizes.opened} opened images cannot be read, and training will stop at them: {named}",
    )


def _beside(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------------------ deciding


def decide(found: Found, wishes: Wishes, *, cuda: bool | None = None) -> dict[str, Any]:
    """Choose what the user has not: every key that the recipe will have, dotted.

    `cuda`: whether there is such a device; None looks. Raises `UserError` for a wish that cannot be had.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    method = wishes.method or "one"
    if method not in methods.names():
        allowed = methods.names()
        raise UserError(f"there is no method {method!r}; there are {', '.join(allowed)}", did_you_mean(method, allowed))
    if methods.options_model(method).needs_teacher and wishes.teacher is None:
        raise UserError(
            f"method {method!r} needs a teacher", "--teacher RUN names a trained one, or choose --method one"
        )
    _check_fixed(found, wishes)
    size = wishes.image_size or _size(found, cuda)
    side = size or found.side or SIDES[0]
    architecture = wishes.architecture or _architecture(found, side)
    try:
        registry.check(architecture)
    except SettingError as error:
        raise UserError(error.problem, error.hint or "distilkit models lists them") from error
    batch = wishes.batch_size or _batch_size(found, side)
    chosen: dict[str, Any] = {"data.dataset": found.dataset, "data.root": found.root.as_posix()}
    if size is not None:
        chosen["data.image_size"] = size
    if found.dataset == "image-folder":
        chosen["data.channels"] = wishes.channels or (1 if found.sizes and found.sizes.grey else 3)
    small = side <= SMALL_SIDE
    chosen |= {
        "data.augment": wishes.augment or ("crop-flip" if small else "random-resized-crop"),
        "data.validation": _validation(found) if wishes.validation is None else _amount(wishes.validation),
        "model.architecture": architecture,
        "group.students": wishes.students or methods.options_model(method).default_students,
        "method.name": method,
        "train.epochs": wishes.epochs or _epochs(found, cuda),
        "train.batch_size": batch,
        "train.precision": "auto",
        "optimizer.name": "sgd",
        # Linear in the batch, as Goyal et al. 2017 have it; at least a step that moves.
        "optimizer.lr": wishes.lr or max(0.005, round(0.1 * batch / (128 if small else 256), 4)),
        "optimizer.weight_decay": 5e-4 if small else 1e-4,
        "schedule.name": "cosine",
        "schedule.warmup_epochs": 0.05,
    }
    if wishes.teacher is not None:
        chosen["teacher.run"] = wishes.teacher
    return chosen


def _check_fixed(found: Found, wishes: Wishes) -> None:
    """Refuse a size or colours for a data set that has its own."""
    traits = datasets.traits(found.dataset)
    for option, wish, open_ in (
        ("--size", wishes.image_size, traits.image_size),
        ("--channels", wishes.channels, traits.channels),
    ):
        if wish is not None and not open_:
            raise UserError(f"{option} cannot be chosen for {found.dataset}", f"leave {option} out")


def _size(found: Found, cuda: bool) -> int | None:
    """Pixels to a side: what most images have, as far as this machine can train it; None where the data set knows."""
    if found.dataset == "imagenet":
        return datasets.traits("imagenet").default_size
    if found.side is not None or found.sizes is None:
        return None
    if found.dataset == "npz":
        return found.sizes.short
    most = SIDES[-1] if cuda else MOST_ON_CPU
    # An image a little smaller than the square is enlarged a little.
    return max([side for side in SIDES if side <= min(most, 1.15 * found.sizes.short)], default=SIDES[0])


def _architecture(found: Found, side: int) -> str:
    if side > SMALL_SIDE:
        return "resnet18"
    return "resnet20" if found.train < 5_000 else "resnet32"


def _batch_size(found: Found, side: int) -> int:
    """A power of two with which an epoch has some twenty steps; at most 128, or 256 of large images in large sets."""
    most = 256 if side > SMALL_SIDE and found.train > 100_000 else 128
    size = 16
    while size < most and 2 * size * 20 <= found.train:
        size *= 2
    return max(2, min(size, found.train))


def _epochs(found: Found, cuda: bool) -> int:
    if found.train > 500_000:
        return 90
    return 200 if found.train <= 10_000 or (cuda and found.train <= 100_000) else 100


def _amount(validation: float) -> int | float:
    """A recipe counts images with a whole number, and takes a fraction for a share."""
    return int(validation) if validation.is_integer() else validation


def _validation(found: Found) -> float:
    """A tenth of a user's own images, where that leaves enough; published sets are trained whole, as in the papers."""
    if found.has_validation:
        return 0
    return 0.1 if found.dataset in ("image-folder", "npz") and found.train >= 2_000 else 0


# ------------------------------------------------------------------------------------------------------------ dividing


def split_folder(root: Path) -> Path:
    """Where divided images go unless the user says otherwise: beside the folder that they are in."""
    name = f"{root.expanduser().resolve().name}-split"
    # What lies in the folder itself would be taken for a class of it.
    return root.with_name(name) if root.name else Path("..") / name


def divide(found: Found, share: float, target: Path, seed: int = 0) -> Found:
    """Put `share` of every class's images into `target`/test, the others into `target`/train, as links to the files.

    Which ones follows from (seed, class, file name) alone, so that a second call divides alike. Hard links take no
    room; where the file system has none they are symbolic links, or else copies. Raises `UserError` where `target` is
    there already or cannot be written.
    """
    if not 0 < share < 1:
        raise UserError(f"--split must be a share between 0 and 1, not {share:g}", f"--split {SHARE}")
    if target.exists():
        raise UserError(f"{target} is there already", "name another folder with --split-into, or train on that one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}-", dir=target.parent))
        try:
            for name, paths in found.files.items():
                order = sorted(paths, key=lambda path: _drawn(seed, name, path))
                tests = min(len(order) - 1, max(1, round(share * len(order))))
                for place, path in enumerate(order):
                    into = partial / ("test" if place < tests else "train") / name / path
                    into.parent.mkdir(parents=True, exist_ok=True)
                    _link(found.root / name / path, into)
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the images cannot be divided into {target}: {error.strerror or error}", "--split-into FOLDER elsewhere"
        ) from error
    return _folders(target)


def _drawn(seed: int, name: str, path: str) -> bytes:
    return hashlib.blake2b(f"{seed}/split/{name}/{path}".encode(errors="surrogateescape"), digest_size=8).digest()


def _link(file: Path, link: Path) -> None:
    file = file.resolve()
    try:
        os.link(file, link)
    except OSError:
        try:
            link.symlink_to(file)
        except (OSError, NotImplementedError):
            shutil.copyfile(file, link)


# ------------------------------------------------------------------------------------------------------------- writing


_OPTIONS = {
    "name": "--name",
    "data.image_size": "--size",
    "data.channels": "--channels",
    "data.augment": "--augment",
    "data.validation": "--validation",
    "model.architecture": "--architecture",
    "group.students": "--students",
    "method.name": "--method",
    "teacher.run": "--teacher",
    "train.epochs": "--epochs",
    "train.batch_size": "--batch-size",
    "optimizer.lr": "--lr",
}


def write(found: Found, chosen: Mapping[str, Any], output: Path, *, name: str | None, force: bool) -> dict[str, Any]:
    """Write the commented recipe, after it has been read back and its network has been built.

    Returns what was found and chosen. Raises `UserError` for choices that do not go together, each named by its option,
    and for a file that is there already.
    """
    check_output(output, force)
    name = recipe_text.slug(output.stem) if name is None else name
    for what, value in (("name", name), *chosen.items()):
        if isinstance(value, str) and not _is_text(value):
            raise UserError(f"{what} is not text that a recipe can hold: {value!r}", "it has to be valid UTF-8")
    root = found.root.expanduser()
    spec = _spec(found, chosen, root)
    settings = {"name": name, **chosen, **_storage(spec, str(chosen["data.augment"]))}
    text = recipe_text.recipe_text(settings, _facts(found, spec, settings))
    built = _checked(text, spec, output.name, str(chosen["model.architecture"]))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}", "--output another.toml") from error
    return {
        "recipe": str(output),
        "name": name,
        "found": found.described(),
        "settings": settings,
        "storage_bytes": pixel_bytes(spec, str(chosen["data.augment"]))[0],
        "built": built,
        "remarks": list(found.remarks),
    }


def check_output(output: Path, force: bool) -> None:
    """Raise `UserError` where the recipe cannot become this file."""
    if output.suffix != ".toml":
        raise UserError(f"{str(output)!r} does not end in .toml, as a recipe does", "--output photos.toml")
    if output.is_dir() or (output.exists() and not force):
        hint = "name another --output" if output.is_dir() else "--force overwrites it, --output names another"
        raise UserError(f"{output} is there already", hint)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _spec(found: Found, chosen: Mapping[str, Any], root: Path) -> DataSpec:
    try:
        return datasets.spec(found.dataset, root, chosen.get("data.image_size"), chosen.get("data.channels"))
    except SettingError as error:
        key = key_of(error.setting)
        raise UserError(f"{_OPTIONS.get(key, key)}: {error.problem}", error.hint) from error


def _storage(spec: DataSpec, augment: str) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    storage, _ = choose("auto", spec, augment, device, processes_here())
    files = spec.name in ("image-folder", "imagenet")
    return {"data.storage": storage, **({"data.workers": default_workers()} if storage == "stream" and files else {})}


def _facts(found: Found, spec: DataSpec, settings: Mapping[str, Any]) -> recipe_text.Facts:
    sizes = found.sizes
    opened = "" if sizes is None or found.dataset == "npz" else f"of {sizes.opened:,} that were opened "
    pixels = "" if sizes is None else f"{opened}the sides are {sizes.short} and {sizes.long} pixels in the middle"
    gigabytes = pixel_bytes(spec, str(settings["data.augment"]))[0] / 1e9
    return recipe_text.Facts(
        tuple(found.classes), found.train, found.test, pixels, f"{gigabytes:.2f} GB", spec.size, found.sizes is not None
    )


def _checked(text: str, spec: DataSpec, file_name: str, architecture: str) -> bool:
    """Read the recipe as `train` would and build its network; False where that would execute the user's code."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(text, encoding="utf-8")
        try:
            recipe = load(file)
            if own.is_own(architecture):
                return False
            build_learner(recipe, spec)
        except UserError as error:
            faults = [
                Fault(_OPTIONS.get(each.key, file_name), each.key, each.problem, each.hint) for each in error.faults
            ]
            if not faults:
                raise
            hint = "distilkit init --help says what each option takes"
            raise UserError("what was chosen does not make a recipe", hint, faults) from error
    return True
