"""Pooling that keeps the layout computes what pooling computes."""

import pytest
import torch
from torch import nn

from distilkit.groups.split.cut import cut
from distilkit.models import registry
from distilkit.models.pooling import GlobalAveragePool, keep_layout, mean_over_positions
from distilkit.randomness import seeded

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def maps(layout: torch.memory_format) -> torch.Tensor:
    values = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_and_gradient_are_those_of_pooling(layout: torch.memory_format) -> None:
    ours, theirs = maps(layout), maps(layout)
    weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    found, wanted = mean_over_positions(ours), nn.AdaptiveAvgPool2d(1)(theirs).flatten(1)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_the_gradient_lies_as_the_maps_do() -> None:
    def gradient(pool: nn.Module) -> torch.Tensor:
        x = maps(torch.channels_last)
        # A leaf's gradient is copied to the leaf's layout; one on the way is as it came.
        came: list[torch.Tensor] = []
        inside = x * 1
        inside.register_hook(came.append)
        pool(inside).sum().backward()
        return came[0]

    assert gradient(GlobalAveragePool()).is_contiguous(memory_format=torch.channels_last)
    assert not gradient(nn.AdaptiveAvgPool2d(1)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_evaluation_it_is_the_stock_layer(layout: torch.memory_format) -> None:
    assert torch.equal(GlobalAveragePool().eval()(maps(layout)), nn.AdaptiveAvgPool2d(1)(maps(layout)))


def test_only_plain_global_pooling_is_replaced() -> None:
    heard = nn.AdaptiveAvgPool2d(1)
    heard.register_forward_hook(lambda *_: None)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(2), heard)
    network[0].eval()
    keep_layout(network)
    kinds = [type(each) for each in network]
    assert kinds == [GlobalAveragePool, GlobalAveragePool, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d]
    assert [each.training for each in network] == [False, True, True, True]


def test_a_branchs_pooling_is_found_where_the_branch_was_cut() -> None:
    with seeded(0, "test"):
        network = registry.create("resnet8", 10, 3)
    _, branch = cut(network, "layer3")
    before = dict(branch.state_dict())
    keep_layout(branch)
    assert any(isinstance(each, GlobalAveragePool) for each in branch.modules())
    assert list(branch.state_dict()) == list(before)
