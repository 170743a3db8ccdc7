"""Every data set: what is known of it, what is read, and what is said when its files are not as they should be."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from distilkit.data import augment, datasets
from distilkit.data.decoding import Framing, decode
from distilkit.errors import SettingError, UserError

HERE = Path()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# ---------------------------------------------------------------------------------------------------- all data sets


def test_names_and_specs_import_neither_torchvision_nor_scikit_learn():
    program = (
        "import sys, pathlib\n"
        "from distilkit.data import datasets\n"
        "for name in ('cifar10', 'cifar100', 'digits', 'svhn'): datasets.spec(name, pathlib.Path())\n"
        "print(datasets.names(), [m for m in ('torchvision', 'sklearn') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "('cifar10', 'cifar100', 'digits', 'image-folder', 'imagenet', 'npz', 'svhn') []"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits"])
def test_a_spec_needs_no_files(name, tmp_path):
    spec = datasets.spec(name, tmp_path / "nowhere")
    assert spec.name == name
    assert len(spec.mean) == len(spec.std) == spec.channels
    assert len(set(spec.classes)) == len(spec.classes) == {"cifar100": 100}.get(name, 10)
    assert spec.default_augment in augment.names()


def test_an_unknown_data_set_is_a_setting_at_fault():
    with pytest.raises(SettingError, match="cifar10, cifar100, digits, image-folder") as caught:
        datasets.spec("cifar-100", HERE)
    assert caught.value.setting == "dataset"
    assert caught.value.hint == "did you mean 'cifar100'?"


@pytest.mark.parametrize(("name", "size"), [("digits", 8), ("cifar10", 32)])
def test_another_size_than_a_sets_own_is_a_setting_at_fault(name, size):
    assert datasets.spec(name, HERE, image_size=size).size == size
    with pytest.raises(SettingError, match=f"{size} x {size}") as caught:
        datasets.spec(name, HERE, image_size=64)
    assert caught.value.setting == "image_size"


def test_a_split_that_does_not_exist_is_our_own_fault():
    with pytest.raises(ValueError, match="val"):
        datasets.load("digits", HERE, download=False, splits=("val",))


# ----------------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_images_in_its_order():
    data = datasets.load("digits", HERE, download=False)
    bundled = load_digits()
    assert list(data.splits) == ["train", "test"]
    assert (len(data.splits["train"].labels), len(data.splits["test"].labels)) == (1297, 500)
    images = torch.cat([data.splits[split].images for split in ("train", "test")])
    labels = torch.cat([data.splits[split].labels for split in ("train", "test")])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert images.unique().numel() == 17
    assert np.array_equal(np.rint(images[:, 0].numpy() / 255 * 16), bundled.images)
    assert labels.tolist() == bundled.target.tolist()
    assert data.spec == datasets.spec("digits", HERE)


def test_the_constants_of_digits_are_those_of_its_training_images():
    data = datasets.load("digits", HERE, download=False, splits=("train",))
    pixels = data.splits["train"].images.double() / 255
    assert data.spec.mean == (round(pixels.mean().item(), 6),)
    assert data.spec.std == (round(pixels.std(correction=0).item(), 6),)
    assert data.spec.default_augment == "crop"


def test_digits_are_always_there():
    assert datasets.presence("digits", HERE, download=False) == (True, "embedded in scikit-learn")


# ------------------------------------------------------------------------------------------- how classes are filled


def test_classes_are_counted_and_what_is_notable_is_said():
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 19)
    counts = datasets.balance(labels, ("cat", "dog", "eel"))
    assert counts == {
        "smallest": {"class": "eel", "images": 19},
        "largest": {"class": "cat", "images": 30},
        "empty": [],
    }
    said = datasets.remarks({"train": counts, "test": counts})
    assert said == ["class imbalance: a class has from 19 (eel) to 30 (cat) train images"]
    assert datasets.remarks({"train": datasets.balance(labels[:50], ("cat", "dog"))}) == []
    lacking = datasets.balance(labels, ("cat", "dog", "eel", *"fghijk"))
    assert datasets.remarks({"test": lacking}) == ["warning: no test image of classes f, g, h, i, j and 1 more"]


def test_the_classes_of_a_folder_are_counted_without_decoding(folder):
    (folder / "train" / "cat" / "damaged.png").write_bytes(b"")
    found = datasets.balances("image-folder", folder, ("cat", "dog"))
    assert found["train"]["largest"] == {"class": "cat", "images": 4}
    assert found["test"]["smallest"]["images"] == 1
    assert datasets.balances("digits", folder, tuple("0123456789")) == {}


# ----------------------------------------------------------------------------------------- splits and fingerprints


@pytest.mark.parametrize("wanted", [("train",), ("validation",), ("test",), ("validation", "test"), ()])
def test_only_the_splits_asked_for_are_given(wanted):
    data = datasets.load("digits", HERE, download=False, validation=100, splits=wanted)
    assert tuple(data.splits) == tuple(data.fingerprints) == wanted


def test_images_lie_in_channels_last_memory():
    data = datasets.load("digits", HERE, download=False, validation=100)
    for split in data.splits.values():
        assert split.images.is_contiguous(memory_format=torch.channels_last)
        assert split.labels.dtype == torch.int64


def test_held_out_and_remaining_images_are_the_training_set_in_its_order():
    whole = datasets.load("digits", HERE, download=False).splits["train"]
    data = datasets.load("digits", HERE, download=False, validation=0.1, seed=3)
    mask = torch.from_numpy(datasets.held_out(whole.labels.numpy(), 0.1, 3))
    assert len(data.splits["validation"].labels) == 130
    for split, chosen in (("train", ~mask), ("validation", mask)):
        assert torch.equal(data.splits[split].images, whole.images[chosen])
        assert torch.equal(data.splits[split].labels, whole.labels[chosen])
    assert data.spec.mean == datasets.spec("digits", HERE).mean


def test_the_validation_split_depends_on_the_seed_alone():
    def fingerprints(seed, **options):
        return datasets.load("digits", HERE, download=False, validation=97, seed=seed, **options).fingerprints

    torch.manual_seed(5)
    assert fingerprints(0) == fingerprints(0)
    assert fingerprints(0)["validation"] == fingerprints(0, splits=("validation",))["validation"]
    assert fingerprints(0)["validation"] != fingerprints(1)["validation"]
    assert fingerprints(0)["test"] == fingerprints(1)["test"]


@given(
    labels=st.lists(st.integers(0, 5), min_size=3, max_size=200), share=st.floats(0, 1), seed=st.integers(0, 2**31 - 1)
)
def test_every_class_gives_its_share_of_the_validation_images(labels, share, seed):
    labels_N = np.array(labels)
    size = int(share * (len(labels) - 2))
    mask = datasets.held_out(labels_N, size, seed)
    assert mask.sum() == size
    for label in set(labels):
        count, taken = labels.count(label), mask[labels_N == label].sum()
        assert abs(taken - count * size / len(labels)) < 1
        if 2 * size <= len(labels) and count >= 2:
            assert taken < count


def test_every_image_is_held_out_equally_often():
    labels_N = np.array([0] * 12 + [1] * 7 + [2])
    counts = sum(datasets.held_out(labels_N, 5, seed).astype(int) for seed in range(2000))
    # 500 times each, give or take 19.
    assert counts.min() > 410
    assert counts.max() < 590


@pytest.mark.parametrize("validation", [1297, 1296, 5000, -1, 1.0, 2.5, -0.1, 0.9999, 0.0001])
def test_a_validation_split_that_makes_no_sense_is_a_setting_at_fault(validation):
    with pytest.raises(SettingError, match=str(validation)) as caught:
        datasets.load("digits", HERE, download=False, validation=validation)
    assert caught.value.setting == "validation"
    assert "1295" in caught.value.hint


def test_two_training_images_are_enough():
    assert len(datasets.load("digits", HERE, download=False, validation=1295).splits["train"].labels) == 2


def test_a_fingerprint_is_of_shape_classes_pixels_and_labels():
    data = datasets.load("digits", HERE, download=False)
    split = data.splits["test"]
    written_out = hashlib.sha256(json.dumps({"shape": [500, 1, 8, 8], "classes": list("0123456789")}).encode())
    written_out.update(np.rint(load_digits().images[1297:] * 255 / 16).astype(np.uint8).tobytes())
    written_out.update(load_digits().target[1297:].astype("<i8").tobytes())
    assert data.fingerprints["test"] == written_out.hexdigest()
    # Runs on other machines carry this very value.
    assert data.fingerprints["test"] == "a258fead880100d174cb0ee5d1b07d8df73a6b51654466f50c331b8c267e9285"

    labels = split.labels.clone()
    labels[0] += 1
    images = split.images.clone()
    images[499, 0, 7, 7] += 1
    changed = [
        datasets.fingerprint(split, data.spec.classes[::-1]),
        datasets.fingerprint(datasets.Split(split.images, labels), data.spec.classes),
        datasets.fingerprint(datasets.Split(images, split.labels), data.spec.classes),
        datasets.fingerprint(datasets.Split(split.images.view(500, 1, 4, 16), split.labels), data.spec.classes),
    ]
    assert len({data.fingerprints["test"], *changed}) == 5


def test_a_fingerprint_does_not_depend_on_the_memory_format():
    images = torch.randint(256, (5000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(5000, dtype=torch.int64)
    turned = images.contiguous(memory_format=torch.channels_last)
    assert datasets.fingerprint(datasets.Split(images, labels), "ab") == datasets.fingerprint(
        datasets.Split(turned, labels), "ab"
    )


# ------------------------------------------------------------------------------------------------------------ CIFAR


class OldDtype:
    """Warns while it is unpickled, as the published files do under NumPy 2.4.0 to 2.4.4."""

    def __reduce__(self):
        return warnings.warn, ("align=0", np.exceptions.VisibleDeprecationWarning)


class CifarFiles:
    """Small files in the published format, whose checksums torchvision's class is made to expect."""

    def __init__(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.root = name, root
        self.torchvision = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
        draws = np.random.default_rng(0)
        key = "labels" if name == "cifar10" else "fine_labels"
        self.contents: dict[str, bytes] = {}
        self.images: dict[str, np.ndarray] = {}
        self.labels: dict[str, list[int]] = {}
        for kind in ("train", "test"):
            files = []
            for file, _ in getattr(self.torchvision, f"{kind}_list"):
                planes = draws.integers(256, size=(6, 3072), dtype=np.uint8)
                labels = draws.integers(10, size=6).tolist()
                self.images[kind] = np.concatenate([self.images.get(kind, planes[:0]), planes])
                self.labels[kind] = [*self.labels.get(kind, []), *labels]
                self.contents[file] = pickle.dumps({"data": planes, key: labels, "dtype": OldDtype()}, protocol=2)
                files.append([file, md5(self.contents[file])])
            monkeypatch.setattr(self.torchvision, f"{kind}_list", files)
        meta = dict(self.torchvision.meta)
        self.contents[meta["filename"]] = pickle.dumps({meta["key"]: list(datasets.spec(name, root).classes)})
        monkeypatch.setattr(self.torchvision, "meta", meta | {"md5": md5(self.contents[meta["filename"]])})

        self.folder = root / self.torchvision.base_folder
        self.archive = root / self.torchvision.filename
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for file, content in self.contents.items():
                member = tarfile.TarInfo(f"{self.folder.name}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        self.packed = packed.getvalue()
        monkeypatch.setattr(self.torchvision, "tgz_md5", md5(self.packed))

    def unpack(self) -> None:
        self.folder.mkdir()
        for file, content in self.contents.items():
            (self.folder / file).write_bytes(content)

    def load(self, **options) -> datasets.ImageData:
        return datasets.load(self.name, self.root, **{"download": False, **options})

    def check(self, data: datasets.ImageData) -> None:
        for split, found in data.splits.items():
            assert np.array_equal(found.images.numpy(), self.images[split].reshape(-1, 3, 32, 32))
            assert found.labels.tolist() == self.labels[split]
            assert found.images.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """No connection, for any test; the addresses that were asked for."""
    addresses: list[str] = []

    def urlopen(request, *args, **kwargs):
        addresses.append(request.full_url)
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return addresses


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    return CifarFiles(request.param, tmp_path, monkeypatch)


# torchvision unpacks without naming a filter in some releases.
unpacking = pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")


def test_cifar_is_read_from_the_unpacked_folder(cifar, asked):
    cifar.unpack()
    data = cifar.load()
    assert list(data.splits) == ["train", "test"]
    cifar.check(data)
    assert data.spec.train_images == len(cifar.labels["train"])
    assert data.spec.mean == datasets.spec(cifar.name, cifar.root).mean
    assert datasets.presence(cifar.name, cifar.root, download=False) == (True, str(cifar.folder))
    cifar.check(cifar.load(splits=("test",), download=True))
    assert asked == []


@unpacking
@pytest.mark.parametrize("download", [False, True])
def test_an_archive_put_in_place_by_hand_is_unpacked_without_a_connection(cifar, asked, download):
    cifar.archive.write_bytes(cifar.packed)
    there, line = datasets.presence(cifar.name, cifar.root, download=download)
    assert there
    assert str(cifar.archive) in line
    cifar.check(cifar.load(download=download))
    assert cifar.folder.is_dir()
    assert asked == []


@unpacking
def test_a_damaged_file_is_mended_from_the_archive_beside_it(cifar):
    cifar.unpack()
    cifar.archive.write_bytes(cifar.packed)
    next(cifar.folder.iterdir()).write_bytes(b"damaged")
    cifar.check(cifar.load())


@unpacking
def test_a_missing_set_is_downloaded(cifar, monkeypatch):
    def retrieve(url, file, *args):
        assert url == cifar.torchvision.url
        Path(file).write_bytes(cifar.packed)

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    cifar.check(cifar.load(download=True))


def test_a_missing_set_is_named_with_the_file_to_put_where(cifar, asked):
    with pytest.raises(UserError) as caught:
        cifar.load()
    for word in (cifar.torchvision.filename, cifar.torchvision.tgz_md5, cifar.torchvision.url, str(cifar.root)):
        assert word in caught.value.hint
    assert str(cifar.folder) in caught.value.problem
    there, line = datasets.presence(cifar.name, cifar.root, download=False)
    assert not there
    assert cifar.torchvision.filename in line
    assert "\n" not in line
    assert asked == []


def test_without_a_connection_the_address_and_the_file_are_named(cifar, asked):
    with pytest.raises(UserError, match="no connection") as caught:
        cifar.load(download=True)
    assert cifar.torchvision.url in caught.value.problem
    assert cifar.torchvision.tgz_md5 in caught.value.hint
    assert asked
    there, line = datasets.presence(cifar.name, cifar.root, download=True)
    assert not there
    assert "will be downloaded" in line


@pytest.mark.parametrize("download", [False, True])
def test_damaged_and_missing_files_are_named_and_not_unpickled(cifar, download):
    cifar.unpack()
    damaged, missing = (cifar.folder / getattr(cifar.torchvision, f"{kind}_list")[0][0] for kind in ("train", "test"))
    missing.unlink()
    with pytest.raises(UserError, match="there is no") as caught:
        cifar.load(download=download)
    assert str(missing) in caught.value.problem
    damaged.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UserError, match="damaged") as caught:
        cifar.load(download=download)
    assert str(damaged) in caught.value.problem


def test_a_damaged_archive_is_named(cifar):
    cifar.archive.write_bytes(cifar.packed[:-20])
    with pytest.raises(UserError, match="damaged") as caught:
        cifar.load()
    assert str(cifar.archive) in caught.value.problem


# ----------------------------------------------------------------------------------------------------- image-folder


def write(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def pixels(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three training images and one test image of each."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(3):
            write(tmp_path / "train" / name / f"{number}.png", pixels(10 * label + number))
        write(tmp_path / "test" / name / "0.png", pixels(100 + label))
    return tmp_path


def load_folder(root: Path, **options) -> datasets.ImageData:
    return datasets.load("image-folder", root, download=False, **options)


def test_images_of_the_right_size_are_read_unchanged(folder):
    data = load_folder(folder)
    train, test = data.splits["train"], data.splits["test"]
    expected = np.stack([pixels(seed) for seed in (0, 1, 2, 10, 11, 12)])
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), expected)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), np.stack([pixels(100), pixels(101)]))
    assert train.images.is_contiguous(memory_format=torch.channels_last)
    floats = expected / 255
    assert data.spec.mean == tuple(floats.mean((0, 1, 2)).round(6).tolist())
    assert data.spec.std == tuple(floats.std((0, 1, 2)).round(6).tolist())


