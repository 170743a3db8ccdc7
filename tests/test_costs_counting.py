"""Operations, activations and bytes against PyTorch's own counter, the files themselves, and figures worked out here.

`FlopCounterMode` counts below `measure`, in the operators that PyTorch really calls, so the two find the same by
different ways. On classifiers they never differ; where they do on single operators, the table says why.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distilkit.analysis.cost import file_bytes, measure, named_uses
from distilkit.models import registry


def pytorchs_flops(network: nn.Module, *inputs: Tensor) -> int:
    """Attention step by step: fused for the CPU, PyTorch's counter knows it only from a later version than 2.11."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            network.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    return int(counter.get_total_flops())


# --------------------------------------------------------------------------------------------------------- classifiers

# One of each family, and the images they are given; the others are long.
FAMILIES = {
    "alexnet": 64,
    "vgg11_bn": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "densenet121": 32,
    "squeezenet1_1": 32,
    "googlenet": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mnasnet0_5": 32,
    "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "vit_b_32": 64,
    "swin_t": 32,
    "swin_v2_t": 32,
}
SIZES = {"alexnet": 64, "inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    **{name: {"image_size": 64} for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
    "vit_h_14": {"image_size": 56},
}


@pytest.fixture
def no_weights_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting does not look at weights, and drawing hundreds of millions takes minutes."""
    for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def agrees(network: nn.Module, size: int) -> None:
    images = torch.zeros(1, 3, size, size)
    cost = measure(network, images)
    assert cost.flops == pytorchs_flops(network, images) > 0
    assert cost.uncounted == {}
    assert cost.bytes == file_bytes(network.state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_torchvision_classifier_of_every_family_agrees(name: str, no_weights_drawn: None) -> None:
    from torchvision import models

    agrees(models.get_model(name, weights=None, **SETTINGS.get(name, {})), FAMILIES[name])


def test_maxvit_agrees(no_weights_drawn: None) -> None:
    """A small one: those that torchvision names take images of 224 pixels."""
    from torchvision.models import MaxVit

    network = MaxVit((32, 32), 8, 2, [8, 16], [1, 1], head_dim=4, stochastic_depth_prob=0.1, num_classes=10)
    agrees(network, 32)


@pytest.mark.long
def test_every_torchvision_classifier_agrees(no_weights_drawn: None) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    assert len(names) >= 80
    assert set(FAMILIES) <= set(names)
    for name in names:
        agrees(models.get_model(name, weights=None, **SETTINGS.get(name, {})), SIZES.get(name, 64))


@pytest.mark.parametrize("name", registry.names())
def test_every_architecture_of_distilkit_agrees(name: str, no_weights_drawn: None) -> None:
    agrees(registry.create(name, 10), 32)


# ----------------------------------------------------------------------------------------------------- single operators


class Function(nn.Module):
    """A function as a module, which may own others."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.children())


NO_FORMULA = "PyTorch has no formula for it and counts nothing"
ROWS, IMAGE = torch.ones(4, 6), torch.ones(1, 3, 8, 8)


class Case(NamedTuple):
    """`multiply_adds` and `activations` of `function` on `x`, by hand; `differs`: why PyTorch's count does."""

    function: Callable[..., Any]
    x: Tensor
    multiply_adds: int
    activations: int
    differs: str | None = None
    modules: Mapping[str, nn.Module] = {}


