"""Pictures that are none: no file that is opened as an image starts another program, whatever its name says.

Pillow reads an EPS file by starting Ghostscript. A program named `gs` stands first on the path here, and leaves a mark
where it is started.
"""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Result
from PIL import EpsImagePlugin, Image
from test_predict import small_file

import distilkit as package
from distilkit.analysis import corruption
from distilkit.data import pixels
from distilkit.data.decoding import Decoder, Request
from distilkit.data.pixels import FORMATS, UNREADABLE, Framing, decode, open_image
from distilkit.data.preparation import Preparation
from distilkit.observer import Observer
from distilkit.recipe import load
from distilkit.workflows.train.train import train as train_recipe

Command = Callable[..., Result]
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
%%EOF
"""
WMF = b"\xd7\xcd\xc6\x9a\x00\x00" + bytes([0, 0, 0, 0, 8, 0, 8, 0, 72, 0]) + bytes(6) + b"\x01\x00\x09\x00" + bytes(20)
FITS = b"".join(
    line.ljust(80)
    for line in (
        b"SIMPLE  =                    T",
        b"BITPIX  =                    8",
        b"NAXIS   =                    2",
    )
) + b"".join(line.ljust(80) for line in (b"NAXIS1  =  8", b"NAXIS2  =  8", b"END"))
PSD = b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x00\x08\x00\x00\x00\x08\x00\x08\x00\x03" + bytes(300)
TEXT = {
    "PDF": b"%PDF-1.4\n%%EOF\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "text": b"no image",
    "EPS with a DOS header": b"\xc5\xd0\xd3\xc6"
    + (30).to_bytes(4, "little")
    + len(EPS).to_bytes(4, "little")
    + bytes(18)
    + EPS,
}


@pytest.fixture(autouse=True)
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Ghostscript, if somebody starts it, would leave."""
    left, programs = tmp_path / "ghostscript-was-started", tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f'#!/bin/sh\necho started >> "{left}"\n')
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return left


def folder(root: Path) -> Path:
    draws = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(draws.integers(256, size=(8, 8, 3), dtype=np.uint8))
                picture.save(root / part / name / f"{number}.png")
    return root


