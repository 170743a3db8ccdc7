"""Costs against formulas written here and against PyTorch's own counter."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import distilkit
from distilkit.analysis.cost import measure, parameter_count
from distilkit.groups.outputs import GroupOutput
from distilkit.models import registry


def cifar_resnet_multiply_adds(blocks: int, classes: int, size: int = 32) -> int:
    """Layer by layer: out x in x k^2 for each of the output's positions."""
    total = 16 * 3 * 9 * size**2
    before = 16
    for width, resolution in ((16, size), (32, size // 2), (64, size // 4)):
        for block in range(blocks):
            inputs = before if block == 0 else width
            total += width * inputs * 9 * resolution**2 + width * width * 9 * resolution**2
            if inputs != width:
                total += width * inputs * resolution**2
        before = width
    return total + 64 * classes


def test_resnet32_costs_what_the_papers_say():
    cost = measure(registry.create("resnet32", 100), torch.zeros(2, 3, 32, 32))
    assert cost.multiply_adds == cifar_resnet_multiply_adds(5, 100) == 69_130_496
    assert cost.flops == 2 * cost.multiply_adds == 138_260_992  # 1.38e8 in the tables of ONE and OKDDip
    assert cost.parameters == 472_756
    assert cost.uncounted == {}


@pytest.mark.parametrize("name", ["resnet8", "resnet110_bottleneck12"])
def test_flops_agree_with_pytorchs_counter(name: str):
    network = registry.create(name, 10).eval()
    images = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    assert measure(network, images).flops == counter.get_total_flops()


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_counts_its_matrix_products(need_weights: bool):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.attention(tokens, tokens, tokens, need_weights=need_weights)[0]

    tokens, width = 5, 8
    cost = measure(Attention(), torch.zeros(1, tokens, width))
    assert cost.multiply_adds == 4 * tokens * width * width + 2 * tokens * tokens * width
    assert cost.uncounted == {}
    assert torch.backends.mha.get_fastpath_enabled()


def test_groups_and_strides_of_a_convolution_are_seen():
    cost = measure(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), torch.zeros(1, 8, 10, 10))
    assert cost.multiply_adds == 16 * (8 // 4) * 9 * 5 * 5


def test_batch_norm_pooling_and_activations_are_free():
    network = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.ReLU6(),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Softmax(),
    )
    cost = measure(network, torch.zeros(1, 3, 8, 8))
    assert (cost.multiply_adds, cost.uncounted) == (0, {})


def test_matrix_products_with_vectors_and_broadcasting_count():
    class Products(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            matrix = torch.ones(7, 6)
            return x @ torch.ones(6), matrix.t() @ matrix, torch.ones(4, 1, 2, 3) @ torch.ones(5, 3, 2)

    cost = measure(Products(), torch.zeros(1, 6))
    assert cost.multiply_adds == 6 + 6 * 6 * 7 + 4 * 5 * 2 * 2 * 3


def test_what_cannot_be_counted_is_named():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).abs()

    assert measure(Odd(), torch.zeros(1, 6)).uncounted == {"aten::fft_fft": 1}


def test_a_groups_output_with_names_and_nothing_in_it_can_be_measured():
    class Group(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, images: torch.Tensor) -> GroupOutput:
            logits = self.linear(images)
            return GroupOutput(logits[None], (images,), None, ("student_0",))

    assert measure(Group(), torch.zeros(1, 4)).multiply_adds == 12


def test_measuring_changes_nothing_and_says_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2))
    network(torch.randn(2, 3, 6, 6))
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        first = measure(network, torch.rand(2, 3, 6, 6, generator=torch.Generator()))
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert (caplog.records, capfd.readouterr()) == ([], ("", ""))
    assert measure(network, torch.zeros(1, 3, 6, 6)) == first


def test_the_deprecation_that_fvcore_runs_into_stays_hidden():
    program = (
        "import torch; from distilkit.analysis.cost import measure; "
        "print(measure(torch.nn.Linear(2, 3), torch.zeros(1, 2)).flops)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        env={"PYTHONPATH": str(Path(distilkit.__file__).parents[1]), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "12\n", done.stderr
    assert "torch.jit" not in done.stderr


def test_frozen_parameters_do_not_count_and_shared_ones_count_once():
    shared = nn.Linear(3, 3, bias=False)
    network = nn.Sequential(shared, shared, nn.Linear(3, 2))
    network[2].bias.requires_grad_(False)
    assert parameter_count(network) == 9 + 6
    assert measure(network, torch.zeros(1, 3)).multiply_adds == 9 + 9 + 6
