"""The fast form of a network is the network."""

import copy

import pytest
import torch
from torch import nn

from distilkit.analysis.perturbation import curve, directions
from distilkit.groups.build import build_group
from distilkit.groups.inference import Inference
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.learners.teacher import Teacher
from distilkit.models import registry
from distilkit.randomness import generator, seeded

ARCHITECTURES = {
    "resnet8": (32, 9),  # a stem, two in each of three blocks, and two shortcuts
    "resnet20": (32, 21),
    "densenet40_12": (32, None),  # most of its batch norms come before their convolutions
    "vgg16": (32, 13),
    "wrn16_2": (32, None),
    "resnet18": (64, 20),
    "se_resnet18": (64, 20),
    "torchvision:mobilenet_v3_small": (64, 34),
}


def used(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """With batch norm statistics and affine weights that are not those of an identity."""
    numbers = generator(0, "statistics")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=numbers) / 4
            module.running_var = 0.5 + torch.rand(module.num_features, generator=numbers)
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=numbers))
                module.bias.copy_(torch.randn(module.num_features, generator=numbers) / 4)
    return network.eval()


def pixels(size: int, count: int = 6) -> torch.Tensor:
    shape = (count, 3, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(0, "pixels"))


def classifier(architecture: str, size: int = 32) -> Classifier:
    with seeded(0, "test"):
        backbone = registry.create(architecture, 10, 3)
    normalize = Normalize((0.5,) * 3, (0.25,) * 3)
    return used(Classifier(normalize, backbone), pixels(size))  # type: ignore[return-value]


def close(found: torch.Tensor, wanted: torch.Tensor, fraction: float) -> None:
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= fraction * wanted.abs().max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_classifier_answers_as_it_does_unfolded(architecture: str) -> None:
    size, norms = ARCHITECTURES[architecture]
    network, images = classifier(architecture, size), pixels(size)
    wanted, before = network(images), copy.deepcopy(network.state_dict())
    fast = Inference(network)
    close(fast(images), wanted, 1e-5)
    assert fast.folded == norms if norms is not None else fast.folded > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_a_group_answers_as_it_does_unfolded(kind: str) -> None:
    group = build_group(
        kind=kind,  # type: ignore[arg-type]
        architecture="resnet8",
        members=("a", "b"),
        split_at=None,
        num_classes=10,
        channels=3,
        size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
    )
    images = pixels(32)
    with torch.inference_mode():
        wanted, found = used(group, images)(images), Inference(group)(images)
    close(found.logits_SBC, wanted.logits_SBC, 1e-5)
    for ours, theirs in zip(found.features, wanted.features, strict=True):
        close(ours, theirs, 1e-5)
    assert (found.trunk is None) == (kind == "networks")
    assert found.members == ("a", "b")


@torch.inference_mode()
def test_in_bf16_the_last_layer_computes_in_fp32() -> None:
    network, images = classifier("resnet8"), pixels(32)
    found = Inference(network, "bf16")(images)
    close(found, network(images), 0.05)
    assert not torch.equal(found, network(images)), "nothing was computed in bfloat16"
    assert not torch.equal(found, found.bfloat16().float()), "the logits are rounded to bfloat16"


@torch.inference_mode()
def test_without_a_precision_of_its_own_it_takes_the_one_around() -> None:
    network, images = classifier("resnet8"), pixels(32)
    fast = Inference(network, None)
    close(fast(images), network(images), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images), Inference(network, "bf16")(images))


@torch.no_grad()
def test_weights_and_statistics_are_taken_over_on_refresh_alone() -> None:
    network, images = classifier("resnet8"), pixels(32)
    fast = Inference(network)
    old = fast(images)
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            tensor.mul_(1.1)
    assert torch.equal(fast(images), old)
    fast.refresh()
    close(fast(images), network(images), 1e-5)
    assert not torch.allclose(fast(images), old, rtol=1e-2)


class Odd(nn.Module):
    """What must not be folded: a convolution with two readers, one called twice, one whose weights are another's."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.norm_again = nn.BatchNorm2d(4)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.again.weight
        self.norm_tied = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.read_twice(x)
        x = x + self.norm(x)
        x = self.norm_again(self.again(x))
        x = self.again(x)
        x = self.norm_tied(self.tied(x))
        return self.fc(x.mean((2, 3)))


@torch.inference_mode()
def test_what_others_need_is_not_folded() -> None:
    network = Classifier(Normalize((0.5,) * 3, (0.25,) * 3), used(Odd(), pixels(8))).eval()
    fast = Inference(network)
    assert fast.folded == 0
    assert torch.equal(fast(pixels(8)), network(pixels(8)))


class Standardised(nn.Conv2d):
    """A convolution that is more than its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


@torch.inference_mode()
def test_a_kind_of_convolution_that_is_not_known_is_not_folded() -> None:
    backbone = nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    network = Classifier(Normalize((0.5,) * 3, (0.25,) * 3), used(backbone, pixels(8))).eval()
    fast = Inference(network)
    assert fast.folded == 0
    assert torch.equal(fast(pixels(8)), network(pixels(8)))


@torch.inference_mode()
def test_a_teacher_is_folded_whole() -> None:
    teacher = Teacher([classifier("resnet8"), classifier("resnet20")])
    fast = Inference(teacher, None)
    assert fast.folded == 30
    close(fast(pixels(32)), teacher(pixels(32)), 1e-5)


def test_a_perturbation_curve_follows_the_perturbed_weights() -> None:
    network, images = classifier("resnet8"), pixels(32, 40)
    labels = network(images).argmax(-1)
    (direction,) = directions(network, 1, seed=0)
    points = curve(network, {"test": [(images, labels)]}, direction, [0.0, 20.0, 0.0])["test"]
    assert points[0] == points[2]
    assert points[0].top1_error == 0
    assert points[1].cross_entropy > points[0].cross_entropy + 0.1
