"""ResNets for large images (ImageNet), built by torchvision, so that their weights load into its own classes.

He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Table 1: ResNet-18 and ResNet-34.
Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks" (arXiv 1611.05431), Table 1: ResNeXt-50.
Lan et al. 2018, "Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), section 4: on ImageNet the
last two stages are each student's own.
"""

from torch import nn

from distilkit.models.registry import register


def _from_torchvision(name: str, num_classes: int, channels: int) -> nn.Module:
    # Imported here: torchvision takes seconds, and most commands do without it.
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


@register(split_at="layer3", size=224)
def resnet18(num_classes: int, channels: int = 3) -> nn.Module:
    """Build basic blocks 2-2-2-2; 11,689,512 parameters at 1,000 classes."""
    return _from_torchvision("resnet18", num_classes, channels)


@register(split_at="layer3", size=224)
def resnet34(num_classes: int, channels: int = 3) -> nn.Module:
    """Build basic blocks 3-4-6-3; 21,797,672 parameters at 1,000 classes."""
    return _from_torchvision("resnet34", num_classes, channels)


@register(split_at="layer3", size=224)
def resnext50_32x4d(num_classes: int, channels: int = 3) -> nn.Module:
    """Build bottlenecks 3-4-6-3 in 32 groups of 4 channels; 25,028,904 parameters at 1,000 classes."""
    return _from_torchvision("resnext50_32x4d", num_classes, channels)
