"""A teacher is measured before students learn from it: wrong constants, classes, channels and useless weights."""

import re

import numpy as np
import pytest
import torch
from coloured import IMAGENET, coloured, trained_elsewhere
from torch import Tensor, nn
from torch.nn import functional as F

from distilkit.analysis.teacher_check import choose_images, measure, require_right_reading
from distilkit.data.base import Split
from distilkit.errors import SettingError
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.learners.teacher import ResizedClassifier, Teacher
from distilkit.models import registry

CPU = torch.device("cpu")
NAMES = tuple("abcdefghij")


IMAGES, LABELS = coloured(1000, 2)
VALIDATION = Split(IMAGES, LABELS)
DATA = tuple(tuple(f(IMAGES / 255, (0, 2, 3)).tolist()) for f in (torch.mean, torch.std))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained_elsewhere()


def refusal(classifier: Classifier | ResizedClassifier, images: Split = VALIDATION) -> SettingError | None:
    measured = measure(classifier, "validation", images, CPU)
    try:
        require_right_reading(classifier, measured, images, NAMES, "resnet8", DATA, CPU)  # type: ignore[arg-type]
    except SettingError as error:
        return error
    return None


def test_a_teacher_that_is_read_rightly_teaches(network: nn.Module) -> None:
    assert refusal(Classifier(Normalize(*IMAGENET), network)) is None


def test_wrong_constants_are_refused_with_the_right_ones(network: nn.Module) -> None:
    error = refusal(Classifier(Normalize(*DATA), network))  # type: ignore[arg-type]
    assert error is not None
    assert error.setting == "teacher.weights"
    assert "with ImageNet's constants: its weights are read wrongly" in error.problem
    assert error.hint is not None
    assert error.hint.startswith(
        "set teacher.mean = [0.485, 0.456, 0.406] and teacher.std = [0.229, 0.224, 0.225]; to train with it as it is"
    )


def test_classes_in_another_order_are_refused_with_their_order(network: nn.Module) -> None:
    # Folders named 1 to 10, sorted as text: 1, 10, 2, ...; the teacher counts.
    place = {number: sorted(map(str, range(1, 11))).index(str(number + 1)) for number in range(10)}
    images = Split(IMAGES, torch.tensor([place[int(label)] for label in LABELS]))
    error = refusal(Classifier(Normalize(*IMAGENET), network), images)
    assert error is not None
    assert re.search(r" 0\.\d % with its classes in another order: ", error.problem)
    by_logit = ", ".join(f'"{NAMES[place[number]]}"' for number in range(10))
    assert f"set teacher.classes = [{by_logit}]; to train" in str(error.hint)
    # What is asked for mends it.
    order = [next(number for number in range(10) if place[number] == label) for label in range(10)]
    assert refusal(ResizedClassifier(Classifier(Normalize(*IMAGENET), network), None, order), images) is None


def test_channels_in_reverse_are_refused(network: nn.Module) -> None:
    reverse = Split(IMAGES.flip(1), LABELS)
    error = refusal(Classifier(Normalize(*IMAGENET), network), reverse)
    assert error is not None
    assert re.search(r" 0\.\d % with blue, green and red in reverse: ", error.problem)
    assert str(error.hint).startswith("its first convolution was trained on blue, green, red")


def test_weights_of_no_use_are_refused() -> None:
    torch.manual_seed(1)
    images = Split(IMAGES, LABELS[torch.randperm(len(LABELS))])
    error = refusal(Classifier(Normalize(*IMAGENET), registry.create("resnet8", 10).eval()), images)
    assert error is not None
    assert "naming the largest class always has 90.0 %" in error.problem


class Sometimes(nn.Module):
    """Logits for a hundred classes that are right for so many of a hundred images."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def forward(self, images: Tensor) -> Tensor:
        numbers, turn = (images[:, 0, 0, place].round().long().clamp(0, 99) for place in (0, 1))
        return F.one_hot(torch.where(turn < self.right, numbers, (numbers + 1 + turn % 90) % 100), 100).float()


@pytest.mark.parametrize(("right", "refused"), [(35, False), (0, True)])
def test_a_weak_teacher_of_many_classes_passes_and_chance_does_not(right: int, refused: bool) -> None:
    numbers = torch.arange(2000) % 100
    images = torch.zeros(2000, 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = numbers.to(torch.uint8)
    images[:, 0, 0, 1] = (torch.arange(2000) // 100 * 5).to(torch.uint8)
    classifier = Classifier(Normalize((0.0,) * 3, (1 / 255,) * 3), Sometimes(right))
    split = Split(images, numbers)
    measured = measure(classifier, "validation", split, CPU)
    names = tuple(map(str, range(100)))
    if refused:
        with pytest.raises(SettingError):
            require_right_reading(classifier, measured, split, names, "resnet8", IMAGENET, CPU)
    else:
        assert measured.error == pytest.approx(65)
        require_right_reading(classifier, measured, split, names, "resnet8", IMAGENET, CPU)


def test_images_are_chosen_evenly_by_class_and_never_from_the_test_set() -> None:
    labels = torch.tensor([0] * 90 + [1] * 6 + [2] * 4)
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    splits = {"train": Split(images, labels), "test": Split(images, labels)}
    name, chosen = choose_images(splits, 3, 15)
    assert name == "train"
    assert chosen.labels.bincount().tolist() == [5, 5, 4]
    assert chosen.images.flatten().tolist()[:5] == [0, 22, 44, 66, 89]
    name, chosen = choose_images(splits | {"validation": Split(images[95:], labels[95:])}, 3, 2000)
    assert (name, len(chosen.labels)) == ("validation", 5)


def test_figures_are_those_of_the_definition() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return logits

    labels = torch.tensor([0, 1, 1, 1])
    found = measure(Fixed(), "train", Split(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), labels), CPU)
    assert (found.error, found.chance, found.images) == (25.0, 25.0, 4)
    expected = float(
        np.mean([np.log(1 + np.exp(-2)), np.log(1 + np.exp(-1)), 3 + np.log(1 + np.exp(-3)), np.log(1 + np.exp(-0.5))])
    )
    assert found.cross_entropy == pytest.approx(expected, rel=1e-6)
    assert found.knows_nothing


def test_images_are_resized_and_classes_chosen_for_a_teacher_that_knows_more() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[-2:] == (8, 8)
            return torch.stack([images.mean((1, 2, 3)), torch.ones(len(images)), torch.zeros(len(images))], 1)

    classifier = Classifier(Normalize((0.0,), (1.0,)), Mean())
    images = torch.full((2, 1, 4, 4), 51, dtype=torch.uint8)
    logits = Teacher([ResizedClassifier(classifier, 8, [2, 0])])(images)
    assert torch.allclose(logits, torch.tensor([[0.0, 0.2], [0.0, 0.2]]))
