"""Images that stay in their files: the same batches and the same figures as those in memory, and every way to fail."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Result
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision_functional

from distilkit.data import augment, datasets, decoding, pictures
from distilkit.data import storage as storages
from distilkit.data.decoding import Framing, ImagesLostError, Request, decode, decode_batches, decode_crop
from distilkit.data.pictures import StreamedImages
from distilkit.data.resident import TrainingImages, epoch_order, evaluation_batches
from distilkit.data.streaming import StreamingImages, training_source
from distilkit.errors import SettingError, UserError
from distilkit.randomness import generator

Command = Callable[..., Result]
CPU = torch.device("cpu")


def save(path: Path, height: int, width: int, seed: int, **options) -> None:
    """A smooth picture with some noise, so that resizing has something to lose and JPEG is small."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(256, size=(4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(picture, dtype=int) + draws.integers(-9, 10, (height, width, 3)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.astype(np.uint8)).save(path, **options)


def fill(root: Path, shape: Callable[[int], tuple[int, int]], ending: str = "png", test: str = "test") -> Path:
    """Two classes, 12 training and 5 test images of each."""
    seed = 0
    for part, count in (("train", 12), (test, 5)):
        for name in ("n01", "n02"):
            for number in range(count):
                save(root / part / name / f"{number:02d}.{ending}", *shape(seed), seed)
                seed += 1
    return root


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that have their final size, 16 x 16, already."""
    return fill(tmp_path_factory.mktemp("exact"), lambda _: (16, 16))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of all shapes; JPEG."""
    return fill(tmp_path_factory.mktemp("mixed"), lambda seed: (20 + seed % 7, 30 - seed % 11), "JPEG", "val")


def load(root: Path, storage: str, name: str = "image-folder", **options) -> datasets.ImageData:
    settings = {"download": False, "image_size": 16, "storage": storage, "workers": 0, **options}
    return datasets.load(name, root, **settings)


# -------------------------------------------------------------------------------------------- the same as in memory


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_the_resident_ones(mixed: Path, workers: int) -> None:
    resident, streamed = load(mixed, "resident"), load(mixed, "stream", workers=workers)
    assert streamed.spec == resident.spec, "mean and deviation too: there are few enough to look at all"
    for split in ("train", "test"):
        ours, theirs = streamed.splits[split], resident.splits[split]
        assert isinstance(ours.images, StreamedImages)
        assert tuple(ours.images.shape) == tuple(theirs.images.shape)
        assert len(ours.images) == len(theirs.labels)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images[3:9], theirs.images[3:9])
        assert torch.equal(ours.images[torch.tensor([5, 0, 5])], theirs.images[torch.tensor([5, 0, 5])])
        assert ours.images[:4].is_contiguous(memory_format=torch.channels_last)
        assert len(ours.images[:0]) == 0
        for share in (slice(None), slice(1, None, 2), slice(9, None)):
            pairs = zip(evaluation_batches(ours, 4, CPU, share), evaluation_batches(theirs, 4, CPU, share), strict=True)
            for (images, labels), (expected, expected_labels) in pairs:
                assert torch.equal(images, expected)
                assert torch.equal(labels, expected_labels)


def test_what_is_held_out_is_the_same(mixed: Path) -> None:
    resident, streamed = (load(mixed, storage, validation=6, seed=4) for storage in ("resident", "stream"))
    for split in ("train", "validation"):
        assert torch.equal(streamed.splits[split].images[:], resident.splits[split].images)
        assert torch.equal(streamed.splits[split].labels, resident.splits[split].labels)
    assert streamed.spec.mean == resident.spec.mean


@pytest.mark.parametrize("held_in", ["files", "memory"])
@pytest.mark.parametrize("name", augment.names())
def test_streamed_training_batches_are_the_resident_ones_bit_for_bit(exact: Path, name: str, held_in: str) -> None:
    resident = load(exact, "resident").splits["train"]
    split = resident if held_in == "memory" else load(exact, "stream").splits["train"]
    ours = training_source(split, "stream", augment=name, seed=3, device=CPU)
    theirs = training_source(resident, "resident", augment=name, seed=3, device=CPU)
    assert isinstance(ours, StreamingImages)
    assert isinstance(theirs, TrainingImages)
    indices = epoch_order(0, 0, len(ours))[:17]
    for part in (slice(None), slice(3, 11), slice(1, None, 2), torch.tensor([16, 2, 2, 7])):
        images, labels = ours.batch(indices, 5, part)
        expected, expected_labels = theirs.batch(indices, 5, part)
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)
        assert images.is_contiguous(memory_format=torch.channels_last)
        whole, _ = theirs.batch(indices, 5)
        assert torch.equal(images, whole[part])
    other, _ = ours.batch(indices, 6)
    assert torch.equal(other, ours.batch(indices, 5)[0]) == (name == "none")


