"""What broke when somebody who had not mended the first faults looked for others in strangers' files."""

import os
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from test_predict import small_file
from torch import Tensor

from distilkit.data import pixels
from distilkit.data.pixels import Framing
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError
from distilkit.learners.pretrained import read_weights
from distilkit.models import registry
from distilkit.report import card
from distilkit.report.card import CardKeptError, _write, without_paths
from distilkit.runs.run import Run
from distilkit.spelling import markdown

Command = Callable[..., Result]

# ------------------------------------------------------------------------------------------------------------- weights

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "without numbers": lambda tensor: torch.empty(tensor.shape, device="meta"),
    "of eight bits": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "of eight other bits": lambda tensor: tensor.to(torch.float8_e5m2),
    "sparse": lambda tensor: tensor.to_sparse(),
    "nested": lambda tensor: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


def weights(folder: Path) -> dict[str, Tensor]:
    """Those of the tiny recipe's network."""
    (folder / "tiny.toml").write_text(TINY)
    network = registry.create("resnet8", num_classes=10, channels=1)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_weights_of_a_kind_that_no_network_has_are_refused(tmp_path: Path, distilkit: Command, kind: str) -> None:
    state = weights(tmp_path)
    name = next(name for name, tensor in state.items() if tensor.dim() == 4)
    state[name] = KINDS[kind](state[name])
    files = [tmp_path / "weights.pth"]
    torch.save(state, files[0])
    if "eight" in kind:
        files.append(tmp_path / "weights.safetensors")
        save_file(state, files[1])
    for file in files:
        result = distilkit("train", tmp_path / "tiny.toml", "--set", f'model.pretrained="{file}"', "--dry-run")
        assert result.status == 2, result.err
        assert str(file) in result.err


def test_an_archive_with_two_directories_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    """Python takes the directory right before the archive's end, PyTorch the one that the end names."""
    torch.save({"weight": torch.zeros(4)}, tmp_path / "small.pth")
    unpacked, content, entries = 2**26, bytearray(), []
    with zipfile.ZipFile(tmp_path / "small.pth") as archive:
        for name in archive.namelist():
            data, method = archive.read(name), 0
            if name.endswith("data/0"):
                data, method = bytes(unpacked), 8
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = packer.compress(data) + packer.flush() if method else data
            sums = (zlib.crc32(data), len(packed), len(data))
            entries.append((name.encode(), method, sums, len(content)))
            content += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, method, 0, 0, *sums, len(name), 0)
            content += name.encode() + packed

    def directory(largest: int) -> bytes:
        parts = b""
        for name, method, (crc, packed, size), place in entries:
            sums = (crc, packed, min(size, largest), len(name))
            parts += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, method, 0, 0, *sums, 0, 0, 0, 0, 0, place) + name
        return parts

    true, false = directory(unpacked), directory(10)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(entries), len(entries), len(false), len(content), 0)
    file = tmp_path / "weights.pth"
    file.write_bytes(bytes(content) + true + false + end)
    with pytest.raises(UserError, match="unpacked, more than the file has"):
        read_weights(file)


# ---------------------------------------------------------------------------------------------------------- ONNX files

GREY = Preparation(Framing(8, 8, 1))


