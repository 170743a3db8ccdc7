"""DenseNets for small images (CIFAR, SVHN).

Huang et al. 2017, "Densely Connected Convolutional Networks" (arXiv 1608.06993), the form DenseNet-BC: 1x1 bottlenecks
before the 3x3 convolutions, and transitions that halve the number of channels.
Chen et al. 2020, "Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350): what their tables call
DenseNet-40-12 is this form too, with six layers in each block.

Deviations of the code published with Chen et al. that are not followed: its branched DenseNets share one dense block by
accident, and their leader is attended to like a peer.
"""

import torch
from torch import Tensor, nn

from distilkit.models.registry import register


class DenseLayer(nn.Module):
    """A bottleneck and a 3x3 convolution, whose output joins the input: [B, in, H, W] -> [B, in + growth, H, W]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, in + growth, H, W], the input first."""
        new: Tensor = self.conv1(self.relu(self.bn1(x)))
        new = self.conv2(self.relu(self.bn2(new)))
        return torch.cat([x, new], 1)


class CifarDenseNet(nn.Module):
    """A 3x3 stem of 2 `growth` channels and three dense blocks, the last two at half the resolution of the one before.

    `growth`: channels that each layer adds. `layers`: how many in each block. Images [B, channels, H, W] of any size
    from 4 pixels to logits [B, num_classes].
    """

    def __init__(self, growth: int, layers: int, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.block1 = _block(width, growth, layers)
        width += layers * growth
        self.transition1 = _transition(width)
        width = width // 2
        self.block2 = _block(width, growth, layers)
        width += layers * growth
        self.transition2 = _transition(width)
        width = width // 2
        self.block3 = _block(width, growth, layers)
        width += layers * growth
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> logits [B, num_classes]."""
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.transition2(self.block2(x))
        x = self.relu(self.bn(self.block3(x)))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def _block(in_channels: int, growth: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(in_channels + index * growth, growth) for index in range(layers)))


def _transition(in_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, in_channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


@register(split_at="block3")
def densenet40_12(num_classes: int, channels: int = 3) -> nn.Module:
    """Build DenseNet-BC-40-12: 6 layers a block that add 12 channels each; 176,122 parameters at 10 classes."""
    return CifarDenseNet(12, 6, num_classes, channels)


@register(split_at="block3")
def densenet190_40(num_classes: int, channels: int = 3) -> nn.Module:
    """Build DenseNet-BC-190-40: 31 layers a block that add 40 channels each; 25.6 M parameters at 10 classes."""
    return CifarDenseNet(40, 31, num_classes, channels)
