"""ResNets with squeeze and excitation for large images (ImageNet).

Hu et al. 2018, "Squeeze-and-Excitation Networks" (arXiv 1709.01507): each residual branch is scaled, channel by channel
and before it joins the shortcut, by a gate computed from its own mean over the positions; reduction 16.
Lan et al. 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), Table 2, has SE-ResNet-18,
which the paper of Hu et al. does not; the ResNet-18 in it is torchvision's, with the strides on the first 3x3.

The gates have biases, as in the models that Hu et al. published (a later version of their paper leaves them out), and
begin at one half.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from distilkit.models.registry import register


class SqueezeExcitation(nn.Module):
    """A gate in (0, 1) for each channel of each image, times the input: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel of [B, C, H, W]."""
        gate: Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.avgpool(x)))))
        return x * gate


class SEBasicBlock(nn.Module):
    """Two 3x3 convolutions and a gate: [B, in, H, W] -> [B, width, H / stride, W / stride]."""

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = SqueezeExcitation(width)
        self.downsample = None
        if stride != 1 or in_channels != width:
            conv = nn.Conv2d(in_channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += shortcut
        result: Tensor = self.relu(out)
        return result


class SEResNet(nn.Module):
    """A 7x7 stem with max pooling and four stages of widths 64, 128, 256, 512.

    `blocks`: how many in each stage. Images [B, channels, H, W] of any size to logits [B, num_classes]; the last maps
    are 1 / 32 of the images' size. Its names are those of torchvision's ResNet, and `se` in every block.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(64, 64, blocks[0], 1)
        self.layer2 = _stage(64, 128, blocks[1], 2)
        self.layer3 = _stage(128, 256, blocks[2], 2)
        self.layer4 = _stage(256, 512, blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> logits [B, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = SEBasicBlock(in_channels, width, stride)
    return nn.Sequential(first, *(SEBasicBlock(width, width) for _ in range(blocks - 1)))


@register(split_at="layer3", size=224)
def se_resnet18(num_classes: int, channels: int = 3) -> nn.Module:
    """Build basic blocks 2-2-2-2 with gates; 11,778,592 parameters at 1,000 classes."""
    return SEResNet([2, 2, 2, 2], num_classes, channels)
