"""DML against losses written a second time (oracles_peers.py)."""

import random
from dataclasses import dataclass, replace
from math import log

import oracles_peers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods_one import (
    FEATURE_WIDTH,
    Batch,
    assert_equal,
    dense_gradients,
    draw,
    few_examples,
    gradients,
    leaves_of,
    losses_and_gradients,
    options_of,
    pick_images,
    shape_of,
    with_outputs,
)
from test_methods_one import Case as Sizes
from torch import Tensor

from distilkit import methods
from distilkit.methods.base import GroupKind, GroupOutput, GroupShape, Method, MethodLosses

TARGETS = ("pairwise", "leave-one-out-mean")


@dataclass(frozen=True)
class Case:
    """One setting of DML and the size of its group."""

    students: int = 3
    images: int = 4
    classes: int = 5
    kind: GroupKind = "networks"
    target: str = "pairwise"
    detach_targets: bool = True
    temperature: float = 3.0
    ramp: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            students=self.students, images=self.images, classes=self.classes, kind=self.kind, seed=10_000 + self.seed
        )


def create(case: Case) -> Method:
    options = options_of(
        "dml",
        temperature=case.temperature,
        rampup_epochs=0,
        target=case.target,
        detach_targets=case.detach_targets,
    )
    return methods.create(options, shape_of(case.sizes), label_smoothing=case.label_smoothing)


def expected_of(case: Case, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The oracle's losses, with the total, and its leaves."""
    leaves = {
        name: leaf.detach().double().clone().requires_grad_()
        for name, leaf in leaves_of(create(case), batch.outputs).items()
    }
    terms = oracles_peers.dml_terms(
        leaves["logits"],
        batch.labels.tolist(),
        temperature=case.temperature,
        target=case.target,
        detach_targets=case.detach_targets,
        label_smoothing=case.label_smoothing,
    )
    return {"total": terms["cross_entropy"] + case.ramp * terms["distillation"], **terms}, leaves


def structural_cases() -> list[Case]:
    """Every combination of the switches; sizes, temperatures, ramps and smoothing drawn once and for all."""
    chance = random.Random(20180618)
    cases: list[Case] = []
    for students in (2, 3, 4, 5):
        for target in TARGETS:
            for detach_targets in (True, False):
                cases.append(
                    Case(
                        students=students,
                        images=chance.choice((1, 3, 6)),
                        classes=chance.choice((2, 3, 10)),
                        kind=chance.choice(("networks", "branches")),
                        target=target,
                        detach_targets=detach_targets,
                        temperature=chance.choice((1.0, 2.0, 3.0, 4.5)),
                        ramp=chance.choice((0.0, 0.3, 1.0)),
                        label_smoothing=chance.choice((0.0, 0.1)),
                        seed=len(cases),
                    )
                )
    return cases


def case_id(case: Case) -> str:
    sizes = f"S{case.students}-B{case.images}-C{case.classes}-{case.kind}"
    switches = f"{case.target}-{'detached' if case.detach_targets else 'attached'}"
    return f"{sizes}-{switches}-T{case.temperature}-w{case.ramp}-s{case.label_smoothing}"


# Against the oracle


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", structural_cases(), ids=case_id)
def test_losses_and_all_gradients_equal_the_oracle(case: Case, dtype: torch.dtype) -> None:
    method, batch = create(case), draw(case.sizes, dtype)
    expected, expected_leaves = expected_of(case, batch)

    losses = method(batch.outputs, batch.labels, case.ramp)

    assert isinstance(losses, MethodLosses)
    actual = {"total": losses.total, **losses.terms}
    assert_equal(actual, expected)
    leaves = leaves_of(method, batch.outputs)
    for name, loss in actual.items():
        assert loss.shape == ()
        assert_equal(
            dense_gradients(loss, leaves),
            dense_gradients(expected[name], expected_leaves),
            what=f"gradient of {name} with respect to",
        )


# By hand


def kl(first: float, second: float) -> float:
    """KL((p, 1 - p) || (q, 1 - q))."""
    return first * log(first / second) + (1 - first) * log((1 - first) / (1 - second))


def test_three_students_two_images_two_classes_by_hand() -> None:
    """Logits (2 ln k, 0) give probabilities k^2 / (k^2 + 1) at T = 1 and k / (k + 1) at T = 2.

    First image, label 0: k = 4, 1, 16.  T = 1: 16/17, 1/2, 256/257.  T = 2: 4/5, 1/2, 16/17.
    Means of the others' logits: k = sqrt(1 * 16) = 4, sqrt(4 * 16) = 8, sqrt(4 * 1) = 2: at T = 2: 4/5, 8/9, 2/3.
    The first student's target is then what it says itself. Second image, label 1: all k = 1, nothing to learn.
    """
    logits_SBC = torch.zeros(3, 2, 2, dtype=torch.float64)
    logits_SBC[:, 0, 0] = 2 * torch.tensor([4.0, 1.0, 16.0], dtype=torch.float64).log()
    logits_SBC.requires_grad_()
    shape = shape_of(Sizes(students=3, classes=2, kind="networks"))
    features = tuple(torch.zeros(2, FEATURE_WIDTH, dtype=torch.float64) for _ in range(3))
    outputs = GroupOutput(logits_SBC, features, None, shape.members)
    labels = torch.tensor([0, 1])
    cross_entropy = (log(17 / 16) + log(2) + log(257 / 256) + 3 * log(2)) / 2
    pairwise = (
        kl(1 / 2, 4 / 5)
        + kl(16 / 17, 4 / 5)
        + kl(4 / 5, 1 / 2)
        + kl(16 / 17, 1 / 2)
        + kl(4 / 5, 16 / 17)
        + kl(1 / 2, 16 / 17)
    ) / 2
    leave_one_out = kl(4 / 5, 4 / 5) + kl(8 / 9, 1 / 2) + kl(2 / 3, 16 / 17)
    # Detached, of each student's first logit: (q - y) / B + w T (q' - target) / B, w T / B = 0.4 * 2 / 2 = 0.4.
    pulls = {
        "pairwise": [4 / 5 - (1 / 2 + 16 / 17) / 2, 1 / 2 - (4 / 5 + 16 / 17) / 2, 16 / 17 - (4 / 5 + 1 / 2) / 2],
        "leave-one-out-mean": [0.0, 1 / 2 - 8 / 9, 16 / 17 - 2 / 3],
    }

    for target, divergence in (("pairwise", pairwise), ("leave-one-out-mean", leave_one_out)):
        options = options_of("dml", temperature=2.0, target=target)
        losses = methods.create(options, shape)(outputs, labels, 0.4)

        assert losses.terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-9)
        assert losses.terms["distillation"].item() == pytest.approx(4 * divergence / 2, rel=1e-9)
        assert losses.total.item() == pytest.approx(cross_entropy + 0.4 * 4 * divergence / 2, rel=1e-9)
        (gradient_SBC,) = torch.autograd.grad(losses.total, logits_SBC)
        first_S = torch.tensor([(16 / 17 - 1) / 2, (1 / 2 - 1) / 2, (256 / 257 - 1) / 2], dtype=torch.float64)
        first_S = first_S + 0.4 * torch.tensor(pulls[target], dtype=torch.float64)
        second_S = torch.full((3,), 1 / 4, dtype=torch.float64)
        expected_SB = torch.stack([first_S, second_S], dim=1)
        torch.testing.assert_close(gradient_SBC, torch.stack([expected_SB, -expected_SB], dim=2), rtol=1e-9, atol=1e-12)


