"""ImageNet: folders as they are, and small archives in the real formats, unpacked by torchvision."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import imagenet

from distilkit.data import datasets
from distilkit.data.imagenet import MEAN, STD
from distilkit.errors import UserError

WNIDS = ("n02012849", "n02084071", "n03126707")
NAMES = ("crane", "dog, domestic dog, Canis familiaris", "crane")
CLASSES = ("crane (n02012849)", "dog, domestic dog, Canis familiaris", "crane (n03126707)")


def jpeg(seed: int) -> bytes:
    packed = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(20 + seed % 5, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(packed, "JPEG")
    return packed.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def put(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three archives: one tar per class inside of a tar, flat validation images, and the development kit."""
    train = {
        f"{wnid}.tar": tar({f"{wnid}_{number}.JPEG": jpeg(10 * label + number) for number in range(3)})
        for label, wnid in enumerate(WNIDS)
    }
    val = {f"ILSVRC2012_val_{number + 1:08d}.JPEG": jpeg(100 + number) for number in range(6)}
    # Of the kit's synsets only those without children are classes; its ids count from 1, in an order of their own.
    synsets = np.array(
        [
            (3, WNIDS[0], NAMES[0], "a bird", 0, [], 0, 1300),
            (1, WNIDS[1], NAMES[1], "a dog", 0, [], 0, 1300),
            (2, WNIDS[2], NAMES[2], "a machine", 0, [], 0, 1300),
            (4, "n00001740", "entity", "all", 2, [1, 2], 1, 0),
        ],
        dtype=[
            ("ILSVRC2012_ID", "O"),
            ("WNID", "O"),
            ("words", "O"),
            ("gloss", "O"),
            ("num_children", "O"),
            ("children", "O"),
            ("wordnet_height", "O"),
            ("num_train_images", "O"),
        ],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    kit = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number}\n" for number in (3, 1, 2, 3, 1, 2))
    devkit = {f"{kit}/meta.mat": meta.getvalue(), f"{kit}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    expected = {}
    for kind, content in (("train", tar(train)), ("val", tar(val)), ("devkit", tar(devkit, "w:gz"))):
        name = imagenet.ARCHIVE_META[kind][0]
        (folder / name).write_bytes(content)
        expected[kind] = (name, hashlib.md5(content, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(imagenet, "ARCHIVE_META", expected)


def load(root: Path, **options) -> datasets.ImageData:
    return datasets.load("imagenet", root, **{"download": True, "image_size": 14, **options})


# torchvision unpacks without naming a filter in some releases.
unpacking = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")


def test_the_published_set_is_described_before_it_is_there(tmp_path: Path) -> None:
    spec = datasets.spec("imagenet", tmp_path)
    assert (spec.size, spec.channels, spec.default_augment) == (224, 3, "random-resized-crop")
    assert (spec.train_images, spec.test_images) == (1_281_167, 50_000)
    assert len(set(spec.classes)) == 1000
    assert spec.classes[0] == "tench"
    assert (spec.mean, spec.std) == (MEAN, STD)
    there, line = datasets.presence("imagenet", tmp_path, download=True)
    assert not there
    assert "cannot be downloaded" in line
    with pytest.raises(UserError, match="there is neither a folder") as caught:
        load(tmp_path)
    assert "ILSVRC2012_img_train.tar" in str(caught.value.hint)


@unpacking
@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_archives_are_unpacked_once_and_name_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    put(tmp_path, monkeypatch)
    there, line = datasets.presence("imagenet", tmp_path, download=False)
    assert there
    assert "to be unpacked" in line
    data = load(tmp_path, storage=storage, workers=0)
    assert data.spec.classes == CLASSES
    assert data.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # The ground truth in the kit's numbers: 3 is the bird, 1 the dog, 2 the machine.
    assert data.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(path.name for path in (tmp_path / "val" / WNIDS[1]).iterdir()) == [
        "ILSVRC2012_val_00000002.JPEG",
        "ILSVRC2012_val_00000005.JPEG",
    ]
    for name in [each[0] for each in imagenet.ARCHIVE_META.values()]:
        (tmp_path / name).unlink()
    again = load(tmp_path, storage=storage, workers=0)
    assert again.fingerprints == data.fingerprints
    assert again.spec == data.spec
    assert torch.equal(again.splits["test"].images[:], data.splits["test"].images[:])


@unpacking
def test_an_unpacking_that_was_cut_off_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, monkeypatch)
    (tmp_path / ".partial-train" / WNIDS[0]).mkdir(parents=True)
    (tmp_path / ".partial-train" / WNIDS[0] / "half.JPEG").write_bytes(b"half")
    assert len(load(tmp_path, splits=("train",)).splits["train"].labels) == 9
    assert not list(tmp_path.glob(".partial*"))


@unpacking
def test_a_damaged_archive_and_a_missing_kit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, monkeypatch)
    kit, train = (tmp_path / imagenet.ARCHIVE_META[kind][0] for kind in ("devkit", "train"))
    train.write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be unpacked: The archive ILSVRC2012_img_train"):
        load(tmp_path)
    assert not (tmp_path / "train").exists()
    kit.unlink()
    (tmp_path / "meta.bin").unlink()
    with pytest.raises(UserError, match=r"there is no \S*devkit"):
        load(tmp_path)


def test_folders_alone_bear_their_ids(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label, wnid in enumerate(WNIDS[:2]):
            (tmp_path / part / wnid).mkdir(parents=True)
            (tmp_path / part / wnid / "one.JPEG").write_bytes(jpeg(label))
    (tmp_path / "test").mkdir()  # as published, without labels: nothing to be read
    data = load(tmp_path)
    assert data.spec.classes == WNIDS[:2]
    assert (data.spec.train_images, data.spec.test_images) == (2, 2)
    (tmp_path / "meta.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"meta\.bin cannot be read"):
        load(tmp_path)