@pytest.mark.parametrize("name", ["none", "crop-flip"])
def test_pictures_that_are_not_of_their_final_size_are_shifted_and_mirrored_alike(mixed: Path, name: str) -> None:
    ours, theirs = (
        training_source(load(mixed, storage).splits["train"], storage, augment=name, seed=1, device=CPU)
        for storage in ("stream", "resident")
    )
    indices = epoch_order(0, 1, 24)
    assert torch.equal(ours.batch(indices, 9)[0], theirs.batch(indices, 9)[0])


def test_random_boxes_are_cut_out_of_the_original_picture(tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    save(file, 60, 90, 0)
    numbers = augment.draw_numbers(40, generator(0, "test"))
    boxes = augment.place_resized_crops(numbers, 60, 90)
    with Image.open(file) as picture:
        for place in range(40):
            top, left, height, width, mirrored = boxes[:, place].tolist()
            assert 0 <= top <= 60 - height
            assert 0 <= left <= 90 - width
            pixels, rest = decode_crop(file, Framing(16, 16, 3), numbers[:, place : place + 1])
            assert rest[:, 0].tolist() == [0, 0, 16, 16, mirrored]
            expected = torchvision_functional.resized_crop(picture, top, left, height, width, [16, 16])
            assert np.array_equal(pixels, np.asarray(expected))


def test_a_large_jpeg_of_which_little_is_needed_is_decoded_small(tmp_path: Path) -> None:
    file, turned = tmp_path / "large.jpg", tmp_path / "turned.jpg"
    save(file, 400, 600, 0, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 8  # stored turned clockwise
    with Image.open(file) as picture:
        picture.transpose(Image.Transpose.ROTATE_270).save(turned, quality=95, exif=exif)
    numbers = augment.draw_numbers(20, generator(0, "test"))
    for place in range(20):
        one = numbers[:, place : place + 1]
        pixels, _ = decode_crop(file, Framing(16, 16, 3), one)
        top, left, height, width, _ = augment.place_resized_crops(one, 400, 600)[:, 0].tolist()
        with Image.open(file) as picture:
            exact = np.asarray(torchvision_functional.resized_crop(picture, top, left, height, width, [16, 16]))
        assert abs(pixels.astype(int) - exact).mean() < 4
        upright, _ = decode_crop(turned, Framing(16, 16, 3), one)
        assert abs(upright.astype(int) - exact).mean() < 4


@pytest.mark.parametrize(("height", "width"), [(50, 10), (10, 50), (1, 30)])
def test_a_picture_too_long_for_every_box_gives_its_middle(height: int, width: int) -> None:
    numbers = augment.draw_numbers(200, generator(0, "test"))
    boxes = augment.place_resized_crops(numbers, height, width)
    assert (boxes[2] <= height).all()
    assert (boxes[3] <= width).all()
    assert (boxes[2:4] > 0).all()
    # Where none of the ten fits, torchvision takes the largest allowed box in the middle.
    none_fits = numbers.clone()
    none_fits[: augment.TRIES] = 0.999
    largest = augment.place_resized_crops(none_fits, 10, 50)
    assert largest[:4, 0].tolist() == [0, 18, 10, 13]


@pytest.mark.parametrize(("height", "width"), [(300, 401), (333, 250), (256, 256), (64, 64), (100, 99)])
def test_an_evaluation_image_of_imagenet_is_resized_and_cut_as_torchvision_does(
    tmp_path: Path, height: int, width: int
) -> None:
    save(tmp_path / "one.png", height, width, 0)
    with Image.open(tmp_path / "one.png") as picture:
        resized = torchvision_functional.resize(picture, [64])
        expected = np.asarray(torchvision_functional.center_crop(resized, [56]))
    assert np.array_equal(decode(tmp_path / "one.png", Framing(56, 64, 3)), expected)


def test_a_ribbon_of_a_picture_takes_no_more_memory_than_its_middle(tmp_path: Path) -> None:
    Image.new("L", (30_000, 2), 90).save(tmp_path / "ribbon.png")
    pixels = decode(tmp_path / "ribbon.png", Framing(56, 64, 3))
    assert pixels.shape == (56, 56, 3)
    assert (pixels == 90).all()


def test_a_grey_image_has_one_channel_if_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, lambda _: (9, 13))
    grey = load(tmp_path, "resident", channels=1)
    streamed = load(tmp_path, "stream", channels=1)
    assert (grey.spec.channels, len(grey.spec.mean)) == (1, 1)
    assert torch.equal(grey.splits["train"].images, streamed.splits["train"].images[:])
    assert grey.splits["train"].images.shape == (24, 1, 16, 16)


# ------------------------------------------------------------------------------------------------ what is announced


def plan(source: StreamingImages, epochs: int, size: int = 6, part: slice | torch.Tensor = slice(None)):
    per_epoch = len(source) // size
    for epoch in range(epochs):
        order = epoch_order(0, epoch, len(source))
        for place in range(per_epoch):
            yield epoch * per_epoch + place, order[place * size : (place + 1) * size], part


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were decoded, by this process."""
    paths: list[str] = []

    def remember(path: str, *arguments):
        paths.append(path)
        return decode(path, *arguments)

    monkeypatch.setattr(decoding, "decode", remember)
    return paths


@pytest.mark.parametrize("name", ["crop-flip", "random-resized-crop"])
@pytest.mark.parametrize("workers", [0, 2])
def test_announced_batches_are_those_that_nobody_announced(mixed: Path, name: str, workers: int) -> None:
    split = load(mixed, "stream", workers=workers).splits["train"]
    ours, plain = (StreamingImages(split, augment=name, seed=1, device=CPU) for _ in range(2))
    ours.upcoming(plan(ours, 2))
    for step, indices, _ in plan(ours, 2):
        for part in (slice(0, 2), slice(2, 6)):
            assert torch.equal(ours.batch(indices, step, part)[0], plain.batch(indices, step, part)[0])
    ours.close()


def test_every_image_of_a_step_is_decoded_once_whatever_is_asked_for(mixed: Path, decoded: list[str]) -> None:
    ours = StreamingImages(load(mixed, "stream").splits["train"], augment="none", seed=1, device=CPU)
    ours.upcoming(plan(ours, 1))
    decoded.clear()
    (step, indices, _), *_ = plan(ours, 1)
    for part in (slice(0, 2), slice(2, 6), torch.tensor([5, 0, 5, 3]), slice(None)):
        ours.batch(indices, step, part)
    assert len(decoded) == 6


def test_what_was_seen_before_is_not_decoded_again(mixed: Path, decoded: list[str]) -> None:
    ours = StreamingImages(load(mixed, "stream").splits["train"], augment="none", seed=1, device=CPU)
    left = list(plan(ours, 2))[3:]
    ours.upcoming(iter(left))
    decoded.clear()
    for step, indices, part in left:
        ours.batch(indices, step, part)
    assert len(decoded) == 6 * len(left)
    # A step that is passed over, and one that nobody announced.
    ours.upcoming(iter(left))
    step, indices, part = left[2]
    assert len(ours.batch(indices, step, part)[1]) == 6
    assert len(ours.batch(indices, 1000, part)[1]) == 6
    other = indices.flip(0)
    assert torch.equal(ours.batch(other, step, part)[0], ours.batch(indices, step, part)[0].flip(0))


def test_images_of_another_process_that_were_not_announced_are_decoded_when_asked_for(mixed: Path) -> None:
    ours = StreamingImages(load(mixed, "stream").splits["train"], augment="crop-flip", seed=1, device=CPU)
    ours.upcoming(plan(ours, 1, part=slice(0, 3)))
    (step, indices, _), *_ = plan(ours, 1)
    whole = StreamingImages(load(mixed, "stream").splits["train"], augment="crop-flip", seed=1, device=CPU)
    partners = torch.tensor([5, 0, 4])
    assert torch.equal(ours.batch(indices, step, partners)[0], whole.batch(indices, step)[0][partners])


# ------------------------------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_follows_the_files_wherever_they_lie(exact: Path, tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        return load(root, "stream").fingerprints["train"]

    fill(tmp_path / "copy", lambda _: (16, 16))
    first = digest(tmp_path / "copy")
    assert first.startswith("files:")
    assert first == digest(exact)
    file = tmp_path / "copy" / "train" / "n01" / "03.png"
    content = file.read_bytes()
    file.write_bytes(content[:-12] + bytes(12))  # as long as it was
    assert digest(tmp_path / "copy") != first
    file.write_bytes(content)
    assert digest(tmp_path / "copy") == first
    file.rename(file.with_name("33.png"))
    assert digest(tmp_path / "copy") != first


def test_of_many_files_some_count_with_their_bytes_and_all_with_their_sizes(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "HASHED", 3)
    fill(tmp_path, lambda _: (16, 16))
    streamed = load(tmp_path, "stream", constants=((0.5,) * 3, (0.2,) * 3))
    first = streamed.fingerprints["train"]
    file = tmp_path / "train" / "n01" / "01.png"
    content = file.read_bytes()
    file.write_bytes(content[:-12] + bytes(12))
    assert datasets.fingerprint(streamed.splits["train"], streamed.spec.classes) == first
    file.write_bytes(content + b"x")
    assert datasets.fingerprint(streamed.splits["train"], streamed.spec.classes) != first


# ---------------------------------------------------------------------------------------------------------- storage


def spec_of(count: int, size: int = 100) -> datasets.DataSpec:
    return datasets.DataSpec("many", ("a", "b"), 3, size, count, 0, None, None, "none")


def test_pixels_are_resident_where_they_take_up_to_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "free_memory", lambda: 240_000_000)
    assert storages.choose("auto", spec_of(4000), "none", CPU, 1)[0] == "resident"
    chosen, why = storages.choose("auto", spec_of(4001), "none", CPU, 1)
    assert chosen == "stream"
    assert "0.12 GB of 0.24 GB free memory" in why
    # As they are read, and framed by 12 pixels and mirrored: 1 + 2 * 1.24^2 = 4.08 times the pixels.
    assert storages.choose("auto", spec_of(981), "crop-flip", CPU, 1)[0] == "resident"
    assert storages.choose("auto", spec_of(982), "crop-flip", CPU, 1)[0] == "stream"
    assert storages.choose("auto", spec_of(500), "crop-flip", CPU, 2)[0] == "stream"
    assert storages.choose("resident", spec_of(8000), "none", CPU, 1)[0] == "resident"
    assert storages.choose("stream", spec_of(1), "none", CPU, 1)[0] == "stream"
    with pytest.raises(SettingError, match=r"0\.24 GB of 0\.24 GB free memory") as caught:
        storages.choose("resident", spec_of(8001), "none", CPU, 1)
    assert caught.value.setting == "storage"
    assert "stream" in str(caught.value.hint)
    monkeypatch.setattr(storages, "free_memory", lambda: None)
    assert storages.choose("auto", spec_of(10**9), "none", CPU, 1)[0] == "resident"


def test_the_free_memory_is_what_the_system_says() -> None:
    free = storages.free_memory()
    assert free is None or 10_000_000 < free < 10**14


def test_a_folder_that_does_not_fit_into_memory_is_a_setting_at_fault(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "free_memory", lambda: 20_000)
    with pytest.raises(SettingError, match=r"take 0\.0 GB as 16 x 16 images, more than") as caught:
        load(mixed, "resident")
    assert 'storage = "stream"' in str(caught.value.hint)
    assert len(load(mixed, "stream").splits["train"].labels) == 24
    monkeypatch.setattr(datasets, "free_memory", lambda: None)

    def too_much(*arguments, **options):
        raise MemoryError("Unable to allocate 1 PiB")

    monkeypatch.setattr("distilkit.data.image_folder.decode_all", too_much)
    with pytest.raises(SettingError, match="more than the memory gives"):
        load(mixed, "resident")


# ---------------------------------------------------------------------------------------------------- files at fault


def broken(root: Path) -> None:
    whole = (root / "train" / "n01" / "00.JPEG").read_bytes()
    (root / "train" / "n01" / "00.JPEG").write_bytes(whole[:-200])
    (root / "train" / "n02" / "01.JPEG").write_bytes(b"")
    (root / "train" / "n02" / "02.JPEG").write_text("no picture")
    (root / "val" / "n02" / "02.JPEG").write_bytes(whole[:100])


@pytest.mark.parametrize("name", ["image-folder", "imagenet"])
def test_empty_files_and_those_that_are_no_images_are_named_before_a_training_begins(tmp_path: Path, name: str) -> None:
    fill(tmp_path, lambda _: (20, 30), "JPEG", "val")
    broken(tmp_path)
    with pytest.raises(UserError, match="of 24 image files cannot be read") as caught:
        load(tmp_path, "stream", name, splits=("train",))
    assert "01.JPEG: empty" in str(caught.value)
    assert "02.JPEG: not an image" in str(caught.value)
    with pytest.raises(UserError, match=r"1 of 10 image files cannot be read:\n.*val/n02/02\.JPEG: "):
        load(tmp_path, "stream", name, splits=("test",))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_shows_itself_as_damaged_when_it_is_decoded_is_named(tmp_path: Path, workers: int) -> None:
    fill(tmp_path, lambda _: (20, 30), "JPEG", "val")
    file = tmp_path / "train" / "n01" / "05.JPEG"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"1 of 24 image files cannot be read:\n.*05\.JPEG: .*truncated"):
        load(tmp_path, "stream", workers=workers)  # computing mean and deviation
    split = load(tmp_path, "stream", "imagenet", workers=workers).splits["train"]
    with pytest.raises(ImagesLostError, match=r"05\.JPEG: .*truncated"):
        list(evaluation_batches(split, 5, CPU))
    ours = StreamingImages(split, augment="random-resized-crop", seed=0, device=CPU)
    ours.upcoming(plan(ours, 1))
    with pytest.raises(ImagesLostError, match=r"05\.JPEG: .*truncated"):
        [ours.batch(indices, step, part) for step, indices, part in plan(ours, 1)]
    file.unlink()
    with pytest.raises(UserError, match=r"05\.JPEG: No such file"):
        split.images[:]


def test_a_bomb_is_refused_by_name_while_it_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, lambda _: (10, 10), "JPEG", "val")
    Image.new("L", (100, 100)).save(tmp_path / "val" / "n01" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UserError, match=r"bomb\.png: .*bomb"):
        load(tmp_path, "stream", "imagenet")


def test_a_worker_that_is_killed_is_named(mixed: Path) -> None:
    paths = sorted(map(str, (mixed / "train").rglob("*.JPEG")))
    batches = decode_batches(Framing(16, 16, 3), (Request(paths) for _ in range(1000)), 1, pin=False)
    next(batches)
    # A worker's parent is the fork server, whose parent is this process: both have the server's command line.
    servers = {
        pid for pid in _processes() if b"multiprocessing.forkserver" in _command(pid) and _is_below(pid, os.getpid())
    }
    workers = [pid for pid in servers if _parent(pid) in servers]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(ImagesLostError, match="a worker process that decodes images was lost") as caught:
        for _ in batches:
            pass
    assert "SIGKILL" in caught.value.problem
    assert "data.workers" in str(caught.value.hint)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _command(pid: int) -> bytes:
    """Its whole command line (what `ps` prints is cut at the width of the terminal); empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        pid = _parent(pid)
        if pid == ancestor:
            return True
    return False


# ------------------------------------------------------------------------------------------------------ whole trainings


def recipe(folder: Path, data: Path, *lines: str) -> Path:
    text = TINY.replace('dataset = "digits"', "\n".join(['dataset = "imagenet"', f'root = "{data}"', *lines]))
    file = folder / "tiny.toml"
    file.write_text(text.replace("batch_size = 256", "batch_size = 8"), encoding="utf-8")
    return file


def lines_of(run: str) -> list[dict]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def test_a_streamed_training_goes_all_the_way_with_the_figures_of_a_resident_one(
    mixed: Path, tmp_path: Path, distilkit: Command
) -> None:
    file = recipe(tmp_path, mixed, "image_size = 16", 'augment = "crop-flip"', "workers = 1")
    runs = {}
    for storage in ("resident", "stream"):
        trained = distilkit(
            "train", file, "--set", f"data.storage={storage}", "--runs", tmp_path / storage, "--device", "cpu", "--json"
        )
        assert trained.status == 0, trained.err
        runs[storage] = trained.json["run"]
    assert lines_of(runs["stream"]) == lines_of(runs["resident"])
    run = runs["stream"]
    record = json.loads((Path(run) / "run.json").read_text())
    assert record["data"]["storage"] == "stream"
    assert record["data"]["fingerprints"]["train"].startswith("files:")
    assert record["data"]["balance"]["train"]["smallest"]["images"] == 12
    assert 'storage = "stream"' in (Path(run) / "recipe.toml").read_text()
    shown = [distilkit("evaluate", runs[storage], "--json").json for storage in ("resident", "stream")]
    assert shown[0] | {"run": ""} == shown[1] | {"run": ""}
    pruned = distilkit("prune-branches", run, "--json")
    assert pruned.json["max_abs_difference"] == 0
    exported = distilkit("export", run, "--json")
    assert (exported.json["passed"], exported.json["images_compared"]) == (True, 10)
    flat = distilkit("robustness", run, "--images", "10", "--steps", "1", "--directions", "1", "--json")
    assert flat.status == 0, flat.err
    assert flat.json["runs"][0]["images"] == {"train": 10, "test": 10}
    assert flat.json["runs"][0]["same_data"] is True


def test_a_damaged_file_ends_a_training_that_goes_on_when_it_is_replaced(tmp_path: Path, distilkit: Command) -> None:
    data = fill(tmp_path / "data", lambda _: (20, 30), "JPEG", "val")
    file = recipe(tmp_path, data, "image_size = 16", "workers = 0", 'storage = "stream"')
    arguments = ("--runs", tmp_path / "runs", "--device", "cpu", "--json")
    whole = distilkit("train", file, *arguments)
    assert whole.status == 0, whole.err
    # The one that the seventh step of eight a epoch reads.
    order = epoch_order(0, 1, 24)
    damaged = sorted((data / "train").rglob("*.JPEG"))[order[9]]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-30])
    failed = distilkit("train", file, "--set", "name=failed", "--set", "train.epochs=3", *arguments)
    assert failed.status == 2
    message = failed.json["error"]["message"]
    assert damaged.name in message
    (run,) = (tmp_path / "runs").glob("failed-*")
    assert f"distilkit train --resume {run}" in failed.json["error"]["hint"]
    damaged.write_bytes(content)
    refused = distilkit("train", "--resume", run, *arguments)
    assert refused.status == 2
    assert "--accept-changes" in refused.json["error"]["hint"]
    resumed = distilkit("train", "--resume", run, "--accept-changes", *arguments)
    assert resumed.status == 0, resumed.err
    again = distilkit("train", file, "--set", "name=again", "--set", "train.epochs=3", *arguments)
    assert lines_of(str(run)) == lines_of(again.json["run"])
    record = json.loads((run / "run.json").read_text())
    assert record["data_changes"][0]["splits"] == ["train"]
    assert distilkit("evaluate", run, "--split", "train", "--json").json["same_data"] is True


