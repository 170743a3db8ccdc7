"""Every family beside the CIFAR ResNets: sizes and costs as published, cuts, stock names, initialisation, training."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Result
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from distilkit.analysis.cost import measure
from distilkit.errors import SettingError
from distilkit.groups import split
from distilkit.groups.build import build_group
from distilkit.groups.group import BranchGroup
from distilkit.models import registry
from distilkit.models.resnet_cifar import Bottleneck, CifarResNet
from distilkit.models.wrn_cifar import WideBlock

# Parameters at 10 and at 100 classes.
CIFAR = {
    "vgg16": (15_253_578, 15_299_748),
    "vgg16_dropout": (15_253_578, 15_299_748),
    "densenet40_12": (176_122, 188_092),
    "densenet190_40": (25_624_430, 25_821_620),
    "wrn20_8": (6_848_090, 6_871_220),
    "wrn16_2": (691_674, 703_284),
    "wrn40_2": (2_243_546, 2_255_156),
    "wrn16_8": (10_961_370, 11_007_540),
    "wrn28_10": (36_479_194, 36_536_884),
    "resnext29_8x64d": (34_426_698, 34_518_948),
}
# Parameters at 1,000 classes.
IMAGENET = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnext50_32x4d": 25_028_904,
    "se_resnet18": 11_778_592,
}
FAMILIES = [*CIFAR, *IMAGENET]
# At least one of each family in `make test`; the larger ones are the same code and take seconds to build.
QUICK = ("vgg16_dropout", "densenet40_12", "wrn20_8", "wrn16_2", "resnext29_8x64d", "resnet18", "se_resnet18")
SOME = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
# Where the default split cuts: the first module that is each student's own.
SPLITS = {"vgg16": "layer5", "vgg16_dropout": "layer5", "densenet40_12": "block3", "densenet190_40": "block3"}
# Pixels to a side. VGG's five poolings leave one pixel of 32, DenseNet's two leave one of 4; the strides of the others
# have nothing left to halve below this.
SMALLEST = {**dict.fromkeys(CIFAR, 4), "vgg16": 32, "vgg16_dropout": 32, **dict.fromkeys(IMAGENET, 32)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads only wait for one another over images of a few pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without_weights(name: str, classes: int, channels: int = 3) -> nn.Module:
    """The network on the device that holds shapes and no numbers."""
    with torch.device("meta"):
        return registry.create(name, classes, channels)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, size: int) -> int:
    """In convolutions and linear layers, for one image, as PyTorch itself counts them; `network` has no weights."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


def test_every_architecture_beside_the_cifar_resnets_is_here() -> None:
    registered = {name: registry._architectures[name].build.__module__ for name in registry.names()}
    families = ("vgg_cifar", "densenet_cifar", "wrn_cifar", "resnext_cifar", "resnet_imagenet", "seresnet_imagenet")
    assert {name for name, module in registered.items() if module.rpartition(".")[2] in families} == set(FAMILIES)


# --------------------------------------------------------------------------------------------------- sizes and costs


@pytest.mark.parametrize("name", CIFAR)
def test_parameter_counts_are_exact(name: str) -> None:
    assert tuple(parameters(without_weights(name, classes)) for classes in (10, 100)) == CIFAR[name]


@pytest.mark.parametrize("name", IMAGENET)
def test_parameter_counts_of_the_imagenet_forms_are_the_published_ones(name: str) -> None:
    assert parameters(without_weights(name, 1000)) == IMAGENET[name]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # OKDDip's text has 0.18 for DenseNet-40-12 and 15.30 for VGG-16; the rest are counts of its code.
        ("vgg16", (15.25, 15.30)),
        ("densenet40_12", (0.176, 0.188)),
        ("wrn20_8", (6.85, 6.87)),
        # ONE, Table 1, without saying for how many classes.
        ("densenet190_40", (25.6, None)),
        ("resnext29_8x64d", (34.4, None)),
        # Zagoruyko & Komodakis, Tables 4 and 5.
        ("wrn16_8", (11.0, None)),
        ("wrn28_10", (36.5, None)),
        ("wrn40_2", (2.2, None)),
        ("wrn16_2", (0.7, None)),
    ],
)
def test_parameter_counts_round_to_those_in_the_papers(name: str, millions: tuple[float, float | None]) -> None:
    for count, published in zip(CIFAR[name], millions, strict=True):
        if published is not None:
            digits = len(str(published).partition(".")[2])
            assert round(count / 1e6, digits) == published


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnext50_32x4d"])
def test_size_and_cost_are_those_that_torchvision_publishes(name: str) -> None:
    from torchvision import models

    meta = next(iter(models.get_model_weights(name))).meta
    network = without_weights(name, 1000)
    assert parameters(network) == meta["num_params"]
    assert multiply_adds(network, 224) / 1e9 == pytest.approx(meta["_ops"], abs=0.001)


