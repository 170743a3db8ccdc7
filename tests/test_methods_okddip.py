"""OKDDip and its ablations against losses written a second time (oracles_peers.py)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from math import log
from typing import Any

import oracles_peers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods_one import (
    Batch,
    assert_equal,
    dense_gradients,
    few_examples,
    leaves_of,
    losses_and_gradients,
    options_of,
    pick_images,
    with_outputs,
)
from torch import Tensor

from distilkit import methods
from distilkit.errors import SettingError
from distilkit.methods.base import GroupKind, GroupOutput, GroupShape, Method, MethodLosses, MethodOptions

MIXES = ("logits", "probabilities")
TARGET_GRADIENTS = ("full", "leader-detached", "attention-only")
PEER_TARGETS = ("attention", "symmetric", "mean", "random", "entropy")
PROJECTIONS = ("W_L.weight", "W_E.weight")


@dataclass(frozen=True)
class Case:
    """One setting of OKDDip and the size of its group; `peers` does not count the leader."""

    peers: int = 3
    images: int = 4
    classes: int = 5
    width: int = 17
    kind: GroupKind = "branches"
    mix: str = "logits"
    target_gradient: str = "full"
    peer_targets: str = "attention"
    leader: bool = True
    temperature: float = 3.0
    ramp: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0

    @property
    def students(self) -> int:
        return self.peers + self.leader

    @property
    def members(self) -> tuple[str, ...]:
        return (*(f"peer_{a}" for a in range(self.peers)), *(("leader",) if self.leader else ()))

    @property
    def terms(self) -> set[str]:
        among_peers = "confidence_penalty" if self.peer_targets == "entropy" else "peer_distillation"
        return {"cross_entropy", among_peers} | ({"leader_distillation"} if self.leader else set())

    @property
    def possible(self) -> bool:
        return self.target_gradient != "attention-only" or self.peer_targets == "attention"


def shape_of(case: Case) -> GroupShape:
    return GroupShape(
        kind=case.kind,
        members=case.members,
        trunk_channels=4 if case.kind == "branches" else None,
        feature_widths=(case.width,) * case.students,
        num_classes=case.classes,
    )


def okddip(case: Case) -> MethodOptions:
    return options_of(
        "okddip",
        temperature=case.temperature,
        rampup_epochs=0,
        mix=case.mix,
        target_gradient=case.target_gradient,
        peer_targets=case.peer_targets,
        leader=case.leader,
    )


def create(case: Case, dtype: torch.dtype = torch.float64) -> Method:
    """The method of a case; the projections are drawn, so that no test leans on how they start."""
    method = methods.create(okddip(case), shape_of(case), label_smoothing=case.label_smoothing).to(dtype)
    generator = torch.Generator().manual_seed(30_000 + case.seed)
    with torch.no_grad():
        for _, parameter in sorted(method.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return method


def draw(case: Case, dtype: torch.dtype = torch.float64) -> Batch:
    """Random outputs as leaves that want gradients; features small enough for attention to look around."""
    generator = torch.Generator().manual_seed(40_000 + case.seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    outputs = GroupOutput(
        logits_SBC=(2.0 * normal(case.students, case.images, case.classes)).requires_grad_(),
        features=tuple((0.4 * normal(case.images, case.width)).requires_grad_() for _ in range(case.students)),
        trunk=normal(case.images, 4, 2, 3).requires_grad_() if case.kind == "branches" else None,
        members=case.members,
    )
    return Batch(outputs, torch.randint(case.classes, (case.images,), generator=generator))


def compute(case: Case, method: Method, batch: Batch) -> MethodLosses:
    """The method's losses; where it draws random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        losses = method(batch.outputs, batch.labels, case.ramp)
    assert isinstance(losses, MethodLosses)
    return losses


def scores_that_may_have_been_drawn(case: Case) -> Iterator[Tensor]:
    """What `compute` finds in torch's global stream, [B, A, A], for every order in which they could be asked for.

    Which axis runs fastest, and in which precision numbers are drawn, is nobody's business: all are independent.
    """
    sizes = (case.images, case.peers, case.peers)
    for dtype in (torch.float32, torch.float64):
        for axes in permutations(range(3)):
            with torch.random.fork_rng():
                torch.manual_seed(case.seed)
                drawn = torch.randn([sizes[axis] for axis in axes], dtype=dtype).double()
            yield drawn.permute([axes.index(axis) for axis in range(3)])


def named(losses: MethodLosses) -> dict[str, Tensor]:
    return {"total": losses.total, **losses.terms}


class Expected:
    """What the oracle makes of a method's parameters and a group's outputs, with leaves of its own.

    `losses`: the method's; where its weights are random, they decide which order of drawing was the method's.
    """

    def __init__(self, case: Case, method: Method, batch: Batch, losses: MethodLosses) -> None:
        self.leaves = {
            name: leaf.detach().double().clone().requires_grad_()
            for name, leaf in leaves_of(method, batch.outputs).items()
        }
        self.features = [self.leaves[f"features.{i}"] for i in range(case.students)]
        candidates: list[dict[str, Tensor]] = []
        for scores_BAA in scores_that_may_have_been_drawn(case) if case.peer_targets == "random" else [None]:
            candidates.append(
                oracles_peers.okddip_terms(
                    self.leaves["logits"],
                    self.features,
                    batch.labels.tolist(),
                    temperature=case.temperature,
                    mix=case.mix,
                    target_gradient=case.target_gradient,
                    peer_targets=case.peer_targets,
                    leader=case.leader,
                    w_l=self.leaves.get("W_L.weight"),
                    w_e=self.leaves.get("W_E.weight"),
                    scores_BAA=scores_BAA,
                    label_smoothing=case.label_smoothing,
                )
            )
        name = "confidence_penalty" if case.peer_targets == "entropy" else "peer_distillation"
        self.terms = min(candidates, key=lambda terms: abs(terms[name].item() - losses.terms[name].item()))
        self.total = self.terms["cross_entropy"]
        for name, term in self.terms.items():
            if name != "cross_entropy":
                self.total = self.total + case.ramp * term

    @property
    def named(self) -> dict[str, Tensor]:
        return {"total": self.total, **self.terms}


