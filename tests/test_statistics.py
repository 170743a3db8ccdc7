"""Statistics over trainings, against formulas written here and against scipy's distribution."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from distilkit.analysis.statistics import spread, welch

# In steps of one image of 10,000.
errors = st.lists(st.integers(0, 10_000).map(lambda wrong: wrong / 100), min_size=2, max_size=6)


def by_hand(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Welch 1947: t with the degrees of freedom of Welch and Satterthwaite."""
    means, parts = [], []
    for values in (ours, theirs):
        mean = sum(values) / len(values)
        means.append(mean)
        parts.append(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True)
    )
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    return means[0] - means[1] - half, means[0] - means[1] + half


def test_welch_is_the_formula() -> None:
    ours, theirs = [68.6, 69.1, 68.2], [70.0, 70.9]
    found = welch(ours, theirs)
    low, high = by_hand(ours, theirs)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.difference == pytest.approx(68.6333333 - 70.45)
    assert found.counts == (3, 2)


def test_a_difference_is_conclusive_where_its_interval_excludes_zero() -> None:
    assert welch([10.0, 10.1, 9.9], [20.0, 20.1, 19.9]).conclusive
    assert not welch([10.0, 20.0], [12.0, 19.0]).conclusive


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_one_training_or_no_variation_concludes_nothing(ours: list[float], theirs: list[float]) -> None:
    found = welch(ours, theirs)
    assert (found.low, found.high, found.conclusive) == (None, None, False)


@given(errors, errors)
def test_swapping_the_sides_mirrors_the_interval(ours: list[float], theirs: list[float]) -> None:
    there, back = welch(ours, theirs), welch(theirs, ours)
    assert there.difference == pytest.approx(-back.difference, abs=1e-9)
    if there.low is not None and back.high is not None:
        assert there.low == pytest.approx(-back.high, rel=1e-6, abs=1e-6)


def test_spread() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert spread([5.0]).deviation is None
    with pytest.raises(ValueError, match="no trainings"):
        spread([])
