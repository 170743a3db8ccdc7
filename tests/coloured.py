"""Images of ten colours, and a network that plain PyTorch has trained on them with ImageNet's constants."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilkit.groups.normalize import Normalize
from distilkit.models import registry

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def coloured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of ten colours in noise, darkened to a quarter: uint8 [N, 3, 16, 16], and their labels."""
    hues = torch.rand(10, 3, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(count) % 10
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    pixels = hues[labels][:, :, None, None] * 0.5 + 0.4 * noise
    return (pixels * 255 / 4).to(torch.uint8), labels


@functools.cache
def trained_elsewhere() -> nn.Module:
    """Trained in plain PyTorch with ImageNet's constants, as anybody would."""
    images, labels = coloured(1000, 1)
    torch.manual_seed(0)
    net = registry.create("resnet8", 10)
    normalize, optimizer = Normalize(*IMAGENET), torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(40):
        batch = torch.randint(0, len(images), (64,))
        loss = F.cross_entropy(net(normalize(images[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        net(normalize(images))
    return net.eval()