def structural_cases() -> list[Case]:
    """Every combination of the switches that there is; the rest drawn once and for all."""
    chance = random.Random(20200207)
    cases: list[Case] = []
    for peer_targets in PEER_TARGETS:
        for mix in MIXES:
            for target_gradient in TARGET_GRADIENTS:
                for leader in (True, False):
                    case = Case(
                        peers=chance.choice((2, 3, 4) if leader else (2, 3, 4, 5)),
                        images=chance.choice((1, 3, 5)),
                        classes=chance.choice((2, 3, 10)),
                        width=chance.choice((8, 15, 16, 33)),
                        kind=chance.choice(("branches", "networks")),
                        mix=mix,
                        target_gradient=target_gradient,
                        peer_targets=peer_targets,
                        leader=leader,
                        temperature=chance.choice((1.0, 2.0, 3.0, 4.5)),
                        ramp=chance.choice((0.0, 0.3, 1.0)),
                        label_smoothing=chance.choice((0.0, 0.1)),
                        seed=len(cases),
                    )
                    if case.possible:
                        cases.append(case)
    return cases


def case_id(case: Case) -> str:
    sizes = f"A{case.peers}{'+leader' if case.leader else ''}-B{case.images}-C{case.classes}-D{case.width}"
    switches = f"{case.kind}-{case.peer_targets}-{case.mix}-{case.target_gradient}"
    return f"{sizes}-{switches}-T{case.temperature}-w{case.ramp}-s{case.label_smoothing}"


# Against the oracle


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", structural_cases(), ids=case_id)
def test_losses_and_all_gradients_equal_the_oracle(case: Case, dtype: torch.dtype) -> None:
    method, batch = create(case, dtype), draw(case, dtype)

    losses = compute(case, method, batch)

    expected = Expected(case, method, batch, losses)
    assert set(losses.terms) == case.terms
    assert_equal(named(losses), expected.named)
    leaves = leaves_of(method, batch.outputs)
    for name, loss in named(losses).items():
        assert loss.shape == ()
        assert_equal(
            dense_gradients(loss, leaves),
            dense_gradients(expected.named[name], expected.leaves),
            what=f"gradient of {name} with respect to",
        )


def test_the_cases_are_all_there() -> None:
    """Five kinds of peers' targets, two mixtures, three target gradients of which one is attention's alone."""
    assert len(structural_cases()) == (4 * 2 * 2 + 2 * 3) * 2


# By hand


def kl(first: float, second: float) -> float:
    """KL((p, 1 - p) || (q, 1 - q))."""
    return first * log(first / second) + (1 - first) * log((1 - first) / (1 - second))


def by_hand(mix: str, target_gradient: str) -> tuple[Method, GroupOutput]:
    """Two peers, the leader, two images, two classes.

    Logits (2 ln k, 0) give probabilities k^2 / (k^2 + 1) at T = 1 and k / (k + 1) at T = 2. First image: k = 64 and 1
    for the peers, 2 for the leader; second image: k = 1 for all. In both images the peers' features are
    h_1 = (ln 2, 1, 0, ...) and h_2 = (-ln 2, 0, 0, ...), W_L takes the first of them and W_E the second, so that the
    scores are (ln 2, 0) and (-ln 2, 0), and alpha = (2/3, 1/3), (1/3, 2/3).
    """
    case = Case(peers=2, images=2, classes=2, width=8, mix=mix, target_gradient=target_gradient, temperature=2.0)
    method = create(case)
    with torch.no_grad():
        method.W_L.weight.copy_(torch.eye(8)[:1])
        method.W_E.weight.copy_(torch.eye(8)[1:2])
    logits_SBC = torch.zeros(3, 2, 2, dtype=torch.float64)
    logits_SBC[:, 0, 0] = 2 * torch.tensor([64.0, 1.0, 2.0], dtype=torch.float64).log()
    features = torch.zeros(3, 2, 8, dtype=torch.float64)
    features[0, :, :2] = torch.tensor([log(2), 1.0], dtype=torch.float64)
    features[1, :, :2] = torch.tensor([-log(2), 0.0], dtype=torch.float64)
    leaves = tuple(h_BD.clone().requires_grad_() for h_BD in features)
    return method, GroupOutput(logits_SBC.requires_grad_(), leaves, None, case.members)


# At T = 2: t_1, t_2 and t_leader of the first image's first class. Logits: k = 64^(2/3) = 16, 64^(1/3) = 4, 64^(1/2).
TARGETS_BY_HAND = {
    "logits": (16 / 17, 4 / 5, 8 / 9),
    "probabilities": (2 / 3 * 64 / 65 + 1 / 6, 1 / 3 * 64 / 65 + 1 / 3, (64 / 65 + 1 / 2) / 2),
}