def lying(file: Path, answer: Sequence[int], kind: int = TensorProto.FLOAT, classes: int = 2) -> Path:
    """A file whose probabilities are declared as those of `classes` classes; computed, they have the shape `answer`."""
    small_file(file, GREY)
    model = onnx.load(file)
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("ReduceSum", ["shape"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["target"]),
        helper.make_node("ConstantOfShape", ["target"], ["floats"]),
        helper.make_node("Cast", ["floats"], ["probabilities"], to=kind),
    ]
    constants = {"zero": np.int64(0), "answer": np.array(answer, np.int64)}
    graph = helper.make_graph(
        nodes,
        "lying",
        list(model.graph.input),
        [helper.make_tensor_value_info("probabilities", kind, ["M", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model.graph.CopyFrom(graph)
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((1, 2), TensorProto.FLOAT),
        ((7, 2), TensorProto.FLOAT),
        ((3, 0), TensorProto.FLOAT),
        ((3, 1), TensorProto.FLOAT),
        ((3, 9), TensorProto.FLOAT),
        ((3, 2), TensorProto.STRING),
        ((3, 2), TensorProto.BFLOAT16),
        ((3, 2), TensorProto.BOOL),
    ],
)
def test_a_file_whose_probabilities_are_none_is_refused(
    tmp_path: Path, distilkit: Command, answer: Sequence[int], kind: int
) -> None:
    pictures = [tmp_path / f"{place}.png" for place in range(3)]
    for picture in pictures:
        Image.new("L", (8, 8)).save(picture)
    result = distilkit("predict", lying(tmp_path / "lying.onnx", answer, kind), *pictures)
    assert result.status == 2
    assert "does not give the probabilities of its 2 classes" in result.err


def test_a_file_without_classes_is_refused(tmp_path: Path, distilkit: Command) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    file = lying(tmp_path / "lying.onnx", (1, 0), classes=0)
    model = onnx.load(file)
    next(entry for entry in model.metadata_props if entry.key == "classes").value = "[]"
    onnx.save(model, file)
    result = distilkit("predict", file, tmp_path / "0.png")
    assert result.status == 2
    assert "its classes are not a list of names" in result.err


def test_a_file_that_repeats_one_picture_into_gigabytes_is_refused(tmp_path: Path, distilkit: Command) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    file = small_file(tmp_path / "large.onnx", Preparation(Framing(224, 224, 1)), batch=65_536)
    result = distilkit("predict", file, tmp_path / "0.png")
    assert result.status == 2
    assert "takes 65536 images of [1, 224, 224] at a time" in result.err


# ------------------------------------------------------------------------------------------------ text that takes hours


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def test_long_text_of_a_run_takes_no_time_by_its_square(tmp_path: Path) -> None:
    assert seconds(lambda: markdown("a" * 100_000)) < 1
    assert seconds(lambda: without_paths('"' + "' \\ " * 500_000)) < 1
    (tmp_path / "README.md").write_text("# x\n\n`" + "` trained with `" * 20_000 + "\n")

    def write() -> None:
        with pytest.raises(CardKeptError):
            _write(tmp_path / "README.md", {}, "", "")

    assert seconds(write) < 2


def test_measurements_of_hundreds_of_digits_are_left_out_of_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "robustness").mkdir()
    (tmp_path / "robustness" / "robustness.json").write_text(
        '{"settings": {}, "runs": [{"member": "x", "run": "' + tmp_path.name + '"}]}'
    )

    def measured(*_: object) -> list[str]:
        return [f"{10**400 / 3}"]

    monkeypatch.setattr(card, "_measured", measured)
    assert card._robustness_text(cast(Run, SimpleNamespace(path=tmp_path))) == ""


# ------------------------------------------------------------------------------------------------------ large pictures

PEAK = """
import pathlib, sys
from distilkit.data.pixels import Framing, decode

def kilobytes(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

before = kilobytes("VmRSS:")
decode(sys.argv[1], Framing(8, 8, 3))
print(1024 * (kilobytes("VmHWM:") - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read as Linux tells it")
@pytest.mark.parametrize(("mode", "bytes_each"), [("RGBA", 13), ("I;16", 15), ("RGB", 7)])
def test_a_large_picture_takes_little_more_than_its_pixels(tmp_path: Path, mode: str, bytes_each: int) -> None:
    """Nothing of a file of some kilobytes is held six times over."""
    side = 4_000
    Image.new(mode, (side, side)).save(tmp_path / "large.png", compress_level=1)
    words = [sys.executable, "-c", PEAK, str(tmp_path / "large.png")]
    found = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert int(found.stdout) < bytes_each * side**2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"])
def test_pictures_are_the_same_converted_in_parts(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB" if mode in ("P", "YCbCr") else "L").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(noise[..., 3]))
    transparent = {"P": 7, "L": 9, "RGB": (1, 2, 3)}
    if mode in transparent:
        image.info["transparency"] = transparent[mode]
    whole = np.asarray(pixels.to_rgb(image))
    monkeypatch.setattr(pixels, "_AT_ONCE", 100)
    assert (np.asarray(pixels.to_rgb(image)) == whole).all()


def test_a_finished_file_never_takes_the_place_of_a_pipe_or_a_device(
    one_run: Path, tmp_path: Path, distilkit: Callable[..., Result]
) -> None:
    os.mkfifo(tmp_path / "table.csv")
    refused = distilkit("compare", one_run, "--format", "csv", "--output", tmp_path / "table.csv")
    assert refused.status == 2
    assert "no plain file" in refused.err
    assert stat.S_ISFIFO((tmp_path / "table.csv").stat().st_mode)
    assert distilkit("compare", one_run, "--format", "csv", "--output", tmp_path / "other.csv").status == 0
