"""A network whose convolutions add and apply ReLU themselves is the network, to the last bit."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distilkit.fusion import convolution, overflow, rewriting
from distilkit.inference import Inference
from distilkit.split import steps
from tests.test_inference import ARCHITECTURES, classifier, pixels

pytestmark = pytest.mark.skipif(not convolution.available(), reason="this PyTorch has no oneDNN")


class Around(nn.Module):
    """Four convolutions of one shape and whatever `compute` makes of them."""

    def __init__(self, compute: Callable[["Around", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16, 16))
        self.point = nn.Conv2d(16, 16, 1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.compute(self, x).mean((2, 3)))


def _residual(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    return n.relu(n.b(n.relu(n.a(x))) + x)


def _residual_in_place(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    out = n.b(F.relu(n.a(x)))
    out += x
    return out.relu_()


def _shortcut_with_a_convolution(n: Around, x: Tensor) -> Tensor:
    x = n.stem(x).relu()
    out = n.b(torch.relu(n.a(x)))
    out += n.point(x)
    return n.relu(out)


def _read_later(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    y = n.relu(n.a(x) + x)
    return n.b(y) + 2 * x


def _view_read_later(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    half = x[:, :8]
    y = n.relu(n.b(n.a(x)) + x)
    return torch.cat([y[:, :8] * half, half], dim=1)


def _sum_with_its_own_input(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    return n.relu(n.a(x) + x)


def _written_into_by_relu_meanwhile(n: Around, x: Tensor) -> Tensor:
    x = n.stem(x)
    y = n.a(x)
    z = x.relu_()
    return n.relu(y + z)


def _sum_written_into_the_shortcut(n: Around, x: Tensor) -> Tensor:
    x = n.stem(x)
    kept = x[:, :, 1:]
    x += n.a(x)
    return n.b(x)[:, :, 1:] + kept


def _broadcast(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    return n.relu(n.a(x) + n.point(n.pool(x)))


def _broadcast_the_other_way(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    shortcut = n.b(x)
    return n.relu(n.point(n.pool(x)) + shortcut)


def _weighted_sum(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    return n.relu(torch.add(n.a(x), x, alpha=3))


def _sum_with_a_number(n: Around, x: Tensor) -> Tensor:
    return n.relu(n.a(n.stem(x)) + 1)


def _read_twice(n: Around, x: Tensor) -> Tensor:
    x = n.stem(x)
    y = n.a(x)
    return n.relu(y) * 2 + y.sigmoid()


def _doubled(n: Around, x: Tensor) -> Tensor:
    y = n.a(n.stem(x))
    return n.relu(y + y)


def _called_twice(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.a(n.relu(n.stem(x))))
    return n.relu(n.a(x) + x)


def _sum_of_three(n: Around, x: Tensor) -> Tensor:
    x = n.relu(n.stem(x))
    return n.a(x).add(n.b(x)).add_(n.c(x)).relu()


COMPUTATIONS = [value for name, value in list(globals().items()) if name.startswith("_") and callable(value)]


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], Inference]:
    """The same without fusion."""

    def make(network: nn.Module, *more: object) -> Inference:
        with monkeypatch.context() as patch:
            patch.setattr(rewriting, "available", lambda: False)
            return Inference(network, *more)  # type: ignore[arg-type]

    return make


def images(size: int = 12) -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, size, size, generator=numbers).contiguous(memory_format=torch.channels_last)


def network(compute: Callable[[Around, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Around(compute).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def faster(of: nn.Module) -> rewriting.Fused | None:
    return rewriting.fused(of, steps(of), type(of).forward)


def in_one_pass(of: nn.Module) -> list[tuple[bool, bool, bool]]:
    """What every fused convolution does besides: add, apply ReLU, write into what it adds to."""
    found: list[tuple[bool, bool, bool]] = []
    fused = faster(of)
    if fused is None:
        return found
    names_of = fused._forward.__globals__

    def noted(module: nn.Conv2d, x: Tensor, other: Tensor | None, relu: bool, overwrite: bool) -> Tensor:
        found.append((other is not None, relu, overwrite))
        return convolution.convolved(module, x, other, relu, overwrite)

    names = {key: value for key, value in names_of.items() if value is convolution.convolved}
    names_of.update(dict.fromkeys(names, noted))
    try:
        fused(of, images())
    finally:
        names_of.update(names)
    return found


@pytest.mark.parametrize("compute", COMPUTATIONS, ids=lambda compute: compute.__name__.strip("_"))
@torch.inference_mode()
def test_whatever_is_computed_the_answer_is_the_same(compute: Callable[[Around, Tensor], Tensor]) -> None:
    original, x = network(compute), images()
    wanted = original(x)
    fused = faster(original)
    assert torch.equal(wanted, original(x))
    if fused is not None:
        assert torch.equal(fused(original, x), wanted)
        assert torch.equal(fused(original, x), wanted), "the first call has written into something that stays"


def _same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("compute", COMPUTATIONS, ids=lambda compute: compute.__name__.strip("_"))
@pytest.mark.parametrize("larger", [1e3, 1e6, 1e12, 1e19, 1e26, 1e38])
@torch.inference_mode()
def test_what_overflows_is_not_hidden(compute: Callable[[Around, Tensor], Tensor], larger: float) -> None:
    for many in (1, larger):
        original, x = network(compute), images()
        for parameter in original.parameters():
            parameter.mul_(many)
        fused = faster(original)
        if fused is not None:
            _same(fused(original, x * (larger / many)), original(x * (larger / many)))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_a_weight_or_a_pixel_that_is_no_number_is_not_hidden(number: float) -> None:
    for name in dict(network(_shortcut_with_a_convolution).named_parameters()):
        original, x = network(_shortcut_with_a_convolution), images()
        original.get_parameter(name).flatten()[3] = number
        fused = faster(original)
        assert fused is not None
        _same(fused(original, x), original(x))
    original, x = network(_shortcut_with_a_convolution), images()
    x[1, 0, 5, 5] = number
    fused = faster(original)
    assert fused is not None
    wanted = original(x)
    assert not wanted[1].isfinite().all()
    _same(fused(original, x), wanted)


@torch.inference_mode()
def test_weights_are_weighed_again_when_they_are_taken_over() -> None:
    original, x = classifier("resnet8").to(memory_format=torch.channels_last), pixels(32)
    x = x.contiguous(memory_format=torch.channels_last)
    fast = Inference(original)
    good, norm = fast(x), original.backbone.get_submodule("layer1.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    kept = norm.running_mean.clone()
    norm.running_mean[2] = float("nan")
    assert original(x).isnan().all()
    assert fast(x).isfinite().all(), "taken over before it is told to"
    fast.refresh()
    assert fast(x).isnan().all()
    norm.running_mean.copy_(kept)
    fast.refresh()
    assert torch.equal(fast(x), good)


class Chain(nn.Module):
    """Convolutions in a row. The first makes huge what the last makes small again."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(length))
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("length", [3, 12, 13, 14, 15, 16, 17, 25, 60])
@torch.inference_mode()
def test_what_is_too_large_in_the_middle_alone_is_noticed(length: int) -> None:
    torch.manual_seed(0)
    original, x = Chain(length).eval(), images()
    with torch.no_grad():
        for layer in original.layers:
            layer.weight.copy_(torch.eye(3)[:, :, None, None])
            layer.bias.zero_()
        original.layers[0].weight.mul_(1e20)
        original.layers[length // 2].weight.mul_(1e20).mul_(torch.tensor([1, -1, 1])[None, :, None, None])
        original.layers[length // 2].weight[0, 1] = -1e20
        original.layers[-1].weight.mul_(1e-30)
    original.to(memory_format=torch.channels_last)
    fused = faster(original)
    assert fused is not None
    wanted = original(x)
    assert wanted.isnan().any()
    _same(fused(original, x), wanted)


def looks(of: rewriting.Fused) -> int:
    return sum(node.target is overflow.looked_at for node in of._graph.nodes)


@pytest.mark.parametrize(("architecture", "times"), [("resnet20", 2), ("resnet32", 3), ("resnet110", 9)])
@torch.inference_mode()
def test_a_deep_network_is_looked_at_now_and_then(architecture: str, times: int) -> None:
    fast = Inference(classifier(architecture).to(memory_format=torch.channels_last))
    ((_, fused),) = fast._fused
    assert looks(fused) == times


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_usual_network_computes_nothing_plainly(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, _ = ARCHITECTURES[architecture]
    fast = Inference(classifier(architecture, size).to(memory_format=torch.channels_last))
    assert fast._fused
    for _, fused in fast._fused:
        monkeypatch.setattr(fused, "_plain", None)
    fast(pixels(size).contiguous(memory_format=torch.channels_last))


@torch.inference_mode()
def test_what_is_fused() -> None:
    relu, overwriting, beside = (False, True, False), (True, True, True), (True, True, False)
    assert in_one_pass(network(_residual)) == [relu, relu, overwriting]
    assert in_one_pass(network(_residual_in_place)) == [relu, relu, overwriting]
    assert in_one_pass(network(_shortcut_with_a_convolution)) == [relu, relu, overwriting]
    assert in_one_pass(network(_read_later)) == [relu, beside]
    assert in_one_pass(network(_view_read_later)) == [relu, beside]
    assert in_one_pass(network(_sum_with_its_own_input)) == [relu, beside]
    assert in_one_pass(network(_written_into_by_relu_meanwhile)) == []
    assert in_one_pass(network(_weighted_sum)) == [relu]
    assert in_one_pass(network(_doubled)) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_every_family_answers_as_it_does_without(architecture: str, plainly: Callable[[nn.Module], Inference]) -> None:
    size, _ = ARCHITECTURES[architecture]
    original = classifier(architecture, size).to(memory_format=torch.channels_last)
    x = pixels(size).contiguous(memory_format=torch.channels_last)
    fast, plain = Inference(original), plainly(original)
    assert "forward" in vars(fast._twin.backbone)
    assert "forward" not in vars(plain._twin.backbone)
    found, wanted = fast(x), plain(x)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@torch.inference_mode()
def test_a_network_in_the_other_memory_layout_answers_too(plainly: Callable[[nn.Module], Inference]) -> None:
    original, x = classifier("resnet8").to(memory_format=torch.contiguous_format), pixels(32)
    assert torch.equal(Inference(original)(x), plainly(original)(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_under_autocast_it_computes_in_the_same_numbers(dtype: torch.dtype) -> None:
    original, x = network(_residual), images()
    fused = faster(original)
    assert fused is not None
    exact = original(x)
    with torch.autocast("cpu", dtype):
        wanted, found = original(x), fused(original, x)
    assert found.dtype == wanted.dtype == dtype
    # The sum is rounded once, where it was rounded twice.
    assert (found - exact).abs().max() <= 2 * (wanted - exact).abs().max()


def test_with_gradients_it_computes_plainly() -> None:
    original, x = network(_residual), images()
    fused = faster(original)
    assert fused is not None
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused(original, ours).sum().backward()
    original(theirs).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("hooked", ["stem", "relu"])
@torch.inference_mode()
def test_a_module_that_somebody_listens_to_is_called(hooked: str) -> None:
    original = network(_residual)
    heard: list[int] = []
    getattr(original, hooked).register_forward_hook(lambda *_: heard.append(1))
    fused = faster(original)
    original(images())
    before = len(heard)
    (fused or type(original).forward)(original, images())
    assert before > 0
    assert len(heard) == 2 * before


def test_a_group_keeps_the_trunks_tensor() -> None:
    from distilkit.group import build_group

    group = build_group(
        kind="branches",
        architecture="resnet14",
        members=("a", "b"),
        split_at="layer3.1",  # A branch begins with a block whose shortcut is the trunk's tensor itself.
        num_classes=10,
        channels=3,
        size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
    ).eval()
    group.to(memory_format=torch.channels_last)
    x = pixels(32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted, found = copy.deepcopy(group)(x), Inference(group)(x)
    for ours, theirs in ((found.trunk, wanted.trunk), (found.logits_SBC, wanted.logits_SBC)):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()  # type: ignore[operator, union-attr]


def test_a_network_without_fusion_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not convolution.available()