# Who learns from what


@pytest.mark.parametrize("kind", ["networks", "branches"])
@pytest.mark.parametrize("detach_targets", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_each_term_reaches_every_students_logits_and_nothing_else(
    target: str, detach_targets: bool, kind: GroupKind
) -> None:
    case = Case(target=target, detach_targets=detach_targets, kind=kind)
    method, batch = create(case), draw(case.sizes)

    losses = method(batch.outputs, batch.labels, 1.0)

    assert not list(method.parameters())
    for name, term in losses.terms.items():
        found = {leaf: g for leaf, g in gradients(term, leaves_of(method, batch.outputs)).items() if g is not None}
        assert {leaf for leaf, g in found.items() if g.any()} == {"logits"}, name
        assert found["logits"].flatten(1).any(dim=1).all(), f"{name} leaves a student out"


@pytest.mark.parametrize("students", [2, 4])
def test_a_detached_target_pulls_each_student_by_its_distance_from_the_target(students: int) -> None:
    """d/dz_i of T^2 KL(sg[t] || q'_i), mean over B: T (q'_i - t) / B; students as targets get nothing."""
    case = Case(students=students)
    batch = draw(case.sizes)
    logits_SBC = batch.outputs.logits_SBC
    softened_SBC = torch.softmax(logits_SBC.detach() / 3.0, dim=-1)
    for target in TARGETS:
        targets = []
        for i in range(students):
            others = [j for j in range(students) if j != i]
            if target == "pairwise":
                targets.append(softened_SBC[others].mean(0))
            else:
                targets.append(torch.softmax(logits_SBC.detach()[others].mean(0) / 3.0, dim=-1))

        term = create(replace(case, target=target))(batch.outputs, batch.labels, 1.0).terms["distillation"]
        (gradient_SBC,) = torch.autograd.grad(term, logits_SBC)

        expected_SBC = 3.0 * (softened_SBC - torch.stack(targets)) / case.images
        torch.testing.assert_close(gradient_SBC, expected_SBC, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_a_student_whose_targets_are_attached_is_pushed_as_a_target_too(target: str) -> None:
    case = Case(target=target)
    batch = draw(case.sizes)

    detached, detached_gradients = losses_and_gradients(create(case), batch, 1.0)
    attached, attached_gradients = losses_and_gradients(create(replace(case, detach_targets=False)), batch, 1.0)

    assert_equal(attached, detached, tolerance=1e-12)
    difference_S = (attached_gradients["logits"] - detached_gradients["logits"]).flatten(1).abs().amax(dim=1)
    assert (difference_S > 1e-3).all()


# Interface


def test_the_default_is_the_joint_step_with_detached_pairwise_targets_and_no_ramp() -> None:
    options = options_of("dml")
    model = methods.options_model("dml")

    assert options.model_dump() == {
        "name": "dml",
        "temperature": 3.0,
        "rampup_epochs": 0,
        "target": "pairwise",
        "detach_targets": True,
    }
    assert (model.default_kind, model.min_students) == ("networks", 2)
    assert methods.members(options, 3) == ("student_0", "student_1", "student_2")


@pytest.mark.parametrize("students", [2, 3, 5])
def test_the_ensemble_is_the_mean_of_logits(students: int) -> None:
    case = Case(students=students)
    method, batch = create(case), draw(case.sizes)
    members = shape_of(case.sizes).members

    torch.testing.assert_close(method.ensemble(batch.outputs), batch.outputs.logits_SBC.mean(0), rtol=1e-12, atol=1e-12)
    assert method.ensemble_name is not None
    assert method.weights(batch.outputs) == {}
    assert method.leader(members) == "student_0"
    assert method.peers(members) == members


# What holds for any group


def any_case(**fixed: object) -> st.SearchStrategy[Case]:
    """Any setting; `fixed` fields keep their value."""
    free: dict[str, st.SearchStrategy[object]] = {
        "students": st.integers(2, 5),
        "images": st.integers(1, 6),
        "classes": st.integers(2, 7),
        "kind": st.sampled_from(["branches", "networks"]),
        "target": st.sampled_from(TARGETS),
        "detach_targets": st.booleans(),
        "temperature": st.floats(0.5, 8.0),
        "ramp": st.floats(0.0, 1.0),
        "label_smoothing": st.floats(0.0, 0.5),
        "seed": st.integers(0, 10_000),
    }
    drawn = {name: strategy for name, strategy in free.items() if name not in fixed}
    return st.builds(Case, **drawn, **{name: st.just(value) for name, value in fixed.items()})


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_distillation_is_zero_and_flat_when_all_students_agree(case: Case, chance: random.Random) -> None:
    """Agreement is of probabilities: each student's logits may sit at a height of their own."""
    method, batch = create(case), draw(case.sizes)
    heights_SB1 = torch.tensor(
        [[[chance.uniform(-5, 5)] for _ in range(case.images)] for _ in range(case.students)], dtype=torch.float64
    )
    agreed = with_outputs(batch, logits_SBC=batch.outputs.logits_SBC[:1] + heights_SB1)

    term = method(agreed.outputs, agreed.labels, case.ramp).terms["distillation"]

    assert abs(term.item()) < 1e-9
    assert torch.autograd.grad(term, agreed.outputs.logits_SBC)[0].abs().max() < 1e-9


@few_examples
@given(any_case())
def test_distillation_is_not_negative_and_total_is_the_weighted_sum(case: Case) -> None:
    batch = draw(case.sizes)

    losses = create(case)(batch.outputs, batch.labels, case.ramp)

    terms = {name: term.item() for name, term in losses.terms.items()}
    assert set(terms) == {"cross_entropy", "distillation"}
    assert terms["distillation"] >= 0.0
    assert losses.total.item() == pytest.approx(terms["cross_entropy"] + case.ramp * terms["distillation"], rel=1e-12)


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_reordering_the_students_changes_no_loss_and_reorders_the_gradients(case: Case, chance: random.Random) -> None:
    method, batch = create(case), draw(case.sizes)
    order = chance.sample(range(case.students), case.students)
    reordered = with_outputs(batch, logits_SBC=batch.outputs.logits_SBC[order])

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, reordered, case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    assert_equal({"": after_gradients["logits"]}, {"": before_gradients["logits"][order]}, tolerance=1e-9)


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_reordering_the_images_or_laying_them_out_twice_changes_no_loss(case: Case, chance: random.Random) -> None:
    method, batch = create(case), draw(case.sizes)
    order = chance.sample(range(case.images), case.images)

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, pick_images(batch, order), case.ramp)
    twice, _ = losses_and_gradients(method, pick_images(batch, order + order), case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    assert_equal(twice, before, tolerance=1e-9)
    assert_equal({"": after_gradients["logits"]}, {"": before_gradients["logits"][:, order]}, tolerance=1e-9)


@few_examples
@given(any_case())
def test_temperature_only_rescales_logits_and_loss(case: Case) -> None:
    batch = draw(case.sizes)
    hotter = with_outputs(batch, logits_SBC=case.temperature * batch.outputs.logits_SBC)

    at_one = create(replace(case, temperature=1.0))(batch.outputs, batch.labels, 1.0).terms["distillation"]
    at_temperature = create(case)(hotter.outputs, batch.labels, 1.0).terms["distillation"]

    assert at_temperature.item() == pytest.approx(case.temperature**2 * at_one.item(), rel=1e-8, abs=1e-12)


@few_examples
@given(any_case(students=2))
def test_of_two_students_the_other_one_is_the_mean_of_the_others(case: Case) -> None:
    batch = draw(case.sizes)

    pairwise, pairwise_gradients = losses_and_gradients(create(replace(case, target="pairwise")), batch, case.ramp)
    mean, mean_gradients = losses_and_gradients(create(replace(case, target="leave-one-out-mean")), batch, case.ramp)

    assert_equal(mean, pairwise, tolerance=1e-12)
    assert_equal(mean_gradients, pairwise_gradients, tolerance=1e-12)


def test_the_ramp_may_be_a_tensor() -> None:
    method, batch = create(Case()), draw(Case().sizes)

    as_float, float_gradients = losses_and_gradients(method, batch, 0.3)
    as_tensor, tensor_gradients = losses_and_gradients(method, batch, torch.tensor(0.3, dtype=torch.float64))

    assert as_tensor["total"].shape == ()
    assert_equal(as_tensor, as_float, tolerance=1e-12)
    assert_equal(tensor_gradients, float_gradients, tolerance=1e-12)


# Numbers at the edge


def test_logits_in_bfloat16_have_the_losses_of_the_same_numbers_in_float32() -> None:
    """As under autocast: log-softmax in bfloat16 would have three digits."""
    method, narrow = create(Case()), draw(Case().sizes, torch.bfloat16)
    wide = with_outputs(narrow, logits_SBC=narrow.outputs.logits_SBC.float())

    ours, theirs = (method(batch.outputs, batch.labels, 0.3) for batch in (narrow, wide))

    assert ours.total.dtype == torch.float32
    assert_equal({"total": ours.total, **ours.terms}, {"total": theirs.total, **theirs.terms}, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("detach_targets", [True, False])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("students", [2, 3])
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(
    students: int, temperature: float, target: str, detach_targets: bool, dtype: torch.dtype
) -> None:
    """Softmax is then exactly 0 or 1 and p log p must not become 0 times infinity; the values stay right."""
    case = Case(
        students=students, temperature=temperature, target=target, detach_targets=detach_targets, label_smoothing=0.1
    )
    method, batch = create(case), draw(case.sizes, dtype)
    extreme = with_outputs(batch, logits_SBC=1e4 * batch.outputs.logits_SBC.sign())
    expected, _ = expected_of(case, extreme)

    losses, found = losses_and_gradients(method, extreme, 1.0)

    assert_equal(losses, expected)
    assert torch.isfinite(found["logits"]).all()


def test_the_mean_of_the_others_is_taken_in_single_precision_of_logits_in_bfloat16() -> None:
    options = methods.options_model("dml")(name="dml", target="leave-one-out-mean")
    members = methods.members(options, 3)
    method = methods.create(options, GroupShape("networks", members, None, (4, 4, 4), 5))
    generator = torch.Generator().manual_seed(0)
    # Students that nearly agree: what is lost by rounding their mean to bfloat16 is most of what they differ by.
    common, own = torch.randn(1, 64, 5, generator=generator), torch.randn(3, 64, 5, generator=generator)
    logits = (4 * common + 0.02 * own).bfloat16()
    features = tuple(torch.zeros(64, 4) for _ in members)
    labels = torch.zeros(64, dtype=torch.int64)
    narrow = method(GroupOutput(logits, features, None, members), labels, 1.0).terms["distillation"]
    single = method(GroupOutput(logits.float(), features, None, members), labels, 1.0).terms["distillation"]
    assert narrow.item() == pytest.approx(single.item(), rel=1e-5)
