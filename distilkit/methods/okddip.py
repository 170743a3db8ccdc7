"""`okddip`: Online Knowledge Distillation with Diverse Peers (Chen et al.; AAAI 2020, arXiv 1912.00350).

Two levels. Peers a = 1 .. A learn from a mixture of peers that attention weighs for each of them, so that they stay
diverse; the leader, who is deployed, learns from the peers' plain mean:

    alpha_ab = softmax_b( L(h_a) . E(h_b) ),  L(h) = W_L h,  E(h) = W_E h           Eqs. 6-7, h: input of the classifier
    t_a      = sum_b alpha_ab q'_b                                                 Eq. 5
    t_leader = 1/A sum_b q'_b
    loss     = sum_all CE + w T^2 sum_a KL(t_a || q'_a) + w T^2 KL(t_leader || q'_leader)     Eqs. 8-10

The paper mixes probabilities; the authors' code mixes logits and then applies the softmax at T (`mix = "logits"`, the
default, which the tables come from). Nothing is detached there (`target_gradient = "full"`): W_L and W_E learn only
through the targets. The ramp-up weight w is in the code, not in the equations.

Shape suffixes: A peers, B images, C classes, D features before the classifier.
"""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distilkit.errors import SettingError
from distilkit.methods.base import DistillationOptions, GroupKind, GroupOutput, GroupShape, Method, MethodLosses
from distilkit.methods.losses import cross_entropy, distillation, wide
from distilkit.methods.registry import register

LEADER = "leader"
REDUCTION = 8
"""The projections are this many times narrower than the features, rounded down (132 -> 16)."""


class OkddipOptions(DistillationOptions):
    """`okddip`: diverse peers and a leader; the defaults are the authors' code."""

    mix: Annotated[
        Literal["logits", "probabilities"], Field(description="What targets are mixed from: code, or paper (Eq. 5).")
    ] = "logits"
    target_gradient: Annotated[
        Literal["full", "leader-detached", "attention-only"],
        Field(description="What learns through the targets: everything; peers' targets only; the projections only."),
    ] = "full"
    peer_targets: Annotated[
        Literal["attention", "symmetric", "mean", "random", "entropy"],
        Field(description="How peers are weighed for one another; all but `attention` are the ablations of Table 5."),
    ] = "attention"
    leader: Annotated[
        bool, Field(description="Whether the last student learns from the peers' mean; else all peer.")
    ] = True

    default_students: ClassVar[int] = 4
    min_students: ClassVar[int] = 2

    def faults(self, kind: GroupKind, students: int) -> Iterator[tuple[str, str, str | None]]:
        """Peers need one another."""
        if self.leader and students < 3:
            yield (
                "students",
                f"'okddip' needs at least 2 peers beside its leader: 3 students or more, not {students}",
                "set group.students = 4, as in the paper",
            )
        if self.target_gradient == "attention-only" and self.peer_targets != "attention":
            yield (
                "target_gradient",
                f"'attention-only' lets the attention alone learn from the targets; peer_targets = "
                f"{self.peer_targets!r} has none to learn",
                'use target_gradient = "full" or "leader-detached"',
            )
        if self.target_gradient == "leader-detached" and not self.leader:
            yield (
                "target_gradient",
                "'leader-detached' detaches the leader's target, and leader = false has none",
                'use target_gradient = "full" or "attention-only"',
            )
        if self.mix == "probabilities" and self.peer_targets == "entropy" and not self.leader:
            yield ("mix", "peer_targets = 'entropy' without a leader mixes nothing", "leave mix out")