@pytest.mark.parametrize(
    ("name", "classes", "published", "tolerance"),
    [
        # Li et al. 2017 (Pruning Filters for Efficient ConvNets), Table 1: 3.13e8 for VGG-16 on CIFAR-10.
        ("vgg16", 10, 313, 0.003),
        # Huang et al. 2018 (CondenseNet), Table 1, in millions; a count that has the batch norms in it as well.
        ("wrn28_10", 10, 5_248, 0.002),
        ("densenet190_40", 10, 9_388, 0.01),
    ],
)
def test_cost_on_small_images_is_the_published_one(name: str, classes: int, published: int, tolerance: float) -> None:
    assert multiply_adds(without_weights(name, classes), 32) / 1e6 == pytest.approx(published, rel=tolerance)


def test_resnext_with_twice_the_groups_is_the_larger_published_one() -> None:
    """ResNeXt-29 16x64d: 68.1 M parameters (Xie et al., Table 7), 10,704 M multiply-adds (CondenseNet, Table 1)."""

    class Grouped16x64d(Bottleneck):
        widen = 16
        groups = 16

    with torch.device("meta"):
        network = CifarResNet(Grouped16x64d, [3, 3, 3], 10, width=64)
    assert parameters(network) / 1e6 == pytest.approx(68.1, abs=0.1)
    assert multiply_adds(network, 32) / 1e6 == pytest.approx(10_704, rel=0.002)


