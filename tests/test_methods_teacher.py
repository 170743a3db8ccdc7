"""A frozen teacher beside any method: the term that the learner adds, against one written a second time."""

from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import oracles
import oracles_peers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods_one import assert_equal, dense_gradients, few_examples, options_of
from torch import Tensor, nn

from distilkit import methods
from distilkit.data import datasets
from distilkit.errors import UserError
from distilkit.groups.group import Group
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.learners.build import build_learner
from distilkit.learners.learner import Learner, LearnerOutput
from distilkit.learners.teacher import Teacher
from distilkit.methods.base import GroupOutput, GroupShape
from distilkit.recipe import Recipe

IMAGES = 4
CLASSES = 10

# How each method's recipe differs from the tiny one.
RECIPES: dict[str, tuple[str, ...]] = {
    "baseline": ("method.name=baseline",),
    "kd": ("method.name=kd", 'teacher.run="runs/teacher"'),
    "independent": ("method.name=independent",),
    "one": ("method.name=one",),
    "one, attached": ("method.name=one", "method.detach_target=false"),
    "one, networks": ("method.name=one", "group.kind=networks", "group.students=2"),
    "dml": ("method.name=dml",),
    "dml, leave-one-out": ("method.name=dml", "method.target=leave-one-out-mean", "group.students=3"),
    "cl-ilr": ("method.name=cl-ilr",),
    "okddip": ("method.name=okddip",),
    "okddip, networks": ("method.name=okddip", "group.kind=networks", "group.students=3"),
    "okddip, attention-only": ("method.name=okddip", "method.target_gradient=attention-only"),
    "okddip, no leader": ("method.name=okddip", "method.leader=false", "group.students=3"),
    "okddip, entropy": ("method.name=okddip", "method.peer_targets=entropy"),
}
STUDENTS = {"baseline": 1, "kd": 1, "one, networks": 2, "dml": 2, "okddip": 4} | {
    "okddip, attention-only": 4,
    "okddip, entropy": 4,
}


def learner_of(tiny: Callable[..., Recipe], name: str, dtype: torch.dtype = torch.float64) -> Learner:
    learner = build_learner(tiny(*RECIPES[name]), datasets.spec("digits", Path()))
    return learner.to(dtype).train()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(CLASSES, (IMAGES,), generator=generator)


def teachers_logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return 3.0 * torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


# Through whole networks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_teachers_term_joins_every_methods_own_loss_and_gradients(
    tiny: Callable[..., Recipe], name: str, dtype: torch.dtype
) -> None:
    learner = learner_of(tiny, name, dtype)
    images, labels = batch()
    teacher = teachers_logits(dtype)
    parameters = dict(learner.named_parameters())
    own = learner(images, labels, 0.4)
    term = oracles_peers.teacher_term(teacher, own.logits_SBC.double(), 2.5)
    expected_loss = own.loss + 0.7 * term
    expected = dense_gradients(expected_loss, parameters)

    out = learner(images, labels, 0.4, teacher_logits=teacher, teacher_weight=0.7, teacher_temperature=2.5)

    assert isinstance(out, LearnerOutput)
    assert len(out.logits_SBC) == STUDENTS.get(name, 3)
    assert "teacher" not in own.terms
    assert_equal({"loss": out.loss, **out.terms}, {"loss": expected_loss, **own.terms, "teacher": term})
    # Single precision through batch norm on four images; the two passes add up in different orders.
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    assert_equal(dense_gradients(out.loss, parameters), expected, "gradient", tolerance=tolerance)


@pytest.mark.parametrize("name", RECIPES)
def test_the_teacher_reaches_every_student_and_none_of_the_methods_own_parts(
    tiny: Callable[..., Recipe], name: str
) -> None:
    learner = learner_of(tiny, name)
    images, labels = batch()
    parameters = dict(learner.named_parameters())
    methods_own = set(learner.method.parameters())
    without, with_teacher = (
        dense_gradients(learner(images, labels, 1.0, **more).loss, parameters)
        for more in ({}, {"teacher_logits": teachers_logits()})
    )

    for key, parameter in parameters.items():
        change = (with_teacher[key] - without[key]).abs().max().item()
        if parameter in methods_own:
            assert change < 1e-12, key
        else:
            assert change > 1e-9, key


@pytest.mark.parametrize("name", RECIPES)
def test_the_teachers_term_does_not_depend_on_the_ramp(tiny: Callable[..., Recipe], name: str) -> None:
    learner = learner_of(tiny, name)
    images, labels = batch()
    teacher = teachers_logits()

    terms, added = [], []
    for ramp in (0.0, 0.3, 1.0, torch.tensor(1.0, dtype=torch.float64)):
        out = learner(images, labels, ramp, teacher_logits=teacher, teacher_weight=2.0)
        terms.append(out.terms["teacher"].item())
        added.append(out.loss.item() - learner(images, labels, ramp).loss.item())

    assert terms == pytest.approx([terms[0]] * 4, rel=1e-12)
    assert added == pytest.approx([2.0 * terms[0]] * 4, rel=1e-9)


