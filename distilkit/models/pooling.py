"""The mean over all positions, with a gradient that lies in memory as the maps do.

Pooling's own gradient is spread over the positions channel after channel, whatever the layout of the maps. Where they
have their channels last, the steps behind it (ReLU, sums, batch norm) then read two tensors in two orders, which on
CPUs takes several times as long.
"""

import torch
from torch import Tensor, nn


def mean_over_positions(maps_BCHW: Tensor) -> Tensor:
    """Maps [B, C, H, W] -> [B, C]; written so that the gradient has its channels last where the maps have them."""
    if maps_BCHW.is_contiguous(memory_format=torch.channels_last):
        return maps_BCHW.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return maps_BCHW.mean((2, 3))


class GlobalAveragePool(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d(1)`: [B, C, H, W] -> [B, C, 1, 1], by `mean_over_positions` in training."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 1, 1]."""
        if self.training and input.dim() == 4:
            return mean_over_positions(input)[:, :, None, None]
        return super().forward(input)


def keep_layout(network: nn.Module) -> None:
    """Replace every global average pooling in `network` by one whose gradient keeps the layout; nothing else changes.

    What others derived from `nn.AdaptiveAvgPool2d`, or listen to, stays.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is not nn.AdaptiveAvgPool2d or child.output_size not in (1, (1, 1)):
                continue
            if not (child._forward_hooks or child._forward_pre_hooks or child._backward_hooks):
                setattr(module, name, GlobalAveragePool().train(child.training))
