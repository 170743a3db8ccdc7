"""A convolution that adds a shortcut and applies ReLU while it writes its result, which oneDNN can on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def available() -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions, and may use them."""
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    )


def convolved(convolution: nn.Conv2d, x: Tensor, other: Tensor | None, relu: bool, overwrite: bool) -> Tensor:
    """Compute `convolution(x)`, plus `other` where there is one, and ReLU of that if `relu`.

    `overwrite`: nobody needs `other` afterwards, so the result may be written there. Under autocast as autocast would.
    """
    weight, bias = convolution.weight, convolution.bias
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        x, weight = x.to(kind), weight.to(kind)
        bias = None if bias is None else bias.to(kind)
    stride, padding, dilation = convolution.stride, convolution.padding, convolution.dilation
    if _fits(convolution, x, weight, other):
        # The order of these operators' arguments is PyTorch's own compiler's, which calls them so.
        settings = (weight, bias, padding, stride, dilation, convolution.groups)
        activation = "relu" if relu else None
        if other is None:
            result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *settings, activation or "none", [], "")
        else:
            rows = torch.channels_last
            onto = other if overwrite and other.is_contiguous(memory_format=rows) else other.clone(memory_format=rows)
            result = torch.ops.mkldnn._convolution_pointwise_.binary(onto, x, *settings, "add", 1.0, activation, [], "")
        return result
    result = F.conv2d(x, weight, bias, stride, padding, dilation, convolution.groups)
    if other is not None:
        result = result + other
    return result.relu_() if relu else result


def _fits(convolution: nn.Conv2d, x: Tensor, weight: Tensor, other: Tensor | None) -> bool:
    """Whether oneDNN does this in one pass: channels last, one type of numbers, and a sum of tensors of one shape."""
    if x.dim() != 4 or x.numel() == 0 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if other is None:
        return True
    assert not isinstance(convolution.padding, str)
    sides = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            x.shape[2:],
            convolution.kernel_size,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            strict=True,
        )
    ]
    return other.dtype == x.dtype and other.shape == (len(x), convolution.out_channels, *sides)