def recipe(tmp_path: Path, root: Path, storage: str) -> Path:
    file = tmp_path / "folder.toml"
    data = f'dataset = "image-folder"\nroot = "{root}"\nimage_size = 8\nstorage = "{storage}"\nworkers = 0'
    file.write_text(TINY.replace('dataset = "digits"', data).replace("epochs = 2", "epochs = 1"))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an image folder, beside the folder; to be read, not changed."""
    place = tmp_path_factory.mktemp("trained")
    source = load(recipe(place, folder(place / "images"), "resident"))
    train_recipe(source, place / "runs", device="cpu", command="test", observer=Observer())
    return place


def refused(result: Result, mark: Path, file: Path) -> None:
    assert result.status == 2, result
    assert str(file) in result.err + result.out, result
    assert "of a format that is read (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF, JPEG 2000, ICO, TGA)" in result.err
    assert not mark.exists()


def test_the_mark_is_left_where_pillow_is_left_to_choose(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "cat.png").write_bytes(EPS)
    with pytest.raises(OSError), Image.open(tmp_path / "cat.png") as picture:  # noqa: PT011
        picture.load()
    assert mark.exists()


@pytest.mark.parametrize("storage", ["resident", "stream"])
@pytest.mark.parametrize("name", ["0.png", "0.jpg"])
def test_a_training_starts_no_program_for_a_picture(
    tmp_path: Path, distilkit: Command, mark: Path, storage: str, name: str
) -> None:
    root = folder(tmp_path / "images")
    (root / "train" / "cat" / "0.png").unlink()
    evil = root / "train" / "cat" / name
    evil.write_bytes(EPS)
    refused(distilkit("train", recipe(tmp_path, root, storage), "--runs", tmp_path / "runs"), mark, evil)
    assert not (tmp_path / "runs").exists()


def test_evaluating_starts_no_program(trained: Path, tmp_path: Path, distilkit: Command, mark: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    root = Path(shutil.copytree(trained / "images", tmp_path / "images"))
    evil = root / "test" / "dog" / "1.png"
    evil.write_bytes(EPS)
    refused(distilkit("evaluate", run, "--data", root), mark, evil)


def test_predicting_starts_no_program(trained: Path, tmp_path: Path, distilkit: Command, mark: Path) -> None:
    (run,) = (trained / "runs").iterdir()
    file = small_file(tmp_path / "small.onnx", Preparation(Framing(8, 8, 3)))
    evil = tmp_path / "photos" / "cat.png"
    evil.parent.mkdir()
    evil.write_bytes(EPS)
    refused(distilkit("predict", file, evil), mark, evil)
    refused(distilkit("predict", file, evil.parent), mark, evil)
    assert distilkit("predict", file, evil, trained / "images" / "test" / "cat" / "0.png", "--json").status == 2
    model = package.load(run)
    with pytest.raises(OSError, match="cannot identify"):
        model.read(evil)
    assert not mark.exists()


def test_a_recipe_for_a_folder_is_written_without_starting_a_program(
    tmp_path: Path, distilkit: Command, mark: Path
) -> None:
    root = folder(tmp_path / "images")
    evil = root / "train" / "cat" / "0.png"
    evil.write_bytes(EPS)
    result = distilkit("init", root, "--output", tmp_path / "own.toml", "--yes")
    assert str(evil) in result.out + result.err
    for file in root.glob("*/*/*.png"):
        file.write_bytes(EPS)
    result = distilkit("init", root, "--output", tmp_path / "none.toml", "--yes")
    assert result.status == 2
    assert "none of 8 image files can be read" in result.err
    assert not mark.exists()


@pytest.mark.parametrize("content", [EPS, WMF, FITS, PSD, *TEXT.values()], ids=["EPS", "WMF", "FITS", "PSD", *TEXT])
@pytest.mark.parametrize("ending", [".png", ".jpg", ".eps", ".tga"])
def test_other_formats_are_no_images(tmp_path: Path, mark: Path, content: bytes, ending: str) -> None:
    file = tmp_path / f"cat{ending}"
    file.write_bytes(content)
    with pytest.raises(UNREADABLE) as caught:
        decode(file, Framing(8, 8, 3))
    assert "not an image of a format that is read" in pixels.reason(file, caught.value)
    faults = Decoder(Framing(8, 8, 3))[Request([str(file)])].faults
    assert [str(file) in fault for fault in faults] == [True]
    assert not mark.exists()


def written(name: str) -> bytes | None:
    """A picture in one of Pillow's formats; None where this Pillow cannot write it."""
    Image.init()
    for mode in ("RGB", "L", "P", "1", "F"):
        content = io.BytesIO()
        try:
            Image.new(mode, (16, 16)).save(content, name)
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        return content.getvalue()
    return None


@pytest.mark.parametrize("name", [*FORMATS, "MPO"])
def test_every_format_that_is_named_is_decoded(tmp_path: Path, name: str) -> None:
    content = written(name)
    if content is None:
        pytest.skip(f"this Pillow writes no {name}")
    file = tmp_path / "picture.png"  # the content decides, not the name
    file.write_bytes(content)
    assert decode(file, Framing(8, 8, 3)).shape == (8, 8, 3)
    assert not Decoder(Framing(8, 8, 3))[Request([str(file)])].faults


def test_a_phones_picture_of_several_is_read_as_its_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    pixels_HWC = decode(tmp_path / "phone.jpg", Framing(8, 8, 3))
    assert pixels_HWC[..., 0].min() > 200
    assert pixels_HWC[..., 2].max() < 50


@pytest.mark.filterwarnings("ignore:.*image format is deprecated:DeprecationWarning")
def test_no_other_format_of_pillow_is_opened(tmp_path: Path) -> None:
    Image.init()
    others = [name for name in Image.SAVE if name not in (*FORMATS, "MPO", "PDF")]
    assert "EPS" in others
    for name in others:
        content = written(name)
        if content is None:
            continue
        (tmp_path / "picture.png").write_bytes(content)
        with pytest.raises(UNREADABLE):
            open_image(tmp_path / "picture.png")


def test_pillow_is_never_left_to_choose_a_format(
    trained: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens an image in these commands names the formats; so does the corruption of images in memory."""
    asked: list[object] = []
    really = Image.open

    def watched(file: object, mode: str = "r", formats: object = None) -> object:
        asked.append(formats)
        return really(file, mode, formats)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", watched)
    root = trained / "images"
    assert distilkit("train", recipe(tmp_path, root, "stream"), "--runs", tmp_path / "runs").status == 0
    corruption.corrupt(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "jpeg", 1, seed=0, start=0)
    assert distilkit("init", root, "--output", tmp_path / "own.toml", "--yes").status == 0
    assert len(asked) > 30
    assert None not in asked
