"""torch.export programs, OpenVINO files, other sizes, opsets: what is in them, and that no wrong one passes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Result
from onnx_graphs import multiply_adds, operators, unclean
from PIL import Image
from tiny_families import CHANNELS, SIZE, images, learner, member, registered
from torch import nn

import distilkit as package
from distilkit.errors import UserError
from distilkit.export.evaluation import evaluate_file
from distilkit.export.form import ENDINGS, Form, Formed
from distilkit.export.latency import interleaved_latency
from distilkit.export.onnx import (
    OLDEST_OPSET,
    EnsembleForExport,
    SingleForExport,
    check_opset,
    export_onnx,
    newest_opset,
)
from distilkit.export.opened import open_file, parts
from distilkit.export.openvino import export_openvino, weights_file
from distilkit.export.parity import check_file
from distilkit.export.program import export_pt2, load_pt2
from distilkit.learners.learner import Learner
from distilkit.models.own import code_trusted
from distilkit.runs.run import Run
from distilkit.workflows.deploy.export import _OwnEnsemble

Command = Callable[..., Result]

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason='the extra "openvino" is not installed'
)
WRITERS: dict[str, Callable[..., None]] = {"onnx": export_onnx, "pt2": export_pt2, "openvino": export_openvino}
FORMATS = ["onnx", "pt2", pytest.param("openvino", marks=needs_openvino)]
OTHERS = FORMATS[1:]
FORMS = {
    "plain": Form(),
    "bytes, channels last, seven at once": Form(pixels="uint8", layout="nhwc", batch=7),
    "half precision, any size": Form(half=True, side="dynamic"),
    "bytes, channels last, any size": Form(pixels="uint8", layout="nhwc", side="dynamic"),
}


@pytest.fixture(scope="module", autouse=True)
def _families() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def whole() -> Learner:
    return learner("resnet_cifar", "one")


@pytest.fixture(scope="module")
def single(whole: Learner) -> nn.Module:
    return member(whole.group, whole.leader)


def write(module: Any, file: Path, format: str, form: Form, metadata: dict[str, str] | None = None) -> Formed:
    formed = Formed(module, form).eval()
    WRITERS[format](
        formed,
        file,
        size=form.size(CHANNELS, SIZE),
        output_names=formed.output_names,
        metadata={"classes": '["a"]', "member": "ä\n<&"} if metadata is None else metadata,
        input_dtype=form.dtype,
        batch=form.batch,
        half=form.half,
        free_axes=form.free_axes,
    )
    return formed


def rewritten(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


# What is in a file


@pytest.mark.parametrize("format", OTHERS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_format_has_the_same_forms(single: nn.Module, tmp_path: Path, format: str, form: Form) -> None:
    file = tmp_path / f"model{ENDINGS[format]}"
    network = write(SingleForExport(single), file, format, form)
    assert sorted(tmp_path.iterdir()) == sorted(parts(file))
    opened = open_file(file)
    assert (opened.dtype, opened.outputs) == (form.input_type, ("logits", "probabilities"))
    free: dict[int, int | None] = dict.fromkeys(form.free_axes)
    assert opened.shape == tuple(
        free.get(axis, length) for axis, length in enumerate((form.batch, *form.size(CHANNELS, SIZE)))
    )
    assert opened.about == {"classes": '["a"]', "member": "ä\n<&"}
    sizes = [(SIZE, SIZE), (41, 48)] if form.any_size else [(SIZE, SIZE)]
    batches = (1, 7, 32) if form.batch is None else (form.batch,)
    for height, width in sizes:
        pixels = form.arrange(images(33, height, width))
        parity = check_file(file, network, pixels, network.output_names, batches, half=form.half)
        assert parity.passed, parity.reason
        assert (parity.images, parity.batch_sizes, parity.top1_agreement) == (33, batches, 100)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_of_this_machine_is_in_a_file(single: nn.Module, tmp_path: Path, format: str) -> None:
    file = tmp_path / f"model{ENDINGS[format]}"
    write(SingleForExport(single), file, format, Form(), {})
    folders = [Path(__file__).parent, Path(package.__file__).parent, Path(torch.__file__).parent, tmp_path, Path.home()]
    for part in parts(file):
        contents = [part.read_bytes()]
        if format == "pt2":
            with zipfile.ZipFile(part) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        for content in contents:
            for forbidden in (*(str(folder) for folder in folders if folder != Path("/")), "/site-packages/", ".py"):
                assert forbidden.encode() not in content, forbidden
            for forbidden in (b"stack_trace", b"nn_module_stack", b"pkg.torch", b"distilkit.export", b"/tmp/"):
                assert forbidden not in content, forbidden


@pytest.mark.parametrize("format", FORMATS)
def test_batch_norm_is_folded_and_training_is_gone(tmp_path: Path, format: str) -> None:
    whole = learner("vgg_cifar", "baseline")
    network = SingleForExport(member(whole.group, whole.leader))
    convolutions = sum(isinstance(each, nn.Conv2d) for each in network.modules())
    file = tmp_path / f"model{ENDINGS[format]}"
    write(network, file, format, Form())
    if format == "onnx":
        assert unclean(file) == []
        count = operators(onnx.load(file))
        assert count["Conv"] == convolutions
    elif format == "pt2":
        program, _ = load_pt2(file)
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        count = Counter(str(node.target).split(".")[1].removesuffix("_") for node in nodes)
        assert (count["conv2d"], count["batch_norm"], count["dropout"]) == (convolutions, 0, 0)
        assert [node.name for node in program.graph.nodes if node.op != "output" and not node.users] == []
        assert not any("running_" in name or "num_batches" in name for name in program.state_dict)
    else:
        from distilkit.export.openvino import import_openvino

        model = import_openvino().Core().read_model(str(file))
        count = Counter(each.get_type_name() for each in model.get_ops())
        assert count["Convolution"] == convolutions
        assert not {"BatchNormInference", "Dropout"} & set(count)


def test_a_norm_is_folded_only_into_a_convolution_of_its_own(tmp_path: Path) -> None:
    class Shared(nn.Module):
        """One convolution in two places, one batch norm after a branching, and one without a convolution."""

        output_names = ("logits",)

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.twice = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
            for norm in self.norms:
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.normal_(norm.running_mean)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            x = self.norms[0](x)
            first = self.norms[1](self.twice(x)) + self.norms[2](self.twice(x))
            convolved = self.conv(first)
            return ((self.norms[3](convolved) + convolved).mean((2, 3)),)

    module = Shared().eval()
    file = tmp_path / "model.pt2"
    export_pt2(module, file, size=(3, SIZE, SIZE), output_names=module.output_names, metadata={})
    assert check_file(file, module, images().float() / 255, module.output_names).passed


@needs_openvino
def test_openvino_tells_nobody() -> None:
    code = (
        "from distilkit.export.openvino import import_openvino; import_openvino(); import sys;"
        "assert 'openvino' in sys.modules; assert 'openvino_telemetry' not in sys.modules;"
        "from openvino.tools.ovc.telemetry_utils import tm; print(tm.__name__)"
    )
    root = str(Path(package.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True)
    assert done.stdout.decode().strip() == "openvino.tools.ovc.telemetry_stub", done.stderr.decode()


def test_a_program_runs_where_there_is_no_distilkit(single: nn.Module, tmp_path: Path) -> None:
    form = Form(pixels="uint8")
    network = write(SingleForExport(single), tmp_path / "model.pt2", "pt2", form)
    pixels = images(5)
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    code = (
        "import sys, numpy, torch; about = {'distilkit.json': ''};"
        "program = torch.export.load('model.pt2', extra_files=about);"
        "outputs = program.module()(torch.from_numpy(numpy.load('pixels.npy')));"
        "numpy.save('logits.npy', outputs['logits'].detach().numpy()); print(about['distilkit.json']);"
        "assert not [name for name in sys.modules if name.startswith('distilkit')]"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {"classes": '["a"]', "member": "ä\n<&"}
    with torch.no_grad():
        expected = network(pixels)[0]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected, rtol=1e-4, atol=1e-5)


def test_the_same_model_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    formats = ["onnx", "pt2", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_export_formats as t\n"
        "with t.registered():\n"
        "    whole = t.learner('resnet_cifar', 'one')\n"
        "    for _ in range(int(sys.argv[3])):\n"
        "        for format in sys.argv[4:]:\n"
        "            file = Path(sys.argv[2]) / ('a' + t.ENDINGS[format])\n"
        "            form = t.Form(side='dynamic')\n"
        "            t.write(t.SingleForExport(t.member(whole.group, whole.leader)), file, format, form)\n"
    )
    root = str(Path(package.__file__).parents[1])
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        # In one process it is the second export whose bytes count.
        arguments = [str(Path(__file__).parent), str(tmp_path / seed), seed, *formats]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / seed).iterdir()} for seed in ("1", "2"))
    assert len(first) == len(formats) + ("openvino" in formats)
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.parametrize("format", OTHERS)
def test_an_ensemble_with_its_members(whole: Learner, tmp_path: Path, format: str) -> None:
    names = whole.group.members
    ensemble = EnsembleForExport(_OwnEnsemble(whole), names, members=True).eval()
    file = tmp_path / f"ensemble{ENDINGS[format]}"
    network = write(ensemble, file, format, Form())
    assert open_file(file).outputs == ("logits", "probabilities", *(f"logits_{name}" for name in names))
    parity = check_file(file, network, images(), network.output_names)
    assert parity.passed, parity.reason
    opened, array = open_file(file), images(4).float().div(255).numpy()
    for name, logits in zip(names, opened.run([f"logits_{name}" for name in names], array), strict=True):
        write(SingleForExport(member(whole.group, name)), tmp_path / f"{name}{ENDINGS[format]}", format, Form())
        (alone,) = open_file(tmp_path / f"{name}{ENDINGS[format]}").run(["logits"], array)
        np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", OTHERS)
@pytest.mark.parametrize("family", ["densenet_cifar", "vit"])
def test_families_that_have_more_than_convolutions(tmp_path: Path, family: str, format: str) -> None:
    whole = learner(family, "baseline")
    file = tmp_path / f"model{ENDINGS[format]}"
    network = write(SingleForExport(member(whole.group, whole.leader)), file, format, Form())
    parity = check_file(file, network, images(), network.output_names)
    assert parity.passed, parity.reason


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_can_be_timed_and_evaluated(single: nn.Module, tmp_path: Path, format: str) -> None:
    from distilkit.data.datasets import Split

    file, form = tmp_path / f"model{ENDINGS[format]}", Form(batch=7)
    network = write(SingleForExport(single), file, format, form)
    latency = interleaved_latency({"file": file}, batch_sizes=(7,), repetitions=2, threads=1)
    assert 0 < latency["file"][7]["median_ms"] <= latency["file"][7]["p95_ms"]
    pixels = images(20)
    with torch.no_grad():
        seen = network(pixels.float() / 255)[0].argmax(1)
    labels = seen.clone()
    labels[:5] = (labels[:5] + 1) % 5
    figures = evaluate_file(file, Split(pixels, labels), form, lambda *_: None)
    assert figures.top1_error == 25
    places = torch.tensor([0, 5, 6, 7])
    assert evaluate_file(file, Split(pixels, labels), form, lambda *_: None, places).top1_error == 25


# A wrong file does not pass


def one_weight_of_a_program(file: Path) -> None:
    program, _ = load_pt2(file)
    weight = next(value for value in program.state_dict.values() if value.ndim == 4)
    with torch.no_grad():
        weight[0, 0, 0, 0] += 0.5
    torch.export.save(program, file)


def one_weight_of_openvino(file: Path) -> None:
    weights = np.fromfile(weights_file(file), dtype=np.float32)
    weights[:8] += 0.5
    weights.tofile(weights_file(file))


def half_of_it(file: Path) -> None:
    rewritten(parts(file)[0], lambda content: content[: len(content) // 2])


def no_longer_a_file_of_this_kind(file: Path) -> None:
    file.write_bytes(b"not a network")


@pytest.mark.parametrize(
    ("format", "damage"),
    [
        ("pt2", one_weight_of_a_program),
        ("pt2", half_of_it),
        ("pt2", no_longer_a_file_of_this_kind),
        pytest.param("openvino", one_weight_of_openvino, marks=needs_openvino),
        pytest.param("openvino", half_of_it, marks=needs_openvino),
        pytest.param("openvino", no_longer_a_file_of_this_kind, marks=needs_openvino),
    ],
)
def test_a_damaged_file_fails_and_says_what_is_wrong(
    single: nn.Module, tmp_path: Path, format: str, damage: Callable[[Path], None]
) -> None:
    file = tmp_path / f"model{ENDINGS[format]}"
    network = write(SingleForExport(single), file, format, Form())
    with code_trusted():  # a changed program is somebody else's
        damage(file)
        parity = check_file(file, network, images(), network.output_names)
    assert not parity.passed
    assert parity.reason
    assert "\n" not in parity.reason
    assert str(Path(torch.__file__).parent) not in parity.reason


def weight_changed(model: onnx.ModelProto) -> None:
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def node_rewired(model: onnx.ModelProto) -> None:
    additions = [node for node in model.graph.node if node.op_type == "Add"]
    assert additions
    additions[0].input[1] = additions[0].input[0]


def outputs_swapped(model: onnx.ModelProto) -> None:
    names = {"logits": "probabilities", "probabilities": "logits"}
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


@pytest.fixture(scope="module")
def exported(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The leader of a trained run in every format, by the command."""
    from test_commands import command

    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for format in ("onnx", "pt2", *(["openvino"] if importlib.util.find_spec("openvino") else [])):
        found[format] = folder / f"single{ENDINGS[format]}"
        result = command("export", one_run, "--format", format, "--output", found[format], "--json")
        assert result.status == 0
        assert result.json["passed"] is True
        found[f"{format}.json"] = result.json
    return found