@register("okddip", OkddipOptions)
class Okddip(Method):
    """Two-level distillation over peers and, last, a leader; without one (`leader = false`) over peers alone.

    Every peer's features must have one width of at least 8. Raises `SettingError` where they have not.
    The ensemble is the mean of the peers' logits; the leader is not in it.
    """

    def __init__(self, options: OkddipOptions, shape: GroupShape, label_smoothing: float = 0.0) -> None:
        super().__init__(options, shape, label_smoothing)
        self.options = options
        self.ensemble_name = "mean_of_peers"
        self.W_L: nn.Linear | None = None
        self.W_E: nn.Linear | None = None
        if options.peer_targets == "attention":
            width = _shared_width(shape, len(self.peers(shape.members)))
            self.W_L = nn.Linear(width, width // REDUCTION, bias=False)
            self.W_E = nn.Linear(width, width // REDUCTION, bias=False)
        elif options.peer_targets == "symmetric":
            _shared_width(shape, len(self.peers(shape.members)), least=1)

    @staticmethod
    def member_names(options: OkddipOptions, students: int) -> tuple[str, ...]:
        """`peer_0` and so on; the last is `leader` where there is one."""
        peers = students - 1 if options.leader else students
        return (*(f"peer_{a}" for a in range(peers)), *((LEADER,) if options.leader else ()))

    @staticmethod
    def leader(members: tuple[str, ...]) -> str:
        """The leader; without one, the first peer."""
        return LEADER if LEADER in members else members[0]

    @staticmethod
    def peers(members: tuple[str, ...]) -> tuple[str, ...]:
        """All but the leader."""
        return tuple(name for name in members if name != LEADER)

    @staticmethod
    def summed_over(members: tuple[str, ...]) -> dict[str, int]:
        """Peers learn from peers, and the leader from all of them."""
        peers = sum(name != LEADER for name in members)
        return {"leader_distillation": 1, "peer_distillation": peers, "confidence_penalty": peers}

    def forward(self, outputs: GroupOutput, labels_B: Tensor, ramp: float | Tensor) -> MethodLosses:
        """Eq. 10 for one batch; `ramp` is w. Terms are unweighted, in nats."""
        options, count = self.options, len(self.peers(outputs.members))
        peers_ABC, leader_1BC = outputs.logits_SBC[:count], outputs.logits_SBC[count:]
        terms = {"cross_entropy": cross_entropy(outputs.logits_SBC, labels_B, self.label_smoothing)}
        if options.peer_targets == "entropy":
            # Peers learn from nobody; low confidence is rewarded instead (the penalty of Pereyra et al. 2017).
            log_q_ABC = F.log_softmax(wide(peers_ABC) / options.temperature, dim=-1)
            entropy = -(log_q_ABC.exp() * log_q_ABC).sum(-1).mean(1).sum()
            terms["confidence_penalty"] = -(options.temperature**2) * entropy
        else:
            terms["peer_distillation"] = distillation(self._peer_targets(outputs), peers_ABC, options.temperature)
        if len(leader_1BC):
            target_BC = self._mixed(peers_ABC, _equal_shares(peers_ABC, 1))[0]
            if options.target_gradient != "full":
                target_BC = target_BC.detach()
            terms["leader_distillation"] = distillation(target_BC, leader_1BC, options.temperature)
        distilled = torch.stack([term for name, term in terms.items() if name != "cross_entropy"]).sum()
        return MethodLosses(terms["cross_entropy"] + ramp * distilled, terms)

    def ensemble(self, outputs: GroupOutput) -> Tensor:
        """Mean of the peers' logits, [B, C]."""
        return outputs.logits_SBC[: len(self.peers(outputs.members))].mean(0)

    def weights(self, outputs: GroupOutput) -> dict[str, Tensor]:
        """`attention`: alpha_ab for each image, [B, A, A], rows summing to one; nothing where peers are not weighed."""
        if self.options.peer_targets not in ("attention", "symmetric"):
            return {}
        return {"attention": self._log_attention(outputs).exp().permute(2, 0, 1)}

    def _log_attention(self, outputs: GroupOutput) -> Tensor:
        """Log alpha_ab [A, A, B]."""
        features = [h.detach() if self.options.target_gradient == "attention-only" else h for h in outputs.features]
        h_ABD = torch.stack(features[: len(self.peers(outputs.members))])
        queries = h_ABD if self.W_L is None else self.W_L(h_ABD)
        keys = h_ABD if self.W_E is None else self.W_E(h_ABD)
        # A product and a sum, not a matmul: autocast would run that one in bfloat16.
        return (wide(queries)[:, None] * wide(keys)[None]).sum(-1).log_softmax(1)

    def _peer_targets(self, outputs: GroupOutput) -> Tensor:
        """t_a of every peer as logits [A, B, C]."""
        peers_ABC = outputs.logits_SBC[: len(self.peers(outputs.members))]
        count, images = peers_ABC.shape[:2]
        if self.options.target_gradient == "attention-only":
            peers_ABC = peers_ABC.detach()
        if self.options.peer_targets == "mean":
            log_alpha_AAB = _equal_shares(peers_ABC, count)
        elif self.options.peer_targets == "random":
            # Anew for every image and step; the paper does not say from which distribution.
            log_alpha_AAB = torch.randn_like(wide(peers_ABC)[..., 0].expand(count, count, images)).log_softmax(1)
        else:
            log_alpha_AAB = self._log_attention(outputs)
        return self._mixed(peers_ABC, log_alpha_AAB)

    def _mixed(self, peers_ABC: Tensor, log_alpha_NAB: Tensor) -> Tensor:
        """N mixtures of the peers as logits [N, B, C]: of their logits, or of their probabilities at T."""
        temperature = self.options.temperature
        if self.options.mix == "logits":
            return (log_alpha_NAB.exp()[..., None] * wide(peers_ABC)[None]).sum(1)
        # In logarithms, for probabilities of 1e-40 are none in float32.
        log_q_ABC = F.log_softmax(wide(peers_ABC) / temperature, dim=-1)
        return temperature * (log_alpha_NAB[..., None] + log_q_ABC[None]).logsumexp(1)


def _equal_shares(peers_ABC: Tensor, mixtures: int) -> Tensor:
    """log(1 / A) for every peer in N mixtures, [N, A, B]."""
    count, images = peers_ABC.shape[:2]
    return wide(peers_ABC).new_full((mixtures, count, images), -math.log(count))


def _shared_width(shape: GroupShape, peers: int, least: int = REDUCTION) -> int:
    widths = set(shape.feature_widths[:peers])
    if len(widths) > 1:
        raise SettingError(
            "peer_targets",
            f"attention needs peers whose features have one width, not {sorted(widths)}",
            'set method.peer_targets = "mean", or use one architecture for all students',
        )
    width = widths.pop()
    if width < least:
        raise SettingError(
            "peer_targets",
            f"attention needs features of at least {least} numbers, not {width}",
            'set method.peer_targets = "mean", or use a wider network',
        )
    return width
