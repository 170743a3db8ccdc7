"""Wide residual networks for small images (CIFAR, SVHN).

Zagoruyko & Komodakis 2016, "Wide Residual Networks" (arXiv 1605.07146): WRN-d-k has d layers, blocks of batch norm and
ReLU before each 3x3 convolution, and k times the channels of a CIFAR ResNet.
Chen et al. 2020, "Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350): what their tables call
WRN-20-8 is no such network. Their code widens the 3x3 convolutions inside the bottlenecks of a CIFAR ResNet by 8 and
leaves the blocks' outputs as they were: `wrn20_8`.
"""

from torch import Tensor, nn

from distilkit.models.registry import register
from distilkit.models.resnet_cifar import Bottleneck, CifarResNet


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions: [B, in, H, W] -> [B, width, H / stride, W / stride].

    Where the shape changes, the 1x1 convolution of the shortcut takes the input after its norm and ReLU too, and has no
    norm of its own.
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == width
        self.shortcut = None if same else nn.Conv2d(in_channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, width, H / stride, W / stride]."""
        out: Tensor = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(self.relu(self.bn2(self.conv1(out))))
        out += shortcut
        return out


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels and three stages of widths 16, 32, 64 times `widen`.

    `depth`: 6 n + 4, with n blocks in each stage; the last two stages halve the resolution. Images [B, channels, H, W]
    of any size from 4 pixels to logits [B, num_classes].
    """

    def __init__(self, depth: int, widen: int, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * widen, blocks, 1)
        self.layer2 = _stage(16 * widen, 32 * widen, blocks, 2)
        self.layer3 = _stage(32 * widen, 64 * widen, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> logits [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.flatten(self.avgpool(self.relu(self.bn(x))))
        logits: Tensor = self.fc(x)
        return logits


def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, width, stride)
    return nn.Sequential(first, *(WideBlock(width, width) for _ in range(blocks - 1)))


class _WideBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution is 8 times as wide: [B, in, H, W] -> [B, 4 width, H / stride, W / stride]."""

    widen = 8


@register(split_at="layer3")
def wrn20_8(num_classes: int, channels: int = 3) -> nn.Module:
    """Build the "WRN-20-8" of OKDDip's code: bottlenecks 2-2-2, 8 times as wide inside; 6.85 M parameters."""
    return CifarResNet(_WideBottleneck, [2, 2, 2], num_classes, channels)


@register(split_at="layer3")
def wrn16_2(num_classes: int, channels: int = 3) -> nn.Module:
    """Build WRN-16-2: blocks 2-2-2; 0.69 M parameters at 10 classes, 0.70 M at 100."""
    return WideResNet(16, 2, num_classes, channels)


@register(split_at="layer3")
def wrn40_2(num_classes: int, channels: int = 3) -> nn.Module:
    """Build WRN-40-2: blocks 6-6-6; 2.24 M parameters at 10 classes, 2.26 M at 100."""
    return WideResNet(40, 2, num_classes, channels)


@register(split_at="layer3")
def wrn16_8(num_classes: int, channels: int = 3) -> nn.Module:
    """Build WRN-16-8: blocks 2-2-2; 10.96 M parameters at 10 classes, 11.01 M at 100."""
    return WideResNet(16, 8, num_classes, channels)


@register(split_at="layer3")
def wrn28_10(num_classes: int, channels: int = 3) -> nn.Module:
    """Build WRN-28-10: blocks 4-4-4; 36.48 M parameters at 10 classes, 36.54 M at 100."""
    return WideResNet(28, 10, num_classes, channels)
