"""Images in one .npz file: every spelling that is read, and every fault by its name."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilkit.data import datasets
from distilkit.errors import SettingError, UserError


def arrays(height: int = 10, width: int = 10, channels: int | None = None, names: str = "x_{} y_{}") -> dict:
    draws = np.random.default_rng(0)
    x, y = names.split()
    found = {}
    for part, count in (("train", 9), ("test", 6)):
        shape = (count, height, width) if channels is None else (count, height, width, channels)
        found[x.format(part)] = draws.integers(256, size=shape, dtype=np.uint8)
        found[y.format(part)] = np.arange(count) % 3
    return found


def load(path: Path, **options) -> datasets.ImageData:
    return datasets.load("npz", path, download=False, **options)


@pytest.mark.parametrize("names", ["x_{} y_{}", "{}_images {}_labels", "{}_x {}_y"])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_are(tmp_path: Path, names: str, channels: int | None, save) -> None:
    file, given = tmp_path / "set.npz", arrays(channels=channels, names=names)
    save(file, **given)
    data = load(file)
    x, y = names.split()
    for part in ("train", "test"):
        images = data.splits[part].images.permute(0, 2, 3, 1).numpy()
        assert np.array_equal(images, given[x.format(part)].reshape(images.shape))
        assert data.splits[part].labels.tolist() == given[y.format(part)].tolist()
    assert (data.spec.channels, data.spec.size, data.spec.classes) == (channels or 1, 10, ("0", "1", "2"))
    assert data.spec.mean is not None
    assert (data.spec.train_images, data.spec.test_images) == (9, 6)
    assert load(tmp_path).fingerprints == data.fingerprints, "the folder that holds one such file"
    there, line = datasets.presence("npz", file, download=False)
    assert there
    assert "9 in train, 6 in test" in line


def test_labels_may_stand_in_a_column_and_classes_may_have_names(tmp_path: Path) -> None:
    given = arrays(names="{}_images {}_labels")
    for part in ("train", "test"):
        given[f"{part}_labels"] = given[f"{part}_labels"].astype(np.uint8)[:, None]
    given["val_images"], given["val_labels"] = given["test_images"][:2], given["test_labels"][:2]
    np.savez(tmp_path / "set.npz", classes=np.array(["cat", "dog", "eel", "fox"]), **given)
    data = load(tmp_path / "set.npz")
    assert data.spec.classes == ("cat", "dog", "eel", "fox")
    assert len(data.splits["test"].labels) == 6
    balance = {split: datasets.balance(each.labels, data.spec.classes) for split, each in data.splits.items()}
    assert balance["train"]["empty"] == ["fox"]
    assert datasets.remarks(balance) == ["warning: no train image of class fox", "warning: no test image of class fox"]


def test_validation_arrays_are_the_test_images_where_there_are_no_others(tmp_path: Path) -> None:
    given = arrays()
    given["x_val"], given["y_val"] = given.pop("x_test"), given.pop("y_test")
    np.savez(tmp_path / "set.npz", **given)
    assert len(load(tmp_path).splits["test"].labels) == 6


def test_images_that_are_no_squares_of_the_size_are_brought_to_it(tmp_path: Path) -> None:
    given = arrays(12, 20, 3)
    np.savez(tmp_path / "set.npz", **given)
    with pytest.raises(SettingError, match="12 x 20 pixels") as caught:
        datasets.spec("npz", tmp_path)
    assert caught.value.setting == "image_size"
    assert "image_size = 12" in str(caught.value.hint)
    data = load(tmp_path, image_size=12)
    assert np.array_equal(data.splits["train"].images[0].permute(1, 2, 0).numpy(), given["x_train"][0][:, 4:16])
    assert load(tmp_path, image_size=8).splits["test"].images.shape == (6, 3, 8, 8)
    np.savez(tmp_path / "set.npz", **arrays())
    assert load(tmp_path, image_size=16).splits["test"].images.shape == (6, 1, 16, 16)


def without(key: str):
    return lambda given: given.pop(key) is None


def changed(key: str, change):
    return lambda given: given.update({key: change(given[key])})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("x_train"), "no train images with their labels; it has y_train, x_test, y_test"),
        (without("y_test"), "no test images with their labels"),
        (changed("x_train", lambda x: x / 255), r"x_train is float64 \[9, 10, 10\], not uint8 \(pixels in \[0, 1\]"),
        (changed("x_test", lambda x: x.astype(np.int64)), r"x_test is int64 \[6, 10, 10\], not uint8"),
        (changed("x_train", lambda x: np.stack([x] * 3, 1)), r"x_train is uint8 \[9, 3, 10, 10\]; channels come last"),
        (changed("x_train", lambda x: np.stack([x] * 4, -1)), r"x_train is uint8 \[9, 10, 10, 4\]"),
        (changed("x_train", lambda x: x.reshape(9, 100)), r"x_train is uint8 \[9, 100\]"),
        (changed("x_train", lambda x: x[:0]), r"x_train is empty: uint8 \[0, 10, 10\]"),
        (changed("x_test", lambda x: x[:, :8, :8]), r"images of two shapes: \(10, 10\) and \(8, 8\)"),
        (changed("y_train", lambda y: y[:-1]), r"y_train is int64 \[8\] for 9 images"),
        (changed("y_train", lambda y: np.eye(3, dtype=int)[y]), r"y_train is int64 \[9, 3\] for 9 images; one-hot"),
        (changed("y_test", lambda y: y.astype(float)), r"y_test is float64 \[6\]; labels are integers"),
        (changed("y_test", lambda y: y - 1), "y_test holds -1 to 1; labels count the classes from 0"),
        (lambda given: given.update(y_train=np.zeros(9, int), y_test=np.zeros(6, int)), "all labels are 0"),
        (lambda given: given.update(classes=np.array(["a", "b"])), "classes has 2 names, and there are 3 labels"),
        (lambda given: given.update(classes=np.array(["a", "b", "a"])), "two classes of one name"),
        (lambda given: given.update(classes=np.arange(3)), r"classes is int64 \[3\]; class names are text"),
        # Numbers beyond all characters, and bytes that are not UTF-8, in the place of names.
        (lambda g: g.update(classes=np.full(3, 2**31 - 1, np.int32).view("<U1")), "classes holds what is no text"),
        (lambda g: g.update(classes=np.array([b"\xff", b"\xfe", b"\xfd"])), "classes holds what is no text"),
    ],
)
def test_arrays_that_make_no_data_set_are_named(tmp_path: Path, change, problem: str) -> None:
    given = arrays()
    change(given)
    np.savez(tmp_path / "set.npz", **given)
    with pytest.raises(UserError, match=problem) as caught:
        load(tmp_path / "set.npz")
    assert "set.npz" in caught.value.problem
    assert caught.value.hint


def test_pickled_objects_are_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    given = arrays() | {"y_train": np.array([Trap()] * 9, dtype=object)}
    np.savez(tmp_path / "set.npz", **given)
    with pytest.raises(UserError, match=r"y_train is object \[9\]; labels are integers"):
        load(tmp_path)
    np.savez(tmp_path / "set.npz", **arrays(), classes=np.array([Trap()] * 3, dtype=object))
    with pytest.raises(UserError, match=r"array classes.*allow_pickle=False"):
        load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_npz_are_named(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    with pytest.raises(UserError, match="there is no file"):
        load(file)
    with pytest.raises(UserError, match=r"does not hold one \.npz file: there is none"):
        load(tmp_path)
    for content in (b"", b"text", np.random.default_rng(0).bytes(1000)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"set\.npz cannot be read as \.npz: ") as caught:
            load(file)
        assert "np.savez" in str(caught.value.hint)
    np.savez(file, **arrays())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as"):
        load(file)
    there, line = datasets.presence("npz", file, download=False)
    assert not there
    assert "cannot be read" in line
    file.write_bytes(whole)
    (tmp_path / "other.npz").write_bytes(whole)
    with pytest.raises(UserError, match=r"there are other\.npz, set\.npz"):
        load(tmp_path)


def test_a_flipped_bit_and_a_lying_head_are_named(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    np.savez(file, **arrays())
    content = bytearray(file.read_bytes())
    content[300] ^= 1  # inside of x_train's pixels
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz \(array x_train\): .*CRC"):
        load(file)
    # A head that asks for a petabyte is believed by nobody.
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x_train.npy", head.getvalue())
    with pytest.raises(UserError, match=r"array x_train\): its size is not what its head says"):
        load(file)


def test_a_picture_file_is_no_npz(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="cannot be read as"):
        datasets.spec("npz", tmp_path / "one.png")
