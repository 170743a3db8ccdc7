"""ONNX files: what is in them, what is not, and that a wrong one does not pass."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import distilkit
from distilkit.analysis.perturbation import recompute_statistics
from distilkit.errors import UserError
from distilkit.export.form import Form, Formed
from distilkit.export.latency import interleaved_latency
from distilkit.export.onnx import EnsembleForExport, SingleForExport, export_onnx
from distilkit.export.parity import MAX_TOLERANCE, check_file
from distilkit.models import registry

SIZE = (3, 12, 12)


class Residual(nn.Module):
    """Two convolutions with one input, as in a downsampling block: what wrong exporters mixed up."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


def classifier(seed: int = 0, classes: int = 5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            Residual(),
            nn.Conv2d(12, 12, 3, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, classes),
        )
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        return network


def images(count: int = 40) -> torch.Tensor:
    return torch.randint(256, (count, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Ensemble(nn.Module):
    """Three members and the mean of their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(classifier(i) for i in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.stack([network(x) for network in self.networks])
        return logits.mean(0), logits


def export(module: nn.Module, file: Path, **options: object) -> None:
    arguments = {"size": SIZE, "output_names": module.output_names, "metadata": {"classes": "a,b"}, **options}
    export_onnx(module, file, **arguments)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[SingleForExport, Path]:
    file = tmp_path_factory.mktemp("export") / "single.onnx"
    module = SingleForExport(classifier())
    export(module, file)
    return module.eval(), file


def test_runtime_and_pytorch_agree_on_every_output(single: tuple[SingleForExport, Path]):
    module, file = single
    parity = check_file(file, module, images(), module.output_names)
    assert parity.passed
    assert parity.reason is None
    assert parity.max_abs_difference < 1e-5
    assert parity.top1_agreement == 100
    assert (parity.images, parity.batch_sizes) == (40, (1, 7, 32))
    assert 0 < parity.tolerance <= 1e-3


def test_signature_of_the_file(single: tuple[SingleForExport, Path]):
    model = onnx.load(single[1])
    (image_input,) = model.graph.input
    assert image_input.name == "images"
    dims = image_input.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, 12, 12]
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    for output in model.graph.output:
        assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim] == ["N", 5]
    assert (model.producer_name, model.producer_version) == ("distilkit", distilkit.__version__)
    assert {p.key: p.value for p in model.metadata_props} == {"classes": "a,b"}


def test_batch_norm_is_folded_into_the_convolutions(single: tuple[SingleForExport, Path]):
    operators = [node.op_type for node in onnx.load(single[1]).graph.node]
    assert operators.count("Conv") == 4
    assert "BatchNormalization" not in operators
    assert "Dropout" not in operators


def test_one_file_that_tells_nothing_of_this_machine(single: tuple[SingleForExport, Path]):
    file = single[1]
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    content = file.read_bytes()
    here = [str(Path(__file__).parent), str(Path.cwd()), str(Path.home()), str(Path(torch.__file__).parent)]
    for forbidden in [".py", "site-packages", "stack_trace", "pkg.torch", "pytorch", "Sequential", *here[:2], here[3]]:
        assert forbidden.encode() not in content, forbidden


def test_exporting_is_silent_and_leaves_the_module_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    module = SingleForExport(classifier()).train()
    module.classifier[0].to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export(module, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    # torch's own trace of itself is at DEBUG and reaches no handler but pytest's.
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert all(m.training for m in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_same_model_same_bytes_within_a_process(single: tuple[SingleForExport, Path], tmp_path: Path):
    export(SingleForExport(classifier()), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == single[1].read_bytes()
    export(SingleForExport(classifier(seed=1)), tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() != single[1].read_bytes()


def test_same_model_same_bytes_in_another_process(single: tuple[SingleForExport, Path], tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_onnx_export as t;"
        "[t.export(t.SingleForExport(t.classifier()), Path(sys.argv[2])) for _ in range(2)]"
    )
    arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "elsewhere.onnx")]
    root = str(Path(distilkit.__file__).parents[1])
    done = subprocess.run(
        arguments,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "elsewhere.onnx").read_bytes() == single[1].read_bytes()


@pytest.mark.parametrize("members", [False, True])
def test_an_ensemble_gives_its_own_answer_and_if_asked_each_members(tmp_path: Path, members: bool):
    module = EnsembleForExport(Ensemble(), ["leader", "peer_0", "peer_1"], members=members).eval()
    extra = ("logits_leader", "logits_peer_0", "logits_peer_1") if members else ()
    assert module.output_names == ("logits", "probabilities", *extra)
    export(module, tmp_path / "ensemble.onnx")
    parity = check_file(tmp_path / "ensemble.onnx", module, images(), module.output_names)
    assert parity.passed
    model = onnx.load(tmp_path / "ensemble.onnx")
    assert tuple(output.name for output in model.graph.output) == module.output_names
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_a_file_may_take_bytes(tmp_path: Path):
    class FromBytes(SingleForExport):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return super().forward(images.float() / 255)

    module = FromBytes(classifier()).eval()
    export(module, tmp_path / "bytes.onnx", input_dtype=torch.uint8)
    assert onnx.load(tmp_path / "bytes.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert check_file(tmp_path / "bytes.onnx", module, images(), module.output_names).passed
    assert check_file(tmp_path / "bytes.onnx", module, images() / 255, module.output_names).passed


def test_the_opset_can_be_chosen(tmp_path: Path):
    module = SingleForExport(classifier()).eval()
    export(module, tmp_path / "model.onnx", opset=18)
    assert [entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [18]
    assert check_file(tmp_path / "model.onnx", module, images(8), module.output_names).passed


def test_rounding_stays_far_inside_the_tolerance(tmp_path: Path):
    torch.manual_seed(0)
    module = SingleForExport(registry.create("resnet32", 10))
    pixels = torch.rand(16, 3, 16, 16)
    recompute_statistics(module, [pixels])  # else 32 layers of fresh weights blow the logits up
    module.eval()
    export(module, tmp_path / "model.onnx", size=(3, 16, 16))
    parity = check_file(tmp_path / "model.onnx", module, pixels, module.output_names, batch_sizes=(1, 16))
    assert parity.passed
    assert parity.max_abs_difference < 0.3 * parity.tolerance


# A wrong file must not pass.


def damaged(file: Path, to: Path, kind: str) -> Path:
    model = onnx.load(file)
    for initializer in model.graph.initializer:
        values = onnx.numpy_helper.to_array(initializer).copy()
        if kind == "weight" and values.ndim == 4:
            values *= 1.01
        elif kind == "bias" and values.shape == (12,):
            values += 0.01
        elif kind == "nan" and values.ndim == 2:
            values[0, 0] = np.nan
        else:
            continue
        initializer.CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
        break
    else:
        raise AssertionError("nothing was damaged")
    onnx.save(model, to)
    return to


@pytest.mark.parametrize("kind", ["weight", "bias", "nan"])
def test_a_damaged_file_fails(single: tuple[SingleForExport, Path], tmp_path: Path, kind: str):
    module, file = single
    parity = check_file(damaged(file, tmp_path / "damaged.onnx", kind), module, images(), module.output_names)
    assert not parity.passed
    assert parity.reason
    assert not parity.max_abs_difference <= parity.tolerance


def test_a_difference_in_any_output_fails(single: tuple[SingleForExport, Path]):
    module, file = single

    def reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, probabilities = module(x)
        return logits, probabilities + 0.01

    assert not check_file(file, reference, images(), module.output_names).passed


def test_a_difference_in_one_image_alone_fails(single: tuple[SingleForExport, Path]):
    module, file = single
    pixels = images(37)
    last = pixels[-1].float() / 255

    def reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, probabilities = module(x)
        return logits + 0.01 * (x == last).all((1, 2, 3)).float()[:, None], probabilities

    parity = check_file(file, reference, pixels, module.output_names)
    assert not parity.passed
    assert parity.max_abs_difference == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_that_is_not_finite_fails(single: tuple[SingleForExport, Path], value: float):
    module, file = single

    def reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, probabilities = module(x)
        return logits.masked_fill(logits > 0, value), probabilities

    parity = check_file(file, reference, images(), module.output_names)
    assert not parity.passed
    assert parity.reason == "an output is not finite"


def test_a_tie_in_pytorch_may_fall_either_way(tmp_path: Path):
    class Tied(nn.Module):
        output_names = ("logits", "probabilities")

        def __init__(self, margin: float) -> None:
            super().__init__()
            self.register_buffer("values", torch.tensor([margin, 0.0]))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logits = x.flatten(1).mean(1, keepdim=True) + self.values
            return logits, logits.softmax(1)

    export(Tied(-1e-5), tmp_path / "tied.onnx")
    parity = check_file(tmp_path / "tied.onnx", Tied(1e-5), images(), Tied.output_names)
    assert parity.passed
    assert parity.top1_agreement == 0


def test_a_file_for_one_batch_size_only_fails(tmp_path: Path):
    class Fixed(nn.Module):
        output_names = ("logits",)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.flatten(1),)

    export(Fixed(), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, tmp_path / "model.onnx")
    parity = check_file(tmp_path / "model.onnx", Fixed(), images(), Fixed.output_names)
    assert not parity.passed
    assert "ONNX Runtime fails on a batch of 1" in (parity.reason or "")


def test_files_that_are_not_what_was_asked_for(single: tuple[SingleForExport, Path], tmp_path: Path):
    module, file = single
    with pytest.raises(UserError, match="no file"):
        check_file(tmp_path / "missing.onnx", module, images(), module.output_names)
    with pytest.raises(UserError, match="no output logits_leader"):
        check_file(file, module, images(), ["logits", "logits_leader"])
    (tmp_path / "garbage.onnx").write_bytes(b"not onnx")
    parity = check_file(tmp_path / "garbage.onnx", module, images(), module.output_names)
    assert (parity.passed, "cannot open" in (parity.reason or "")) == (False, True)


def test_a_tolerance_beyond_the_cap_is_refused(single: tuple[SingleForExport, Path]):
    module, file = single
    with pytest.raises(ValueError, match="tolerance"):
        check_file(file, module, images(), module.output_names, tolerance=0.1)


def test_large_logits_do_not_lift_the_cap(single: tuple[SingleForExport, Path]):
    module, file = single

    def reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, probabilities = module(x)
        return logits * 1e6, probabilities

    assert check_file(file, reference, images(), module.output_names).tolerance == 1e-3


def test_a_network_that_branches_on_values_is_the_users_to_mend(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    class Branching(nn.Module):
        output_names = ("logits",)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.flatten(1) if x.sum() > 0 else -x.flatten(1),)

    with pytest.raises(UserError, match="cannot be exported to ONNX") as raised:
        export(Branching(), tmp_path / "model.onnx")
    assert len(str(raised.value).splitlines()) == 2
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export(SingleForExport(classifier()), file)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"old")]


def test_latency_of_two_files_in_turn(single: tuple[SingleForExport, Path], tmp_path: Path):
    ensemble = EnsembleForExport(Ensemble(), ["a", "b", "c"], members=False)
    export(ensemble, tmp_path / "ensemble.onnx")
    files = {"single": single[1], "ensemble": tmp_path / "ensemble.onnx"}
    result = interleaved_latency(files, batch_sizes=(1, 4), repetitions=5, threads=1)
    assert list(result) == ["single", "ensemble"]
    for by_batch in result.values():
        assert list(by_batch) == [1, 4]
        for latency in by_batch.values():
            assert 0 < latency["median_ms"] <= latency["p95_ms"]
    with pytest.raises(UserError, match="no file"):
        interleaved_latency({"missing": tmp_path / "missing.onnx"})


# The forms that a file may have.


FORMS = {
    "bytes": Form(pixels="uint8"),
    "channels last": Form(layout="nhwc"),
    "bytes, channels last, seven at once": Form(pixels="uint8", layout="nhwc", batch=7),
    "one at once": Form(batch=1),
    "half precision": Form(half=True),
    "half precision, bytes, channels last": Form(half=True, pixels="uint8", layout="nhwc"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_computes_the_same_from_the_same_images(tmp_path: Path, form: Form):
    plain = SingleForExport(classifier()).eval()
    module = Formed(SingleForExport(classifier()), form).eval()
    size = form.size(*SIZE[:2])
    settings = {"size": size, "input_dtype": form.dtype, "batch": form.batch, "half": form.half}
    export(module, tmp_path / "a.onnx", **settings)
    model = onnx.load(tmp_path / "a.onnx")
    (image_input,) = model.graph.input
    expected_type = onnx.TensorProto.UINT8 if form.pixels == "uint8" else onnx.TensorProto.FLOAT
    assert image_input.type.tensor_type.elem_type == expected_type
    dims = [d.dim_param or d.dim_value for d in image_input.type.tensor_type.shape.dim]
    assert dims == [form.batch or "N", *size]
    assert {output.type.tensor_type.elem_type for output in model.graph.output} == {onnx.TensorProto.FLOAT}

    # A graph without what only training needs, and without what nothing reads.
    assert not {"BatchNormalization", "Dropout", "Identity"} & {node.op_type for node in model.graph.node}
    read = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    assert [node.name for node in model.graph.node if not read & set(node.output)] == []
    assert [i.name for i in model.graph.initializer if i.name not in read] == []
    weights = {i.data_type for i in model.graph.initializer if len(i.dims) > 1}
    assert weights & {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16} == {
        onnx.TensorProto.FLOAT16 if form.half else onnx.TensorProto.FLOAT
    }

    pixels = images(20)
    batches = (form.batch,) if form.batch else (1, 7, 32)
    parity = check_file(
        tmp_path / "a.onnx",
        lambda x: plain(
            (x.permute(0, 3, 1, 2) if form.layout == "nhwc" else x) / (255 if form.dtype.itemsize == 1 else 1)
        ),
        form.arrange(pixels),
        module.output_names,
        batches,
        half=form.half,
    )
    assert parity.passed, parity.reason
    assert parity.images == 20
    assert (parity.tolerance > MAX_TOLERANCE) == form.half
    assert (parity.max_abs_difference > 1e-5) == form.half

    export(Formed(SingleForExport(classifier()), form), tmp_path / "b.onnx", **settings)
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()


def test_half_precision_does_not_excuse_a_wrong_weight(tmp_path: Path):
    module = SingleForExport(classifier()).eval()
    export(module, tmp_path / "half.onnx", half=True)
    assert (tmp_path / "half.onnx").stat().st_size < 20_000
    model = onnx.load(tmp_path / "half.onnx")
    weight = next(i for i in model.graph.initializer if len(i.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "half.onnx")
    assert not check_file(tmp_path / "half.onnx", module, images(), module.output_names, half=True).passed