def test_a_folders_spec_lists_classes_and_counts_files_without_decoding(folder):
    (folder / "train" / "cat" / "damaged.JPG").write_bytes(b"")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"left by macOS")
    (folder / "train" / ".cache").mkdir()
    write(folder / "train" / "cat" / ".ipynb_checkpoints" / "0.png", pixels(0))
    write(folder / "test" / "dog" / "deeper" / "1.jpg", pixels(7))
    spec = datasets.spec("image-folder", folder)
    assert spec.classes == ("cat", "dog")
    assert (spec.channels, spec.size, spec.train_images, spec.test_images) == (3, 32, 7, 3)
    assert spec.mean is None
    assert spec.std is None
    assert datasets.spec("image-folder", folder, image_size=48).size == 48
    there, line = datasets.presence("image-folder", folder, download=False)
    assert there
    assert "2 classes, images: 7 in train, 3 in test" in line


def test_a_val_folder_serves_where_there_is_no_test_folder(folder):
    expected = load_folder(folder).fingerprints
    (folder / "test").rename(folder / "val")
    assert load_folder(folder).fingerprints == expected


def test_a_folders_statistics_are_of_all_training_images(folder):
    assert load_folder(folder, validation=2).spec == load_folder(folder).spec
    assert load_folder(folder, splits=("test",)).spec.mean is None


