"""`--device cuda` for files: what is asked of ONNX Runtime, and what a machine without CUDA is told.

No test here computes on CUDA; docs/gpu.md has what still has to be seen there.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from conftest import Result
from PIL import Image

from distilkit.errors import UserError
from distilkit.export.opened import open_file
from distilkit.export.runtime import RUNTIME_ERRORS, open_session

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def exported(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_commands import command

    file = tmp_path_factory.mktemp("cuda") / "single.onnx"
    assert command("export", one_run, "--output", file).status == 0
    return file


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("L", (8, 8), 90).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


class Session:
    """ONNX Runtime with CUDA as its first provider, played by the CPU; `asked`: the providers of every session."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, starts: bool) -> None:
        self.asked = []
        real = onnxruntime.InferenceSession

        class Played(real):  # type: ignore[misc, valid-type]
            def get_providers(self) -> list[str]:
                return ["CUDAExecutionProvider", *super().get_providers()] if starts else super().get_providers()

        def session(file: str, options: Any, providers: list[Any], **settings: Any) -> Played:
            self.asked.append(providers)
            return Played(file, options, providers=["CPUExecutionProvider"], **settings)

        monkeypatch.setattr("onnxruntime.InferenceSession", session)
        monkeypatch.setattr(
            "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        monkeypatch.setattr("onnxruntime.preload_dlls", lambda: sys.stdout.write("Failed to load libcublas"))


needs_no_gpu_package = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed"
)


@needs_no_gpu_package
def test_without_the_package_for_cuda_every_command_names_it(
    exported: Path, one_run: Path, picture: Path, tmp_path: Path, distilkit: Command
):
    for arguments in (
        ("predict", exported, picture, "--device", "cuda"),
        ("export", one_run, "--device", "cuda", "--output", tmp_path / "new.onnx"),
    ):
        result = distilkit(*arguments)
        assert result.status == 2
        assert "--device cuda needs ONNX Runtime's package for CUDA" in result.err
        assert "onnxruntime-gpu[cuda,cudnn]" in result.err
    assert list(tmp_path.glob("*.onnx")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_benchmark_without_a_device_says_so_before_it_computes(one_run: Path, distilkit: Command):
    result = distilkit("benchmark", one_run, "--device", "cuda")
    assert result.status == 2
    assert "no CUDA device" in result.err


def test_a_provider_that_cannot_start_is_no_silent_computation_on_the_cpu(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Session(monkeypatch, starts=False)
    with pytest.raises(UserError, match="cannot start its CUDA provider"):
        open_session(exported, device="cuda")
    assert capsys.readouterr().out == ""


def test_cuda_is_asked_for_first_and_without_tf32(exported: Path, monkeypatch: pytest.MonkeyPatch):
    played = Session(monkeypatch, starts=True)
    open_session(exported, device="cuda")
    open_session(exported)
    assert played.asked == [
        [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
        ["CPUExecutionProvider"],
    ]


def test_export_compares_counts_and_times_on_the_device_that_was_asked_for(
    one_run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    played = Session(monkeypatch, starts=True)
    result = distilkit(
        "export", one_run, "--mode", "ensemble", "--device", "cuda", "--output", tmp_path / "e.onnx", "--json"
    )
    assert result.status == 0
    assert result.json["device"] == "cuda"
    # The comparison, the error on the test set, and two files that take turns; nothing was left to the CPU alone.
    assert [providers[0][0] for providers in played.asked] == ["CUDAExecutionProvider"] * 4


def test_benchmark_and_predict_open_files_on_the_device(
    exported: Path, picture: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    on_cpu = distilkit("predict", exported, picture, "--json").json
    played = Session(monkeypatch, starts=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distilkit("predict", exported, picture, "--device", "cuda", "--json").json == on_cpu
    timed = distilkit("benchmark", exported, "--device", "cuda", "--batch", 2, "--repetitions", 2, "--json").json
    assert timed["device"] == "cuda"
    assert len(timed["results"]) == 1
    assert [providers[0][0] for providers in played.asked] == ["CUDAExecutionProvider"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "--device", "cuda", "--quantize", "int8"), "--quantize makes files for CPUs"),
        (("export", "--device", "cuda", "--format", "pt2"), "pt2 is checked on the CPU"),
    ],
)
def test_what_is_no_work_for_cuda_is_refused(
    arguments: tuple[str, ...], message: str, one_run: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    Session(monkeypatch, starts=True)
    result = distilkit(arguments[0], one_run, *arguments[1:])
    assert result.status == 2
    assert message in result.err


def test_files_of_other_formats_are_not_opened_on_cuda(tmp_path: Path):
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(UserError, match="is no ONNX file"):
        open_file(tmp_path / "model.pt2", device="cuda")


def test_the_runtime_prints_nothing_of_a_file_that_it_cannot_use(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its errors are exceptions; printed as well, in colours, they would stand before the one message of a command."""
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", numbers, (4, 3, 3, 3), [0.5] * 108)
    weight.dims[0] = 0
    images = helper.make_tensor_value_info("images", numbers, ("N", 3, 8, 8))
    maps = helper.make_tensor_value_info("maps", numbers, None)
    nodes = [helper.make_node("Conv", ["images", "w"], ["c"]), helper.make_node("Relu", ["c"], ["maps"])]
    graph = helper.make_graph(nodes, "damaged", [images], [maps], [weight])
    file = tmp_path / "damaged.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    with pytest.raises(RUNTIME_ERRORS):
        open_session(file)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