def test_in_cl_ilr_what_the_teacher_sends_into_the_trunk_is_divided_by_s_too(tiny: Callable[..., Recipe]) -> None:
    """All that enters the trunk from the branches is, once; the group alone, without the method, divides nothing."""
    learner = learner_of(tiny, "cl-ilr")
    images, labels = batch()
    teacher = teachers_logits()
    parameters = dict(learner.group.named_parameters())
    logits_SBC = learner.group(images).logits_SBC
    terms = oracles_peers.cl_ilr_terms(logits_SBC, labels.tolist(), temperature=3.0, detach_target=False)
    whole = terms["cross_entropy"] + 0.4 * terms["distillation"]
    whole = whole + 1.5 * oracles_peers.teacher_term(teacher, logits_SBC, 3.0)
    expected = {
        name: g / 3 if name.startswith("trunk.") else g for name, g in dense_gradients(whole, parameters).items()
    }

    out = learner(images, labels, 0.4, teacher_logits=teacher, teacher_weight=1.5)

    assert {name.split(".")[0] for name in parameters} == {"trunk", "branches"}
    assert_equal({"": out.loss}, {"": whole}, tolerance=1e-9)
    assert_equal(dense_gradients(out.loss, parameters), expected, "gradient", tolerance=1e-9)


@pytest.mark.parametrize("name", ["baseline", "kd"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_kd_is_the_cross_entropy_and_the_teachers_term(
    tiny: Callable[..., Recipe], name: str, label_smoothing: float
) -> None:
    recipe = tiny(*RECIPES[name], f"train.label_smoothing={label_smoothing}")
    learner = build_learner(recipe, datasets.spec("digits", Path())).double().train()
    images, labels = batch()
    parameters = dict(learner.named_parameters())
    logits_SBC = learner.group(images).logits_SBC
    cross_entropy = oracles.cross_entropy(logits_SBC[0], labels.tolist(), label_smoothing)
    term = oracles_peers.teacher_term(teachers_logits(), logits_SBC, 3.0)

    for ramp in (0.0, 1.0):
        out = learner(images, labels, ramp, teacher_logits=teachers_logits())

        assert_equal(
            {"loss": out.loss, **out.terms},
            {"loss": cross_entropy + term, "cross_entropy": cross_entropy, "teacher": term},
        )
        assert_equal(
            dense_gradients(out.loss, parameters), dense_gradients(cross_entropy + term, parameters), tolerance=1e-9
        )
    assert not list(learner.method.parameters())


def test_kd_without_a_teacher_is_refused(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError):
        tiny("method.name=kd")


# Through logits that are set


class Fixed(Group):
    """Students whose logits are parameters, whatever the images."""

    def __init__(self, logits_SBC: Tensor) -> None:
        students, _, classes = logits_SBC.shape
        members = tuple(f"student_{i}" for i in range(students))
        super().__init__(Normalize((0.0,), (1.0,)), GroupShape("networks", members, None, (8,) * students, classes))
        self.logits_SBC = nn.Parameter(logits_SBC.clone())

    def forward(self, images: Tensor) -> GroupOutput:
        features = tuple(torch.zeros(len(images), 8, dtype=self.logits_SBC.dtype) for _ in self.members)
        return GroupOutput(1.0 * self.logits_SBC, features, None, self.members)

    def member_state_dict(self, name: str) -> dict[str, Tensor]:
        raise NotImplementedError

    def only(self, names: Sequence[str]) -> Group:
        raise NotImplementedError

    def head(self, name: str) -> str:
        raise NotImplementedError

    def _member_logits(self, name: str, normalized: Tensor) -> Tensor:
        raise NotImplementedError


def fixed(logits_SBC: Tensor, method: str = "independent") -> tuple[Learner, Tensor, Tensor]:
    """A learner, images and labels."""
    group = Fixed(logits_SBC)
    num_images = logits_SBC.shape[1]
    learner = Learner(group, methods.create(options_of(method), group.shape))
    return learner, torch.zeros(num_images, 1, 2, 2, dtype=torch.uint8), torch.zeros(num_images, dtype=torch.int64)


def kl(first: float, second: float) -> float:
    """KL((p, 1 - p) || (q, 1 - q))."""
    return first * log(first / second) + (1 - first) * log((1 - first) / (1 - second))


def test_two_students_two_images_two_classes_by_hand() -> None:
    """Logits (2 ln k, 0): at T = 1 k^2 / (k^2 + 1), at T = 2 k / (k + 1).

    First image: students k = 4 and 1, teacher 9. Second image: students 1 and 1, teacher 1/3. Labels: first class.
    """
    logits_SBC = torch.zeros(2, 2, 2, dtype=torch.float64)
    logits_SBC[0, 0, 0] = 2 * log(4)
    learner, images, labels = fixed(logits_SBC)
    teacher = torch.tensor([[2 * log(9), 0.0], [0.0, 2 * log(3)]], dtype=torch.float64)

    out = learner(images, labels, 1.0, teacher_logits=teacher, teacher_weight=0.5, teacher_temperature=2.0)

    cross_entropy = (log(17 / 16) + log(2) + 2 * log(2)) / 2
    term = 4 * (kl(9 / 10, 4 / 5) + kl(9 / 10, 1 / 2) + 2 * kl(1 / 4, 1 / 2)) / 2
    assert out.terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-9)
    assert out.terms["teacher"].item() == pytest.approx(term, rel=1e-9)
    assert out.loss.item() == pytest.approx(cross_entropy + 0.5 * term, rel=1e-9)
    # Of each first logit: (q - 1) / 2 + 0.5 T (q' - p) / 2, with 0.5 T / 2 = 0.5.
    first_SB = torch.tensor(
        [
            [(16 / 17 - 1) / 2 + 0.5 * (4 / 5 - 9 / 10), (1 / 2 - 1) / 2 + 0.5 * (1 / 2 - 1 / 4)],
            [(1 / 2 - 1) / 2 + 0.5 * (1 / 2 - 9 / 10), (1 / 2 - 1) / 2 + 0.5 * (1 / 2 - 1 / 4)],
        ],
        dtype=torch.float64,
    )
    out.loss.backward()
    torch.testing.assert_close(
        learner.group.logits_SBC.grad, torch.stack([first_SB, -first_SB], dim=2), rtol=1e-9, atol=1e-12
    )


def test_weight_one_and_temperature_three_are_the_defaults() -> None:
    logits_SBC = torch.randn(3, IMAGES, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    learner, images, labels = fixed(logits_SBC)
    expected = oracles_peers.teacher_term(teachers_logits(), logits_SBC, 3.0).item()

    out = learner(images, labels, 0.0, teacher_logits=teachers_logits())

    assert out.terms["teacher"].item() == pytest.approx(expected, rel=1e-9)
    assert out.loss.item() == pytest.approx(out.terms["cross_entropy"].item() + expected, rel=1e-9)


@pytest.mark.parametrize("method", ["independent", "dml", "okddip"])
def test_the_teachers_logits_get_no_gradient(method: str) -> None:
    logits_SBC = torch.randn(3, IMAGES, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    group = Fixed(logits_SBC)
    members = methods.members(options_of(method), 3)
    learner = Learner(group, methods.create(options_of(method), group.shape._replace(members=members)).double())
    _, images, labels = fixed(logits_SBC)
    teacher = teachers_logits().requires_grad_()

    out = learner(images, labels, 1.0, teacher_logits=teacher)
    out.loss.backward()

    assert teacher.grad is None or not teacher.grad.any()
    assert group.logits_SBC.grad is not None
    assert group.logits_SBC.grad.flatten(1).any(dim=1).all()


def test_a_teacher_of_another_precision_teaches_the_same() -> None:
    logits_SBC = torch.randn(2, IMAGES, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    learner, images, labels = fixed(logits_SBC)
    single = teachers_logits(torch.float32)

    ours = learner(images, labels, 0.0, teacher_logits=single).terms["teacher"].item()
    theirs = learner(images, labels, 0.0, teacher_logits=single.double()).terms["teacher"].item()

    assert ours == pytest.approx(theirs, rel=1e-5)


@st.composite
def set_logits(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Of students and teacher."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    students, images, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(2, 6))
    numbers = 2.0 * torch.randn(students + 1, images, classes, generator=generator, dtype=torch.float64)
    return numbers[:-1], numbers[-1]


@few_examples
@given(set_logits(), st.floats(0.5, 8.0), st.floats(0.0, 3.0), st.floats(0.0, 1.0))
def test_each_student_is_pulled_by_its_distance_from_the_teacher(
    logits: tuple[Tensor, Tensor], temperature: float, weight: float, ramp: float
) -> None:
    """(q - y) / B + w T (q'_i - p) / B."""
    logits_SBC, teacher_BC = logits
    learner, images, labels = fixed(logits_SBC)
    num_images, num_classes = teacher_BC.shape
    y_BC = torch.eye(num_classes, dtype=torch.float64)[labels]

    out = learner(
        images, labels, ramp, teacher_logits=teacher_BC, teacher_weight=weight, teacher_temperature=temperature
    )
    (gradient_SBC,) = torch.autograd.grad(out.loss, learner.group.logits_SBC)

    distance_SBC = torch.softmax(logits_SBC / temperature, -1) - torch.softmax(teacher_BC / temperature, -1)
    expected_SBC = (torch.softmax(logits_SBC, -1) - y_BC + weight * temperature * distance_SBC) / num_images
    torch.testing.assert_close(gradient_SBC, expected_SBC, rtol=1e-9, atol=1e-12)
    assert out.terms["teacher"].item() == pytest.approx(
        oracles_peers.teacher_term(teacher_BC, logits_SBC, temperature).item(), rel=1e-9, abs=1e-12
    )


@few_examples
@given(set_logits(), st.floats(0.5, 8.0))
def test_students_that_say_what_the_teacher_says_have_nothing_to_learn_from_it(
    logits: tuple[Tensor, Tensor], temperature: float
) -> None:
    logits_SBC, teacher_BC = logits
    heights_S = 10.0 * torch.randn(len(logits_SBC), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    learner, images, labels = fixed(teacher_BC + heights_S[:, None, None])

    term = learner(images, labels, 1.0, teacher_logits=teacher_BC, teacher_temperature=temperature).terms["teacher"]

    assert abs(term.item()) < 1e-9


@few_examples
@given(set_logits(), st.floats(0.5, 8.0))
def test_temperature_only_rescales_logits_and_loss(logits: tuple[Tensor, Tensor], temperature: float) -> None:
    logits_SBC, teacher_BC = logits
    cold, images, labels = fixed(logits_SBC)
    hot, _, _ = fixed(temperature * logits_SBC)

    at_one = cold(images, labels, 1.0, teacher_logits=teacher_BC, teacher_temperature=1.0)
    at_temperature = hot(images, labels, 1.0, teacher_logits=temperature * teacher_BC, teacher_temperature=temperature)

    expected = temperature**2 * at_one.terms["teacher"].item()
    assert at_temperature.terms["teacher"].item() == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_a_weight_of_zero_trains_as_without_a_teacher() -> None:
    logits_SBC = torch.randn(3, IMAGES, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    learner, images, labels = fixed(logits_SBC, "dml")

    without = learner(images, labels, 1.0)
    weightless = learner(images, labels, 1.0, teacher_logits=teachers_logits(), teacher_weight=0.0)

    assert weightless.loss.item() == without.loss.item()
    found = [torch.autograd.grad(out.loss, learner.group.logits_SBC)[0] for out in (without, weightless)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(
    seed: int, temperature: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = 1e4 * torch.randn(4, IMAGES, CLASSES, generator=generator, dtype=torch.float64).sign().to(dtype)
    learner, images, labels = fixed(numbers[:3])

    out = learner(images, labels, 1.0, teacher_logits=numbers[3], teacher_temperature=temperature)
    (gradient_SBC,) = torch.autograd.grad(out.loss, learner.group.logits_SBC)

    expected = oracles_peers.teacher_term(numbers[3], numbers[:3].double(), temperature)
    assert_equal({"": out.terms["teacher"]}, {"": expected})
    assert torch.isfinite(gradient_SBC).all()


# The frozen classifiers


def classifier(seed: int) -> Classifier:
    """One that has not been trained, in train mode; its batch norm remembers what no batch here has."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.5 + 2.0 * torch.rand(tensor.shape, generator=generator))
    return Classifier(Normalize((0.4,), (0.3,)), backbone)


def small_images() -> Tensor:
    return torch.rand(IMAGES, 1, 2, 2, generator=torch.Generator().manual_seed(6))


def test_several_classifiers_teach_the_mean_of_their_logits() -> None:
    several = [classifier(seed).eval() for seed in range(3)]
    expected = sum(one(small_images()) for one in several) / 3

    logits = Teacher(several)(small_images())

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_under_autocast_several_classifiers_are_averaged_in_single_precision() -> None:
    several = [classifier(seed).eval() for seed in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart = [one(small_images()) for one in several]
        logits = Teacher(several)(small_images())

    assert {one.dtype for one in apart} == {torch.bfloat16}
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, sum(one.float() for one in apart) / 3, rtol=1e-6, atol=1e-6)


def test_a_teacher_only_ever_evaluates() -> None:
    """Image by image, remembering nothing, learning nothing, whatever mode is asked for."""
    alone, images = classifier(0).eval(), small_images()
    expected = torch.cat([alone(image[None]) for image in images])
    teacher = Teacher([classifier(0)])
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}

    for mode in (None, True, False, True):
        if mode is not None:
            teacher.train(mode)
        logits = teacher(images.clone().requires_grad_())

        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        assert not logits.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
