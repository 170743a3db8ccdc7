"""ONE, and with it the baseline and the independent students, against losses written a second time (oracles.py)."""

import random
from copy import deepcopy
from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Gate
from torch import Tensor

from distilkit import methods
from distilkit.methods.base import GroupKind, GroupOutput, GroupShape, Method, MethodLosses, MethodOptions

TRUNK_CHANNELS = 4
FEATURE_WIDTH = 6
KINDS: tuple[GroupKind, ...] = ("branches", "networks")
GATE_PARAMETERS = ("fc.weight", "fc.bias", "bn.weight", "bn.bias")


@dataclass(frozen=True)
class Case:
    """One setting of ONE and the size of its group."""

    students: int = 3
    images: int = 5
    classes: int = 4
    kind: GroupKind = "branches"
    gate: bool = True
    detach_target: bool = True
    distillation: bool = True
    training: bool = True
    temperature: float = 3.0
    ramp: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0

    @property
    def has_gate(self) -> bool:
        return self.gate and self.students > 1

    @property
    def terms(self) -> set[str]:
        if self.students == 1:
            return {"cross_entropy"}
        return {"cross_entropy", "ensemble_cross_entropy"} | ({"distillation"} if self.distillation else set())


class Batch(NamedTuple):
    outputs: GroupOutput
    labels: Tensor


def shape_of(case: Case) -> GroupShape:
    return GroupShape(
        kind=case.kind,
        members=tuple(f"student_{i}" for i in range(case.students)),
        trunk_channels=TRUNK_CHANNELS if case.kind == "branches" else None,
        feature_widths=(FEATURE_WIDTH,) * case.students,
        num_classes=case.classes,
    )


def options_of(name: str, **chosen: object) -> MethodOptions:
    return methods.options_model(name)(name=name, **chosen)


