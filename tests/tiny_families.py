"""One very small architecture of every family, with statistics as after a training, and learners made of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

from distilkit import methods
from distilkit.groups.build import build_group
from distilkit.groups.group import Group
from distilkit.groups.normalize import Classifier
from distilkit.learners.learner import Learner
from distilkit.models import registry, vgg_cifar
from distilkit.models.densenet_cifar import CifarDenseNet
from distilkit.models.resnet_cifar import BasicBlock, Bottleneck, CifarResNet
from distilkit.models.seresnet_imagenet import SEResNet
from distilkit.models.wrn_cifar import WideResNet

CLASSES, CHANNELS, SIZE = 5, 3, 32


class _Grouped(Bottleneck):
    widen = 2
    groups = 2


def tiny_resnet_cifar(num_classes: int, channels: int = 3) -> nn.Module:
    return CifarResNet(BasicBlock, [1, 1, 1], num_classes, channels, width=4)


def tiny_vgg_cifar(num_classes: int, channels: int = 3) -> nn.Module:
    """The thirteen convolutions with a sixteenth of the channels."""
    stage, width = vgg_cifar._stage, 32

    def narrow(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
        inputs, outputs = (each // 16 if each > width else each for each in (inputs, outputs))
        return stage(inputs, outputs, convolutions)

    with mock.patch.object(vgg_cifar, "_WIDTH", width), mock.patch.object(vgg_cifar, "_stage", narrow):
        return vgg_cifar.CifarVGG(num_classes, channels, dropout=0.5)


def tiny_densenet_cifar(num_classes: int, channels: int = 3) -> nn.Module:
    return CifarDenseNet(4, 1, num_classes, channels)


def tiny_wrn_cifar(num_classes: int, channels: int = 3) -> nn.Module:
    return WideResNet(10, 1, num_classes, channels)


def tiny_resnext_cifar(num_classes: int, channels: int = 3) -> nn.Module:
    return CifarResNet(_Grouped, [1, 1, 1], num_classes, channels, width=4)


def tiny_resnet_imagenet(num_classes: int, channels: int = 3) -> nn.Module:
    from torchvision.models.resnet import BasicBlock as Block
    from torchvision.models.resnet import ResNet

    assert channels == CHANNELS
    return ResNet(Block, [1, 1, 1, 1], num_classes)


def tiny_seresnet_imagenet(num_classes: int, channels: int = 3) -> nn.Module:
    return SEResNet([1, 1, 1, 1], num_classes, channels)


def tiny_mobilenet(num_classes: int, channels: int = 3) -> nn.Module:
    from torchvision.models import MobileNetV2

    assert channels == CHANNELS
    return MobileNetV2(num_classes, 0.25, [[1, 16, 1, 1], [2, 24, 1, 2], [2, 32, 2, 2]])


def tiny_vit(num_classes: int, channels: int = 3) -> nn.Module:
    from torchvision.models import VisionTransformer

    assert channels == CHANNELS
    return VisionTransformer(SIZE, 8, 2, 2, 16, 32, dropout=0.1, num_classes=num_classes)


def tiny_swin(num_classes: int, channels: int = 3) -> nn.Module:
    from torchvision.models import SwinTransformer

    assert channels == CHANNELS
    return SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=num_classes)


SPLITS: dict[registry.Builder, str] = {
    tiny_resnet_cifar: "layer3",
    tiny_vgg_cifar: "layer5",
    tiny_densenet_cifar: "block3",
    tiny_wrn_cifar: "layer3",
    tiny_resnext_cifar: "layer3",
    tiny_resnet_imagenet: "layer4",
    tiny_seresnet_imagenet: "layer4",
    tiny_mobilenet: "features.4",
    tiny_vit: "encoder.layers.encoder_layer_1",
    tiny_swin: "features.3",
}

# By name: the method, its options, the kind of group and how many students.
METHODS: dict[str, tuple[str, Mapping[str, object], str, int]] = {
    "baseline": ("baseline", {}, "networks", 1),
    "independent": ("independent", {}, "branches", 2),
    "one": ("one", {}, "branches", 2),
    "one-no-distillation": ("one", {"distillation": False}, "branches", 2),
    "cl-ilr": ("cl-ilr", {}, "branches", 2),
    "dml": ("dml", {}, "networks", 2),
    "okddip": ("okddip", {}, "branches", 3),
    "okddip-networks": ("okddip", {}, "networks", 3),
    "kd": ("kd", {}, "networks", 1),
}


@contextmanager
def registered() -> Iterator[None]:
    """The tiny architectures can be had by their names."""
    registry.names()  # the families of the package first
    with mock.patch.dict(registry._architectures):
        for build, split_at in SPLITS.items():
            registry.register(split_at=split_at, size=SIZE)(build)
        yield


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics of batch norm as no training leaves them all alike, and no classifier whose logits are all zero."""
    draws = torch.Generator().manual_seed(seed)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            assert each.running_mean is not None
            assert each.running_var is not None
            nn.init.normal_(each.running_mean, 0, 0.2, generator=draws)
            nn.init.uniform_(each.running_var, 0.5, 2, generator=draws)
            nn.init.uniform_(each.weight, 0.5, 1.5, generator=draws)
            nn.init.normal_(each.bias, 0, 0.2, generator=draws)
        elif isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, 0, 0.3, generator=draws)
    return module


def learner(family: str, method: str) -> Learner:
    """Untrained, with random statistics, in evaluation mode; to be made inside `registered`."""
    name, settings, kind, students = METHODS[method]
    options = methods.options_model(name)(name=name, **settings)  # type: ignore[arg-type]
    group = build_group(
        kind=kind,  # type: ignore[arg-type]
        architecture=f"tiny_{family}",
        members=methods.members(options, students),
        split_at=None,
        num_classes=CLASSES,
        channels=CHANNELS,
        size=SIZE,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        seed=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = Learner(group, methods.create(options, group.shape))
    return randomised(built).eval()  # type: ignore[return-value]


def member(group: Group, name: str) -> Classifier:
    """One member as the stock network with its weights, behind the group's normalisation."""
    stock = registry.create(group.architectures[group.members.index(name)], CLASSES, CHANNELS)
    registry.load_strict(stock, group.member_state_dict(name))
    return Classifier(group.normalize, stock).eval()  # type: ignore[arg-type]


def images(count: int = 33, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    """uint8 [count, 3, height, width], smooth as photographs are, of many colours and contrasts."""
    draws = torch.Generator().manual_seed(1)
    colours = torch.rand(count, CHANNELS, 1, 1, generator=draws).round(decimals=1)
    coarse = colours + (torch.rand(count, CHANNELS, 6, 6, generator=draws) - 0.5) * colours.mean(1, keepdim=True)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return fine.mul(255).clamp(0, 255).to(torch.uint8)