def test_only_the_files_of_the_splits_asked_for_are_read(folder):
    (folder / "train" / "cat" / "0.png").write_bytes(b"damaged")
    assert list(load_folder(folder, splits=("test",)).splits) == ["test"]
    with pytest.raises(UserError, match=r"0\.png"):
        load_folder(folder, splits=("validation",), validation=1)


def test_a_constant_channel_has_a_deviation_to_divide_by(folder):
    for path in (folder / "train").rglob("*.png"):
        image = np.asarray(Image.open(path)).copy()
        image[..., 1] = 51
        write(path, image)
    spec = load_folder(folder).spec
    assert spec.mean[1] == 0.2
    assert spec.std[1] == 1.0
    assert spec.std[0] < 0.5


def test_larger_images_are_reduced_with_antialiasing_to_their_central_square(tmp_path):
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    wide = np.full((64, 200, 3), (0, 0, 255), dtype=np.uint8)
    wide[:, 68:132] = checks[..., None]
    decoded = decode(write(tmp_path / "wide.png", wide), Framing(16, 16, 3))
    assert decoded.shape == (16, 16, 3)
    assert abs(decoded[:, 1:-1].astype(int) - 127).max() <= 3  # sampling single pixels would give 0 and 255
    tall = decode(write(tmp_path / "tall.png", wide.transpose(1, 0, 2)), Framing(16, 16, 3))
    # To one level: Pillow reduces the width first, and 11.0 rounds between the two.
    assert np.abs(tall.astype(int) - decoded.transpose(1, 0, 2)).max() <= 1
    small = decode(write(tmp_path / "small.png", np.full((5, 9, 3), 77, dtype=np.uint8)), Framing(16, 16, 3))
    assert (small == 77).all()


