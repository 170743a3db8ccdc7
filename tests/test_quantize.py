"""Eight-bit files: what is in them, what they lose, and that a bad one does not pass for a good one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Result

from distilkit.export import quantize as quantizing
from distilkit.export.quantize import drawn_over_classes, quantize_static
from distilkit.runs.run import Run

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def run(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(one_run, tmp_path_factory.mktemp("quantize") / "run")


def images_of(run: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = Run.open(run).data.load((split,)).splits[split]
    return chosen.images[:], chosen.labels


def error_of(file: str, images: torch.Tensor, labels: torch.Tensor) -> float:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
    return 100 * float((logits.argmax(1) != labels.numpy()).mean())


def kinds(file: str | Path) -> dict[int, int]:
    """How many numbers the file holds of each type of ONNX."""
    found: dict[int, int] = {}
    for initializer in onnx.load(file).graph.initializer:
        found[initializer.data_type] = found.get(initializer.data_type, 0) + int(np.prod(initializer.dims))
    return found


def metadata_of(file: str | Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


@pytest.fixture(scope="module")
def verdict(run: Path) -> dict[str, Any]:
    from test_commands import command

    result = command("export", run, "--quantize", "int8", "--calibration-images", 100, "--max-drop", 5, "--json")
    return {"status": result.status, **result.json}


def test_both_files_are_left_and_the_figures_are_theirs(run: Path, verdict: dict[str, Any]):
    assert (verdict["status"], verdict["passed"], verdict["reason"]) == (0, True, None)
    quantized = verdict["quantized"]
    assert Path(verdict["file"]) == run / "exports" / "single.onnx"
    assert Path(quantized["file"]) == run / "exports" / "single-int8.onnx"
    assert sorted(path.name for path in (run / "exports").iterdir()) == [
        "single-int8.onnx",
        "single.card.md",
        "single.onnx",
    ]
    images, labels = images_of(run, "test")
    assert quantized["images"] == len(labels)
    for name, file in (("before", verdict["file"]), ("after", quantized["file"])):
        side = quantized[name]
        assert side["file"] == file
        assert side["bytes"] == Path(file).stat().st_size
        assert side["top1_error"] == pytest.approx(error_of(file, images / 255, labels), abs=1e-6)
        low, high = side["interval95"]
        assert low < side["top1_error"] < high
        assert set(side["latency_ms"]) == {"batch_1", "batch_32"}
    assert quantized["drop"] == pytest.approx(quantized["after"]["top1_error"] - quantized["before"]["top1_error"])
    assert quantized["bytes_ratio"] < 0.5
    for batch, factor in quantized["speedup"].items():
        before, after = (quantized[name]["latency_ms"][batch]["median_ms"] for name in ("before", "after"))
        assert factor == pytest.approx(before / after)
        assert (batch in quantized["slower_at"]) == (factor < 1)
    (check,) = quantized["checks"]
    assert (check["kind"], check["max_drop"], check["passed"]) == ("drop", 5, True)
    assert quantized["machine"]["cores"] >= 1


def test_weights_are_signed_bytes_per_channel_and_activations_unsigned(verdict: dict[str, Any]):
    model = onnx.load(verdict["quantized"]["file"])
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 9
    for node in convolutions:
        activation, weight = (producers[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert constants[activation.input[2]].dtype == np.uint8
        values, scales = constants[weight.input[0]], constants[weight.input[1]]
        assert values.dtype == np.int8
        assert scales.shape == values.shape[:1]
        assert not constants[weight.input[2]].any()
    # The logits are a sum of its own for every image, and not one of 256 levels.
    assert producers["logits"].op_type == "Gemm"


def test_an_eight_bit_file_keeps_its_metadata_and_says_what_it_is(verdict: dict[str, Any]):
    before, after = metadata_of(verdict["file"]), metadata_of(verdict["quantized"]["file"])
    assert before["precision"] == "float32"
    assert {**after, "precision": ""} == {
        **before,
        "precision": "",
        "calibration": "minmax on 100 images",
        "reduce_range": str(verdict["quantized"]["reduce_range"]).lower(),
    }
    assert "int8" in after["precision"]
    assert onnx.load(verdict["quantized"]["file"]).producer_name == "distilkit"


def test_the_same_images_give_the_same_bytes(run: Path, verdict: dict[str, Any], tmp_path: Path):
    images, labels = images_of(run, "train")
    chosen = images[drawn_over_classes(labels, 100, Run.open(run).data.seed)]
    reduce_range = verdict["quantized"]["reduce_range"]
    quantize_static(Path(verdict["file"]), tmp_path / "a.onnx", chosen, {}, reduce_range=reduce_range)
    assert (tmp_path / "a.onnx").read_bytes() == Path(verdict["quantized"]["file"]).read_bytes()
    quantize_static(Path(verdict["file"]), tmp_path / "b.onnx", chosen[:50], {}, reduce_range=reduce_range)
    assert (tmp_path / "b.onnx").read_bytes() != (tmp_path / "a.onnx").read_bytes()


def test_percentiles_cut_off_a_single_wild_pixel_and_ranges_do_not(verdict: dict[str, Any], run: Path, tmp_path: Path):
    images, _ = images_of(run, "train")
    images = images[:1000] // 4  # 64,000 pixels, of which a ten-thousandth is six
    images[0, 0, 0, 0] = 255

    def input_scale(calibration: Any) -> float:
        file = tmp_path / f"{calibration}.onnx"
        quantize_static(Path(verdict["file"]), file, images, {}, calibration=calibration)
        model = onnx.load(file)
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        scale = next(i for i in model.graph.initializer if i.name == first.input[1])
        assert metadata_of(file)["calibration"] == f"{calibration} on 1000 images"
        return float(onnx.numpy_helper.to_array(scale))

    assert input_scale("percentile") < 0.7 * input_scale("minmax")


def test_seven_bit_weights_keep_to_seven_bits(verdict: dict[str, Any], run: Path, tmp_path: Path):
    images, _ = images_of(run, "train")
    largest = {}
    for reduce_range in (False, True):
        quantize_static(Path(verdict["file"]), tmp_path / "m.onnx", images[:20], {}, reduce_range=reduce_range)
        bytes_ = [onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m.onnx").graph.initializer]
        largest[reduce_range] = max(int(np.abs(v.astype(int)).max()) for v in bytes_ if v.dtype == np.int8 and v.ndim)
    assert largest == {False: 127, True: 64}


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2 avx512f", False),
        ("x86_64", "avx2 avx_vnni", True),
        ("AMD64", "avx512_vnni", True),
        ("arm64", "", True),
    ],
)
def test_only_an_x86_without_vnni_needs_seven_bits(
    machine: str, flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(quantizing.Path, "read_text", lambda *_, **__: f"flags : fpu {flags} sse\n")
    assert quantizing.has_integer_dot_products() is expected


def test_calibration_images_come_from_all_classes_in_equal_numbers():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 3 + [3] * 50)
    chosen = drawn_over_classes(labels, 30, seed=1)
    assert len(set(chosen.tolist())) == 30
    # The class of three gives all it has, and the others share the rest alike.
    assert labels[chosen].bincount().tolist() == [9, 9, 3, 9]
    assert labels[drawn_over_classes(labels, 4, seed=1)].sort().values.tolist() == [0, 1, 2, 3]
    assert torch.equal(drawn_over_classes(labels, 30, seed=1), chosen)
    assert not torch.equal(drawn_over_classes(labels, 30, seed=2), chosen)
    assert sorted(drawn_over_classes(labels, 1000, seed=1).tolist()) == list(range(163))


def test_calibration_on_wrong_images_trips_max_drop_and_leaves_the_whole_file(
    run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "distilkit.workflows.deploy.quantize.calibration_images",
        lambda train, chosen: torch.full((len(chosen), *train.images.shape[1:]), 3, dtype=torch.uint8),
    )
    result = distilkit(
        *("export", run, "--quantize", "int8", "--calibration-images", 32, "--max-drop", 0.5),
        *("--output", tmp_path / "model.onnx", "--json"),
    )
    assert result.status == 1
    document = result.json
    assert document["passed"] is False
    quantized = document["quantized"]
    assert quantized["drop"] > 5
    assert f"rises by {quantized['drop']:.2f} points (0.5 are allowed)" in document["reason"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-int8.failed.onnx", "model.card.md", "model.onnx"]
    assert quantized["file"] == quantized["after"]["file"] == str(tmp_path / "model-int8.failed.onnx")
    assert document["file"] == str(tmp_path / "model.onnx")
    assert document["reason"] in result.err
    images, labels = images_of(run, "test")
    assert error_of(document["file"], images / 255, labels) == pytest.approx(quantized["before"]["top1_error"])


def fake_latency(before: float, after: float) -> Callable[..., Any]:
    def latency(files: Any, batches: Any) -> Any:
        times = {"before": before, "after": after}
        return {name: {batch: {"median_ms": times[name], "p95_ms": 9.0} for batch in batches} for name in files}

    return latency


@pytest.mark.parametrize(("after", "status"), [(0.5, 0), (1.25, 1)])
def test_min_speedup_is_checked_and_slower_is_called_slower(
    after: float, status: int, run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distilkit.workflows.deploy.quantize.interleaved_latency", fake_latency(1.0, after))
    result = distilkit(
        *("export", run, "--quantize", "int8", "--calibration-images", 20, "--min-speedup", 1.2),
        *("--output", tmp_path / "model.onnx"),
    )
    assert result.status == status
    assert f"{1 / after:.2f} times as fast" in result.out
    assert ("SLOWER than floating point on this machine" in result.out) == (after > 1)
    assert (tmp_path / "model.onnx").is_file()
    assert (tmp_path / "model-int8.onnx").is_file() == (status == 0)
    assert ("1.2 is wanted" in result.err) == (status == 1)


@pytest.mark.parametrize(("counts", "status"), [((), 1), ((1,), 1), ((8,), 0)])
def test_the_batch_size_at_which_the_speedup_counts(
    counts: tuple[int, ...],
    status: int,
    run: Path,
    tmp_path: Path,
    distilkit: Command,
    monkeypatch: pytest.MonkeyPatch,
):
    def latency(files: Any, batches: Any) -> Any:
        # No faster alone, twice as fast together.
        times = {name: {batch: 1.0 if name == "before" or batch == 1 else 0.5 for batch in batches} for name in files}
        return {
            name: {batch: {"median_ms": median, "p95_ms": 9.0} for batch, median in by_batch.items()}
            for name, by_batch in times.items()
        }

    monkeypatch.setattr("distilkit.workflows.deploy.quantize.interleaved_latency", latency)
    arguments = ("--quantize", "int8", "--calibration-images", 20, "--min-speedup", 1.2)
    counted = [part for batch in counts for part in ("--speedup-batch", batch)]
    result = distilkit("export", run, *arguments, *counted, "--output", tmp_path / "model.onnx", "--json")
    assert result.status == status
    (check,) = result.json["quantized"]["checks"]
    assert check["batches"] == [f"batch_{batch}" for batch in counts or (1, 32)]
    assert check["speedup"] == (2.0 if counts == (8,) else 1.0)
    assert set(result.json["quantized"]["speedup"]) >= {"batch_1", "batch_32"}


def test_dynamic_has_integer_weights_and_needs_no_calibration(
    run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distilkit.workflows.deploy.quantize.interleaved_latency", fake_latency(1.0, 2.0))
    arguments = ("export", run, "--quantize", "dynamic", "--output", tmp_path / "m.onnx", "--max-drop", 3, "--json")
    result = distilkit(*arguments)
    assert result.status == 0
    quantized = result.json["quantized"]
    assert (quantized["scheme"], quantized["calibration"]) == ("dynamic", None)
    assert quantized["file"] == str(tmp_path / "m-dynamic.onnx")
    assert quantized["slower_at"] == ["batch_1", "batch_32"]
    held = kinds(quantized["file"])
    assert held[onnx.TensorProto.UINT8] > 10 * held[onnx.TensorProto.FLOAT]


def test_an_ensemble_of_bytes_channels_last_in_batches_of_eight_can_be_quantised(
    run: Path, tmp_path: Path, distilkit: Command
):
    result = distilkit(
        *("export", run, "--mode", "ensemble", "--members", "--input", "uint8", "--layout", "nhwc", "--batch", 8),
        *("--quantize", "int8", "--calibration", "percentile", "--calibration-images", 30),
        *("--max-drop", 5, "--output", tmp_path / "e.onnx", "--json"),
    )
    assert result.status == 0
    document = result.json
    assert list(document["quantized"]["speedup"]) == ["batch_8"]
    model = onnx.load(document["quantized"]["file"])
    (image_input,) = model.graph.input
    assert image_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in image_input.type.tensor_type.shape.dim] == [8, 8, 8, 1]
    assert [output.name for output in model.graph.output] == document["outputs"]
    assert json.loads(metadata_of(document["quantized"]["file"])["classes"])[3] == "3"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-drop", 1), ("--max-drop", "--quantize")),
        (("--min-speedup", 1), ("--min-speedup", "--quantize")),
        (("--calibration", "minmax"), ("--calibration", "--quantize")),
        (("--calibration-images", 10), ("--calibration-images", "--quantize")),
        (("--full-range",), ("--full-range", "--quantize")),
        (("--quantize", "dynamic", "--calibration", "minmax"), ("--calibration", "dynamic")),
        (("--quantize", "int8", "--fp16"), ("--fp16", "--quantize")),
        (("--quantize", "int8", "--max-drop", "nan"), ("--max-drop",)),
        (("--quantize", "int8", "--max-drop", -1), ("--max-drop",)),
        (("--quantize", "int8", "--min-speedup", 0), ("--min-speedup",)),
        (("--quantize", "int4"), ("int4",)),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    arguments: tuple[object, ...], words: tuple[str, ...], run: Path, tmp_path: Path, distilkit: Command
):
    result = distilkit("export", run, *arguments, "--output", tmp_path / "m.onnx", "--json")
    assert result.status == 2
    error = result.json["error"]
    for word in words:
        assert word in f"{error['message']} {error['hint']}"
    assert list(tmp_path.iterdir()) == []