def test_costs_follow_from_the_definitions() -> None:
    def wide_bottlenecks() -> Iterator[int]:
        yield 32 * 32 * 9 * 3 * 16
        inputs = 16
        for width, size in ((16, 32), (32, 16), (64, 8)):
            stride = 1 if width == 16 else 2
            for block in range(2):
                inside, outside, before = 8 * width, 4 * width, (stride * size) ** 2 if block == 0 else size**2
                yield before * inputs * inside + size**2 * (9 * inside**2 + inside * outside)
                if block == 0:
                    yield size**2 * inputs * outside
                inputs = outside
        yield inputs * 100

    def dense() -> Iterator[int]:
        yield 32 * 32 * 9 * 3 * 24
        width = 24
        for size in (32, 16, 8):
            for _ in range(6):
                yield size**2 * (width * 48 + 9 * 48 * 12)
                width += 12
            if size > 8:
                yield size**2 * width * (width // 2)
                width //= 2
        yield width * 100

    assert multiply_adds(without_weights("wrn20_8", 100), 32) == sum(wide_bottlenecks())
    assert multiply_adds(without_weights("densenet40_12", 100), 32) == sum(dense())
    gates = sum(2 * 2 * width * width // 16 for width in (64, 128, 256, 512))
    plain, gated = (multiply_adds(without_weights(name, 1000), 224) for name in ("resnet18", "se_resnet18"))
    assert gated == plain + gates


@pytest.mark.parametrize("name", ["vgg16_dropout", "densenet40_12", "wrn20_8", "wrn16_2", "resnet18", "se_resnet18"])
def test_the_program_counts_what_pytorch_counts_and_leaves_nothing_out(name: str) -> None:
    size = 64 if name in IMAGENET else 32
    cost = measure(registry.create(name, 10), torch.zeros(1, 3, size, size))
    assert (cost.multiply_adds, cost.uncounted) == (multiply_adds(without_weights(name, 10), size), {})


# --------------------------------------------------------------------------------------------------- cuts and groups


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_split_leaves_each_student_the_last_stage_or_on_imagenet_the_last_two(name: str) -> None:
    assert registry.default_split(name) == SPLITS.get(name, "layer3")
    trunk, branch = split.cut(without_weights(name, 10), registry.default_split(name))
    own = {key.partition(".")[0] for key, _ in branch.named_parameters()}
    shared = {key.partition(".")[0] for key, _ in trunk.named_parameters()}
    assert own.isdisjoint(shared)
    stages = {key for key in own | shared if key.startswith(("layer", "block"))}
    last = 2 if name in IMAGENET else 1
    assert own & stages == set(sorted(stages)[-last:])
    assert "fc" in own


@pytest.mark.parametrize("name", SOME)
def test_three_branches_learn_at_the_smallest_size_and_each_is_the_stock_network(name: str) -> None:
    members, size = ("a", "b", "c"), SMALLEST[name]
    # Building compares every member with a stock network: names, logits and updates of buffers, in both modes.
    group = build_group(
        kind="branches",
        architecture=name,
        members=members,
        split_at=None,
        num_classes=5,
        channels=3,
        size=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
    )
    assert isinstance(group, BranchGroup)
    assert (list(group.branches), group.shape.num_classes) == (list(members), 5)
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    logits_SBC = group(images).logits_SBC
    F.cross_entropy(logits_SBC.flatten(0, 1), torch.arange(12) % 5).backward()
    dead = [
        key for key, p in group.named_parameters() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    ]
    assert dead == []
    with torch.no_grad():
        logits_SBC = group.eval()(images).logits_SBC
        stock = stock_network(name, 5).eval()
        for member, logits_BC in zip(members, logits_SBC, strict=True):
            stock.load_state_dict(group.member_state_dict(member), strict=True)
            assert torch.equal(stock(group.normalize(images)), logits_BC)


def stock_network(name: str, classes: int) -> nn.Module:
    """The class into which the weights are loaded where they are deployed: torchvision's own, or ours."""
    if name not in IMAGENET or name == "se_resnet18":
        return registry.create(name, classes)
    from torchvision import models

    network: nn.Module = getattr(models, name)(num_classes=classes)
    return network


@pytest.mark.parametrize("name", SOME)
def test_grey_images_and_sizes_that_nothing_divides_are_taken(name: str) -> None:
    network = registry.create(name, 7, 1)
    for size in (SMALLEST[name], SMALLEST[name] + 3):
        with torch.no_grad():
            assert network.eval()(torch.rand(2, 1, size, size)).shape == (2, 7)
            assert network.train()(torch.rand(2, 1, size, size)).isfinite().all()


@pytest.mark.parametrize(("name", "size"), [("vgg16", 31), ("densenet40_12", 3)])
def test_images_too_small_for_an_architecture_are_refused_with_their_size(name: str, size: int) -> None:
    with pytest.raises(SettingError) as refusal:
        build_group(
            kind="branches",
            architecture=name,
            members=("a", "b"),
            split_at=None,
            num_classes=5,
            channels=1,
            size=size,
            mean=(0.5,),
            std=(0.5,),
            seed=0,
        )
    assert refusal.value.setting == "architecture"
    assert f"{name} cannot take images of {size}x{size} pixels with 1 channels" in refusal.value.problem


# ---------------------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("name", ["vgg16_dropout", "densenet40_12", "wrn20_8", "wrn16_2", "resnet18", "se_resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_are_kaiming_normal_and_norms_start_as_the_identity(name: str, channels: int) -> None:
    torch.manual_seed(0)
    network = registry.create(name, 10, channels)
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            fan = module.in_channels if name.startswith("densenet") else module.out_channels
            expected = (2 / (fan * module.kernel_size[0] ** 2)) ** 0.5
            # Five standard errors of a standard deviation.
            tolerance = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=tolerance), path
            assert module.bias is None or not module.bias.any(), path
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), path
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), path


