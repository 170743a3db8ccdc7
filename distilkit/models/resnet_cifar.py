"""ResNets for small images (CIFAR, SVHN).

He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2: the basic-block form.
He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027): depth 164 with bottlenecks,
18-18-18; here with post-activation blocks, as in the code of the two papers below.
Lan et al. 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), and Chen et al. 2020,
"Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350): the variants that their tables call ResNet.

A deviation from He et al.: shortcuts are 1x1 convolutions with batch norm wherever the shape changes, as in the code of
Lan and Chen, and not zero-padding (which gives 0.464 M parameters for depth 32 where these have 0.467 M).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from distilkit.models.registry import Norm, register


def _conv(in_channels: int, out_channels: int, size: int, stride: int, norm: Norm, groups: int = 1) -> nn.Conv2d:
    # A bias before batch norm would be subtracted again with the mean.
    return nn.Conv2d(in_channels, out_channels, size, stride, size // 2, groups=groups, bias=norm == "none")


def _norm(channels: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride, norm), _norm(out_channels, norm))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: [B, in, H, W] -> [B, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride, norm)
        self.bn1 = _norm(width, norm)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3, 1, norm)
        self.bn2 = _norm(width, norm)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, the stride on the 3x3: [B, in, H, W] -> [B, 4 width, H / stride, W / stride].

    The 3x3 convolution has `widen` times `width` channels in `groups` groups; other families say how many.
    """

    expansion = 4
    widen = 1
    groups = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, norm: Norm = "batch") -> None:
        super().__init__()
        inside = width * self.widen
        self.conv1 = _conv(in_channels, inside, 1, 1, norm)
        self.bn1 = _norm(inside, norm)
        self.conv2 = _conv(inside, inside, 3, stride, norm, self.groups)
        self.bn2 = _norm(inside, norm)
        self.conv3 = _conv(inside, width * self.expansion, 1, 1, norm)
        self.bn3 = _norm(width * self.expansion, norm)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, 4 width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        result: Tensor = self.relu(out)
        return result


class CifarResNet(nn.Module):
    """A 3x3 stem and three stages of widths 16, 32, 64, the last two at half the resolution of the one before.

    `block`: what the stages are made of. `blocks`: how many in each stage. Images [B, channels, H, W] of any size from
    4 pixels to logits [B, num_classes]; the features before `fc` have 64 `block.expansion` channels. `norm`: "none"
    leaves batch norm out and gives the convolutions biases; such a network wants a small learning rate. `width`: of the
    stem and the first stage, where it is not 16; the other stages then follow.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        num_classes: int,
        channels: int = 3,
        norm: Norm = "batch",
        width: int = 16,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 3, 1, norm)
        self.bn1 = _norm(width, norm)
        self.relu = nn.ReLU(inplace=True)
        out = block.expansion
        self.layer1 = _stage(block, width, width, blocks[0], 1, norm)
        self.layer2 = _stage(block, width * out, 2 * width, blocks[1], 2, norm)
        self.layer3 = _stage(block, 2 * width * out, 4 * width, blocks[2], 2, norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width * out, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def _stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, width: int, blocks: int, stride: int, norm: Norm
) -> nn.Sequential:
    first = block(in_channels, width, stride, norm)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1, norm) for _ in range(blocks - 1)))


def _basic(depth: int, num_classes: int, channels: int, norm: Norm) -> CifarResNet:
    # Two convolutions in each block of each of three stages, the stem and the classifier: depth = 6 n + 2.
    return CifarResNet(BasicBlock, [(depth - 2) // 6] * 3, num_classes, channels, norm)


@register(split_at="layer3")
def resnet8(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 1-1-1: for tests and for a first look."""
    return _basic(8, num_classes, channels, norm)


@register(split_at="layer3")
def resnet14(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 2-2-2."""
    return _basic(14, num_classes, channels, norm)


@register(split_at="layer3")
def resnet20(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 3-3-3."""
    return _basic(20, num_classes, channels, norm)


@register(split_at="layer3")
def resnet32(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 5-5-5; 466,906 parameters at 10 classes, 472,756 at 100."""
    return _basic(32, num_classes, channels, norm)


@register(split_at="layer3")
def resnet44(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 7-7-7."""
    return _basic(44, num_classes, channels, norm)


@register(split_at="layer3")
def resnet56(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 9-9-9."""
    return _basic(56, num_classes, channels, norm)


@register(split_at="layer3")
def resnet110(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build basic blocks 18-18-18: what He et al. call ResNet-110. 1.73 M parameters at 10 classes, 1.74 M at 100."""
    return _basic(110, num_classes, channels, norm)


@register(split_at="layer3")
def resnet110_bottleneck12(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build bottlenecks 12-12-12: the "ResNet-110" of OKDDip's code. 1.15 M parameters at 10 classes, 1.17 M at 100."""
    return CifarResNet(Bottleneck, [12, 12, 12], num_classes, channels, norm)


@register(split_at="layer3")
def resnet164_bottleneck(num_classes: int, channels: int = 3, norm: Norm = "batch") -> nn.Module:
    """Build bottlenecks 18-18-18: the "ResNet-110" of ONE's code. 1.70 M parameters at 10 classes, 1.73 M at 100."""
    return CifarResNet(Bottleneck, [18, 18, 18], num_classes, channels, norm)