CASES = {
    "conv-same-padding": Case(
        lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3), padding="same"), IMAGE, 64 * 4 * 3 * 9, 4 * 64
    ),
    "conv-without-batch": Case(lambda x: F.conv2d(x[0], torch.ones(4, 3, 3, 3)), IMAGE, 36 * 4 * 3 * 9, 4 * 36),
    "conv-groups-dilated": Case(
        lambda x: F.conv2d(x, torch.ones(6, 1, 3, 3), groups=3, dilation=2), IMAGE, 16 * 6 * 9, 6 * 16
    ),
    "conv1d": Case(lambda x: F.conv1d(x[:, :, 0], torch.ones(5, 3, 3)), IMAGE, 6 * 5 * 9, 5 * 6),
    "conv3d": Case(lambda x: F.conv3d(x[None], torch.ones(4, 1, 3, 3, 3)), IMAGE, 36 * 4 * 27, 4 * 36),
    "transposed": Case(
        lambda x: F.conv_transpose2d(x, torch.ones(3, 2, 3, 3), stride=2), IMAGE, 64 * 3 * 2 * 9, 2 * 17 * 17
    ),
    "transposed-groups": Case(
        lambda x: F.conv_transpose2d(x, torch.ones(3, 2, 3, 3), groups=3), IMAGE, 64 * 3 * 2 * 9, 6 * 100
    ),
    "addmm": Case(lambda x: torch.addmm(x[:, :4], x, x.t()), ROWS, 4 * 6 * 4, 16),
    "baddbmm": Case(lambda x: torch.baddbmm(x[None, :, :4], x[None], x.t()[None]), ROWS, 4 * 6 * 4, 16),
    "addbmm": Case(
        lambda x: torch.addbmm(x[:, :4], torch.stack([x, x]), torch.stack([x.t(), x.t()])),
        ROWS,
        2 * 4 * 6 * 4,
        16,
        NO_FORMULA,
    ),
    "mv": Case(lambda x: torch.mv(x, x[0]), ROWS, 4 * 6, 4, NO_FORMULA),
    "addmv": Case(lambda x: torch.addmv(x[:, 0], x, x[0]), ROWS, 4 * 6, 4, NO_FORMULA),
    "dot": Case(lambda x: torch.dot(x[0], x[1]), ROWS, 6, 1, NO_FORMULA),
    "inner": Case(lambda x: torch.inner(x, x), ROWS, 4 * 4 * 6, 16),
    "tensordot": Case(lambda x: torch.tensordot(x, x, dims=([1], [1])), ROWS, 4 * 4 * 6, 16),
    "tensordot-of-all": Case(
        lambda x: torch.tensordot(x, x, dims=2), ROWS, 4 * 6, 1, "PyTorch takes its dot, for which it has no formula"
    ),
    "einsum": Case(lambda x: torch.einsum("ij, kj -> ik", x, x), ROWS, 4 * 4 * 6, 16),
    "einsum-implicit": Case(lambda x: torch.einsum("ij,kj", x, x), ROWS, 4 * 4 * 6, 16),
    "einsum-broadcast": Case(
        lambda x: torch.einsum("...ij,...kj->...ik", x.expand(5, 1, 4, 6), x.expand(2, 4, 6)),
        ROWS,
        10 * 4 * 4 * 6,
        10 * 16,
    ),
    "einsum-of-three": Case(
        lambda x: torch.einsum("ij,kj,kl->il", x, x, x), ROWS, 4 * 4 * 6 + 4 * 4 * 6, 24
    ),
    "einsum-larger-than-four-digits": Case(
        lambda x: torch.einsum("ij,kj->ik", torch.ones(37, 41), torch.ones(43, 41)), ROWS, 37 * 43 * 41, 37 * 43
    ),
    "attention": Case(
        lambda x: F.scaled_dot_product_attention(x.view(1, 2, 4, 3), torch.ones(1, 2, 5, 3), torch.ones(1, 2, 5, 7)),
        ROWS,
        2 * 4 * 5 * (3 + 7),
        2 * 4 * 5 + 2 * 4 * 7,
    ),
    "lstm": Case(
        lambda x, lstm: lstm(x[None])[0],
        ROWS,
        4 * 2 * (4 * 5 * (6 + 3) + 3 * 5) + 4 * 2 * (4 * 5 * (2 * 3 + 3) + 3 * 5),
        4 * 2 * 3,
        modules={"lstm": nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True, proj_size=3)},
    ),
    "gru-packed": Case(
        lambda x, gru: gru(nn.utils.rnn.pack_sequence([x, x[:3]]))[0].data,
        ROWS,
        7 * 3 * 5 * (6 + 5),
        7 * 5,
        modules={"gru": nn.GRU(6, 5)},
    ),
    "encoder-layer": Case(
        lambda x, layer: layer(x[None]),
        ROWS,
        4 * (4 * 6 * 6 + 2 * 6 * 8) + 2 * 4 * 4 * 6,
        4 * 18 + 2 * 4 * 4 + 4 * 6 + 4 * 6 + 4 * 8 + 4 * 6,
        modules={"layer": nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_operators_products_and_outputs_are_counted(case: Case) -> None:
    network = Function(case.function, **case.modules)
    cost = measure(network, (case.x,))
    assert cost.multiply_adds == case.multiply_adds
    assert cost.activations == case.activations
    assert cost.uncounted == {}
    pytorchs = pytorchs_flops(network, case.x)
    assert (pytorchs == cost.flops) == (case.differs is None), case.differs


def test_deformable_convolutions_count() -> None:
    from torchvision.ops import deform_conv2d

    offset, weight = torch.zeros(1, 18, 8, 8), torch.ones(4, 3, 3, 3)
    cost = measure(Function(lambda x: deform_conv2d(x, offset, weight, padding=1)), IMAGE)
    assert (cost.multiply_adds, cost.activations, cost.uncounted) == (64 * 4 * 3 * 9, 4 * 64, {})


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@torch.jit.script
def _scripted(x: Tensor) -> Tensor:
    return x @ x.t()


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: _Product.apply(x), {"prim::PythonOp._Product": 1}),
        (lambda x: _scripted(x) + _scripted(2 * x), {"prim::CallFunction": 2}),
        (lambda x: torch.linalg.multi_dot([x, x.t(), x]), {"aten::linalg_multi_dot": 1}),
        (lambda x: torch.cdist(x, x), {"aten::cdist": 1}),
        (lambda x: F.bilinear(x, x, torch.ones(2, 6, 6)), {"aten::bilinear": 1}),
    ],
    ids=["autograd-function", "scripted", "multi-dot", "cdist", "bilinear"],
)
def test_what_nobody_can_look_into_is_named(function: Callable[[Tensor], Any], named: dict[str, int]) -> None:
    cost = measure(Function(function), (ROWS,))
    assert (cost.multiply_adds, cost.uncounted) == (0, named)


