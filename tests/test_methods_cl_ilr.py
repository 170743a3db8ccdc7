"""CL-ILR against losses written a second time (oracles_peers.py), and the rescaling of what enters the trunk."""

import random
from copy import deepcopy
from dataclasses import dataclass, replace
from math import log

import oracles_peers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods_one import (
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
from torch import Tensor, nn

from distilkit import methods
from distilkit.groups.build import build_group
from distilkit.methods.base import GroupOutput, GroupShape, Method, MethodLosses

INPUT_WIDTH = 3
TRUNK_WIDTH = 4
FEATURE_WIDTH = 5


@dataclass(frozen=True)
class Case:
    """One setting of CL-ILR and the size of its group."""

    students: int = 3
    images: int = 4
    classes: int = 5
    detach_target: bool = False
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    temperature: float = 3.0
    ramp: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0

    @property
    def sizes(self) -> Sizes:
        return Sizes(students=self.students, images=self.images, classes=self.classes, seed=20_000 + self.seed)


class Network(nn.Module):
    """A trunk and the branches that grow out of it, small enough to look through: images [B, 3] -> GroupOutput."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(INPUT_WIDTH, TRUNK_WIDTH), nn.Tanh())
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(TRUNK_WIDTH, FEATURE_WIDTH), nn.Tanh()) for _ in range(case.students)
        )
        self.heads = nn.ModuleList(nn.Linear(FEATURE_WIDTH, case.classes) for _ in range(case.students))
        generator = torch.Generator().manual_seed(case.seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.members = methods.members(options_of("cl-ilr"), case.students)

    def forward(self, images_BX: Tensor) -> GroupOutput:
        trunk = self.trunk(images_BX)
        features = tuple(stage(trunk) for stage in self.stages)
        logits_SBC = torch.stack([head(h_BD) for head, h_BD in zip(self.heads, features, strict=True)])
        return GroupOutput(logits_SBC, features, trunk, self.members)


def images_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1 + case.seed)
    return torch.randn(case.images, INPUT_WIDTH, generator=generator, dtype=torch.float64)


def labels_of(case: Case) -> Tensor:
    return torch.randint(case.classes, (case.images,), generator=torch.Generator().manual_seed(2 + case.seed))


def create(case: Case) -> Method:
    options = options_of(
        "cl-ilr",
        temperature=case.temperature,
        rampup_epochs=0,
        label_weight=case.label_weight,
        distillation_weight=case.distillation_weight,
        detach_target=case.detach_target,
    )
    return methods.create(options, shape_of(case.sizes), label_smoothing=case.label_smoothing)


def expected_of(case: Case, logits_SBC: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    terms = oracles_peers.cl_ilr_terms(
        logits_SBC,
        labels_B.tolist(),
        temperature=case.temperature,
        detach_target=case.detach_target,
        label_smoothing=case.label_smoothing,
    )
    total = case.label_weight * terms["cross_entropy"] + case.distillation_weight * case.ramp * terms["distillation"]
    return {"total": total, **terms}


def structural_cases() -> list[Case]:
    """Every size of group with and without a detached target; the rest drawn once and for all."""
    chance = random.Random(20180918)
    cases: list[Case] = []
    for students in (2, 3, 4, 5):
        for detach_target in (True, False):
            for label_weight, distillation_weight in ((1.0, 1.0), (0.5, 0.5), (0.7, 2.0)):
                cases.append(
                    Case(
                        students=students,
                        images=chance.choice((1, 3, 6)),
                        classes=chance.choice((2, 3, 10)),
                        detach_target=detach_target,
                        label_weight=label_weight,
                        distillation_weight=distillation_weight,
                        temperature=chance.choice((1.0, 2.0, 3.0, 4.5)),
                        ramp=chance.choice((0.0, 0.3, 1.0)),
                        label_smoothing=chance.choice((0.0, 0.1)),
                        seed=len(cases),
                    )
                )
    return cases


def case_id(case: Case) -> str:
    sizes = f"S{case.students}-B{case.images}-C{case.classes}-{'detached' if case.detach_target else 'attached'}"
    weights = f"l{case.label_weight}-d{case.distillation_weight}-w{case.ramp}"
    return f"{sizes}-{weights}-T{case.temperature}-s{case.label_smoothing}"


def divided(found: dict[str, Tensor], students: int) -> dict[str, Tensor]:
    """What the trunk and all before it should get instead of `found`: 1 / S of it."""
    return {name: g / students if name.startswith("trunk") else g for name, g in found.items()}


def with_trunk_alone(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `dense_gradients`, the trunk's output asked for alone.

    Asked for a tensor together with what lies before it, torch answers with its gradient from before the tensor's
    hooks; asked for it alone, and in `.grad`, with the one from after them.
    """
    alone = {name: leaf for name, leaf in leaves.items() if name == "trunk (output)"}
    rest = {name: leaf for name, leaf in leaves.items() if name not in alone}
    return dense_gradients(loss, rest) | dense_gradients(loss, alone)


# Against the oracle


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", structural_cases(), ids=case_id)
def test_losses_and_all_gradients_equal_the_oracle(case: Case, dtype: torch.dtype) -> None:
    """Of the trunk's parameters and output 1 / S, of the images before it too; of branches and logits all of it."""
    network, images, labels = Network(case).to(dtype), images_of(case).to(dtype).requires_grad_(), labels_of(case)
    method = create(case)
    twin, twin_images = deepcopy(network).double(), images.detach().double().requires_grad_()
    twin_outputs = twin(twin_images)
    expected = expected_of(case, twin_outputs.logits_SBC, labels)

    def leaves(model: Network, source: Tensor, outputs: GroupOutput) -> dict[str, Tensor]:
        assert outputs.trunk is not None
        inside = {"logits": outputs.logits_SBC, "trunk (output)": outputs.trunk, "trunk (input)": source}
        inside |= {f"features.{i}": h_BD for i, h_BD in enumerate(outputs.features)}
        return {**inside, **dict(model.named_parameters())}

    outputs = network(images)
    losses = method(outputs, labels, case.ramp)

    assert isinstance(losses, MethodLosses)
    actual = {"total": losses.total, **losses.terms}
    assert_equal(actual, expected)
    for name, loss in actual.items():
        assert loss.shape == ()
        undivided = with_trunk_alone(expected[name], leaves(twin, twin_images, twin_outputs))
        assert_equal(
            with_trunk_alone(loss, leaves(network, images, outputs)),
            divided(undivided, case.students),
            what=f"gradient of {name} with respect to",
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", structural_cases()[::3], ids=case_id)
def test_logits_that_come_from_no_trunk_get_the_oracles_gradient(case: Case, dtype: torch.dtype) -> None:
    method, batch = create(case), draw(case.sizes, dtype)
    logits_SBC = batch.outputs.logits_SBC.detach().double().requires_grad_()
    expected = expected_of(case, logits_SBC, batch.labels)

    losses = method(batch.outputs, batch.labels, case.ramp)

    reached = {k: g for k, g in gradients(losses.total, leaves_of(method, batch.outputs)).items() if g is not None}
    assert_equal(reached, dense_gradients(expected["total"], {"logits": logits_SBC}))


# By hand


def kl(first: float, second: float) -> float:
    """KL((p, 1 - p) || (q, 1 - q))."""
    return first * log(first / second) + (1 - first) * log((1 - first) / (1 - second))


def test_three_students_one_image_two_classes_by_hand() -> None:
    """The trunk hands on 2 ln 2; the branches multiply it by 2, 0 and 4 for the first class, 0 for the second.

    Logits (2 ln k, 0) with k = 4, 1, 16: at T = 1: 16/17, 1/2, 256/257; at T = 2: 4/5, 1/2, 16/17.
    The others' means: k = sqrt(1 * 16) = 4, sqrt(4 * 16) = 8, sqrt(4 * 1) = 2; at T = 2: 4/5, 8/9, 2/3.
    """
    scale = torch.tensor(2 * log(2), dtype=torch.float64, requires_grad=True)
    multipliers = torch.tensor([2.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    trunk = scale.view(1, 1) * 1.0
    logits_SBC = torch.stack([torch.cat([m * trunk, 0 * trunk], dim=1) for m in multipliers])
    members = ("student_0", "student_1", "student_2")
    outputs = GroupOutput(logits_SBC, tuple(trunk for _ in range(3)), trunk, members)
    options = options_of(
        "cl-ilr", temperature=2.0, label_weight=0.5, distillation_weight=0.25, rampup_epochs=0, detach_target=True
    )
    method = methods.create(options, GroupShape("branches", members, 1, (1, 1, 1), 2))

    losses = method(outputs, torch.tensor([0]), 0.4)

    cross_entropy = log(17 / 16) + log(2) + log(257 / 256)
    distillation = 4 * (0.0 + kl(8 / 9, 1 / 2) + kl(2 / 3, 16 / 17))
    assert losses.terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-9)
    assert losses.terms["distillation"].item() == pytest.approx(distillation, rel=1e-9)
    assert losses.total.item() == pytest.approx(0.5 * cross_entropy + 0.25 * 0.4 * distillation, rel=1e-9)
    # Of each first logit: 0.5 (q - 1) + 0.25 * 0.4 T (q' - target), and 0.25 * 0.4 * 2 = 0.2.
    first = 0.5 * -1 / 17
    second = 0.5 * -1 / 2 + 0.2 * (1 / 2 - 8 / 9)
    third = 0.5 * -1 / 257 + 0.2 * (16 / 17 - 2 / 3)
    into_multipliers, into_scale = torch.autograd.grad(losses.total, [multipliers, scale])
    assert into_multipliers.tolist() == pytest.approx([2 * log(2) * d for d in (first, second, third)], rel=1e-9)
    assert into_scale.item() == pytest.approx((2 * first + 0 * second + 4 * third) / 3, rel=1e-9)


# The rescaling


@pytest.mark.parametrize("students", [2, 3, 4, 5])
def test_the_trunk_gets_exactly_one_part_in_s_of_what_the_branches_send(students: int) -> None:
    """Against the same losses on outputs whose trunk is a stranger to the logits, so that nothing is divided."""
    case = Case(students=students)
    network, images, labels = Network(case).double(), images_of(case), labels_of(case)
    method = create(case)

    plain = network(images)
    stranger = plain._replace(trunk=torch.zeros_like(plain.trunk).requires_grad_())
    undivided = dense_gradients(method(stranger, labels, 1.0).total, dict(network.named_parameters()))
    outputs = network(images)
    found = dense_gradients(method(outputs, labels, 1.0).total, dict(network.named_parameters()))

    assert any(g.any() for name, g in found.items() if name.startswith("trunk"))
    assert_equal(found, divided(undivided, students), tolerance=1e-14)
    for name in found:
        if not name.startswith("trunk"):
            assert torch.equal(found[name], undivided[name]), name


def test_losses_computed_twice_from_the_same_outputs_divide_only_once() -> None:
    case = Case()
    network, labels, method = Network(case).double(), labels_of(case), create(case)
    parameters = dict(network.named_parameters())
    outputs = network(images_of(case))
    once = dense_gradients(method(outputs, labels, 1.0).total, parameters)

    twice = dense_gradients(method(outputs, labels, 1.0).total, parameters)

    assert_equal(twice, once, tolerance=1e-14)


def test_backward_hands_out_what_autograd_grad_does() -> None:
    case = Case()
    network, images, labels, method = Network(case).double(), images_of(case), labels_of(case), create(case)
    parameters = dict(network.named_parameters())
    expected = dense_gradients(method(network(images), labels, 1.0).total, parameters)

    for _ in range(2):  # two parts of a batch whose gradients add up
        method(network(images), labels, 1.0).total.backward()

    accumulated = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    assert_equal(accumulated, {name: 2 * g for name, g in expected.items()}, tolerance=1e-12)


def test_another_loss_on_the_same_logits_is_divided_as_well() -> None:
    """What enters the trunk is divided at the split, whichever term it comes from: a teacher's, for one."""
    case = Case()
    network, images, labels, method = Network(case).double(), images_of(case), labels_of(case), create(case)
    parameters = dict(network.named_parameters())
    undivided = dense_gradients(network(images).logits_SBC.square().sum(), parameters)
    outputs = network(images)
    method(outputs, labels, 1.0)

    found = dense_gradients(outputs.logits_SBC.square().sum(), parameters)

    assert_equal(found, divided(undivided, case.students), tolerance=1e-12)


def test_a_trunk_that_wants_no_gradient_is_left_alone() -> None:
    case = Case()
    network, images, labels, method = Network(case).double(), images_of(case), labels_of(case), create(case)
    expected = method(network(images), labels, 1.0).total.detach()

    with torch.no_grad():
        without_gradient = method(network(images), labels, 1.0).total
    network.trunk.requires_grad_(False)
    frozen = method(network(images), labels, 1.0).total

    assert torch.equal(without_gradient, expected)
    assert torch.equal(frozen.detach(), expected)
    assert torch.autograd.grad(frozen, network.heads[0].weight)[0].any()


def test_the_forward_pass_is_the_identity() -> None:
    case = Case()
    network, images, labels, method = Network(case).double(), images_of(case), labels_of(case), create(case)
    outputs = network(images)
    assert outputs.trunk is not None
    trunk, logits_SBC = outputs.trunk.clone(), outputs.logits_SBC.clone()

    method(outputs, labels, 1.0)

    assert torch.equal(outputs.trunk, trunk)
    assert torch.equal(outputs.logits_SBC, logits_SBC)


@pytest.mark.parametrize("students", [2, 4])
def test_in_a_real_group_the_shared_layers_get_one_part_in_s_and_the_branches_all(students: int) -> None:
    members = methods.members(options_of("cl-ilr"), students)
    group = build_group(
        kind="branches",
        architecture="resnet8",
        members=members,
        split_at=None,
        num_classes=3,
        channels=1,
        size=8,
        mean=(0.5,),
        std=(0.5,),
        seed=3,
    ).double()
    group.eval()
    case = Case(students=students, classes=3, images=3)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.tensor([0, 2, 1])
    parameters = dict(group.named_parameters())
    undivided = dense_gradients(expected_of(case, group(images).logits_SBC, labels)["total"], parameters)
    method = methods.create(options_of("cl-ilr"), group.shape)

    found = dense_gradients(method(group(images), labels, 1.0).total, parameters)

    assert {name.split(".")[0] for name in parameters} == {"trunk", "branches"}
    assert_equal(found, divided(undivided, students), tolerance=1e-9)


# Who learns from what


@pytest.mark.parametrize("detach_target", [True, False])
def test_each_term_reaches_every_student_and_the_trunk(detach_target: bool) -> None:
    case = Case(detach_target=detach_target)
    network, method = Network(case).double(), create(case)
    assert not list(method.parameters())
    losses = method(network(images_of(case)), labels_of(case), 1.0)

    for name, term in losses.terms.items():
        found = dense_gradients(term, dict(network.named_parameters()))
        assert all(g.any() for g in found.values()), name


@pytest.mark.parametrize("students", [2, 4])
def test_a_detached_target_pulls_each_student_by_its_distance_from_the_others_mean(students: int) -> None:
    """d/dz_i of T^2 KL(sg[t_i] || q'_i), mean over B: T (q'_i - t_i) / B."""
    case = Case(students=students, detach_target=True)
    batch = draw(case.sizes)
    z_SBC = batch.outputs.logits_SBC.detach()
    target_SBC = torch.softmax((z_SBC.sum(0) - z_SBC) / (students - 1) / 3.0, dim=-1)

    term = create(case)(batch.outputs, batch.labels, 1.0).terms["distillation"]
    (gradient_SBC,) = torch.autograd.grad(term, batch.outputs.logits_SBC)

    expected_SBC = 3.0 * (torch.softmax(z_SBC / 3.0, dim=-1) - target_SBC) / case.images
    torch.testing.assert_close(gradient_SBC, expected_SBC, rtol=1e-9, atol=1e-12)


def test_a_student_is_pushed_as_a_target_only_where_targets_are_attached() -> None:
    case = Case(detach_target=True)
    batch = draw(case.sizes)

    detached, detached_gradients = losses_and_gradients(create(case), batch, 1.0)
    attached, attached_gradients = losses_and_gradients(create(replace(case, detach_target=False)), batch, 1.0)

    assert_equal(attached, detached, tolerance=1e-12)
    difference_S = (attached_gradients["logits"] - detached_gradients["logits"]).flatten(1).abs().amax(dim=1)
    assert (difference_S > 1e-3).all()


# Interface


def test_the_default_is_as_in_okddips_code() -> None:
    options = options_of("cl-ilr")
    model = methods.options_model("cl-ilr")

    assert options.model_dump(exclude={"rampup_epochs"}) == {
        "name": "cl-ilr",
        "temperature": 3.0,
        "label_weight": 1.0,
        "distillation_weight": 1.0,
        "detach_target": False,
    }
    assert (model.default_kind, model.allowed_kinds, model.min_students) == ("branches", ("branches",), 2)
    assert methods.members(options, 2) == ("student_0", "student_1")


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
        "detach_target": st.booleans(),
        "label_weight": st.floats(0.0, 2.0),
        "distillation_weight": st.floats(0.0, 2.0),
        "temperature": st.floats(0.5, 8.0),
        "ramp": st.floats(0.0, 1.0),
        "label_smoothing": st.floats(0.0, 0.5),
        "seed": st.integers(0, 10_000),
    }
    drawn = {name: strategy for name, strategy in free.items() if name not in fixed}
    return st.builds(Case, **drawn, **{name: st.just(value) for name, value in fixed.items()})


@few_examples
@given(any_case())
def test_the_divided_trunk_is_all_that_the_rescaling_changes(case: Case) -> None:
    network, images, labels = Network(case).double(), images_of(case), labels_of(case)
    parameters = dict(network.named_parameters())
    undivided = dense_gradients(expected_of(case, network(images).logits_SBC, labels)["total"], parameters)

    found = dense_gradients(create(case)(network(images), labels, case.ramp).total, parameters)

    assert_equal(found, divided(undivided, case.students), tolerance=1e-9)


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
@given(any_case(), st.randoms(use_true_random=False))
def test_reordering_students_or_images_changes_no_loss(case: Case, chance: random.Random) -> None:
    method, batch = create(case), draw(case.sizes)
    students = chance.sample(range(case.students), case.students)
    images = chance.sample(range(case.images), case.images)
    reordered = pick_images(with_outputs(batch, logits_SBC=batch.outputs.logits_SBC[students]), images)

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, reordered, case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    expected = before_gradients["logits"][students][:, images]
    assert_equal({"": after_gradients["logits"]}, {"": expected}, tolerance=1e-9)


@few_examples
@given(any_case())
def test_temperature_only_rescales_logits_and_loss(case: Case) -> None:
    batch = draw(case.sizes)
    hotter = with_outputs(batch, logits_SBC=case.temperature * batch.outputs.logits_SBC)

    at_one = create(replace(case, temperature=1.0))(batch.outputs, batch.labels, 1.0).terms["distillation"]
    at_temperature = create(case)(hotter.outputs, batch.labels, 1.0).terms["distillation"]

    assert at_one.item() >= 0
    assert at_temperature.item() == pytest.approx(case.temperature**2 * at_one.item(), rel=1e-8, abs=1e-12)


@few_examples
@given(any_case())
def test_total_is_the_weighted_sum_of_terms_that_the_weights_do_not_touch(case: Case) -> None:
    batch = draw(case.sizes)
    unweighted = replace(case, label_weight=1.0, distillation_weight=1.0)

    losses = create(case)(batch.outputs, batch.labels, case.ramp)
    plain = create(unweighted)(batch.outputs, batch.labels, 1.0)

    assert_equal(losses.terms, plain.terms, tolerance=0.0)
    assert losses.total.item() == pytest.approx(
        case.label_weight * losses.terms["cross_entropy"].item()
        + case.distillation_weight * case.ramp * losses.terms["distillation"].item(),
        rel=1e-12,
        abs=1e-12,
    )


@few_examples
@given(any_case(label_weight=1.0, distillation_weight=1.0))
def test_without_a_trunk_it_is_dml_with_the_mean_of_the_others(case: Case) -> None:
    batch: Batch = draw(case.sizes)
    options = options_of(
        "dml", temperature=case.temperature, target="leave-one-out-mean", detach_targets=case.detach_target
    )
    dml = methods.create(options, shape_of(case.sizes), label_smoothing=case.label_smoothing)

    ours, our_gradients = losses_and_gradients(create(case), batch, case.ramp)
    theirs, their_gradients = losses_and_gradients(dml, batch, case.ramp)

    assert_equal(ours, theirs, tolerance=1e-12)
    assert_equal(our_gradients, their_gradients, tolerance=1e-12)


def test_the_ramp_may_be_a_tensor() -> None:
    method, batch = create(Case()), draw(Case().sizes)

    as_float, float_gradients = losses_and_gradients(method, batch, 0.3)
    as_tensor, tensor_gradients = losses_and_gradients(method, batch, torch.tensor(0.3, dtype=torch.float64))

    assert as_tensor["total"].shape == ()
    assert_equal(as_tensor, as_float, tolerance=1e-12)
    assert_equal(tensor_gradients, float_gradients, tolerance=1e-12)


# Numbers at the edge


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("detach_target", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("students", [2, 3])
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(
    students: int, temperature: float, detach_target: bool, dtype: torch.dtype
) -> None:
    """Softmax is then exactly 0 or 1 and p log p must not become 0 times infinity; the values stay right."""
    case = Case(students=students, temperature=temperature, detach_target=detach_target, label_smoothing=0.1)
    method, batch = create(case), draw(case.sizes, dtype)
    extreme = with_outputs(batch, logits_SBC=1e4 * batch.outputs.logits_SBC.sign())
    expected = expected_of(case, extreme.outputs.logits_SBC.detach().double(), extreme.labels)

    losses, found = losses_and_gradients(method, extreme, 1.0)

    assert_equal(losses, expected)
    assert torch.isfinite(found["logits"]).all()
