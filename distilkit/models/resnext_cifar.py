"""ResNeXts for small images (CIFAR, SVHN).

Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks" (arXiv 1611.05431), section 5.3: 29
layers, bottlenecks 3-3-3 whose 3x3 convolutions have 8 groups of 64 channels in the first stage and twice as many
channels in each stage after it. The blocks have the form (c) of their figure 3, post-activation, with 1x1 convolutions
and batch norm as shortcuts where the shape changes.
Lan et al. 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), Table 1, has it.
"""

from torch import nn

from distilkit.models.registry import register
from distilkit.models.resnet_cifar import Bottleneck, CifarResNet


class _Grouped8x64d(Bottleneck):
    """The block of a first stage of width 64: 512 = 8 x 64 channels inside, in 8 groups, and 256 outside."""

    widen = 8
    groups = 8


@register(split_at="layer3")
def resnext29_8x64d(num_classes: int, channels: int = 3) -> nn.Module:
    """Build ResNeXt-29 8x64d: bottlenecks 3-3-3 in 8 groups; 34.43 M parameters at 10 classes, 34.52 M at 100."""
    return CifarResNet(_Grouped8x64d, [3, 3, 3], num_classes, channels, width=64)
