"""Errors, calibration, intervals and diversity, each against a case done by hand or an oracle written here."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilkit.analysis.diversity import agreement, diversity
from distilkit.analysis.metrics import errors, evaluate_logits


def test_errors_of_a_case_done_by_hand():
    logits = torch.tensor(
        [
            [9.0, 1, 2, 3, 4, 5, 6],  # label first: right
            [9.0, 1, 2, 3, 4, 5, 6],  # label fifth: a top-1 error only
            [9.0, 1, 2, 3, 4, 5, 6],  # label sixth: both errors
            [9.0, 1, 2, 3, 4, 5, 6],  # label last: both errors
        ]
    )
    result = evaluate_logits(logits, torch.tensor([0, 3, 2, 1]))
    assert (result.images, result.top1_error, result.top5_error) == (4, 75.0, 50.0)
    assert result.per_class_error == (0.0, 100.0, 100.0, 100.0, None, None, None)


def test_cross_entropy_is_the_mean_in_nats():
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).log_softmax(1)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert evaluate_logits(logits, torch.tensor([0, 0])).cross_entropy == pytest.approx(expected, rel=1e-6)


def test_a_constant_output_is_always_wrong():
    labels = torch.arange(10)
    counts = errors(torch.zeros(10, 10), labels)
    assert (int(counts.top1), int(counts.top5)) == (10, 10)
    assert evaluate_logits(torch.zeros(10, 10), labels).top1_error == 100


def test_a_tie_for_the_fifth_place_is_lost():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 1, 0]])
    assert int(errors(logits, torch.tensor([4])).top5) == 1
    assert int(errors(logits, torch.tensor([3])).top5) == 0


def test_with_five_classes_or_fewer_every_label_is_among_the_five():
    assert int(errors(torch.randn(20, 5), torch.zeros(20, dtype=torch.long)).top5) == 0


@pytest.mark.parametrize("place", [0, 1])
def test_an_image_with_nan_is_an_error_and_leaves_no_cross_entropy(place: int):
    logits = torch.tensor([[5.0, 1.0], [5.0, 1.0]])
    logits[0, place] = math.nan
    result = evaluate_logits(logits, torch.tensor([0, 0]))
    assert (result.top1_error, result.top5_error) == (50.0, 50.0)
    assert math.isnan(result.cross_entropy)
    assert math.isnan(result.calibration_error)


def test_errors_of_many_members_equal_those_of_each():
    logits = torch.randn(2, 3, 40, 11)
    labels = torch.randint(11, (40,))
    counts = errors(logits, labels)
    assert counts.top1.shape == counts.top5.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        result = evaluate_logits(logits[i, j], labels)
        assert 100 * int(counts.top1[i, j]) / 40 == result.top1_error
        assert 100 * int(counts.top5[i, j]) / 40 == result.top5_error


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 50))
def test_errors_without_ties_are_those_of_sorting(seed: int, classes: int, images: int):
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(classes, dtype=np.float32), (images, 1)), axis=1)
    labels = rng.integers(classes, size=images)
    order = np.argsort(-logits, axis=1)
    counts = errors(torch.from_numpy(logits), torch.from_numpy(labels))
    assert int(counts.top1) == sum(label != row[0] for label, row in zip(labels, order, strict=True))
    assert int(counts.top5) == sum(label not in row[:5] for label, row in zip(labels, order, strict=True))


def test_calibration_error_matches_a_loop_over_bins():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator)
    labels = torch.randint(4, (500,), generator=generator)
    probabilities = torch.softmax(logits.double(), 1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert evaluate_logits(logits, labels).calibration_error == pytest.approx(100 * expected, rel=1e-9)


def test_a_classifier_that_is_sure_and_right_is_calibrated():
    result = evaluate_logits(100 * torch.eye(3), torch.arange(3))
    assert result.calibration_error == pytest.approx(0, abs=1e-12)
    assert evaluate_logits(100 * torch.eye(3), torch.tensor([1, 2, 0])).calibration_error == pytest.approx(100)


@pytest.mark.parametrize("wrong", [0, 3, 10])
def test_interval_is_wilsons(wrong: int):
    n, z = 10, 1.959963984540054
    logits = torch.eye(2)[torch.tensor([1] * wrong + [0] * (n - wrong))]
    p = wrong / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = evaluate_logits(logits, torch.zeros(n, dtype=torch.long)).interval95
    assert low == pytest.approx(100 * (centre - half), abs=1e-9)
    assert high == pytest.approx(100 * (centre + half), abs=1e-9)


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="no images"):
        evaluate_logits(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        evaluate_logits(torch.zeros(4, 3), torch.zeros(5, dtype=torch.long))


def test_diversity_is_the_mean_distance_over_images_and_pairs():
    logits = 2 * torch.randn(4, 9, 5, dtype=torch.float64)
    exponentials = np.exp(logits.numpy())
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    distances = [
        np.sqrt(((probabilities[a, n] - probabilities[b, n]) ** 2).sum())
        for a, b in itertools.combinations(range(4), 2)
        for n in range(9)
    ]
    assert diversity(logits) == pytest.approx(np.mean(distances), rel=1e-12)


def test_diversity_of_opposite_certainties_is_the_square_root_of_two():
    logits = torch.tensor([[[500.0, 0.0]], [[0.0, 500.0]]])
    assert diversity(logits) == pytest.approx(math.sqrt(2))


def test_diversity_of_nearly_equal_members_keeps_its_digits():
    logits = torch.zeros(2, 1, 30)
    logits[1, 0, 0] = 1e-4
    exact = diversity(logits.double())
    assert exact is not None
    assert exact > 0
    assert diversity(logits) == pytest.approx(exact, rel=1e-2)
    assert diversity(torch.zeros(2, 1, 30)) == 0


def test_diversity_of_one_member_is_not_a_number_but_nothing():
    assert diversity(torch.randn(1, 3, 2)) is None


def test_diversity_takes_half_precision():
    logits = torch.randn(3, 4, 5).bfloat16()
    assert diversity(logits) == pytest.approx(diversity(logits.double()), rel=1e-5)


def test_agreement_counts_images_with_the_same_class():
    classes = torch.tensor([[0, 1, 2, 0], [0, 1, 1, 1], [0, 1, 2, 0]])
    logits = torch.nn.functional.one_hot(classes, 3).float()
    expected = torch.tensor([[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 1]], dtype=torch.float64)
    assert torch.equal(agreement(logits), expected)


def test_a_member_with_nan_agrees_with_nobody():
    logits = torch.eye(2).expand(2, 2, 2).clone()
    logits[0, 0] = math.nan
    assert torch.equal(agreement(logits), torch.tensor([[0.5, 0.5], [0.5, 1.0]], dtype=torch.float64))
