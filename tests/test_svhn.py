"""SVHN through torchvision's own class, from small files in the published format."""

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from scipy.io import savemat

from distilkit.data import datasets
from distilkit.errors import SettingError, UserError

COUNTS = {"train": 7, "extra": 12, "test": 5}


class Files:
    """Three .mat files whose checksums torchvision's class is made to expect. As published, 10 stands for digit 0."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        draws = np.random.default_rng(0)
        self.images: dict[str, np.ndarray] = {}
        self.labels: dict[str, np.ndarray] = {}
        listed = {}
        for name, count in COUNTS.items():
            self.images[name] = draws.integers(256, size=(32, 32, 3, count), dtype=np.uint8)
            self.labels[name] = draws.integers(1, 11, size=(count, 1), dtype=np.uint8)
            self.labels[name][0] = 10
            url, file, _ = torchvision.datasets.SVHN.split_list[name]
            savemat(root / file, {"X": self.images[name], "y": self.labels[name]})
            md5 = hashlib.md5((root / file).read_bytes(), usedforsecurity=False).hexdigest()
            listed[name] = [url, file, md5]
        monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)

    def load(self, **options) -> datasets.ImageData:
        return datasets.load("svhn", self.root, **{"download": False, **options})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No connection; the addresses that were asked for."""
    addresses: list[str] = []

    def urlopen(request, *args, **kwargs):
        addresses.append(request.full_url)
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return addresses


def test_the_published_set_is_described_without_its_files(tmp_path: Path) -> None:
    spec = datasets.spec("svhn", tmp_path / "nowhere")
    assert (spec.train_images, spec.test_images) == (604_388, 26_032)
    assert (spec.channels, spec.size, spec.default_augment) == (3, 32, "none")
    assert spec.classes == tuple("0123456789")


def test_training_images_are_train_then_extra(files: Files) -> None:
    data = files.load()
    expected = np.concatenate([files.images["train"], files.images["extra"]], axis=3).transpose(3, 2, 0, 1)
    train = data.splits["train"]
    assert np.array_equal(train.images.numpy(), expected)
    assert train.images.is_contiguous(memory_format=torch.channels_last)
    labels = np.concatenate([files.labels["train"], files.labels["extra"]])[:, 0] % 10
    assert train.labels.tolist() == labels.tolist()
    assert train.labels[0] == 0, "what the files call 10"
    assert np.array_equal(data.splits["test"].images.numpy(), files.images["test"].transpose(3, 2, 0, 1))
    assert (data.spec.train_images, data.spec.test_images) == (19, 5)
    pixels = expected / 255
    assert data.spec.mean == tuple(pixels.mean((0, 2, 3)).round(6).tolist())
    assert data.spec.std == tuple(pixels.std((0, 2, 3)).round(6).tolist())
    there, line = datasets.presence("svhn", files.root, download=False)
    assert there
    assert str(files.root) in line


def test_streamed_it_stays_in_the_hosts_memory(files: Files) -> None:
    resident, streamed = files.load(), files.load(storage="stream")
    assert torch.equal(streamed.splits["train"].images[:], resident.splits["train"].images)
    assert streamed.fingerprints == resident.fingerprints


def test_only_the_files_of_the_splits_asked_for_are_opened(files: Files) -> None:
    (files.root / "extra_32x32.mat").unlink()
    assert list(files.load(splits=("test",)).splits) == ["test"]
    with pytest.raises(UserError, match=r"there is no \S*extra_32x32\.mat") as caught:
        files.load(splits=("train",))
    md5 = torchvision.datasets.SVHN.split_list["extra"][2]
    assert f"put extra_32x32.mat (md5 {md5}) from http://ufldl.stanford.edu" in str(caught.value.hint)
    there, line = datasets.presence("svhn", files.root, download=False)
    assert not there
    assert "extra_32x32.mat" in line


def test_a_damaged_file_is_named_and_not_opened(files: Files, asked: list[str]) -> None:
    (files.root / "test_32x32.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"test_32x32\.mat is damaged \(not the published md5\)") as caught:
        files.load()
    assert caught.value.hint
    assert asked == []
    with pytest.raises(UserError, match=r"test_32x32\.mat is damaged.*fetching http\S* failed.*no connection"):
        files.load(download=True)
    assert asked


def test_a_missing_file_is_downloaded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (files.root / "extra_32x32.mat").read_bytes()
    (files.root / "extra_32x32.mat").unlink()

    def retrieve(url: str, file: str, *arguments: object) -> None:
        assert url.endswith("extra_32x32.mat")
        Path(file).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    assert len(files.load(download=True).splits["train"].labels) == 19


@pytest.mark.parametrize(("option", "value"), [("image_size", 64), ("channels", 1)])
def test_its_images_have_one_form(files: Files, option: str, value: int) -> None:
    with pytest.raises(SettingError) as caught:
        files.load(**{option: value})
    assert caught.value.setting == option
