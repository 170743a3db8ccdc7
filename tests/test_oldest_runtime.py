"""An exported file opens in older ONNX Runtimes: its IR version is the lowest that its opset allows."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from distilkit.export.onnx import SingleForExport, export_onnx, newest_opset, oldest_runtime
from distilkit.export.quantize import quantize_static

# By opset: IR version, and the first ONNX Runtime that knows both.
KNOWN = {18: (8, "1.15"), 19: (9, "1.15"), 20: (9, "1.17"), 21: (10, "1.18"), 22: (10, "1.21"), 23: (11, "1.23")}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()


def exported(folder: Path, opset: int | None) -> Path:
    file, single = folder / f"{opset}.onnx", SingleForExport(network())
    export_onnx(single, file, size=(3, 8, 8), output_names=single.output_names, metadata={}, opset=opset)
    return file


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_the_ir_version_is_the_lowest_and_the_runtime_that_opens_it_is_named(opset: int, tmp_path: Path) -> None:
    if opset > newest_opset():
        pytest.skip(f"the installed libraries do not write opset {opset}")
    file = exported(tmp_path, opset)
    ir, runtime = KNOWN[opset]
    assert onnx.load(file).ir_version == ir
    assert oldest_runtime(file) == runtime


def test_the_file_that_export_writes_by_itself_needs_no_new_runtime(tmp_path: Path) -> None:
    assert tuple(map(int, oldest_runtime(exported(tmp_path, None)).split("."))) <= (1, 17)


def test_the_eight_bit_file_keeps_the_ir_version(tmp_path: Path) -> None:
    source, target = exported(tmp_path, 18), tmp_path / "int8.onnx"
    quantize_static(source, target, torch.rand(8, 3, 8, 8), {})
    assert onnx.load(target).ir_version == 8
    assert oldest_runtime(target) == "1.15"


@pytest.mark.long
def test_the_oldest_runtime_that_is_named_opens_the_file_and_agrees(tmp_path: Path) -> None:
    source, int8 = exported(tmp_path, 18), tmp_path / "int8.onnx"
    quantize_static(source, int8, torch.rand(8, 3, 8, 8), {})
    venv.create(tmp_path / "old", with_pip=True)
    python = str(tmp_path / "old" / "bin" / "python")
    packages = [f"onnxruntime=={oldest_runtime(source)}.*", "numpy<2"]
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary=:all:",
        *packages,
    ]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip(f"ONNX Runtime {oldest_runtime(source)} has no package for Python {sys.version_info.minor}")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()
    np.save(tmp_path / "images.npy", images)
    script = (
        "import json, numpy, onnxruntime, sys\n"
        "images = numpy.load(sys.argv[1])\n"
        "for file in sys.argv[2:]:\n"
        "    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])\n"
        "    print(json.dumps(session.run(['logits'], {'images': images})[0].tolist()))\n"
    )
    command = [python, "-c", script, str(tmp_path / "images.npy"), str(source), str(int8)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for file, line in zip((source, int8), lines, strict=True):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images})
        assert np.allclose(json.loads(line), logits, atol=1e-4)