def test_other_images_are_told_from_those_that_were_trained_on(mixed: Path, tmp_path: Path, distilkit: Command) -> None:
    file = recipe(tmp_path, mixed, "image_size = 16", "workers = 0", 'storage = "stream"')
    trained = distilkit("train", file, "--set", "train.epochs=1", "--runs", tmp_path / "runs", "--json")
    run = trained.json["run"]
    other = fill(tmp_path / "other", lambda _: (25, 25), "JPEG", "val")
    (other / "val" / "n01" / "00.JPEG").unlink()
    for command in ("evaluate", "ensemble-eval"):
        same = distilkit(command, run, "--json")
        assert same.json["same_data"] is True
        assert "warning" not in same.err
        shown = distilkit(command, run, "--data", other, "--json")
        assert shown.status == 0
        assert shown.json["same_data"] is False
        assert "warning: the test images in" in shown.err
        assert "9 test images instead of 10" in shown.err
    flat = distilkit("robustness", run, "--data", other, "--images", "4", "--steps", "1", "--directions", "1", "--json")
    assert flat.json["runs"][0]["same_data"] is False
    assert "warning: the train and test images" in flat.err


def test_ctrl_c_to_the_whole_process_group_saves_a_streamed_training(mixed: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, mixed, "image_size = 16", "workers = 2", 'storage = "stream"')
    process = subprocess.Popen(
        [sys.executable, "-m", "distilkit", "train", file, "--set", "train.epochs=100000", "--runs", tmp_path / "runs"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while (
        not any(file.stat().st_size for file in tmp_path.glob("runs/*/metrics.jsonl"))
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "saved as step_" in said
    assert "--resume" in said


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_a_worker_that_is_lost_without_a_word_is_named(error: Exception) -> None:
    lost = decoding._lost(object(), error)
    assert lost is not None
    assert type(error).__name__ in lost.problem