def create(case: Case, dtype: torch.dtype = torch.float64) -> Method:
    """The method of a case; the gate's parameters are drawn, so that no test leans on how they start."""
    options = options_of(
        "one",
        temperature=case.temperature,
        rampup_epochs=0,
        distillation=case.distillation,
        gate=case.gate,
        detach_target=case.detach_target,
    )
    method = methods.create(options, shape_of(case), label_smoothing=case.label_smoothing).to(dtype)
    generator = torch.Generator().manual_seed(1000 + case.seed)
    with torch.no_grad():
        for name, parameter in sorted(method.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if name == "gate.bn.bias":  # otherwise half the students are on ReLU's dead side
                parameter.add_(1.0)
    return method.train(case.training)


def draw(case: Case, dtype: torch.dtype = torch.float64, part: int = 0) -> Batch:
    """Random outputs of a group as leaves that want gradients; every `part` of a case is another batch."""
    generator = torch.Generator().manual_seed(100 * case.seed + part)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    trunk = None
    if case.kind == "branches":
        trunk = 1.5 * normal(case.images, TRUNK_CHANNELS, 1, 1) + normal(case.images, TRUNK_CHANNELS, 2, 3)
    outputs = GroupOutput(
        logits_SBC=(2.0 * normal(case.students, case.images, case.classes)).to(dtype).requires_grad_(),
        features=tuple(
            (2.0 * normal(case.images, FEATURE_WIDTH)).to(dtype).requires_grad_() for _ in range(case.students)
        ),
        trunk=None if trunk is None else trunk.to(dtype).requires_grad_(),
        members=shape_of(case).members,
    )
    return Batch(outputs, torch.randint(case.classes, (case.images,), generator=generator))


def inputs_of(outputs: GroupOutput) -> dict[str, Tensor]:
    named = {"logits": outputs.logits_SBC}
    named |= {f"features.{i}": features_BD for i, features_BD in enumerate(outputs.features)}
    return named if outputs.trunk is None else {**named, "trunk": outputs.trunk}


def leaves_of(method: Method, outputs: GroupOutput) -> dict[str, Tensor]:
    """Everything that a loss could send gradient to."""
    return {**inputs_of(outputs), **dict(method.named_parameters())}


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def dense_gradients(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `gradients`, zeros where a tensor is not reached."""
    return {
        name: torch.zeros_like(leaves[name]) if found is None else found
        for name, found in gradients(loss, leaves).items()
    }


def assert_equal(
    actual: dict[str, Tensor], expected: dict[str, Tensor], what: str = "", tolerance: float = 1e-5
) -> None:
    assert set(actual) == set(expected)
    for name in actual:
        torch.testing.assert_close(
            actual[name].detach().double(),
            expected[name].detach().double(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{what} {name}: {text}",  # type: ignore[misc]
        )


class Expected:
    """What the oracle makes of a method's parameters and a group's outputs, with leaves of its own."""

    def __init__(self, case: Case, method: Method, running: tuple[Tensor, Tensor], batch: Batch) -> None:
        self.leaves = {
            name: leaf.detach().double().clone().requires_grad_()
            for name, leaf in leaves_of(method, batch.outputs).items()
        }
        if case.kind == "branches":
            self.gate_input_BD = oracles.pooled(self.leaves["trunk"])
        else:
            self.gate_input_BD = oracles.mean_of([self.leaves[f"features.{i}"] for i in range(case.students)])
        self.gate: Gate | None = None
        self.weights_BS: Tensor | None = None
        if case.has_gate:
            self.gate = Gate(
                fc_weight=self.leaves["gate.fc.weight"],
                fc_bias=self.leaves["gate.fc.bias"],
                bn_weight=self.leaves["gate.bn.weight"],
                bn_bias=self.leaves["gate.bn.bias"],
                running_mean=running[0],
                running_var=running[1],
            )
            self.weights_BS = self.gate.weights(self.gate_input_BD, case.training)
        self.terms = oracles.one_terms(
            self.leaves["logits"],
            batch.labels.tolist(),
            self.weights_BS,
            temperature=case.temperature,
            detach_target=case.detach_target,
            distillation=case.distillation,
            label_smoothing=case.label_smoothing,
        )
        self.total = oracles.weighted_total(self.terms, case.ramp)


def fresh_statistics(case: Case) -> tuple[Tensor, Tensor]:
    return torch.zeros(case.students, dtype=torch.float64), torch.ones(case.students, dtype=torch.float64)


def warm_up(case: Case, method: Method, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two training batches through the method, so that its batch norm remembers something; as the oracle remembers."""
    running = fresh_statistics(case)
    method.train()
    stepped = replace(case, images=max(case.images, 3), training=True)
    for part in (1, 2):
        batch = draw(stepped, dtype, part)
        method(batch.outputs, batch.labels, case.ramp)
        expected = Expected(stepped, method, running, batch)
        if expected.gate is not None:
            running = expected.gate.running_statistics_after(expected.gate_input_BD)
    method.train(case.training)
    return running


def structural_cases() -> list[Case]:
    """Every combination of the switches; sizes, temperatures, ramps and smoothing drawn once and for all."""
    chance = random.Random(20181203)
    cases: list[Case] = []
    for students in (1, 2, 3, 5):
        for kind in KINDS:
            for gate in (True, False):
                for detach_target in (True, False):
                    for distillation in (True, False):
                        for training in (True, False):
                            # Batch norm has no variance over one image: such a batch can only be evaluated.
                            smallest = 2 if training and gate else 1
                            cases.append(
                                Case(
                                    students=students,
                                    images=chance.choice((smallest, 4, 7)),
                                    classes=chance.choice((2, 3, 10)),
                                    kind=kind,
                                    gate=gate,
                                    detach_target=detach_target,
                                    distillation=distillation,
                                    training=training,
                                    temperature=chance.choice((1.0, 2.0, 3.0, 4.5)),
                                    ramp=chance.choice((0.0, 0.3, 1.0)),
                                    label_smoothing=chance.choice((0.0, 0.1)),
                                    seed=len(cases),
                                )
                            )
    return cases


CASES = structural_cases()


def case_id(case: Case) -> str:
    switches = [
        case.kind,
        "gate" if case.gate else "mean",
        "detached" if case.detach_target else "attached",
        "distillation" if case.distillation else "no-distillation",
        "train" if case.training else "eval",
    ]
    sizes = f"S{case.students}-B{case.images}-C{case.classes}"
    return "-".join([sizes, *switches, f"T{case.temperature}-w{case.ramp}-s{case.label_smoothing}"])


# Against the oracle


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_losses_and_all_gradients_equal_the_oracle(case: Case, dtype: torch.dtype) -> None:
    method = create(case, dtype)
    running = warm_up(case, method, dtype)
    batch = draw(case, dtype)
    expected = Expected(case, method, running, batch)

    losses = method(batch.outputs, batch.labels, case.ramp)

    assert isinstance(losses, MethodLosses)
    assert set(losses.terms) == case.terms
    assert_equal({"total": losses.total, **losses.terms}, {"total": expected.total, **expected.terms})
    leaves = leaves_of(method, batch.outputs)
    for what, actual_loss, expected_loss in [
        ("total", losses.total, expected.total),
        *((name, losses.terms[name], expected.terms[name]) for name in sorted(case.terms)),
    ]:
        assert actual_loss.shape == ()
        assert_equal(
            dense_gradients(actual_loss, leaves),
            dense_gradients(expected_loss, expected.leaves),
            what=f"gradient of {what} with respect to",
        )


@pytest.mark.parametrize("detach_target", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("students", [2, 5])
def test_gradients_equal_those_derived_on_paper(
    students: int, training: bool, kind: GroupKind, gate: bool, detach_target: bool
) -> None:
    case = Case(
        students=students,
        kind=kind,
        gate=gate,
        detach_target=detach_target,
        training=training,
        temperature=2.5,
        ramp=0.3,
        label_smoothing=0.1,
        seed=students,
    )
    method = create(case)
    running = warm_up(case, method)
    batch = draw(case)
    oracle = Expected(case, method, running, batch)
    on_paper = oracles.one_gradients(
        batch.outputs.logits_SBC.detach().numpy(),
        batch.labels.tolist(),
        None if oracle.gate is None else {name: t.detach().numpy() for name, t in oracle.gate._asdict().items()},
        oracle.gate_input_BD.detach().numpy(),
        temperature=case.temperature,
        ramp=case.ramp,
        detach_target=detach_target,
        training=training,
        label_smoothing=case.label_smoothing,
    )
    expected = {name: torch.zeros_like(leaf) for name, leaf in leaves_of(method, batch.outputs).items()}
    expected["logits"] = torch.from_numpy(on_paper["logits"])
    for name in GATE_PARAMETERS if gate else ():
        expected[f"gate.{name}"] = torch.from_numpy(on_paper[name.replace(".", "_")])
    d_input_BD = torch.from_numpy(on_paper["input"])
    if kind == "branches":  # pooling hands every pixel its share, the mean every student's features theirs
        assert batch.outputs.trunk is not None
        num_pixels = batch.outputs.trunk[0, 0].numel()
        expected["trunk"] = (d_input_BD / num_pixels)[:, :, None, None].expand_as(batch.outputs.trunk)
    else:
        expected |= {f"features.{i}": d_input_BD / students for i in range(students)}

    total = method(batch.outputs, batch.labels, case.ramp).total

    assert_equal(dense_gradients(oracle.total, oracle.leaves), expected, "oracle", tolerance=1e-9)
    assert_equal(dense_gradients(total, leaves_of(method, batch.outputs)), expected, "method", tolerance=1e-9)


@pytest.mark.parametrize("gate", [True, False])
def test_a_detached_target_pulls_each_student_by_its_distance_from_the_ensemble(gate: bool) -> None:
    """d/dz_i of T^2 sum_j KL(sg[q'_e] || q'_j), mean over B: T^2 (1/T) (q'_i - q'_e) / B, nothing through z_e."""
    case = Case(students=4, gate=gate, temperature=3.0, training=False)
    method, batch = create(case), draw(case)
    softened_SBC = torch.softmax(batch.outputs.logits_SBC / 3.0, dim=-1)
    target_BC = torch.softmax(method.ensemble(batch.outputs) / 3.0, dim=-1)

    distillation = method(batch.outputs, batch.labels, 1.0).terms["distillation"]
    (gradient_SBC,) = torch.autograd.grad(distillation, batch.outputs.logits_SBC)

    torch.testing.assert_close(gradient_SBC, 3.0 * (softened_SBC - target_BC) / case.images, rtol=1e-9, atol=1e-12)


# By hand


def test_two_students_two_images_two_classes_by_hand() -> None:
    """Logits (2 ln k, 0) give probabilities k^2 / (k^2 + 1) at T = 1 and k / (k + 1) at T = 2.

    Trunk: one channel, mean 1 in the first image and -1 in the second. FC weights (-ln 2, ln 2); batch norm in eval
    mode with mean 0 and variance 1 - eps is the identity. So the first image scores (-ln 2, ln 2), ReLU (0, ln 2),
    gate (1/3, 2/3), and the second the other way about, gate (2/3, 1/3).
    First image, label 0: k = 8 and 1, ensemble k = 8^(1/3) = 2.   T = 1: 64/65, 1/2, 4/5.     T = 2: 8/9, 1/2, 2/3.
    Second image, label 1: k = 1 and 27, ensemble k = 27^(1/3) = 3. T = 1: 1/2, 729/730, 9/10. T = 2: 1/2, 27/28, 3/4.
    """
    case = Case(students=2, images=2, classes=2, temperature=2.0, ramp=0.5, training=False)
    shape = shape_of(case)._replace(trunk_channels=1)
    options = options_of("one", temperature=2.0, rampup_epochs=0)
    method = methods.create(options, shape).double().eval()
    parameters = dict(method.named_parameters())
    buffers = dict(method.named_buffers())
    with torch.no_grad():
        parameters["gate.fc.bias"].zero_()
        parameters["gate.bn.weight"].fill_(1.0)
        parameters["gate.bn.bias"].zero_()
        buffers["gate.bn.running_mean"].zero_()
        buffers["gate.bn.running_var"].fill_(1.0 - 1e-5)
        parameters["gate.fc.weight"].copy_(torch.tensor([[-log(2)], [log(2)]], dtype=torch.float64))
    logits_SBC = torch.tensor(
        [[[2 * log(8), 0.0], [0.0, 0.0]], [[0.0, 0.0], [2 * log(27), 0.0]]], dtype=torch.float64, requires_grad=True
    )
    trunk = torch.tensor([[[[0.0, 2.0], [3.0, -1.0]]], [[[-1.0, -1.0], [1.0, -3.0]]]], dtype=torch.float64)
    trunk.requires_grad_()
    features = tuple(torch.zeros(2, FEATURE_WIDTH, dtype=torch.float64) for _ in range(2))
    outputs = GroupOutput(logits_SBC, features, trunk, shape.members)

    losses = method(outputs, torch.tensor([0, 1]), 0.5)

    cross_entropy = (log(65 / 64) + log(2)) / 2 + (log(2) + log(730)) / 2
    ensemble_cross_entropy = (log(5 / 4) + log(10)) / 2
    first = (2 / 3 * log(3 / 4) + 1 / 3 * log(3)) + (2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3))
    second = (3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)) + (3 / 4 * log(7 / 9) + 1 / 4 * log(7))
    distillation = 4 * (first + second) / 2
    assert losses.terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-9)
    assert losses.terms["ensemble_cross_entropy"].item() == pytest.approx(ensemble_cross_entropy, rel=1e-9)
    assert losses.terms["distillation"].item() == pytest.approx(distillation, rel=1e-9)
    assert losses.total.item() == pytest.approx(cross_entropy + ensemble_cross_entropy + 0.5 * distillation, rel=1e-9)
    ensemble_BC = torch.tensor([[2 * log(2), 0.0], [2 * log(3), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(method.ensemble(outputs), ensemble_BC, rtol=1e-9, atol=1e-9)

    # Per image and student, of the first class's logit (the second's is its negative):
    # (q_i - y) / 2  +  g_i (q_e - y) / 2  +  w T (q'_i - q'_e) / 2   with w T = 1.
    first_class_SB = [
        [
            (64 / 65 - 1) / 2 + 1 / 3 * (4 / 5 - 1) / 2 + (8 / 9 - 2 / 3) / 2,
            1 / 2 / 2 + 2 / 3 * 9 / 10 / 2 + (1 / 2 - 3 / 4) / 2,
        ],
        [
            (1 / 2 - 1) / 2 + 2 / 3 * (4 / 5 - 1) / 2 + (1 / 2 - 2 / 3) / 2,
            729 / 730 / 2 + 1 / 3 * 9 / 10 / 2 + (27 / 28 - 3 / 4) / 2,
        ],
    ]
    # The gate learns from CE(z_e, y). First image: d/dz_e = (-1/10, 1/10), d/dg = (-(1/10) 6 ln 2, 0), through the
    # softmax at (1/3, 2/3): (-2/15, 2/15) ln 2; ReLU lets only the second student's through.
    # Second image: d/dz_e = (9/20, -9/20), d/dg = (0, (9/20) 6 ln 3), through the softmax at (2/3, 1/3):
    # (-3/5, 3/5) ln 3; ReLU lets only the first student's through.
    into_second, into_first = 2 / 15 * log(2), -3 / 5 * log(3)
    expected = {
        "logits": torch.tensor(first_class_SB, dtype=torch.float64)[:, :, None] * torch.tensor([1.0, -1.0]),
        "gate.fc.weight": torch.tensor([[into_first * -1], [into_second * 1]], dtype=torch.float64),
        "gate.fc.bias": torch.tensor([into_first, into_second], dtype=torch.float64),
        "gate.bn.weight": torch.tensor([into_first * log(2), into_second * log(2)], dtype=torch.float64),
        "gate.bn.bias": torch.tensor([into_first, into_second], dtype=torch.float64),
        "trunk": torch.tensor([into_second * log(2) / 4, into_first * -log(2) / 4], dtype=torch.float64)[
            :, None, None, None
        ].expand(2, 1, 2, 2),
    }
    leaves = {"logits": logits_SBC, "trunk": trunk, **parameters}
    assert_equal(dense_gradients(losses.total, leaves), expected, tolerance=1e-9)


# Who learns from what

LOGITS = frozenset({"logits"})
GATE = frozenset(f"gate.{name}" for name in GATE_PARAMETERS)
BRANCHES_AND_GATE = LOGITS | GATE | {"trunk"}
NETWORKS_AND_GATE = LOGITS | GATE | {"features.0", "features.1", "features.2"}

# (kind, gate, detach_target): what CE(z_e, y) and what the KL reach. CE(z_i, y) reaches the logits alone.
GRADIENT_MAP: dict[tuple[GroupKind, bool, bool], tuple[frozenset[str], frozenset[str]]] = {
    ("branches", True, True): (BRANCHES_AND_GATE, LOGITS),
    ("branches", True, False): (BRANCHES_AND_GATE, BRANCHES_AND_GATE),
    ("branches", False, True): (LOGITS, LOGITS),
    ("branches", False, False): (LOGITS, LOGITS),
    ("networks", True, True): (NETWORKS_AND_GATE, LOGITS),
    ("networks", True, False): (NETWORKS_AND_GATE, NETWORKS_AND_GATE),
    ("networks", False, True): (LOGITS, LOGITS),
    ("networks", False, False): (LOGITS, LOGITS),
}


@pytest.mark.parametrize("distillation", [True, False])
@pytest.mark.parametrize(("kind", "gate", "detach_target"), GRADIENT_MAP)
def test_each_term_reaches_exactly_the_tensors_in_the_map(
    kind: GroupKind, gate: bool, detach_target: bool, distillation: bool
) -> None:
    # In eval mode: a batch's own mean would cancel fc.bias, which then gets a gradient of zero.
    case = Case(kind=kind, gate=gate, detach_target=detach_target, distillation=distillation, training=False)
    method, batch = create(case), draw(case)
    losses = method(batch.outputs, batch.labels, 1.0)
    leaves = leaves_of(method, batch.outputs)
    assert GATE & set(leaves) == (GATE if gate else set())
    from_ensemble, from_distillation = GRADIENT_MAP[kind, gate, detach_target]
    expected = {"cross_entropy": LOGITS, "ensemble_cross_entropy": from_ensemble}
    if distillation:
        expected["distillation"] = from_distillation

    reached = {}
    for name, term in losses.terms.items():
        found = {leaf: grad for leaf, grad in gradients(term, leaves).items() if grad is not None and grad.any()}
        reached[name] = frozenset(found)
        assert found["logits"].flatten(1).any(dim=1).all(), f"{name} leaves a student out"

    assert reached == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_with_a_detached_target_the_ramp_moves_nothing_but_the_logits(kind: GroupKind, training: bool) -> None:
    case = Case(kind=kind, training=training)
    method, batch = create(case), draw(case)
    leaves = leaves_of(method, batch.outputs)

    without = dense_gradients(method(batch.outputs, batch.labels, 0.0).total, leaves)
    in_full = dense_gradients(method(batch.outputs, batch.labels, 1.0).total, leaves)

    moved = {name for name in leaves if not torch.equal(without[name], in_full[name])}
    assert moved == {"logits"}


def test_a_student_that_says_what_the_ensemble_says_is_still_pushed_where_the_target_is_not_detached() -> None:
    """Its own KL is zero and flat there; what reaches it, by way of z_e, comes from the other students' targets."""
    case = Case(training=False)
    method, batch = create(case), draw(case)
    weights_BS = Expected(case, method, fresh_statistics(case), batch).weights_BS
    assert weights_BS is not None
    g_1, g_2 = weights_BS.detach()[:, 1:2], weights_BS.detach()[:, 2:3]
    z_0, z_1, _ = batch.outputs.logits_SBC.detach()
    # z_2 set so that g_1 (z_1 - z_0) + g_2 (z_2 - z_0) = 0, which makes z_e = z_0.
    batch = with_outputs(batch, logits_SBC=torch.stack([z_0, z_1, z_0 - g_1 / g_2 * (z_1 - z_0)]))
    push = {}
    for detach_target in (True, False):
        method = create(replace(case, detach_target=detach_target))
        term = method(batch.outputs, batch.labels, 1.0).terms["distillation"]
        push[detach_target] = torch.autograd.grad(term, batch.outputs.logits_SBC)[0][0].abs().max().item()

    assert push[True] < 1e-12
    assert push[False] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gate_detaching_the_target_makes_no_difference_to_any_gradient(kind: GroupKind) -> None:
    """Through z_e comes T p (sum_i u_i - sum_i KL_i) / B with u_i = log p - log q'_i, and for the plain mean
    sum_i u_i is the same in every class, since sum_i (z_e - z_i) = 0: the mean of logits already minimises the sum.
    """
    detached = Case(gate=False, kind=kind)
    batch = draw(detached)

    _, with_detached = losses_and_gradients(create(detached), batch, 1.0)
    _, with_attached = losses_and_gradients(create(replace(detached, detach_target=False)), batch, 1.0)

    assert_equal(with_attached, with_detached, "gradient", tolerance=1e-12)


# The gate's batch norm


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_each_training_batch_moves_the_running_statistics_once_and_evaluation_does_not(kind: GroupKind) -> None:
    case = Case(kind=kind)
    method = create(case)

    running = warm_up(case, method)

    def remembered() -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in method.named_buffers()}

    after_two = remembered()
    torch.testing.assert_close(after_two["gate.bn.running_mean"], running[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after_two["gate.bn.running_var"], running[1], rtol=1e-9, atol=1e-12)
    assert after_two["gate.bn.num_batches_tracked"] == 2

    method.eval()
    batch = draw(case)
    method(batch.outputs, batch.labels, 1.0)
    method.ensemble(batch.outputs)
    assert all(torch.equal(after_two[name], buffer) for name, buffer in remembered().items())


def test_the_gate_is_a_linear_layer_and_a_batch_norm_under_their_names() -> None:
    state = methods.create(options_of("one"), shape_of(Case(students=5))).state_dict()

    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "gate.fc.weight": (5, TRUNK_CHANNELS),
        "gate.fc.bias": (5,),
        "gate.bn.weight": (5,),
        "gate.bn.bias": (5,),
        "gate.bn.running_mean": (5,),
        "gate.bn.running_var": (5,),
        "gate.bn.num_batches_tracked": (),
    }


def test_the_gate_of_networks_reads_as_wide_an_input_as_their_features() -> None:
    method = create(Case(kind="networks", students=2))

    assert dict(method.named_parameters())["gate.fc.weight"].shape == (2, FEATURE_WIDTH)


def test_the_gate_of_networks_whose_features_differ_in_width_reads_all_of_them_side_by_side() -> None:
    case = Case(kind="networks", students=3, training=False)
    method = methods.create(options_of("one"), shape_of(case)._replace(feature_widths=(6, 2, 7))).double().eval()
    batch = draw(case)
    generator = torch.Generator().manual_seed(0)
    features = tuple(torch.randn(case.images, d, generator=generator, dtype=torch.float64) for d in (6, 2, 7))

    state = method.state_dict()
    assert state["gate.fc.weight"].shape == (3, 15)
    gate = method.weights(batch.outputs._replace(features=features))["gate"]
    slices = (state["gate.fc.weight"][:, first:last] for first, last in ((0, 6), (6, 8), (8, 15)))
    scores = state["gate.fc.bias"] + sum(part @ weight.t() for part, weight in zip(features, slices, strict=True))
    # A fresh batch norm divides by the root of 1 + eps and does nothing else.
    expected = torch.softmax((scores / (1 + 1e-5) ** 0.5).clamp(min=0), dim=1)
    torch.testing.assert_close(gate, expected, rtol=1e-12, atol=1e-12)


def test_without_a_gate_there_are_no_parameters_and_the_ensemble_is_the_mean_of_logits() -> None:
    case = Case(gate=False, training=False)
    method, batch = create(case), draw(case)

    assert method.gate is None
    assert not list(method.parameters())
    assert not list(method.buffers())
    torch.testing.assert_close(method.ensemble(batch.outputs), batch.outputs.logits_SBC.mean(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("students", [1, 2, 5])
def test_the_ensemble_is_the_gated_mixture_of_logits(students: int, gate: bool, kind: GroupKind) -> None:
    case = Case(students=students, gate=gate, kind=kind, images=1, training=False)
    method = create(case)
    running = warm_up(case, method)
    batch = draw(case)
    expected = Expected(case, method, running, batch)
    weights_BS = expected.weights_BS
    if weights_BS is None:
        weights_BS = torch.full((1, students), 1 / students, dtype=torch.float64)

    torch.testing.assert_close(
        method.ensemble(batch.outputs),
        oracles.gated_ensemble(expected.leaves["logits"], weights_BS),
        rtol=1e-9,
        atol=1e-12,
    )
    assert (method.ensemble_name is None) == (students == 1)


@pytest.mark.parametrize("layout", ["maps", "channels last", "tokens", "vectors"])
def test_the_gate_pools_over_all_but_the_channels_wherever_they_stand(layout: str) -> None:
    """There are as many tokens as channels, so that shapes alone do not tell them apart."""
    case = Case(training=False)
    method, batch = create(case), draw(case)
    maps = torch.randn(
        (case.images, TRUNK_CHANNELS, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = Expected(case, method, fresh_statistics(case), with_outputs(batch, trunk=maps)).weights_BS
    trunk = {
        "maps": maps,
        "channels last": maps.permute(0, 2, 3, 1),
        "tokens": maps.flatten(2).transpose(1, 2),
        "vectors": maps.mean((2, 3)),
    }[layout]

    weights_BS = method.weights(batch.outputs._replace(trunk=trunk))["gate"]

    assert expected is not None
    torch.testing.assert_close(weights_BS, expected, rtol=1e-9, atol=1e-12)


def test_under_autocast_the_ensemble_is_mixed_in_single_precision() -> None:
    """As a product of matrices it would be mixed in bfloat16; the gate's own linear layer may well be."""
    case = Case(training=False)
    method, outputs = create(case, torch.float32), draw(case, torch.float32).outputs

    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights_BS, ensemble_BC = method.weights(outputs)["gate"].double(), method.ensemble(outputs)

    assert ensemble_BC.dtype == torch.float32
    expected = oracles.gated_ensemble(outputs.logits_SBC.double(), weights_BS)
    torch.testing.assert_close(ensemble_BC.double(), expected, rtol=1e-6, atol=1e-6)


# One student, independent students, the baseline


@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("detach_target", [True, False])
def test_a_group_of_one_is_the_plain_baseline(kind: GroupKind, gate: bool, detach_target: bool) -> None:
    case = Case(students=1, kind=kind, gate=gate, detach_target=detach_target, label_smoothing=0.1)
    method, batch = create(case), draw(case)
    baseline = methods.create(options_of("baseline"), shape_of(case), label_smoothing=0.1)
    leaves = leaves_of(method, batch.outputs)

    losses = method(batch.outputs, batch.labels, 1.0)
    plain = baseline(batch.outputs, batch.labels, 1.0)

    assert not list(method.parameters())
    assert not list(method.buffers())
    assert set(losses.terms) == {"cross_entropy"}
    assert torch.equal(losses.total, plain.total)
    assert_equal(dense_gradients(losses.total, leaves), dense_gradients(plain.total, leaves), tolerance=0.0)
    assert torch.equal(method.ensemble(batch.outputs), batch.outputs.logits_SBC[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize(
    ("name", "students"), [("baseline", 1), ("independent", 1), ("independent", 2), ("independent", 5)]
)
def test_baseline_and_independent_are_the_sum_of_cross_entropies(
    name: str, students: int, kind: GroupKind, label_smoothing: float, dtype: torch.dtype
) -> None:
    case = Case(students=students, kind=kind, label_smoothing=label_smoothing, seed=students)
    batch = draw(case, dtype)
    method = methods.create(options_of(name), shape_of(case), label_smoothing=label_smoothing)
    logits_SBC = batch.outputs.logits_SBC.detach().double().requires_grad_()
    expected = oracles.sum_of_cross_entropies(logits_SBC, batch.labels.tolist(), label_smoothing)

    for ramp in (0.0, 0.3):
        losses = method(batch.outputs, batch.labels, ramp)

        assert not list(method.parameters())
        assert set(losses.terms) == {"cross_entropy"}
        assert_equal({"total": losses.total, **losses.terms}, {"total": expected, "cross_entropy": expected})
        reached = {k: g for k, g in gradients(losses.total, inputs_of(batch.outputs)).items() if g is not None}
        assert_equal(reached, dense_gradients(expected, {"logits": logits_SBC}))


@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize("students", [1, 3])
def test_the_ensemble_of_independent_students_is_the_mean_of_logits(students: int, kind: GroupKind) -> None:
    case = Case(students=students, kind=kind)
    outputs = draw(case).outputs
    method = methods.create(options_of("independent"), shape_of(case))

    torch.testing.assert_close(method.ensemble(outputs), outputs.logits_SBC.mean(0), rtol=1e-12, atol=1e-12)
    assert (method.ensemble_name is None) == (students == 1)
    assert method.weights(outputs) == {}


def test_the_groups_that_each_method_takes() -> None:
    one, independent, baseline = (methods.options_model(name) for name in ("one", "independent", "baseline"))

    assert (one.default_kind, one.default_students, one.min_students, one.max_students) == ("branches", 3, 1, None)
    assert set(one.allowed_kinds) == set(independent.allowed_kinds) == {"branches", "networks"}
    assert (baseline.default_students, baseline.min_students, baseline.max_students) == (1, 1, 1)


def test_ones_options_default_to_the_authors_settings() -> None:
    options = options_of("one")

    assert options.model_dump(include={"temperature", "distillation", "gate", "detach_target"}) == {
        "temperature": 3.0,
        "distillation": True,
        "gate": True,
        "detach_target": True,
    }


# What holds for any group


def any_case(**fixed: object) -> st.SearchStrategy[Case]:
    """Any setting with several students; `fixed` fields keep their value."""
    free: dict[str, st.SearchStrategy[object]] = {
        "students": st.integers(2, 5),
        "images": st.integers(2, 6),
        "classes": st.integers(2, 7),
        "kind": st.sampled_from(["branches", "networks"]),
        "gate": st.booleans(),
        "detach_target": st.booleans(),
        "training": st.booleans(),
        "temperature": st.floats(0.5, 8.0),
        "ramp": st.floats(0.0, 1.0),
        "label_smoothing": st.floats(0.0, 0.5),
        "seed": st.integers(0, 10_000),
    }
    drawn = {name: strategy for name, strategy in free.items() if name not in fixed}
    return st.builds(Case, **drawn, **{name: st.just(value) for name, value in fixed.items()})


few_examples = settings(max_examples=25, deadline=None, database=None)


def losses_and_gradients(
    method: Method, batch: Batch, ramp: float | Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By a copy of the method, so that what its batch norm learns here does not colour the next call."""
    method = deepcopy(method)
    losses = method(batch.outputs, batch.labels, ramp)
    named = {"total": losses.total, **losses.terms}
    return named, dense_gradients(losses.total, leaves_of(method, batch.outputs))


def with_outputs(batch: Batch, **changed: Tensor | tuple[Tensor, ...] | None) -> Batch:
    """The batch with other outputs, as fresh leaves."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    outputs = batch.outputs._replace(**changed)  # type: ignore[arg-type]
    fresh = GroupOutput(
        logits_SBC=leaf(outputs.logits_SBC),
        features=tuple(leaf(features_BD) for features_BD in outputs.features),
        trunk=None if outputs.trunk is None else leaf(outputs.trunk),
        members=outputs.members,
    )
    return Batch(fresh, batch.labels)


def pick_images(batch: Batch, chosen: list[int]) -> Batch:
    outputs = batch.outputs
    picked = with_outputs(
        batch,
        logits_SBC=outputs.logits_SBC[:, chosen],
        features=tuple(features_BD[chosen] for features_BD in outputs.features),
        trunk=None if outputs.trunk is None else outputs.trunk[chosen],
    )
    return picked._replace(labels=batch.labels[chosen])


def image_axis(name: str) -> int:
    return 1 if name == "logits" else 0


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_distillation_is_zero_when_all_students_agree(case: Case, chance: random.Random) -> None:
    """Agreement is of probabilities: each student's logits may sit at a height of their own."""
    method, batch = create(case), draw(case)
    heights_SB1 = torch.tensor(
        [[[chance.uniform(-5, 5)] for _ in range(case.images)] for _ in range(case.students)], dtype=torch.float64
    )
    agreed = with_outputs(batch, logits_SBC=batch.outputs.logits_SBC[:1] + heights_SB1)

    term = method(agreed.outputs, agreed.labels, case.ramp).terms["distillation"]

    assert abs(term.item()) < 1e-9
    assert_equal(
        dense_gradients(term, leaves_of(method, agreed.outputs)),
        {name: torch.zeros_like(leaf) for name, leaf in leaves_of(method, agreed.outputs).items()},
        tolerance=1e-9,
    )


@few_examples
@given(any_case())
def test_distillation_is_not_negative_and_total_is_the_weighted_sum(case: Case) -> None:
    method, batch = create(case), draw(case)

    losses = method(batch.outputs, batch.labels, case.ramp)

    assert losses.terms["distillation"].item() >= 0.0
    assert losses.total.item() == pytest.approx(
        losses.terms["cross_entropy"].item()
        + losses.terms["ensemble_cross_entropy"].item()
        + case.ramp * losses.terms["distillation"].item(),
        rel=1e-12,
    )


@few_examples
@given(any_case(), st.integers(0, 10_000), st.floats(-50, 50))
def test_raising_all_logits_of_one_student_for_one_image_changes_no_loss_and_no_gradient(
    case: Case, place: int, height: float
) -> None:
    """The gate does not see logits, z_e rises by g_i times the height in every class, softmax does not see heights."""
    method, batch = create(case), draw(case)
    raised_SBC = batch.outputs.logits_SBC.detach().clone()
    raised_SBC[place % case.students, place % case.images] += height
    raised = with_outputs(batch, logits_SBC=raised_SBC)

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, raised, case.ramp)

    assert_equal(after, before, tolerance=1e-8)
    assert_equal(after_gradients, before_gradients, "gradient", tolerance=1e-8)


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_reordering_the_images_changes_no_loss_and_reorders_the_gradients(case: Case, chance: random.Random) -> None:
    method, batch = create(case), draw(case)
    order = chance.sample(range(case.images), case.images)

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, pick_images(batch, order), case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    reordered = {
        name: gradient if name.startswith("gate.") else gradient.index_select(image_axis(name), torch.tensor(order))
        for name, gradient in before_gradients.items()
    }
    assert_equal(after_gradients, reordered, "gradient", tolerance=1e-7)


@few_examples
@given(any_case())
def test_a_batch_laid_out_twice_has_the_same_losses(case: Case) -> None:
    """Losses are means over images; so is what batch norm normalises by, mean and variance both."""
    method, batch = create(case), draw(case)
    twice = pick_images(batch, [*range(case.images), *range(case.images)])

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, twice, case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    parameters = dict(method.named_parameters())
    assert_equal(
        {name: after_gradients[name] for name in parameters},
        {name: before_gradients[name] for name in parameters},
        "gradient",
        tolerance=1e-7,
    )


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_renaming_the_classes_changes_no_loss(case: Case, chance: random.Random) -> None:
    method, batch = create(case), draw(case)
    order = chance.sample(range(case.classes), case.classes)
    renamed = with_outputs(batch, logits_SBC=batch.outputs.logits_SBC[:, :, order])
    renamed = renamed._replace(labels=torch.tensor([order.index(label) for label in batch.labels.tolist()]))

    before, _ = losses_and_gradients(method, batch, case.ramp)
    after, _ = losses_and_gradients(method, renamed, case.ramp)

    assert_equal(after, before, tolerance=1e-9)


@few_examples
@given(any_case(), st.randoms(use_true_random=False))
def test_reordering_the_students_with_their_rows_of_the_gate_changes_no_loss(case: Case, chance: random.Random) -> None:
    method, batch = create(case), draw(case)
    order = chance.sample(range(case.students), case.students)
    reordered = with_outputs(
        batch,
        logits_SBC=batch.outputs.logits_SBC[order],
        features=tuple(batch.outputs.features[i] for i in order),
    )

    before, _ = losses_and_gradients(method, batch, case.ramp)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(parameter[order].clone())
    after, _ = losses_and_gradients(method, reordered, case.ramp)

    assert_equal(after, before, tolerance=1e-9)


@few_examples
@given(any_case())
def test_temperature_only_rescales_logits_and_loss(case: Case) -> None:
    batch = draw(case)
    hotter = with_outputs(batch, logits_SBC=case.temperature * batch.outputs.logits_SBC)

    at_one = create(replace(case, temperature=1.0))(batch.outputs, batch.labels, 1.0).terms["distillation"]
    at_temperature = create(case)(hotter.outputs, batch.labels, 1.0).terms["distillation"]

    assert at_temperature.item() == pytest.approx(case.temperature**2 * at_one.item(), rel=1e-8, abs=1e-12)


@few_examples
@given(any_case(), st.floats(1e-3, 1e3))
def test_the_ensembles_weights_are_positive_and_sum_to_one(case: Case, stretch: float) -> None:
    """Student i's logits are one in class i and zero elsewhere, so that z_e shows the weights themselves."""
    case = replace(case, classes=case.students, training=False)
    method, batch = create(case), draw(case)
    identity_SBC = torch.eye(case.students, dtype=torch.float64)[:, None, :].expand(-1, case.images, -1)
    batch = with_outputs(
        batch,
        logits_SBC=identity_SBC,
        features=tuple(stretch * features_BD for features_BD in batch.outputs.features),
        trunk=None if batch.outputs.trunk is None else stretch * batch.outputs.trunk,
    )

    weights_BS = method.ensemble(batch.outputs)

    assert (weights_BS >= 0).all()
    torch.testing.assert_close(weights_BS.sum(1), torch.ones_like(weights_BS[:, 0]), rtol=1e-12, atol=1e-12)
    if not case.gate:
        torch.testing.assert_close(weights_BS, torch.full_like(weights_BS, 1 / case.students), rtol=1e-12, atol=1e-12)


@few_examples
@given(any_case(training=False))
def test_in_evaluation_no_image_sees_another(case: Case) -> None:
    method, batch = create(case), draw(case)
    warm_up(case, method)

    together = method.ensemble(batch.outputs)
    alone = torch.cat([method.ensemble(pick_images(batch, [b]).outputs) for b in range(case.images)])

    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@few_examples
@given(any_case())
def test_a_ramp_of_zero_trains_as_without_distillation(case: Case) -> None:
    batch = draw(case)

    ramped, ramped_gradients = losses_and_gradients(create(case), batch, 0.0)
    plain, plain_gradients = losses_and_gradients(create(replace(case, distillation=False)), batch, 0.0)

    assert ramped["distillation"].item() > 0
    assert_equal({"total": ramped["total"]}, {"total": plain["total"]}, tolerance=1e-12)
    assert_equal(ramped_gradients, plain_gradients, "gradient", tolerance=1e-9)


def test_the_ramp_may_be_a_tensor() -> None:
    case = Case()
    method, batch = create(case), draw(case)

    as_float, float_gradients = losses_and_gradients(method, batch, 0.3)
    as_tensor, tensor_gradients = losses_and_gradients(method, batch, torch.tensor(0.3, dtype=torch.float64))

    assert as_tensor["total"].shape == ()
    assert_equal(as_tensor, as_float, tolerance=1e-12)
    assert_equal(tensor_gradients, float_gradients, "gradient", tolerance=1e-12)


# Numbers at the edge


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("detach_target", [True, False])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(
    seed: int, temperature: float, gate: bool, detach_target: bool, label_smoothing: float, dtype: torch.dtype
) -> None:
    """Softmax is then exactly 0 or 1 and p log p must not become 0 times infinity; the values stay right."""
    case = Case(
        gate=gate,
        detach_target=detach_target,
        temperature=temperature,
        label_smoothing=label_smoothing,
        seed=seed,
    )
    method, batch = create(case, dtype), draw(case, dtype)
    extreme = with_outputs(batch, logits_SBC=1e4 * batch.outputs.logits_SBC.sign())
    expected = Expected(case, method, fresh_statistics(case), extreme)

    losses = method(extreme.outputs, extreme.labels, 1.0)

    named = {"total": losses.total, **losses.terms}
    assert_equal(named, {"total": expected.total, **expected.terms})
    for name, loss in named.items():
        assert torch.isfinite(loss), name
        for leaf, gradient in dense_gradients(loss, leaves_of(method, extreme.outputs)).items():
            assert torch.isfinite(gradient).all(), (name, leaf)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("height", [-1e4, 1e4])
def test_images_on_which_every_logit_is_the_same_give_the_loss_of_a_guess(height: float, dtype: torch.dtype) -> None:
    case = Case(students=2, classes=10, detach_target=False)
    method, batch = create(case, dtype), draw(case, dtype)
    flat = with_outputs(batch, logits_SBC=torch.full_like(batch.outputs.logits_SBC, height))

    losses = method(flat.outputs, flat.labels, 1.0)

    guess = log(10)
    assert losses.terms["cross_entropy"].item() == pytest.approx(2 * guess, rel=1e-5)
    assert losses.terms["ensemble_cross_entropy"].item() == pytest.approx(guess, rel=1e-5)
    assert losses.terms["distillation"].item() == pytest.approx(0.0, abs=1e-5)