def test_grouped_convolutions_fan_out_over_all_groups() -> None:
    """As torch counts: the channels of all groups, as in the code that the papers' figures come from."""
    torch.manual_seed(0)
    stage = registry.create("resnext29_8x64d", 10).get_submodule("layer1")
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_linear_layers_begin_as_the_papers_code_has_them() -> None:
    torch.manual_seed(0)
    vgg = registry.create("vgg16", 100)
    for layer in (vgg.fc1, vgg.fc2, vgg.fc):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert not registry.create("densenet40_12", 10).fc.bias.any()


def test_vgg_with_and_without_dropout_are_one_network_in_evaluation_and_two_in_training() -> None:
    plain, dropping = registry.create("vgg16", 10), registry.create("vgg16_dropout", 10)
    dropping.load_state_dict(plain.state_dict(), strict=True)
    images = torch.rand(8, 3, 32, 32)
    seen: list[torch.Tensor] = []
    dropping.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), dropping.eval()(images))
        assert not torch.equal(plain.train()(images), dropping.train()(images))
    # Of features that ReLU has set to zero in half of the cases, dropout leaves a quarter.
    evaluated, trained = ((features > 0).float().mean().item() for features in seen)
    assert trained == pytest.approx(evaluated / 2, rel=0.2)


def test_dense_layers_hand_their_input_on_as_it_was() -> None:
    layer = registry.create("densenet40_12", 10).get_submodule("block1.0")
    x = torch.randn(2, 24, 5, 5)
    out = layer(x)
    assert out.shape == (2, 36, 5, 5)
    assert torch.equal(out[:, :24], x)


def test_wide_blocks_normalise_before_they_convolve_and_project_only_where_the_shape_changes() -> None:
    same, changed = WideBlock(8, 8).eval(), WideBlock(8, 16, 2).eval()
    assert same.shortcut is None
    assert isinstance(changed.shortcut, nn.Conv2d)
    x = torch.randn(2, 8, 6, 6)
    for block in (same, changed):
        nn.init.zeros_(block.conv2.weight)
    # The residual branch is silent now: a block of one shape is the identity, the other projects what was normalised.
    assert torch.equal(same(x), x)
    assert torch.equal(changed(x), changed.shortcut(changed.bn1(x).relu()))


def test_a_gate_scales_each_channel_of_each_image_by_one_half_at_first() -> None:
    se = registry.create("se_resnet18", 10).get_submodule("layer1.0.se")
    x = torch.randn(3, 64, 4, 4)
    gate_BC11 = se(x) / x
    assert torch.allclose(gate_BC11, gate_BC11[:, :, :1, :1].expand_as(x), atol=1e-5)
    assert 0 < gate_BC11.min() < gate_BC11.max() < 1
    nn.init.zeros_(se.fc2.weight)
    assert torch.allclose(se(x), x / 2)


# ---------------------------------------------------------------------------------------------------------- training

TRAINED = ("vgg16_dropout", "densenet40_12", "wrn20_8", "wrn16_2", "resnext29_8x64d", "resnet18", "se_resnet18")
CASES = [(name, method) for name in TRAINED for method in ("one", "okddip")]
FEW = (("wrn16_2", "okddip"), ("densenet40_12", "one"))


@pytest.mark.parametrize(
    ("name", "method"), [case if case in FEW else pytest.param(*case, marks=pytest.mark.long) for case in CASES]
)
def test_every_family_trains_prunes_and_is_the_stock_network(
    name: str, method: str, image_folder: Path, tmp_path: Path, distilkit: Callable[..., Result]
) -> None:
    size = max(SMALLEST[name], 8)
    (tmp_path / "small.toml").write_text(
        f"""
        [data]
        dataset = "image-folder"
        root = "{image_folder.as_posix()}"
        image_size = {size}
        [model]
        architecture = "{name}"
        [method]
        name = "{method}"
        [train]
        epochs = 1
        batch_size = 24
        precision = "fp32"
        """,
        encoding="utf-8",
    )
    done = distilkit("train", tmp_path / "small.toml", "--runs", tmp_path / "runs", "--device", "cpu", "--json")
    assert done.status == 0, done.err
    run = Path(done.json["run"])
    (epoch,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert epoch["step"] == 2
    pruned = distilkit("prune-branches", run, "--json").json
    assert pruned["max_abs_difference"] == 0
    assert pruned["parameters"]["after"] == parameters(without_weights(name, 2))