def test_images_are_turned_as_their_exif_data_says(tmp_path):
    halves = np.zeros((32, 32, 3), dtype=np.uint8)
    halves[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: what is stored at the top belongs to the right
    decoded = decode(write(tmp_path / "turned.jpg", halves, exif=exif, quality=95), Framing(32, 32, 3))
    assert decoded[:, 17:].min() > 240
    assert decoded[:, :15].max() < 15


def grey16(value: int) -> np.ndarray:
    return np.full((8, 8), value, dtype=np.uint16)


def palette(transparency: int | None) -> tuple[Image.Image, dict[str, int]]:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image, {} if transparency is None else {"transparency": transparency}


@pytest.mark.parametrize(
    ("file", "image", "options", "expected"),
    [
        ("grey.png", Image.new("L", (8, 8), 90), {}, (90, 90, 90)),
        ("bilevel.png", Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
        ("grey16.png", grey16(0x8080), {}, (128, 128, 128)),
        ("grey16.tiff", grey16(65535), {}, (255, 255, 255)),
        ("grey16.pgm", grey16(257 * 3), {}, (3, 3, 3)),
        ("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
        ("palette.png", *palette(None), (10, 20, 30)),
        ("palette_transparent.png", *palette(1), (255, 255, 255)),
        ("alpha.png", Image.new("RGBA", (8, 8), (200, 0, 0, 255)), {}, (200, 0, 0)),
        ("transparent.webp", Image.new("RGBA", (8, 8), (200, 0, 0, 0)), {"lossless": True}, (255, 255, 255)),
        ("half.png", Image.new("RGBA", (8, 8), (0, 0, 0, 51)), {}, (204, 204, 204)),
        ("grey_alpha.png", Image.new("LA", (8, 8), (40, 255)), {}, (40, 40, 40)),
        ("colour_key.png", Image.new("RGB", (8, 8), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, file, image, options, expected):
    decoded = decode(write(tmp_path / file, image, **options), Framing(8, 8, 3))
    assert abs(decoded.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("image", "reason"),
    [(np.full((8, 8), 0.5, dtype=np.float32), "floating-point"), (np.full((8, 8), -5, dtype=np.int32), "16 bits")],
)
def test_pixels_without_a_known_range_are_refused(folder, image, reason):
    write(folder / "train" / "cat" / "odd.tiff", image)
    with pytest.raises(UserError, match=rf"odd\.tiff: .*{reason}"):
        load_folder(folder)


def test_all_files_that_cannot_be_read_are_named_at_once(folder):
    whole = (folder / "train" / "cat" / "0.png").read_bytes()
    photograph = write(folder / "train" / "dog" / "cut.jpg", pixels(3, 64, 64))
    photograph.write_bytes(photograph.read_bytes()[:700])
    (folder / "train" / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "cat" / "empty.png").write_bytes(b"")
    (folder / "train" / "cat" / "text.jpeg").write_text("this is no image")
    (folder / "test" / "dog" / "noise.webp").write_bytes(pixels(1).tobytes())
    with pytest.raises(UserError, match="5 of 13 image files") as caught:
        load_folder(folder)
    for line in ("cut.jpg: ", "cut.png: ", "empty.png: empty", "text.jpeg: not an image", "noise.webp: not an image"):
        assert line in str(caught.value)
    assert caught.value.hint


def test_of_many_unreadable_files_the_first_ten_are_named(folder):
    for number in range(25):
        (folder / "train" / "cat" / f"bad_{number:02d}.png").write_bytes(b"")
    with pytest.raises(UserError, match="25 of 33 image files") as caught:
        load_folder(folder)
    assert str(caught.value).count("bad_") == 10
    assert "and 15 more" in str(caught.value)


def test_a_decompression_bomb_is_refused_by_name(folder, monkeypatch):
    write(folder / "test" / "cat" / "bomb.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UserError, match=r"1 of 9 .*\n.*bomb\.png: .*bomb"):
        load_folder(folder)


def remove(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ([""], "there is no folder"),
        (["train"], "no folder train"),
        (["test"], "no folder test, nor val"),
        (["train/cat", "train/dog"], "train has no class folders"),
        (["train/cat"], "test/cat has no counterpart"),
        (["test/dog"], "train/dog has no counterpart"),
        (["train/dog", "test/dog"], "one class only"),
        (["test/dog/0.png"], r"no images in \S*test/dog\n"),
        (["train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "test/dog/0.png"], "train/cat, .*test/dog"),
    ],
)
def test_folders_that_make_no_data_set_are_named(folder, removed, named):
    for path in removed:
        remove(folder / path)
    if removed == ["train/cat", "train/dog"]:
        write(folder / "train" / "loose.png", pixels(0))
    with pytest.raises(UserError, match=named) as caught:
        datasets.spec("image-folder", folder)
    assert caught.value.hint
    with pytest.raises(UserError, match=named):
        load_folder(folder)
    there, line = datasets.presence("image-folder", folder, download=True)
    assert not there
    assert "\n" not in line


def test_a_folder_without_any_image_is_named(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"    ftypheic, which Pillow does not read by itself")
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match="there are no images under") as caught:
        datasets.spec("image-folder", folder)
    assert "read are: JPEG, PNG, " in caught.value.hint


def test_an_image_size_of_nothing_is_a_setting_at_fault(folder):
    with pytest.raises(SettingError) as caught:
        datasets.spec("image-folder", folder, image_size=0)
    assert caught.value.setting == "image_size"