@pytest.mark.parametrize("mix", MIXES)
def test_two_peers_and_a_leader_by_hand(mix: str) -> None:
    method, outputs = by_hand(mix, "full")
    first, second, leader = TARGETS_BY_HAND[mix]

    losses = method(outputs, torch.tensor([0, 1]), 0.5)

    cross_entropy = (log(4097 / 4096) + log(2) + log(5 / 4) + 3 * log(2)) / 2
    peer_distillation = 4 * (kl(first, 64 / 65) + kl(second, 1 / 2)) / 2
    leader_distillation = 4 * kl(leader, 2 / 3) / 2
    assert losses.terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-9)
    assert losses.terms["peer_distillation"].item() == pytest.approx(peer_distillation, rel=1e-9)
    assert losses.terms["leader_distillation"].item() == pytest.approx(leader_distillation, rel=1e-9)
    assert losses.total.item() == pytest.approx(
        cross_entropy + 0.5 * (peer_distillation + leader_distillation), rel=1e-9
    )
    attention_AA = torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(method.weights(outputs)["attention"], attention_AA.expand(2, 2, 2), rtol=1e-9, atol=0)
    ensemble_BC = torch.tensor([[log(64), 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(method.ensemble(outputs), ensemble_BC, rtol=1e-9, atol=1e-12)


def test_gradients_of_two_peers_and_a_leader_by_hand() -> None:
    """Logits mixed; of each first logit in the first image (the second logit's gradient is its negative):
    as the student T (q' - t) / B; as the target's logit T t_1 t_2 (ln k_t - ln k_q) / B, where k_t = t_1 / t_2.
    """
    # What reaches the mixed logits of the targets, with T / B = 1.
    into_first = 16 / 289 * (log(16) - log(64))
    into_second = 4 / 25 * (log(4) - log(1))
    into_leader = 8 / 81 * (log(8) - log(2))
    as_students = [64 / 65 - 16 / 17, 1 / 2 - 4 / 5, 2 / 3 - 8 / 9]
    # alpha_a1 gets that times the first peer's logit, 2 ln 64, the second peer's being 0; through the softmax at
    # (2/3, 1/3) or (1/3, 2/3) that becomes 2/9 of it for the first score and -2/9 of it for the second.
    into_score_1 = 2 / 9 * into_first * 2 * log(64)
    into_score_2 = 2 / 9 * into_second * 2 * log(64)
    # Scores are l_a e_b with l = (ln 2, -ln 2) and e = (1, 0).
    into_l = (into_score_1, into_score_2)
    into_e_1 = log(2) * into_score_1 - log(2) * into_score_2
    into_w_l = [log(2) * into_l[0] - log(2) * into_l[1], into_l[0]]  # sum_a l_a's gradient times h_a
    into_w_e = [log(2) * into_e_1 + log(2) * into_e_1, into_e_1]  # e_1's times h_1, and e_2's = -e_1's times h_2

    for target_gradient in TARGET_GRADIENTS:
        method, outputs = by_hand("logits", target_gradient)
        losses = method(outputs, torch.tensor([0, 1]), 0.5)
        leaves = leaves_of(method, outputs)
        peer = dense_gradients(losses.terms["peer_distillation"], leaves)
        leader = dense_gradients(losses.terms["leader_distillation"], leaves)

        peer_logits = [as_students[0], as_students[1], 0.0]
        leader_logits = [0.0, 0.0, as_students[2]]
        if target_gradient != "attention-only":
            peer_logits[0] += 2 / 3 * into_first + 1 / 3 * into_second
            peer_logits[1] += 1 / 3 * into_first + 2 / 3 * into_second
        if target_gradient == "full":
            leader_logits = [into_leader / 2, into_leader / 2, as_students[2]]
        assert peer["logits"][:, 0, 0].tolist() == pytest.approx(peer_logits, rel=1e-9)
        assert leader["logits"][:, 0, 0].tolist() == pytest.approx(leader_logits, rel=1e-9)
        for found in (peer, leader):
            torch.testing.assert_close(found["logits"][..., 0], -found["logits"][..., 1], rtol=1e-9, atol=1e-12)
            assert found["logits"][:, 1].abs().max() < 1e-12
        assert peer["W_L.weight"][0].tolist() == pytest.approx([*into_w_l, *[0.0] * 6], rel=1e-9)
        assert peer["W_E.weight"][0].tolist() == pytest.approx([*into_w_e, *[0.0] * 6], rel=1e-9)
        features = torch.stack([peer[f"features.{i}"] for i in range(3)])
        expected = torch.zeros_like(features)
        if target_gradient != "attention-only":
            expected[0, 0, :2] = torch.tensor([into_l[0], into_e_1], dtype=torch.float64)
            expected[1, 0, :2] = torch.tensor([into_l[1], -into_e_1], dtype=torch.float64)
        torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-12)


def test_the_confidence_penalty_by_hand() -> None:
    """-T^2 sum_a H(q'_a), and neither the leader nor any target in it."""
    case = Case(peers=2, images=2, classes=2, width=8, peer_targets="entropy", temperature=2.0)
    _, outputs = by_hand("logits", "full")

    losses = create(case)(outputs, torch.tensor([0, 1]), 0.5)

    of_first_peer = -(64 / 65 * log(64 / 65) + 1 / 65 * log(1 / 65))
    penalty = -4 * ((of_first_peer + log(2)) / 2 + log(2))
    leader_distillation = 4 * kl(8 / 9, 2 / 3) / 2
    cross_entropy = (log(4097 / 4096) + log(2) + log(5 / 4) + 3 * log(2)) / 2
    assert set(losses.terms) == {"cross_entropy", "confidence_penalty", "leader_distillation"}
    assert losses.terms["confidence_penalty"].item() == pytest.approx(penalty, rel=1e-9)
    assert losses.total.item() == pytest.approx(cross_entropy + 0.5 * (penalty + leader_distillation), rel=1e-9)
    # d/dz of -T^2 H(q') is T q' (log q' + H): less confidence is asked for.
    (gradient_SBC,) = torch.autograd.grad(losses.terms["confidence_penalty"], outputs.logits_SBC)
    pull = 2 * 64 / 65 * (log(64 / 65) + of_first_peer) / 2
    assert pull > 0
    assert gradient_SBC[0, 0].tolist() == pytest.approx([pull, -pull], rel=1e-9)
    assert gradient_SBC[1:].abs().max() < 1e-12


# Who learns from what

PEERS = frozenset({"logits.peer_0", "logits.peer_1", "logits.peer_2"})
LEADER = frozenset({"logits.leader"})
FEATURES = frozenset({"features.0", "features.1", "features.2"})
W = frozenset(PROJECTIONS)

# (peer_targets, target_gradient): what the term among the peers and what the leader's KL reach.
# Never: the leader's features, the trunk, and from CE(z, y) anything but logits.
GRADIENT_MAP: dict[tuple[str, str], tuple[frozenset[str], frozenset[str]]] = {
    ("attention", "full"): (PEERS | FEATURES | W, PEERS | LEADER),
    ("attention", "leader-detached"): (PEERS | FEATURES | W, LEADER),
    ("attention", "attention-only"): (PEERS | W, LEADER),
    ("symmetric", "full"): (PEERS | FEATURES, PEERS | LEADER),
    ("symmetric", "leader-detached"): (PEERS | FEATURES, LEADER),
    ("mean", "full"): (PEERS, PEERS | LEADER),
    ("mean", "leader-detached"): (PEERS, LEADER),
    ("random", "full"): (PEERS, PEERS | LEADER),
    ("random", "leader-detached"): (PEERS, LEADER),
    ("entropy", "full"): (PEERS, PEERS | LEADER),
    ("entropy", "leader-detached"): (PEERS, LEADER),
}


def reached_by(term: Tensor, case: Case, method: Method, batch: Batch) -> frozenset[str]:
    found = dense_gradients(term, leaves_of(method, batch.outputs))
    logits_SBC = found.pop("logits")
    found |= {f"logits.{member}": g for member, g in zip(case.members, logits_SBC, strict=True)}
    return frozenset(name for name, g in found.items() if g.any())


@pytest.mark.parametrize("kind", ["branches", "networks"])
@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("peer_targets", "target_gradient"), GRADIENT_MAP)
def test_each_term_reaches_exactly_the_tensors_in_the_map(
    peer_targets: str, target_gradient: str, mix: str, leader: bool, kind: GroupKind
) -> None:
    case = Case(peer_targets=peer_targets, target_gradient=target_gradient, mix=mix, leader=leader, kind=kind)
    method, batch = create(case), draw(case)
    among_peers, by_leader = GRADIENT_MAP[peer_targets, target_gradient]
    expected = {
        "cross_entropy": PEERS | LEADER if leader else PEERS,
        "confidence_penalty" if peer_targets == "entropy" else "peer_distillation": among_peers,
    }
    if leader:
        expected["leader_distillation"] = by_leader

    losses = compute(case, method, batch)

    assert {name: reached_by(term, case, method, batch) for name, term in losses.terms.items()} == expected


@pytest.mark.parametrize("mix", MIXES)
def test_attention_only_pulls_each_peer_by_its_distance_from_its_target_and_no_further(mix: str) -> None:
    """d/dz_a of T^2 KL(sg[t_a] || q'_a), mean over B: T (q'_a - t_a) / B, nothing by way of a mixture."""
    case = Case(mix=mix, target_gradient="attention-only")
    method, batch = create(case), draw(case)
    alpha_BAA = method.weights(batch.outputs)["attention"].detach()
    z_SBC = batch.outputs.logits_SBC.detach()
    softened_SBC = torch.softmax(z_SBC / 3.0, dim=-1)
    if mix == "logits":
        target_ABC = torch.softmax(torch.einsum("nab,bnc->anc", alpha_BAA, z_SBC[:3]) / 3.0, dim=-1)
        leader_BC = torch.softmax(z_SBC[:3].mean(0) / 3.0, dim=-1)
    else:
        target_ABC = torch.einsum("nab,bnc->anc", alpha_BAA, softened_SBC[:3])
        leader_BC = softened_SBC[:3].mean(0)
    target_SBC = torch.cat([target_ABC, leader_BC[None]])

    terms = compute(case, method, batch).terms
    (gradient_SBC,) = torch.autograd.grad(
        terms["peer_distillation"] + terms["leader_distillation"], batch.outputs.logits_SBC
    )

    torch.testing.assert_close(gradient_SBC, 3.0 * (softened_SBC - target_SBC) / case.images, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mix", MIXES)
def test_the_settings_differ_in_gradients_alone(mix: str) -> None:
    base = Case(mix=mix)
    batch = draw(base)
    found = {g: losses_and_gradients(create(replace(base, target_gradient=g)), batch, 0.7) for g in TARGET_GRADIENTS}
    full, full_gradients = found["full"]

    for target_gradient in ("leader-detached", "attention-only"):
        losses, their_gradients = found[target_gradient]
        assert_equal(losses, full, tolerance=1e-12)
        assert_equal({w: their_gradients[w] for w in W}, {w: full_gradients[w] for w in W}, tolerance=1e-12)
        assert_equal({"": their_gradients["logits"][-1]}, {"": full_gradients["logits"][-1]}, tolerance=1e-12)
        assert not torch.allclose(their_gradients["logits"][:-1], full_gradients["logits"][:-1])


@pytest.mark.parametrize("peer_targets", PEER_TARGETS)
def test_with_a_ramp_of_zero_only_the_cross_entropy_trains(peer_targets: str) -> None:
    case = Case(peer_targets=peer_targets, ramp=0.0)
    method, batch = create(case), draw(case)

    losses = compute(case, method, batch)

    assert reached_by(losses.total, case, method, batch) == PEERS | LEADER
    assert losses.total.item() == pytest.approx(losses.terms["cross_entropy"].item(), rel=1e-12)


# The projections and the weights


@pytest.mark.parametrize(("width", "rows"), [(8, 1), (15, 1), (16, 2), (64, 8), (132, 16)])
def test_the_projections_have_an_eighth_of_the_features_and_no_bias(width: int, rows: int) -> None:
    method = create(Case(width=width))

    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == dict.fromkeys(PROJECTIONS, (rows, width))
    assert not list(method.buffers())


def test_the_projections_start_at_random_and_apart() -> None:
    """Alike, peers would attend symmetrically at first; zero, neither would ever get a gradient."""
    state = methods.create(okddip(Case()), shape_of(Case())).state_dict()
    w_l, w_e = (state[name] for name in PROJECTIONS)

    assert w_l.all()
    assert w_e.all()
    assert not torch.isclose(w_l, w_e).any()


@pytest.mark.parametrize("peer_targets", [p for p in PEER_TARGETS if p != "attention"])
def test_the_ablations_have_no_parameters(peer_targets: str) -> None:
    method = create(Case(peer_targets=peer_targets))

    assert method.W_L is None
    assert method.W_E is None
    assert not method.state_dict()


@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("peer_targets", PEER_TARGETS)
def test_the_weights_are_attentions_for_each_image(peer_targets: str, leader: bool) -> None:
    case = Case(peer_targets=peer_targets, leader=leader)
    method, batch = create(case), draw(case)

    weights = method.weights(batch.outputs)

    if peer_targets not in ("attention", "symmetric"):
        assert weights == {}
        return
    assert set(weights) == {"attention"}
    expected = Expected(case, method, batch, compute(case, method, batch))
    alpha_BAA = oracles_peers.okddip_weights(
        peer_targets,
        expected.features[: case.peers],
        expected.leaves.get("W_L.weight"),
        expected.leaves.get("W_E.weight"),
        None,
    )
    torch.testing.assert_close(weights["attention"], alpha_BAA, rtol=1e-9, atol=1e-12)


def test_attention_is_asymmetric_and_the_identity_is_not() -> None:
    """Scores before the softmax: log alpha, less the row's own constant; symmetric ones have s_ab = h_a . h_b."""
    case = Case(peers=2)
    batch = draw(case)
    h_0, h_1 = (h_BD.detach() for h_BD in batch.outputs.features[:2])

    log_alpha = create(replace(case, peer_targets="symmetric")).weights(batch.outputs)["attention"].log()

    for a, (mine, other) in enumerate(((h_0, h_1), (h_1, h_0))):
        difference_B = log_alpha[:, a, a] - log_alpha[:, a, 1 - a]
        torch.testing.assert_close(difference_B, (mine * mine).sum(1) - (mine * other).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("peer_targets", PEER_TARGETS)
def test_the_ensemble_is_the_mean_of_the_peers_logits_without_the_leader(peer_targets: str, leader: bool) -> None:
    case = Case(peer_targets=peer_targets, leader=leader)
    method, batch = create(case), draw(case)

    torch.testing.assert_close(
        method.ensemble(batch.outputs), batch.outputs.logits_SBC[: case.peers].mean(0), rtol=1e-12, atol=1e-12
    )
    assert method.ensemble_name is not None


@pytest.mark.parametrize("mix", MIXES)
def test_under_autocast_scores_and_mixtures_are_computed_in_single_precision(mix: str) -> None:
    """As products of matrices they would be in bfloat16; a learned projection may well be, and so is left out here."""
    case = Case(peer_targets="symmetric", mix=mix)
    method, batch = create(case, torch.float32), draw(case, torch.float32)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = compute(case, method, batch)

    assert_equal(named(losses), named(compute(case, method, batch)), tolerance=1e-6)


# Random weights


def test_random_weights_come_from_the_global_stream_and_anew_at_every_call() -> None:
    case = Case(peer_targets="random")
    method, batch = create(case), draw(case)

    with torch.random.fork_rng():
        torch.manual_seed(7)
        first = method(batch.outputs, batch.labels, 1.0).terms["peer_distillation"].item()
        second = method(batch.outputs, batch.labels, 1.0).terms["peer_distillation"].item()
        torch.manual_seed(7)
        again = method(batch.outputs, batch.labels, 1.0).terms["peer_distillation"].item()

    assert again == first
    assert abs(second - first) > 1e-6


def test_random_weights_are_drawn_for_every_image() -> None:
    """Images alike in everything get gradients of their own."""
    case = Case(peer_targets="random", images=6)
    method = create(case)
    batch = pick_images(draw(case), [0] * 6)

    (gradient_SBC,) = torch.autograd.grad(
        compute(case, method, batch).terms["peer_distillation"], batch.outputs.logits_SBC
    )

    assert len({tuple(gradient_SBC[:, b].flatten().tolist()) for b in range(6)}) == 6


def test_random_weights_are_softmaxes_of_standard_normal_numbers() -> None:
    """The mean over many images against the integral over the normal distribution, to about four deviations."""
    case = Case(peers=2, images=60_000, classes=2, width=8, peer_targets="random", leader=False)
    logits_SBC = torch.zeros(2, case.images, 2, dtype=torch.float64)
    logits_SBC[0, :, 0] = 9.0
    features = tuple(torch.zeros(case.images, 8, dtype=torch.float64) for _ in range(2))
    batch = Batch(GroupOutput(logits_SBC, features, None, case.members), torch.zeros(case.images, dtype=torch.int64))

    term = compute(case, create(case), batch).terms["peer_distillation"].item()

    assert term == pytest.approx(oracles_peers.expected_random_distillation(9.0, 3.0), rel=0.02)


# Members and options


@pytest.mark.parametrize(
    ("leader", "students", "members", "deployed"),
    [
        (True, 4, ("peer_0", "peer_1", "peer_2", "leader"), "leader"),
        (True, 3, ("peer_0", "peer_1", "leader"), "leader"),
        (False, 4, ("peer_0", "peer_1", "peer_2", "peer_3"), "peer_0"),
        (False, 2, ("peer_0", "peer_1"), "peer_0"),
    ],
)
def test_the_leader_stands_last_and_is_deployed(
    leader: bool, students: int, members: tuple[str, ...], deployed: str
) -> None:
    options = options_of("okddip", leader=leader)
    method = create(Case(peers=students - leader, leader=leader))

    assert methods.members(options, students) == members
    assert method.leader(members) == deployed
    assert method.peers(members) == members[: students - leader]
    assert not list(options.faults("branches", students))


def test_the_default_is_as_in_the_authors_code() -> None:
    options = options_of("okddip")
    model = methods.options_model("okddip")

    assert options.model_dump(exclude={"rampup_epochs"}) == {
        "name": "okddip",
        "temperature": 3.0,
        "mix": "logits",
        "target_gradient": "full",
        "peer_targets": "attention",
        "leader": True,
    }
    assert (model.default_students, set(model.allowed_kinds)) == (4, {"branches", "networks"})


@pytest.mark.parametrize("kind", ["branches", "networks"])
def test_one_peer_and_a_leader_are_too_few(kind: GroupKind) -> None:
    faults = list(options_of("okddip").faults(kind, 2))

    assert faults
    assert all(key and problem for key, problem, _ in faults)
    assert not list(options_of("okddip", leader=False).faults(kind, 2))


@pytest.mark.parametrize("peer_targets", PEER_TARGETS)
def test_only_attention_can_be_trained_alone(peer_targets: str) -> None:
    options = options_of("okddip", peer_targets=peer_targets, target_gradient="attention-only")

    assert bool(list(options.faults("branches", 4))) == (peer_targets != "attention")


@pytest.mark.parametrize(
    ("widths", "fits"),
    [
        ((16, 16, 16, 16), True),
        ((8, 8, 8, 8), True),
        ((16, 16, 24, 24), False),
        ((16, 24, 16, 16), False),
        ((7, 7, 7, 7), False),
        ((1, 1, 1, 1), False),
        ((16, 16, 16, 24), True),  # the leader is not attended
    ],
)
def test_attention_wants_peers_of_one_width_from_eight_on(widths: tuple[int, ...], fits: bool) -> None:
    shape = shape_of(Case())._replace(feature_widths=widths)

    if fits:
        methods.create(options_of("okddip"), shape)
    else:
        with pytest.raises(SettingError):
            methods.create(options_of("okddip"), shape)


def test_symmetric_attention_wants_peers_of_one_width_too() -> None:
    shape = shape_of(Case())._replace(feature_widths=(16, 24, 16, 16))

    with pytest.raises(SettingError):
        methods.create(options_of("okddip", peer_targets="symmetric"), shape)


# What holds for any group


def any_case(**fixed: Any) -> st.SearchStrategy[Case]:
    """Any setting there is; `fixed` fields keep their value."""
    free: dict[str, st.SearchStrategy[Any]] = {
        "peers": st.integers(2, 4),
        "images": st.integers(1, 5),
        "classes": st.integers(2, 6),
        "width": st.integers(8, 20),
        "kind": st.sampled_from(["branches", "networks"]),
        "mix": st.sampled_from(MIXES),
        "target_gradient": st.sampled_from(TARGET_GRADIENTS),
        "peer_targets": st.sampled_from(PEER_TARGETS),
        "leader": st.booleans(),
        "temperature": st.floats(0.5, 8.0),
        "ramp": st.floats(0.0, 1.0),
        "label_smoothing": st.floats(0.0, 0.5),
        "seed": st.integers(0, 10_000),
    }
    strategies = {name: st.just(fixed[name]) if name in fixed else strategy for name, strategy in free.items()}
    return st.builds(Case, **strategies).filter(lambda case: case.possible)


DISTILLING = st.sampled_from([p for p in PEER_TARGETS if p != "entropy"])
WITHOUT_CHANCE = st.sampled_from([p for p in PEER_TARGETS if p != "random"])


@few_examples
@given(any_case(), DISTILLING, st.randoms(use_true_random=False))
def test_distillation_is_zero_and_flat_when_all_students_agree(
    case: Case, peer_targets: str, chance: random.Random
) -> None:
    """Agreement is of probabilities, whatever the weights; each student's logits may sit at a height of their own."""
    case = replace(case, peer_targets=peer_targets, target_gradient="full")
    method, batch = create(case), draw(case)
    heights_SB1 = torch.tensor(
        [[[chance.uniform(-5, 5)] for _ in range(case.images)] for _ in range(case.students)], dtype=torch.float64
    )
    agreed = with_outputs(batch, logits_SBC=batch.outputs.logits_SBC[:1] + heights_SB1)
    leaves = leaves_of(method, agreed.outputs)
    # Random weights may come in single precision, whose rows sum to one with an error of 6e-8.
    tolerance = 1e-5 if peer_targets == "random" else 1e-9

    for name, term in compute(case, method, agreed).terms.items():
        if name != "cross_entropy":
            assert abs(term.item()) < tolerance, name
            assert all(g.abs().max() < tolerance for g in dense_gradients(term, leaves).values()), name


@few_examples
@given(any_case())
def test_terms_have_their_sign_and_total_is_the_weighted_sum(case: Case) -> None:
    losses = compute(case, create(case), draw(case))

    terms = {name: term.item() for name, term in losses.terms.items()}
    assert set(terms) == case.terms
    assert all(value >= -1e-12 for name, value in terms.items() if name != "confidence_penalty")
    if "confidence_penalty" in terms:  # the entropy of C classes is at most ln C
        assert -case.peers * case.temperature**2 * log(case.classes) - 1e-9 <= terms["confidence_penalty"] <= 0.0
    others = sum(value for name, value in terms.items() if name != "cross_entropy")
    assert losses.total.item() == pytest.approx(terms["cross_entropy"] + case.ramp * others, rel=1e-10, abs=1e-10)


@few_examples
@given(any_case(), WITHOUT_CHANCE, st.randoms(use_true_random=False))
def test_reordering_the_peers_changes_no_loss_and_reorders_the_gradients(
    case: Case, peer_targets: str, chance: random.Random
) -> None:
    case = replace(case, peer_targets=peer_targets, target_gradient="full")
    method, batch = create(case), draw(case)
    order = chance.sample(range(case.peers), case.peers) + list(range(case.peers, case.students))
    reordered = with_outputs(
        batch,
        logits_SBC=batch.outputs.logits_SBC[order],
        features=tuple(batch.outputs.features[i] for i in order),
    )

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, reordered, case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    expected = {"logits": before_gradients["logits"][order]}
    expected |= {f"features.{place}": before_gradients[f"features.{i}"] for place, i in enumerate(order)}
    assert_equal({**before_gradients, **expected}, after_gradients, "gradient", tolerance=1e-8)


@few_examples
@given(any_case(), WITHOUT_CHANCE, st.randoms(use_true_random=False))
def test_reordering_the_images_or_laying_them_out_twice_changes_no_loss(
    case: Case, peer_targets: str, chance: random.Random
) -> None:
    case = replace(case, peer_targets=peer_targets, target_gradient="full")
    method, batch = create(case), draw(case)
    order = chance.sample(range(case.images), case.images)

    before, before_gradients = losses_and_gradients(method, batch, case.ramp)
    after, after_gradients = losses_and_gradients(method, pick_images(batch, order), case.ramp)
    twice, _ = losses_and_gradients(method, pick_images(batch, order + order), case.ramp)

    assert_equal(after, before, tolerance=1e-9)
    assert_equal(twice, before, tolerance=1e-9)
    assert_equal({"": after_gradients["logits"]}, {"": before_gradients["logits"][:, order]}, tolerance=1e-9)


@few_examples
@given(any_case(), st.integers(0, 10_000), st.floats(-50, 50))
def test_raising_all_logits_of_one_student_for_one_image_changes_no_loss_and_no_gradient(
    case: Case, place: int, height: float
) -> None:
    method, batch = create(case), draw(case)
    raised_SBC = batch.outputs.logits_SBC.detach().clone()
    raised_SBC[place % case.students, place % case.images] += height
    raised = with_outputs(batch, logits_SBC=raised_SBC)

    before, after = (compute(case, method, each) for each in (batch, raised))

    assert_equal(named(after), named(before), tolerance=1e-8)
    assert_equal(
        dense_gradients(after.total, leaves_of(method, raised.outputs)),
        dense_gradients(before.total, leaves_of(method, batch.outputs)),
        "gradient",
        tolerance=1e-8,
    )


@few_examples
@given(any_case())
def test_temperature_only_rescales_logits_and_loss(case: Case) -> None:
    batch = draw(case)
    hotter = with_outputs(batch, logits_SBC=case.temperature * batch.outputs.logits_SBC)

    at_one = compute(case, create(replace(case, temperature=1.0)), batch).terms
    at_temperature = compute(case, create(case), hotter).terms

    for name in case.terms - {"cross_entropy"}:
        expected = case.temperature**2 * at_one[name].item()
        assert at_temperature[name].item() == pytest.approx(expected, rel=1e-8, abs=1e-10), name


@few_examples
@given(any_case(peer_targets="attention"), st.floats(0.01, 1e3))
def test_the_weights_of_each_image_and_peer_are_positive_and_sum_to_one(case: Case, stretch: float) -> None:
    batch = draw(case)
    batch = with_outputs(batch, features=tuple(stretch * h_BD for h_BD in batch.outputs.features))

    for peer_targets in ("attention", "symmetric"):
        chosen = replace(case, peer_targets=peer_targets, target_gradient="full")
        alpha_BAA = create(chosen).weights(batch.outputs)["attention"]

        assert alpha_BAA.shape == (case.images, case.peers, case.peers)
        assert (alpha_BAA >= 0).all()
        torch.testing.assert_close(alpha_BAA.sum(2), torch.ones_like(alpha_BAA[..., 0]), rtol=1e-12, atol=1e-12)


@few_examples
@given(any_case(peer_targets="attention"))
def test_projections_of_zero_attend_to_all_alike(case: Case) -> None:
    case = replace(case, target_gradient="full")
    method, batch = create(case), draw(case)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()

    attended, attended_gradients = losses_and_gradients(method, batch, case.ramp)
    mean, mean_gradients = losses_and_gradients(create(replace(case, peer_targets="mean")), batch, case.ramp)

    assert_equal(attended, mean, tolerance=1e-10)
    assert_equal({"": attended_gradients["logits"]}, {"": mean_gradients["logits"]}, tolerance=1e-10)


@few_examples
@given(any_case(leader=True))
def test_without_the_leader_the_peers_learn_the_same(case: Case) -> None:
    batch = draw(case)
    alone = replace(case, leader=False)
    outputs = batch.outputs
    peers = outputs._replace(
        logits_SBC=outputs.logits_SBC[:-1], features=outputs.features[:-1], members=outputs.members[:-1]
    )

    with_leader = compute(case, create(case), batch).terms
    without = compute(alone, create(alone), Batch(peers, batch.labels)).terms

    name = next(iter(case.terms - {"cross_entropy", "leader_distillation"}))
    assert set(without) == {"cross_entropy", name}
    assert without[name].item() == pytest.approx(with_leader[name].item(), rel=1e-10, abs=1e-12)
    assert without["cross_entropy"].item() < with_leader["cross_entropy"].item()


def test_the_ramp_may_be_a_tensor() -> None:
    method, batch = create(Case()), draw(Case())

    as_float, float_gradients = losses_and_gradients(method, batch, 0.3)
    as_tensor, tensor_gradients = losses_and_gradients(method, batch, torch.tensor(0.3, dtype=torch.float64))

    assert as_tensor["total"].shape == ()
    assert_equal(as_tensor, as_float, tolerance=1e-12)
    assert_equal(tensor_gradients, float_gradients, tolerance=1e-12)


# Numbers at the edge


def assert_finite_and_right(case: Case, dtype: torch.dtype, batch: Batch, tolerance: float = 1e-5) -> None:
    method = create(case, dtype)

    losses = compute(case, method, batch)

    expected = Expected(case, method, batch, losses)
    assert_equal(named(losses), expected.named, tolerance=tolerance)
    for name, loss in named(losses).items():
        assert torch.isfinite(loss), name
        for leaf, g in dense_gradients(loss, leaves_of(method, batch.outputs)).items():
            assert torch.isfinite(g).all(), (name, leaf)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("peer_targets", "target_gradient"), GRADIENT_MAP)
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(
    peer_targets: str, target_gradient: str, mix: str, temperature: float, dtype: torch.dtype
) -> None:
    """Softmax is then exactly 0 or 1 and p log p must not become 0 times infinity; the values stay right."""
    case = Case(
        peers=2,
        peer_targets=peer_targets,
        target_gradient=target_gradient,
        mix=mix,
        temperature=temperature,
        label_smoothing=0.1,
    )
    batch = draw(case, dtype)
    extreme = with_outputs(batch, logits_SBC=1e4 * batch.outputs.logits_SBC.sign())

    assert_finite_and_right(case, dtype, extreme)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("size", [30.0, 300.0, 3_000.0])
def test_logits_on_the_way_to_ten_thousand_give_the_right_losses(size: float, mix: str, dtype: torch.dtype) -> None:
    """Where probabilities are tiny, subnormal or just gone."""
    case = Case(mix=mix, target_gradient="full", temperature=1.0)
    batch = draw(case, dtype)
    spread = with_outputs(batch, logits_SBC=size * batch.outputs.logits_SBC)

    # Attention's own rounding, times logits of this size, is what single precision cannot tell.
    assert_finite_and_right(case, dtype, spread, tolerance=1e-5 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("peer_targets", ["attention", "symmetric"])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_features_of_any_size_give_finite_losses_and_gradients(
    size: float, peer_targets: str, mix: str, dtype: torch.dtype
) -> None:
    """Each peer then attends to a single one, and some weights are exactly 0."""
    case = Case(peer_targets=peer_targets, mix=mix)
    batch = draw(case, dtype)
    extreme = with_outputs(batch, features=tuple(size * h_BD for h_BD in batch.outputs.features))

    assert_finite_and_right(case, dtype, extreme)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("height", [-1e4, 1e4])
@pytest.mark.parametrize("mix", MIXES)
def test_images_on_which_every_logit_is_the_same_give_the_loss_of_a_guess(
    mix: str, height: float, dtype: torch.dtype
) -> None:
    case = Case(classes=10, mix=mix)
    batch = draw(case, dtype)
    flat = with_outputs(batch, logits_SBC=torch.full_like(batch.outputs.logits_SBC, height))

    losses = compute(case, create(case, dtype), flat)

    assert losses.terms["cross_entropy"].item() == pytest.approx(4 * log(10), rel=1e-5)
    assert losses.terms["peer_distillation"].item() == pytest.approx(0.0, abs=1e-2 if dtype == torch.float32 else 1e-9)
    assert losses.terms["leader_distillation"].item() == pytest.approx(0.0, abs=1e-5)
