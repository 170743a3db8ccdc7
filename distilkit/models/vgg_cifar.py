"""VGG-16 with batch norm for small images (CIFAR, SVHN).

Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556),
configuration D: thirteen convolutions in five stages.
Ioffe & Szegedy 2015, "Batch Normalization" (arXiv 1502.03167), after every convolution; the convolutions keep their
biases, as in the code of the paper below.
Chen et al. 2020, "Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350): the form that their tables call
VGG-16, whose three linear layers have 512 inputs each, where Simonyan & Zisserman have 25088 and 4096. Their code drops
half of the hidden features in branched networks and none in whole ones; each has a name here.
"""

from torch import Tensor, nn

from distilkit.models.registry import register

_WIDTH = 512


class CifarVGG(nn.Module):
    """Thirteen 3x3 convolutions in five stages, each stage ending in a max pooling, and three linear layers.

    Images [B, channels, H, W] of 32 pixels or more on a side, which the five poolings divide by 32, to logits
    [B, num_classes]; what is left of larger images is averaged. `dropout`: share of the features that is dropped after
    either hidden linear layer in training; networks with and without it have the same names and shapes of weights.
    """

    def __init__(self, num_classes: int, channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer1 = _stage(channels, 64, 2)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 3)
        self.layer4 = _stage(256, _WIDTH, 3)
        self.layer5 = _stage(_WIDTH, _WIDTH, 3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(_WIDTH, _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, _WIDTH)
        self.fc = nn.Linear(_WIDTH, num_classes)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] -> logits [B, num_classes]."""
        x = self.layer5(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        x = self.flatten(self.avgpool(x))
        x = self.dropout(self.relu(self.fc1(x)))
        x = self.dropout(self.relu(self.fc2(x)))
        logits: Tensor = self.fc(x)
        return logits


def _stage(in_channels: int, width: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        conv = nn.Conv2d(width if index else in_channels, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


@register(split_at="layer5")
def vgg16(num_classes: int, channels: int = 3) -> nn.Module:
    """Build VGG-16 without dropout, as OKDDip's whole networks are; 15.25 M parameters at 10 classes."""
    return CifarVGG(num_classes, channels)


@register(split_at="layer5")
def vgg16_dropout(num_classes: int, channels: int = 3) -> nn.Module:
    """Build VGG-16 with dropout of 0.5, as OKDDip's branched networks are; 15.25 M parameters at 10 classes."""
    return CifarVGG(num_classes, channels, dropout=0.5)
