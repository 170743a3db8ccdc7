import subprocess
import sys

import pytest
import torch
from torch import nn

from distilkit.errors import SettingError
from distilkit.models import registry, resnet_cifar

# Parameters at 10 and at 100 classes. ResNet-32's are published to the last digit; those of the others must also round
# to what the papers print.
CIFAR_RESNETS = {
    "resnet8": (78_042, 83_892),
    "resnet14": (175_258, 181_108),
    "resnet20": (272_474, 278_324),
    "resnet32": (466_906, 472_756),
    "resnet44": (661_338, 667_188),
    "resnet56": (855_770, 861_620),
    "resnet110": (1_730_714, 1_736_564),
    "resnet110_bottleneck12": (1_147_738, 1_170_868),
    "resnet164_bottleneck": (1_704_154, 1_727_284),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only wait for one another over images of a few pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, size: int) -> int:
    """In convolutions and linear layers, for one image: weights times the positions at which each is applied."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    return total


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_parameter_counts_are_exact(name):
    assert tuple(parameters(registry.create(name, classes)) for classes in (10, 100)) == CIFAR_RESNETS[name]


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_basic_parameter_counts_follow_from_the_depth(depth):
    blocks, classes = (depth - 2) // 6, 10
    stem = 3 * 16 * 9 + 2 * 16
    stages = 0
    for previous, width in ((16, 16), (16, 32), (32, 64)):
        convolutions = 9 * previous * width + (2 * blocks - 1) * 9 * width * width
        shortcut = 0 if previous == width else previous * width + 2 * width
        stages += convolutions + 2 * blocks * 2 * width + shortcut
    assert parameters(registry.create(f"resnet{depth}", classes)) == stem + stages + 64 * classes + classes


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet110", (1.73, 1.74)), ("resnet110_bottleneck12", (1.15, 1.17)), ("resnet164_bottleneck", (1.70, 1.73))],
)
def test_parameter_counts_round_to_those_in_the_papers(name, millions):
    assert tuple(round(count / 1e6, 2) for count in CIFAR_RESNETS[name]) == millions


def test_multiply_adds_are_the_published_ones():
    assert multiply_adds(registry.create("resnet32", 100), 32) == 69_130_496
    # In the papers' convention, two FLOPs for each, in units of 1e8.
    assert round(2 * multiply_adds(registry.create("resnet110", 100), 32) / 1e8, 2) == 5.06
    assert round(2 * multiply_adds(registry.create("resnet164_bottleneck", 100), 32) / 1e8, 2) == 4.95


@pytest.mark.parametrize("name", registry.names())
def test_every_architecture_is_registered_under_its_functions_name(name):
    build = registry._architectures[name].build
    assert build.__name__ == name
    assert build.__doc__
    assert getattr(sys.modules[build.__module__], name) is build


@pytest.mark.parametrize("name", CIFAR_RESNETS)
@pytest.mark.parametrize("size", [8, 32])
def test_logits_have_one_column_for_each_class_at_every_size_and_number_of_channels(name, size):
    for channels in (1, 3):
        network = registry.create(name, 7, channels).eval()
        with torch.no_grad():
            assert network(torch.rand(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet110_bottleneck12"])
def test_shortcuts_are_projections_only_where_the_shape_changes(name):
    network = registry.create(name, 10)
    projections = {key.split(".downsample.")[0] for key in network.state_dict() if ".downsample." in key}
    expected = {"layer2.0", "layer3.0"} | ({"layer1.0"} if "bottleneck" in name else set())
    assert projections == expected
    for path in projections:
        convolution, norm = network.get_submodule(path).downsample
        assert convolution.kernel_size == (1, 1)
        assert convolution.bias is None
        assert isinstance(norm, nn.BatchNorm2d)


def test_bottlenecks_stride_on_the_3x3_convolution():
    block = resnet_cifar.Bottleneck(64, 32, stride=2)
    assert [module.stride for module in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
    assert block.conv2.kernel_size == (3, 3)
    assert block(torch.rand(2, 64, 8, 8)).shape == (2, 128, 4, 4)


def test_a_block_adds_its_shortcut_before_the_last_relu():
    block = resnet_cifar.BasicBlock(4, 4).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x.clone()), x.relu())


@pytest.mark.parametrize("name", ["resnet32", "resnet110_bottleneck12"])
def test_convolutions_are_kaiming_normal_over_fan_out_and_norms_start_as_the_identity(name):
    torch.manual_seed(0)
    network = registry.create(name, 10)
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), path
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), path
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), path
    bound = network.fc.in_features**-0.5  # torch's own default for a linear layer
    assert network.fc.weight.abs().max() <= bound


def test_an_unknown_name_is_refused_with_the_nearest_one():
    for use in (lambda: registry.create("resnet_32", 10), lambda: registry.default_split("resnet_32")):
        with pytest.raises(SettingError) as refusal:
            use()
        assert refusal.value.setting == "architecture"
        assert "'resnet_32'" in refusal.value.problem
        assert "resnet110_bottleneck12" in refusal.value.problem
        assert "did you mean 'resnet32'?" in refusal.value.hint


def test_a_decorated_function_is_an_architecture_and_its_name_cannot_be_taken_twice(monkeypatch):
    monkeypatch.setattr(registry, "_architectures", dict(registry._architectures))

    @registry.register(split_at="1")
    def one_layer(num_classes, channels=3):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 4, num_classes))

    assert "one_layer" in registry.names()
    assert registry.default_split("one_layer") == "1"
    assert registry.create("one_layer", 5, 1)(torch.rand(2, 1, 2, 2)).shape == (2, 5)
    with pytest.raises(RuntimeError, match="two architectures are called 'one_layer'"):
        registry.register(split_at="0")(one_layer)


def test_the_names_have_one_order_whichever_family_is_imported_first() -> None:
    code = "from distilkit.models import vgg_cifar, registry; print(*registry.names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert tuple(done.stdout.split()) == registry.names()


def test_looking_up_an_architecture_does_not_import_torchvision():
    code = "import sys; from distilkit.models import registry; registry.names(); sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
