"""The run's clock: ramp-up and learning rates."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilkit.recipe import Recipe
from distilkit.training.schedule import learning_rate, ramp
from distilkit.training.trainer import batch_bounds


def _rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    epochs = recipe.train.epochs
    return [
        learning_rate(recipe.optimizer, recipe.schedule, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for step in range(epochs * steps_per_epoch)
    ]


def test_ramp_is_the_authors_formula_and_stays_at_one() -> None:
    assert ramp(0, 80) == pytest.approx(math.exp(-5))
    assert ramp(40, 80) == pytest.approx(math.exp(-5 * 0.25))
    assert ramp(80, 80) == 1.0
    assert ramp(299, 80) == 1.0
    assert ramp(0, 0) == 1.0


def test_milestones_of_the_papers_count_completed_epochs(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.epochs=300", "optimizer.lr=0.1")
    rates = _rates(recipe, 2)
    assert rates[: 2 * 150] == [0.1] * 300
    assert rates[2 * 150 : 2 * 225] == pytest.approx([0.01] * 150)
    assert rates[2 * 225 :] == pytest.approx([0.001] * 150)


def test_warmup_rises_by_steps_and_ends_at_the_full_rate(tiny: Callable[..., Recipe]) -> None:
    rates = _rates(tiny("train.epochs=10", "optimizer.lr=0.4", "schedule.warmup_epochs=2"), 4)
    assert rates[:8] == pytest.approx([0.05 * i for i in range(1, 9)])
    assert rates[8] == 0.4


def test_cosine_falls_from_the_full_to_the_final_rate(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.epochs=10", "optimizer.lr=0.4", "schedule.name=cosine", "schedule.final_lr=0.04")
    rates = _rates(recipe, 5)
    assert rates[0] == 0.4
    assert rates[25] == pytest.approx(0.22)
    assert rates == sorted(rates, reverse=True)
    assert 0.04 < rates[-1] < 0.042


def test_constant_stays(tiny: Callable[..., Recipe]) -> None:
    assert set(_rates(tiny("schedule.name=constant", "optimizer.lr=0.3"), 3)) == {0.3}


@given(st.integers(2, 5000), st.integers(2, 600), st.integers(1, 4))
def test_batches_cover_every_image_once_and_none_is_too_small(count: int, batch_size: int, processes: int) -> None:
    bounds = batch_bounds(count, batch_size, processes)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == count
    if len(bounds) > 1:
        assert bounds[-1][1] - bounds[-1][0] >= min(2 * processes, batch_size)
    assert all(stop - start == batch_size for start, stop in bounds[:-2])