@pytest.mark.parametrize("damage", [weight_changed, node_rewired, outputs_swapped])
def test_a_damaged_graph_leaves_no_file_under_its_final_name(
    one_run: Path,
    exported: dict[str, Path],
    tmp_path: Path,
    distilkit: Command,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[onnx.ModelProto], None],
) -> None:
    def wrong(_: nn.Module, file: Path, **__: object) -> None:
        model = onnx.load(exported["onnx"])
        damage(model)
        onnx.save(model, file)

    monkeypatch.setattr("distilkit.workflows.deploy.export.export_onnx", wrong)
    refused_with_status_1(distilkit, one_run, tmp_path / "model.onnx")


def test_statistics_of_batch_norm_that_changed_on_the_way_do_not_pass(
    one_run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    def wrong(module: nn.Module, file: Path, **options: Any) -> None:
        module = copy.deepcopy(module)
        norm = next(each for each in module.modules() if isinstance(each, nn.BatchNorm2d))
        assert norm.running_mean is not None
        norm.running_mean[0] += 0.5
        export_onnx(module, file, **options)

    monkeypatch.setattr("distilkit.workflows.deploy.export.export_onnx", wrong)
    refused_with_status_1(distilkit, one_run, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("format", "damage"),
    [
        ("pt2", one_weight_of_a_program),
        ("pt2", half_of_it),
        pytest.param("openvino", one_weight_of_openvino, marks=needs_openvino),
        pytest.param("openvino", half_of_it, marks=needs_openvino),
    ],
)
def test_a_damaged_file_of_another_format_leaves_none_either(
    one_run: Path,
    exported: dict[str, Path],
    tmp_path: Path,
    distilkit: Command,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    damage: Callable[[Path], None],
) -> None:
    def wrong(_: nn.Module, file: Path, **__: object) -> None:
        for part, wanted in zip(parts(exported[format]), parts(file), strict=True):
            shutil.copy(part, wanted)
        damage(file)

    monkeypatch.setattr(f"distilkit.workflows.deploy.export.export_{format}", wrong)
    target = tmp_path / f"model{ENDINGS[format]}"
    refused_with_status_1(distilkit, one_run, target, "--format", format, "--trust-code")


def refused_with_status_1(distilkit: Command, run: Path, target: Path, *arguments: str) -> None:
    kept = target.with_name(f"model.failed{target.suffix}")
    result = distilkit("export", run, "--output", target, *arguments)
    assert result.status == 1
    assert sorted(target.parent.iterdir()) == sorted(parts(kept))
    assert "the export is wrong" in result.err
    assert f"kept as {kept}" in result.err
    assert "passed" not in result.out


def test_a_failed_file_is_gone_once_an_export_succeeds(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    (tmp_path / "model.failed.pt2").write_bytes(b"wrong")
    assert distilkit("export", one_run, "--format", "pt2", "--output", tmp_path / "model.pt2").status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.card.md", "model.pt2"]


def test_what_stops_in_the_middle_leaves_nothing(
    one_run: Path, exported: dict[str, Path], tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(_: nn.Module, file: Path, **__: object) -> None:
        shutil.copy(exported["onnx"], file)

    def stops(*_: object, **__: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("distilkit.workflows.deploy.export.export_onnx", copied)
    monkeypatch.setattr("distilkit.workflows.deploy.export.check_file", stops)
    assert distilkit("export", one_run, "--output", tmp_path / "model.onnx").status == 2
    assert list(tmp_path.iterdir()) == []


# By the command


@pytest.mark.parametrize("format", FORMATS)
def test_the_commands_figures(exported: dict[str, Any], one_run: Path, format: str) -> None:
    document = exported[f"{format}.json"]
    assert document["format"] == format
    assert document["files"] == [str(part) for part in parts(exported[format])]
    assert document["bytes"] == sum(part.stat().st_size for part in parts(exported[format]))
    assert (document["batch_sizes"], document["top1_agreement"]) == ([1, 7, 32], 100)
    run = Run.open(one_run).record
    assert document["test"]["images"] == 500
    assert document["test"]["top1_error"] == pytest.approx(run["final"]["errors"]["student_0"]["top1"])
    low, high = document["test"]["interval95"]
    assert low < document["test"]["top1_error"] < high
    about = open_file(exported[format]).about
    assert json.loads(about["classes"]) == list("0123456789")
    assert json.loads(about["outputs"]) == ["logits", "probabilities"]
    assert json.loads(about["preprocessing"])["height"] == 8


def test_files_of_all_formats_are_timed_together(exported: dict[str, Path], distilkit: Command) -> None:
    kinds = {"onnx": "onnxruntime", "pt2": "torch-export", "openvino": "openvino"}
    files = {str(exported[format]): kind for format, kind in kinds.items() if format in exported}
    document = distilkit("benchmark", *files, "--batch", "1,3", "--repetitions", 2, "--json").json
    assert {(each["name"], each["kind"]) for each in document["results"]} == set(files.items())
    assert all(each["median_ms"] > 0 for each in document["results"])


def test_a_file_for_any_size_is_compared_at_others_and_predicts(
    one_run: Path, tmp_path: Path, distilkit: Command
) -> None:
    file = tmp_path / "any.onnx"
    document = distilkit("export", one_run, "--size", "dynamic", "--output", file, "--json").json
    assert document["passed"] is True
    assert document["size"] == "dynamic"
    sizes = [(each["height"], each["width"]) for each in document["sizes"]]
    assert sizes == [(8, 8), (11, 12), (16, 8)]
    assert all(each["passed"] and each["top1_agreement"] == 100 for each in document["sizes"])
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in shape] == ["N", 1, "H", "W"]
    assert unclean(file) == []
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixels = torch.rand(3, 1, 9, 21)
    with torch.no_grad():
        expected = Run.open(one_run).model().classifier(pixels)
    found = session.run(["logits"], {"images": pixels.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((20, 30), 128, np.uint8)).save(picture)
    assert distilkit("predict", file, picture, "--json").json["images"] == 1
    assert distilkit("benchmark", file, "--batch", 2, "--repetitions", 1, "--json").json["results"][0]["batch"] == 2


def test_another_size_is_in_the_file_and_its_metadata(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    run = shutil.copytree(one_run, tmp_path / "run")
    document = distilkit("export", run, "--format", "pt2", "--size", 12, "--json").json
    file = run / "exports" / "single-size12.pt2"
    assert document["file"] == str(file)
    assert document["size"] == 12
    opened = open_file(file)
    assert opened.shape == (None, 1, 12, 12)
    assert json.loads(opened.about["preprocessing"])["height"] == 12
    assert opened.about["input"].startswith("float32 [N, 1, 12, 12]")
    assert opened.about["top1_error_percent"] == ""  # that is of images of 8 x 8 pixels


REFUSED = {
    "--quantize makes ONNX files": ("--format", "pt2", "--quantize", "int8"),
    "--opset belongs to --format onnx": ("--format", "pt2", "--opset", "20"),
    "calibrated at the size of training": ("--size", "dynamic", "--quantize", "int8"),
    "--size must be a number of pixels": ("--size", "0"),
    "must be a number of pixels, 1 to 4096, or dynamic, not 'large'": ("--size", "large"),
    "ends as a file of --format onnx does": ("--format", "pt2", "--output", "model.onnx"),
    "must end in .pt2": ("--format", "pt2", "--output", "model"),
    "ends as a file of --format openvino does": ("--output", "model.xml"),
    "--opset must be 18 to": ("--opset", "17"),
    "--speedup-batch belongs to --quantize": ("--speedup-batch", "8"),
    "--speedup-batch says where --min-speedup counts": ("--quantize", "int8", "--speedup-batch", "8"),
    "the file takes no other": (
        *("--quantize", "int8", "--batch", "4"),
        *("--min-speedup", "1", "--speedup-batch", "8"),
    ),
}


@pytest.mark.parametrize(("words", "arguments"), REFUSED.items(), ids=REFUSED)
def test_what_does_not_go_together_is_refused_before_any_work(
    words: str, arguments: tuple[str, ...], distilkit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = distilkit("export", "no-such-run", *arguments, "--json")
    assert result.status == 2
    assert words in result.json["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_message_names_the_extra(
    distilkit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "openvino" else real(name, *rest)
    )
    result = distilkit("export", "no-such-run", "--format", "openvino", "--json")
    assert result.status == 2
    assert 'pip install "distilkit[openvino]"' in result.json["error"]["hint"]
    (tmp_path / "model.xml").write_text("<net/>")
    assert "distilkit[openvino]" in distilkit("benchmark", tmp_path / "model.xml").err


@pytest.mark.parametrize(("ending", "word"), [(".pt2", "torch.export"), (".xml", "OpenVINO")])
def test_commands_that_do_not_take_a_file_say_which_do(
    ending: str, word: str, tmp_path: Path, distilkit: Command
) -> None:
    file = tmp_path / f"model{ending}"
    file.write_bytes(b"")
    predicted = distilkit("predict", file, tmp_path / "cat.png")
    assert predicted.status == 2
    assert word in predicted.err
    assert ".onnx" in predicted.err
    for command in ("ensemble-eval", "robustness"):
        result = distilkit(command, file)
        assert result.status == 2
        assert "an exported file is for predict (.onnx), evaluate and benchmark" in " ".join(result.err.split())


@pytest.mark.parametrize("format", OTHERS)
def test_the_documented_lines_for_other_formats_answer_as_predict_does(
    exported: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilkit: Command,
    capsys: pytest.CaptureFixture[str],
    format: str,
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")
    snippet, *others = (part.partition("```")[0] for part in page.split("```python\n")[1:])
    (own,) = (each for each in others if f'"single{ENDINGS[format]}"' in each)
    lines = snippet.splitlines()
    (opens,) = (place for place, line in enumerate(lines) if line.startswith("session = "))
    (computes,) = (place for place, line in enumerate(lines) if "session.run" in line)
    assert lines[opens + 1].startswith("about = ")
    (line,) = (line for line in page.splitlines() if line.startswith("`probabilities = run("))
    lines[computes] = line.split("`")[1]
    lines[opens : opens + 2] = [own]
    for part in parts(exported[format]):
        shutil.copy(part, tmp_path)
    Image.fromarray(np.arange(0, 240, 3, dtype=np.uint8).reshape(8, 10)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile("\n".join(lines), "deployment.md", "exec"), {})
    answer = [(name, float(value)) for name, value in map(str.split, capsys.readouterr().out.splitlines())]
    (expected,) = distilkit("predict", exported["onnx"], "cat.jpg", "--json").json["predictions"]
    assert [name for name, _ in answer] == [each["class"] for each in expected["top"]]
    assert [value for _, value in answer] == pytest.approx([e["probability"] for e in expected["top"]], abs=2e-4)


# Sizes that a network cannot take, and opsets


class Flat(nn.Module):
    """Convolution and a linear layer over all places: for one size alone."""

    output_names = ("logits", "probabilities")

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * (SIZE - 2) ** 2, 5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.layers(x)
        return logits, logits.softmax(-1)


class Pooled(Flat):
    """Maps of any size to 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))


def test_networks_for_one_size_alone_are_refused_with_their_own_reason() -> None:
    from distilkit.workflows.deploy.export import _other_sizes, _require_sizes

    form = Form(side="dynamic")
    sizes = [(SIZE, SIZE), *_other_sizes(SIZE)]
    assert sizes == [(32, 32), (41, 48), (64, 32)]
    whole = learner("vit", "baseline")
    for network, reason in ((Flat(), "mat1 and mat2"), (SingleForExport(member(whole.group, whole.leader)), "height")):
        with pytest.raises(UserError, match="does not take images of 41 x 48 pixels") as raised:
            _require_sizes(Formed(network, form).eval(), sizes, 3, "onnx")  # type: ignore[arg-type]
        assert reason in str(raised.value)
    with pytest.raises(UserError, match="ONNX has no operator"):
        _require_sizes(Formed(Pooled(), form).eval(), sizes, 3, "onnx")  # type: ignore[arg-type]
    _require_sizes(Formed(Pooled(), form).eval(), sizes, 3, "pt2")  # type: ignore[arg-type]


def test_a_program_pools_maps_of_any_size(tmp_path: Path) -> None:
    network = write(Pooled(), tmp_path / "model.pt2", "pt2", Form(side="dynamic"))
    for height, width in ((SIZE, SIZE), (41, 48)):
        assert check_file(tmp_path / "model.pt2", network, images(9, height, width), network.output_names).passed


def test_a_program_whose_size_the_tracer_limits_is_refused(tmp_path: Path) -> None:
    class Limited(Pooled):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            torch._check(x.shape[2] <= 40)
            return super().forward(x)

    with pytest.raises(UserError, match="H may be 40 at most") as raised:
        write(Limited(), tmp_path / "model.pt2", "pt2", Form(side="dynamic"))
    assert "--format onnx" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [OLDEST_OPSET, newest_opset()])
def test_the_oldest_and_the_newest_opset(single: nn.Module, tmp_path: Path, opset: int) -> None:
    module = SingleForExport(single).eval()
    file = tmp_path / "model.onnx"
    size = (CHANNELS, SIZE, SIZE)
    export_onnx(module, file, size=size, output_names=module.output_names, metadata={}, opset=opset)
    assert [entry.version for entry in onnx.load(file).opset_import] == [opset]
    assert check_file(file, module, images(), module.output_names).passed
    assert unclean(file) == []


def test_an_opset_beyond_either_end_is_refused() -> None:
    for opset in (0, OLDEST_OPSET - 1, newest_opset() + 1):
        with pytest.raises(UserError, match=f"--opset must be {OLDEST_OPSET} to {newest_opset()}, not {opset}"):
            check_opset(opset)


# An ensemble of a trained run


def test_the_ensembles_graph_costs_what_run_json_says(one_run: Path, tmp_path: Path, distilkit: Command) -> None:
    file = tmp_path / "ensemble.onnx"
    document = distilkit("export", one_run, "--mode", "ensemble", "--output", file, "--json").json
    assert document["passed"] is True
    said = Run.open(one_run).record["flops"]["ensemble"]
    assert document["deployed"]["ensemble"]["flops"] == said
    assert 2 * multiply_adds(onnx.load(file)) == pytest.approx(said, rel=1e-3)


# A reader that leaves


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
@pytest.mark.parametrize("kind", ["lines", "--json", "--help", "a failure's --json"])
def test_a_closed_pipe_ends_quietly_with_the_status_of_sigpipe(
    exported: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "cat.png")
    file = exported["onnx"] if "failure" not in kind else tmp_path / "gone.onnx"
    options = [kind.split()[-1]] if "--" in kind else []
    root = str(Path(package.__file__).parents[1])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "distilkit", "predict", str(file), str(tmp_path / "cat.png"), *options],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
