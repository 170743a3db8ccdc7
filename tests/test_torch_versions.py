"""Figures that no version of PyTorch may change: costs, and the default places of cuts that follow from them.

`make test-torch` runs these with any version. What a version's own counter knows is also played here: with a formula
taken away from it, or added.
"""

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter

from distilkit.analysis.cost import measure, multiply_adds_by_module
from distilkit.groups import counting
from distilkit.groups.split.default_point import default_point, measured_points
from distilkit.models import registry

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten

# Multiply-adds for one image of so many pixels on a side and 10 classes, and where to cut.
FIGURES = {
    "resnet8": (32, 12_501_632, "layer3"),
    "densenet40_12": (32, 72_365_352, "transition2"),
    "wrn16_2": (32, 101_106_944, "layer3"),
    "se_resnet18": (32, 37_103_616, "layer4"),
    "torchvision:resnet18": (224, 1_813_566_464, "layer3"),
    "torchvision:mobilenet_v3_small": (224, 55_496_640, "features.4"),
    "torchvision:shufflenet_v2_x0_5": (224, 39_462_688, "stage3"),
    "torchvision:convnext_tiny": (224, 4_454_770_944, "features.4"),
    "torchvision:vit_b_32": (224, 4_408_425_984, "encoder.layers.encoder_layer_6"),
    "torchvision:swin_t": (224, 4_489_806_336, "features.4"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_known_architectures(name: str) -> None:
    size, multiply_adds, split_at = FIGURES[name]
    with torch.device("meta"):
        network, images = registry.create(name, 10).eval(), torch.zeros(1, 3, size, size)
    assert multiply_adds_by_module(network, images)[""] == multiply_adds
    assert default_point(measured_points(network, images), images) == split_at


# -------------------------------------------------------------------------------- what PyTorch's own counter may know

FUSED_FOR_CPU = aten._scaled_dot_product_flash_attention_for_cpu


@pytest.fixture(params=["as it is", "no attention", "attention counted twice", "more operators", "other formulas"])
def what_pytorch_knows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    known = dict(flop_counter.flop_registry)
    fused = [operator for operator in known if "attention" in str(operator)]
    if request.param == "no attention":
        for operator in fused:
            del known[operator]
    elif request.param == "attention counted twice":
        known |= {operator: lambda *shapes, **options: 1 << 20 for operator in (*fused, FUSED_FOR_CPU)}
    elif request.param == "more operators":
        free = (aten.relu, aten.add, aten.softmax, aten._softmax, aten.native_layer_norm, aten.view, aten.t, aten.mean)
        known |= {operator: lambda *shapes, **options: 1 << 20 for operator in free}
    elif request.param == "other formulas":
        known = {operator: lambda *shapes, **options: 1 << 20 for operator in known}
    monkeypatch.setattr(flop_counter, "flop_registry", known)
    name: str = request.param
    return name


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        attended: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return attended


class Patches(nn.Module):
    """16 x 16 patches, four layers of attention, six of linear layers; as many tokens all the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, stride=2)
        linear = (nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(6))
        self.layers = nn.Sequential(*(Attention() for _ in range(4)), *linear)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.stem(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_whatever_pytorchs_own_counter_knows_of_it(what_pytorch_knows: str, device: str) -> None:
    network, images = Patches().to(device), torch.zeros(1, 3, 32, 32, device=device)
    tokens, width = 256, 16
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    by_module = multiply_adds_by_module(network, images)
    assert by_module["layers.0"] == by_module["layers.0.attention"] == attention
    assert by_module["layers.4"] == 2 * tokens * width * 64
    assert by_module[""] == tokens * 12 * width + 4 * attention + 6 * by_module["layers.4"] + width * 10
    if device == "cpu":
        assert measure(network, images).multiply_adds == by_module[""]
    # A quarter of the work is in the six linear layers; without what attention does inside, it would be in two.
    points = measured_points(network, images)
    assert default_point(points, images) == "layers.4"
    shares = {point.path: point.share for point in points}
    assert shares["layers.4"] == pytest.approx((6 * by_module["layers.4"] + 160) / by_module[""], rel=1e-12)


# ---------------------------------------------------------------------------------------------------- every operator


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.module is None else self.function(x, self.module)


def fused_on_demand(x: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attention(x)


def attention(x: Tensor, key_heads: int = 2, **options: bool) -> Tensor:
    return F.scaled_dot_product_attention(
        x.view(1, 2, 4, 3), x.new_ones(1, key_heads, 5, 3), x.new_ones(1, key_heads, 5, 3), **options
    )


# Functions of a matrix of 4 x 6, and their multiply-adds.
OPERATORS: dict[str, tuple[Function, int]] = {
    "matrix times matrix": (Function(lambda x: x @ x.t()), 4 * 6 * 4),
    "batch": (Function(lambda x: x.expand(3, 4, 6) @ x.t()), 3 * 4 * 6 * 4),
    "matrix times vector": (Function(lambda x: x @ x[0]), 4 * 6),
    "vector times matrix": (Function(lambda x: x[0] @ x.t()), 4 * 6),
    "vector times vector": (Function(lambda x: x[0] @ x[1]), 6),
    "addmm": (Function(lambda x: torch.addmm(x[:, :4], x, x.t())), 4 * 6 * 4),
    "addmv": (Function(lambda x: torch.addmv(x[:, 0], x, x[0])), 4 * 6),
    "baddbmm": (Function(lambda x: torch.baddbmm(x[None, :, :4], x[None], x.t()[None])), 4 * 6 * 4),
    "addbmm": (Function(lambda x: torch.addbmm(x[:, :4], torch.stack([x, x]), x.t().expand(2, 6, 4))), 2 * 4 * 6 * 4),
    "einsum": (Function(lambda x: torch.einsum("ij,kj->ik", x, x)), 4 * 6 * 4),
    "linear": (Function(lambda x, linear: linear(x), nn.Linear(6, 5)), 4 * 6 * 5),
    "convolution": (Function(lambda x, conv: conv(x[None]), nn.Conv1d(4, 6, 3, groups=2)), 4 * 6 * 2 * 3),
    "transposed": (Function(lambda x, conv: conv(x[None]), nn.ConvTranspose1d(4, 6, 3, groups=2)), 4 * 6 * 3 * 3),
    "attention": (Function(attention), 2 * 2 * 4 * 5 * 3),
    "attention, causal": (Function(lambda x: attention(x, is_causal=True)), 2 * 2 * 4 * 5 * 3),
    "attention, shared keys": (Function(lambda x: attention(x, 1, enable_gqa=True)), 2 * 2 * 4 * 5 * 3),
    "attention, fused on demand": (Function(fused_on_demand), 2 * 2 * 4 * 5 * 3),
    "encoder layer": (
        Function(lambda x, layer: layer(x[None]), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
        4 * (4 * 6 * 6 + 2 * 6 * 8) + 2 * 4 * 4 * 6,
    ),
    "lstm": (
        Function(lambda x, lstm: lstm(x[None])[0], nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)),
        4 * 2 * 4 * 5 * (6 + 5) + 4 * 2 * 4 * 5 * (2 * 5 + 5),
    ),
    "gru": (Function(lambda x, gru: gru(x[None])[0], nn.GRU(6, 5, batch_first=True)), 4 * 3 * 5 * (6 + 5)),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("network", "multiply_adds"), OPERATORS.values(), ids=OPERATORS)
def test_modules_count_what_the_whole_counts(network: Function, multiply_adds: int, device: str) -> None:
    rows = torch.ones(4, 6)
    assert measure(network, (rows,)).multiply_adds == multiply_adds
    elsewhere = copy.deepcopy(network).to(device).eval()
    with torch.no_grad(), counting.count_multiply_adds() as counted:
        elsewhere(rows.to(device))
    assert counted.total() == multiply_adds


def test_every_fused_attention_of_this_pytorch_has_a_formula() -> None:
    every = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    # But for the way back, and what is made of plain products.
    forms = {name for name in every if re.fullmatch(r"aten::_scaled_dot_product_\w+(?<!_backward)", name)}
    fused = {getattr(aten, name.removeprefix("aten::")) for name in forms if "_math" not in name}
    assert FUSED_FOR_CPU in fused
    assert fused <= set(counting._FORMULAS)


# ------------------------------------------------------------------------------------------------------ make test-torch


def commands(*settings: str) -> subprocess.CompletedProcess[str]:
    # Without what a make around the tests says of itself: one that was called by another names its folder.
    command = ["make", "--no-print-directory", "--dry-run", "test-torch", *settings]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_one_pytorch_is_tested_in_an_environment_of_its_own() -> None:
    done = commands("TORCH=2.14.1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    environment, install, _, tests = (line.split() for line in lines)
    assert environment[1:] == ["-m", "venv", "--clear", ".venv-torch"]
    assert {"torch==2.14.1", "torchvision", "--editable"} <= set(install)
    assert tests[-2:] == ["'not", "long'"]
    assert commands("TORCH=2.14.1", "TESTS=fast").stdout.split()[-4:] == ["'fast", "and", "not", "long'"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [([], "which PyTorch? for example: make test-torch TORCH=2.14.1"), (["TORCH=2.14.1", "TESTS=quick"], "not quick")],
)
def test_nothing_is_installed_where_the_version_or_the_tests_are_not_understood(
    settings: list[str], problem: str
) -> None:
    done = commands(*settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