def test_uses_are_named_as_a_person_reads_them() -> None:
    assert named_uses({"aten::fft_fft": 1, "aten::cdist": 3}) == "aten::fft_fft, aten::cdist (3 times)"


# ---------------------------------------------------------------------------------------------- activations and bytes


def test_activations_are_those_of_fvcore() -> None:
    """fvcore's own count over a network without attention, whose count has fewer products."""
    from fvcore.nn import ActivationCountAnalysis

    network = registry.create("resnet32", 100).eval()
    images = torch.zeros(1, 3, 32, 32)
    theirs = ActivationCountAnalysis(network, images).unsupported_ops_warnings(False).total()
    # Stem and 10 convolutions of 16 channels, then one stage of 32 and one of 64 with a projection each, and logits.
    by_hand = 11 * 16 * 32**2 + 11 * 32 * 16**2 + 11 * 64 * 8**2 + 100
    assert measure(network, images).activations == theirs == by_hand


STATES: dict[str, dict[str, Tensor]] = {
    "empty": {},
    "a network": registry.create("resnet8", 10).state_dict(),
    "every type": {
        "b.weight": torch.ones(2, 3, dtype=torch.float16),
        "a": torch.ones(3),
        "scalar": torch.tensor(3),
        "nothing": torch.ones(0, 5, dtype=torch.bool),
        "ü": torch.ones(5, dtype=torch.int32),
        "bf": torch.ones(5, dtype=torch.bfloat16),
        "bytes": torch.ones(7, dtype=torch.uint8),
        "double": torch.ones(1200, dtype=torch.float64),
        "eight": torch.ones(9).to(torch.float8_e4m3fn),
    },
    "many names": {f"layer{i}.weight": torch.ones(i) for i in range(120)},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_size_of_a_file_is_known_to_the_byte(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "file")
    assert file_bytes(state) == (tmp_path / "file").stat().st_size == len(save(state))


# ------------------------------------------------------------------------------------------------------ side effects


def test_counting_takes_one_thread_and_gives_the_others_back() -> None:
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        measure(Function(lambda x: (seen.append(torch.get_num_threads()), x @ x.t())[1]), (ROWS,))
        with pytest.raises(ZeroDivisionError):
            measure(Function(lambda x: x / (1 // 0)), (ROWS,))
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (set(seen), after) == ({1}, 3)


def test_counting_neither_copies_nor_changes_the_weights() -> None:
    class Careless(nn.Module):
        """Counts its calls in evaluation too."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            addresses.append(self.linear.weight.data_ptr())
            return self.linear(x)

    addresses: list[int] = []
    network = Careless()
    before = network.linear.weight.clone()
    measure(network, (ROWS,))
    assert set(addresses) == {network.linear.weight.data_ptr()}
    assert network.calls == 0
    assert torch.equal(network.linear.weight, before)
    assert network.training
