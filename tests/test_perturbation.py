"""Moving parameters along directions, and putting everything back."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distilkit.analysis.perturbation import (
    curve,
    directions,
    magnitudes,
    perturbed,
    recompute_statistics,
    statistics_restored,
)
from distilkit.errors import UserError


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(6 * 36, 4)
        )


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_bits(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert value.numpy().tobytes() == before[name].numpy().tobytes(), name


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(1e-2, 10))
def test_parameters_move_by_exactly_the_distance_and_come_back(seed: int, distance: float):
    module = network(seed)
    before, start = state(module), flat(module)
    (direction,) = directions(module, 1, seed)
    with perturbed(module, direction, distance):
        moved = flat(module) - start
        torch.testing.assert_close(moved, distance * direction, rtol=0, atol=1e-6 * max(1, distance))
        assert float(moved.double().norm()) == pytest.approx(distance, rel=1e-4)
    assert_same_bits(module, before)


def test_parameters_come_back_after_an_exception():
    module = network()
    before = state(module)
    with pytest.raises(KeyError), perturbed(module, directions(module, 1, 0)[0], 3.0):
        raise KeyError
    assert_same_bits(module, before)


def test_distance_zero_touches_nothing():
    module = network().eval()
    with torch.no_grad():
        module[0].bias.fill_(-0.0)  # adding zero would turn this into +0
    before = state(module)
    images = torch.rand(5, 3, 8, 8)
    expected = module(images)
    with perturbed(module, directions(module, 1, 0)[0], 0.0):
        assert torch.equal(module(images), expected)
        assert_same_bits(module, before)


def test_parameters_that_do_not_train_do_not_move():
    module = network()
    module[0].requires_grad_(False)
    before = state(module)
    (direction,) = directions(module, 1, 0)
    assert len(direction) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    with perturbed(module, direction, 1.0):
        assert torch.equal(module[0].weight, before["0.weight"])
        assert not torch.equal(module[5].weight, before["5.weight"])


def test_a_direction_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="trainable parameters"), perturbed(network(), torch.zeros(3), 1.0):
        pass
    with pytest.raises(ValueError, match="no trainable"):
        directions(nn.ReLU(), 1, 0)


@pytest.mark.parametrize("kind", ["unit", "filter-normalised"])
def test_a_direction_depends_on_seed_and_index_alone(kind: str):
    module = network()
    torch.manual_seed(1)
    three = directions(module, 3, 7, kind)
    torch.manual_seed(2)
    five = directions(module, 5, 7, kind)
    assert all(torch.equal(a, b) for a, b in zip(three, five, strict=False))
    assert not torch.equal(five[0], five[1])
    assert not torch.equal(directions(module, 1, 8, kind)[0], five[0])
    assert all(d.dtype == torch.float32 and d.shape == (len(flat(module)),) for d in five)


def test_unit_directions_are_spread_evenly_over_the_sphere():
    module = nn.Linear(3, 1, bias=False)
    sample = torch.stack(directions(module, 2000, 0))
    torch.testing.assert_close(sample.norm(dim=1), torch.ones(2000))
    # On the sphere in three dimensions each coordinate is uniform on [-1, 1]: mean 0, variance 1/3, quarters alike.
    assert sample.mean(0).abs().max() < 0.05
    torch.testing.assert_close(sample.T @ sample / 2000, torch.eye(3) / 3, rtol=0, atol=0.03)
    for coordinate in sample.T:
        assert coordinate.histc(4, -1, 1).sub(500).abs().max() < 80


def test_filters_of_a_normalised_direction_have_the_norms_of_the_networks():
    module = network()
    (direction,) = directions(module, 1, 0, "filter-normalised")
    parts = direction.split([p.numel() for p in module.parameters()])
    for parameter, part in zip(module.parameters(), parts, strict=True):
        if parameter.ndim > 1:
            norms = part.view(len(parameter), -1).norm(dim=1)
            torch.testing.assert_close(norms, parameter.detach().flatten(1).norm(dim=1))
        else:
            assert not part.any()


def test_filter_normalised_curves_do_not_see_a_rescaling_of_layers():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    rescaled = copy.deepcopy(plain)
    with torch.no_grad():
        rescaled[0].weight.mul_(50)
        rescaled[0].bias.mul_(50)
        rescaled[2].weight.div_(50)
    images = torch.randn(10, 6, dtype=torch.float64)
    torch.testing.assert_close(plain(images), rescaled(images))

    def moved(module: nn.Module, kind: str) -> torch.Tensor:
        with perturbed(module, directions(module, 1, 0, kind)[0], 0.5), torch.no_grad():
            return module(images)

    torch.testing.assert_close(
        moved(plain, "filter-normalised"), moved(rescaled, "filter-normalised"), rtol=1e-4, atol=1e-4
    )
    assert (moved(plain, "unit") - moved(rescaled, "unit")).abs().max() > 0.1


def test_the_grid_is_even_and_holds_what_was_asked_for():
    assert magnitudes(5, 5) == [0, 1, 2, 3, 4, 5]
    assert magnitudes(5, 2, [2, 5]) == [0, 2, 2.5, 5]
    assert magnitudes(1, 10, [0.3]).count(0.3) == 1
    assert len(magnitudes(1, 10, [0.3])) == 11
    assert magnitudes(1, 1, [3.0, 3.0]) == [0, 1, 3]


@pytest.mark.parametrize(
    "arguments", [(0, 3), (math.inf, 3), (math.nan, 3), (1, 0), (1, 2, [-1.0]), (1, 2, [math.nan])]
)
def test_a_grid_that_cannot_be_is_refused(arguments: tuple):
    with pytest.raises(UserError):
        magnitudes(*arguments)


def test_recomputed_statistics_are_those_of_the_images():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    module[1].eval()
    modes = [m.training for m in module.modules()]
    images = torch.randn(12, 3, 4, 4) * 3 + 1
    batches = [images[:5], images[5:10], images[10:]]
    torch.manual_seed(0)
    expected_draw = torch.rand(3)
    torch.manual_seed(0)
    recompute_statistics(module, batches)
    assert torch.equal(torch.rand(3), expected_draw)  # dropout drew nothing
    norm = module[0]
    weights = [len(batch) / 12 for batch in batches]
    mean = sum(w * b.mean((0, 2, 3)) for w, b in zip(weights, batches, strict=True))
    variance = sum(w * b.var((0, 2, 3)) for w, b in zip(weights, batches, strict=True))
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1
    assert [m.training for m in module.modules()] == modes


def test_recomputing_without_images_is_refused():
    with pytest.raises(ValueError, match="no images"):
        recompute_statistics(network(), [])
    recompute_statistics(nn.Linear(2, 2), [])  # nothing to do, so nothing needed


def test_statistics_come_back_after_an_exception():
    module = network()
    module(torch.randn(4, 3, 8, 8))
    before = state(module)

    def fail_halfway() -> Iterator[torch.Tensor]:
        yield torch.randn(4, 3, 8, 8)
        raise KeyError

    with pytest.raises(KeyError), statistics_restored(module):
        recompute_statistics(module, fail_halfway())
    assert (module[1].momentum, module[1].training) == (0.1, True)
    assert_same_bits(module, before)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 3, 8, 8, generator=generator)
    labels = torch.randint(4, (10,), generator=generator)
    yield images[:7], labels[:7]
    yield images[7:], labels[7:]


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_curve_is_the_error_of_the_moved_network_at_every_distance(recomputed: bool):
    module = network()
    module[3].eval()
    module[1].running_mean.add_(0.3)
    modes = [m.training for m in module.modules()]
    before = state(module)
    (direction,) = directions(module, 1, 0)
    told: list[tuple[int, int]] = []
    points = curve(
        module,
        {"test": list(batches()), "train": list(batches())[:1]},
        direction,
        [0.0, 2.0],
        recompute_on=list(batches()) if recomputed else None,
        progress=lambda done, total: told.append((done, total)),
    )
    assert_same_bits(module, before)
    assert [m.training for m in module.modules()] == modes
    assert told == [(1, 2), (2, 2)]
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    for point, distance in zip(points["test"], [0.0, 2.0], strict=True):
        moved = copy.deepcopy(module).eval()
        torch.nn.utils.vector_to_parameters(flat(module) + distance * direction, moved.parameters())
        if recomputed:
            recompute_statistics(moved, [b[0] for b in batches()])
        with torch.no_grad():
            logits = moved(images)
        assert point.magnitude == distance
        assert point.top1_error == pytest.approx(100 * float((logits.argmax(1) != labels).float().mean()))
        assert point.cross_entropy == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    assert len(points["train"]) == 2
    assert points["train"][1] != points["test"][1]


def test_a_network_that_breaks_is_all_wrong_and_not_a_crash():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    direction = torch.full((len(flat(module)),), math.inf)
    points = curve(module, {"test": list(batches())}, direction, [0.0, 1.0])["test"]
    assert math.isfinite(points[0].cross_entropy)
    assert (points[1].top1_error, points[1].cross_entropy) == (100.0, math.inf)
    assert bool(flat(module).isfinite().all())


def test_a_split_without_images_is_refused():
    module = network()
    with pytest.raises(ValueError, match="no images"):
        curve(module, {"test": []}, directions(module, 1, 0)[0], [0.0])
